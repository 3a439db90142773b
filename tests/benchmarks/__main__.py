"""`make bench`: every benchmark after the other; each prints ratios measured in one run."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback

import tests.benchmarks


def main(arguments: list[str] | None = None) -> int:
    """Run all `bench_*.py` beside this file, or those named: `python -m tests.benchmarks stft --quick --threads=1`.

    A part that trains networks (`TRAINS` is true) runs only when it is named. A part that fails does not stop the
    others; the exit status is then 1.
    """
    arguments = sys.argv[1:] if arguments is None else arguments
    wanted = [argument for argument in arguments if not argument.startswith("-")]
    options = [argument for argument in arguments if argument.startswith("-")]
    names = [info.name for info in pkgutil.iter_modules(tests.benchmarks.__path__) if info.name.startswith("bench_")]
    unknown = [name for name in wanted if f"bench_{name}" not in names]
    if unknown:
        known = ", ".join(name.removeprefix("bench_") for name in names)
        sys.exit(f"no benchmark named {', '.join(unknown)}; there are: {known}")
    failed = []
    for name in names:
        if not wanted or name.removeprefix("bench_") in wanted:
            print(f"\n== {name} ==", flush=True)
            try:
                module = importlib.import_module(f"tests.benchmarks.{name}")
                if not wanted and getattr(module, "TRAINS", False):
                    print(f"left out, as it trains: python -m tests.benchmarks {name.removeprefix('bench_')}")
                    continue
                status = module.main(options)
            except (Exception, SystemExit) as error:
                traceback.print_exc()
                status = error.code if isinstance(error, SystemExit) else 1
            failed += [name] if status else []
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
