"""``python -m data.demo NAME --out DIR``: generate a demo dataset."""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common.command_line import CommandParser, run_command

OUT = "folder to create; an existing one that was created with the same arguments is reused"
SEED = "seed of everything that is drawn, at least 0"


def main(argv: list[str] | None = None) -> int:
    """Run one demo generator; returns the exit status (0 done, 1 refused, 2 wrong options, 130 interrupted)."""
    argv = sys.argv[1:] if argv is None else argv
    parser = CommandParser(prog="python -m data.demo", description=__doc__)
    commands = parser.add_subparsers(dest="name", required=True, metavar="NAME")
    generators = {}
    for path in sorted(Path(__file__).parent.glob("[!_]*.py")):
        name, text = path.stem, ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        summary = text.splitlines()[0]
        command = commands.add_parser(name, help=summary, description=summary)
        if name in argv:  # importing a generator takes seconds, because of torch: not for --help
            generators[name] = getattr(importlib.import_module(f"data.demo.{name}"), f"generate_{name}")
            add_options(command, generators[name])
    options = vars(parser.parse_args(argv))
    generate = generators[options.pop("name")]
    return run_command(lambda: print(generate(**options)), "interrupted; nothing was left behind")


def add_options(parser: argparse.ArgumentParser, generate: Callable[..., Any]) -> None:
    """Declare ``--out`` and an option for every keyword argument of a generator, with the help of its docstring."""
    section = (inspect.getdoc(generate) or "").partition("Args:\n")[2].partition("\n\n")[0]
    documented = re.findall(r"^    (\w[\w, ]*): (.*(?:\n {5,}.*)*)", section, re.MULTILINE)
    texts = {"out": OUT, "seed": SEED}
    texts |= {name: " ".join(text.split()) for names, text in documented for name in names.split(", ")}
    for name, parameter in inspect.signature(generate).parameters.items():
        default = parameter.default
        if name == "out":
            parser.add_argument("--out", type=Path, required=True, help=texts[name])
        elif default is None:
            parser.add_argument(f"--{name}", nargs="+", metavar="NAME", help=texts[name])
        else:
            nargs = len(default) if isinstance(default, tuple) else None
            text = f"{texts[name]} (default: {default})"
            parser.add_argument(f"--{name}", type=int, nargs=nargs, default=default, help=text)


if __name__ == "__main__":
    sys.exit(main())
