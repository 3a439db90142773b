"""A generated data folder appears whole or not at all, and is never overwritten."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from common.command_line import UsageError

RECORD = "demo.json"
"""File in a finished folder that holds the parameters it was made with."""


class DemoError(UsageError):
    """A demo cannot be generated as requested; the message says what to change."""


def check_minimum(**options: tuple[int, int]) -> None:
    """Raise DemoError for the first of the options ``name=(value, smallest allowed value)`` that is out of range."""
    for name, (value, smallest) in options.items():
        if value < smallest:
            raise DemoError(f"{name} is {value}; it must be at least {smallest}")


def make_folder(out: str | Path, parameters: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Create the folder ``out`` by calling ``fill(folder)``, or reuse one created earlier with the same parameters.

    ``fill`` writes to a temporary folder next to ``out``, which is renamed at the end, so an interrupted run leaves
    nothing under the name ``out``. Processes that create the same folder at the same time end up with one of them.

    Args:
        out: the folder to create. It may exist if it is empty or was created with the same ``parameters``.
        parameters: everything that the content depends on, as values that JSON can hold.
        fill: writes the content.

    Raises:
        DemoError: ``out`` holds something else. Nothing in it is changed.
    """
    record = json.loads(json.dumps(dict(parameters)))  # tuples become lists, as they do when read back
    out = Path(out).absolute()
    if _is_finished(out, record):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        fill(partial)
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp denies access to other users
        try:
            os.rename(partial, out)
        except OSError:
            if not _is_finished(out, record):  # otherwise another process has created the same folder meanwhile
                raise
            shutil.rmtree(partial)
    except BaseException:  # including KeyboardInterrupt
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _is_finished(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether ``out`` was created with ``record``; False if there is nothing yet; DemoError for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    advice = "choose another --out, or remove it first"
    try:
        existing = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DemoError(f"{out} exists and was not made by this command (no readable {RECORD}): {advice}") from None
    if existing != record:
        if not isinstance(existing, dict):
            existing = {}
        keys = sorted(key for key in {*existing, *record} if existing.get(key) != record.get(key))
        changes = ", ".join(f"{key} is {existing.get(key)!r}, requested {record.get(key)!r}" for key in keys)
        raise DemoError(f"{out} was made with other parameters ({changes}): {advice}")
    return True
