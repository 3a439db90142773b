"""What all commands share: options that suggest the nearest, errors of one line, exit statuses."""

from __future__ import annotations

import argparse
import contextlib
import difflib
import os
import re
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NoReturn

from common.datamodules.errors import ReadError

DEBUG_VARIABLE = "SPECTRAL_DEBUG"


class UsageError(ValueError):
    """The command line or the recipe is wrong."""


class CommandParser(argparse.ArgumentParser):
    """Answers a wrong option with one line that suggests the nearest one, in place of the whole usage."""

    def __init__(self, **options: Any) -> None:
        if "\n" in (options.get("description") or ""):
            options["formatter_class"] = argparse.RawDescriptionHelpFormatter
        super().__init__(allow_abbrev=False, **options)

    def error(self, message: str) -> NoReturn:
        known = [option for action in self._actions for option in action.option_strings if option.startswith("--")]
        if wrong := re.search(r"unrecognized arguments: .*?(--[\w-]+)", message):
            message += did_you_mean(wrong[1], known, before=". ")
        print(f"error: {message} ({self.prog} --help lists the options)", file=sys.stderr)
        self.exit(2)


def did_you_mean(word: str, known: Iterable[str], otherwise: str = "", before: str = " ") -> str:
    """A hint at the known word that is nearest, after ``before``; ``otherwise`` if none is near."""
    near = difflib.get_close_matches(word, list(known), n=1)
    return f"{before}Did you mean {near[0]}?" if near else otherwise


def first_line(error: BaseException, message: str | None = None) -> str:
    """The first line of an error's message, or of the `message` that stands for it; the error's type if it is empty."""
    return ((str(error) if message is None else message).strip() or type(error).__name__).splitlines()[0]


def printable(text: str) -> str:
    """Text with escapes in place of control characters, with which the name of a file could steer a terminal, and of
    characters that reverse the direction of writing or that have no encoding."""
    hidden = r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]"
    return re.sub(hidden, lambda found: repr(found[0])[1:-1], text)


def without_dump(message: str) -> str:
    """A message of the parser without its list of all types that a value could have had, and the value itself."""
    noise = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")
    lines = [line.rstrip() for line in message.splitlines() if not line.strip().startswith(noise)]
    if any("- Problem with given class_path" in line for line in lines):  # no other type is meant
        lines = [line.removeprefix("  - ") for line in lines if not line.strip().startswith("- Expected a <class")]
    return lines[0].strip().removeprefix("- ") if len(lines) == 1 else "\n".join(lines)


#: errors whose message is written for the user; they end a command without a traceback
USER_ERRORS: tuple[type[Exception], ...] = (ValueError, OSError, ReadError)


def run_command(action: Callable[[], int | None], interrupted: str = "interrupted") -> int:
    """Run a command; its exit status: 0 or what `action` returns, 1 after an error, 2 after a UsageError, 130 after
    Ctrl-C.

    An error is one line on standard error, or a traceback if the environment variable SPECTRAL_DEBUG is set.
    """
    try:
        with plain_warnings():
            return action() or 0
    except USER_ERRORS as error:
        if debugging():
            raise
        return report_error(error)
    except KeyboardInterrupt:
        print(interrupted, file=sys.stderr)
        return 130


@contextlib.contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings are one line each, without the place in the source. Lightning sets its own format on import."""
    before = warnings.formatwarning
    warnings.formatwarning = lambda message, *_: f"warning: {message}\n"
    try:
        yield
    finally:
        warnings.formatwarning = before


def debugging() -> bool:
    """Whether errors show their traceback."""
    return bool(os.environ.get(DEBUG_VARIABLE))


def report_error(error: BaseException) -> int:
    """Print an error as one line; the exit status."""
    print(f"error: {printable(plain_message(error))}", file=sys.stderr)
    return 2 if isinstance(error, UsageError) else 1


def plain_message(error: BaseException) -> str:
    """The message of an error, without the traceback that a loader's worker process puts before it."""
    message = str(error)
    if "Original Traceback" in message:
        message = re.split(r"\n(?:\w+\.)*\w+Error: ", message)[-1].rstrip()
    return message
