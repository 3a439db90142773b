"""``python -m data.demo NAME --out DIR``: make a demonstration data set; each public module here is one NAME.

A demo module has ``add_arguments(parser)`` and ``run(args) -> Path`` and raises `DemoError` for the user.
"""

from __future__ import annotations

import argparse
import importlib
import pkgutil
import sys
from pathlib import Path

import data.demo
from data.demo._folder import DemoError


def main(argv: list[str] | None = None) -> int:
    """Run one demo generator; returns the exit status (0 done, 2 refused, 130 interrupted)."""
    parser = argparse.ArgumentParser(prog="python -m data.demo", description=__doc__)
    commands = parser.add_subparsers(dest="demo", required=True, metavar="NAME")
    for info in pkgutil.iter_modules(data.demo.__path__):
        if info.name.startswith("_"):
            continue
        module = importlib.import_module(f"data.demo.{info.name}")
        summary = (module.__doc__ or "").splitlines()[0]
        command = commands.add_parser(info.name, help=summary, description=summary)
        command.add_argument("--out", type=Path, required=True, help="folder to make; never overwritten")
        module.add_arguments(command)
        command.set_defaults(run=module.run)
    args = parser.parse_args(argv)
    try:
        manifest = args.run(args)
    except DemoError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; nothing was left behind", file=sys.stderr)
        return 130
    print(manifest)
    return 0


if __name__ == "__main__":
    sys.exit(main())
