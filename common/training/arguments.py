"""Options of the commands that have a parser of their own: `predict`, `export`, `compare` and `runs`."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import Any, NoReturn


class CommandParser(argparse.ArgumentParser):
    """Answers a wrong option with one line that suggests the nearest one, in place of the whole usage."""

    def __init__(self, **options: Any) -> None:
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if wrong := re.search(r"unrecognized arguments: .*?(--[\w-]+)", message):
            near = difflib.get_close_matches(wrong[1], known, n=1)
            message += f". Did you mean {near[0]}?" if near else ""
        print(f"error: {message} ({self.prog} --help lists the options)", file=sys.stderr)
        self.exit(2)
