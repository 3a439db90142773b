"""A generated data folder appears whole or not at all, and is never overwritten."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RECORD = "demo.json"
"""File in a finished folder that holds the parameters it was made with."""


class DemoError(Exception):
    """A demo cannot be made as asked; the message says what to change."""


def make_folder(out: Path, parameters: Mapping[str, Any], fill: Callable[[Path], None]) -> Path:
    """Make the folder `out` by calling ``fill(folder)``, or reuse one made earlier with the same parameters.

    `fill` writes into a temporary folder beside `out`, which is renamed at the end, so that an interrupted run
    leaves nothing under the name `out`. Processes that make the same folder at once end up with one of them.

    Args:
        out: the folder to make. It may exist if it is empty or was made with the same `parameters`.
        parameters: everything the content depends on, as values that JSON can hold.
        fill: writes the content.

    Raises:
        DemoError: `out` holds something else. Nothing in it is changed.
    """
    record = json.loads(json.dumps(dict(parameters)))  # tuples become lists, as they will be when read back
    out = Path(out).absolute()
    if _is_finished(out, record):
        return out
    out.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{out.name}.partial-", dir=out.parent))
    try:
        fill(partial)
        (partial / RECORD).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
        partial.chmod(0o755)  # mkdtemp keeps others out
        try:
            os.rename(partial, out)
        except OSError:
            if not _is_finished(out, record):  # else another process made the same folder meanwhile
                raise
            shutil.rmtree(partial)
    except BaseException:  # Ctrl-C too
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return out


def _is_finished(out: Path, record: Mapping[str, Any]) -> bool:
    """Whether `out` was made with `record`; False where there is nothing yet; `DemoError` for anything else."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    advice = "choose another --out, or remove it first"
    try:
        found = json.loads((out / RECORD).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise DemoError(f"{out} exists and was not made by this command (no readable {RECORD}): {advice}") from None
    if found != record:
        if not isinstance(found, dict):
            found = {}
        keys = sorted(key for key in {*found, *record} if found.get(key) != record.get(key))
        changes = ", ".join(f"{key} is {found.get(key)!r}, asked for {record.get(key)!r}" for key in keys)
        raise DemoError(f"{out} was made with other parameters ({changes}): {advice}")
    return True
