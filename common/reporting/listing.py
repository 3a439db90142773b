"""Every row and figure of a ledger with its status and its commands, without PyTorch."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from common.reporting.ledger import Ledger


def list_records(ledger: Ledger, ids: Sequence[str], module: str) -> list[dict[str, Any]]:
    """Every chosen entry with its status and the commands that compute, train or show it."""
    records: list[dict[str, Any]] = []

    def add(entry: Any, commands: list[str], remark: str | None = None) -> None:
        if entry.id in ids:
            statuses = getattr(entry, "statuses", ["demo"])
            name = getattr(entry, "name", None) or entry.title
            records.append({"id": entry.id, "name": name, "statuses": statuses, "commands": commands, "remark": remark})

    demo_rows = [row for demo in ledger.demos for row in demo.rows]
    for _, row in ledger.rows():
        commands = [f"python -m {module} {row.id} --complexity"] if row.networks else []
        commands += [f"python -m {module} {own.id}" for own in demo_rows if own.table_row == row.id]
        for recipe in row.recipes.values():
            commands += [f"spectral fit {shlex.join(_relative(word) for word in c)}" for c in ledger.trainings(recipe)]
        commands = list(dict.fromkeys(commands))
        add(row, commands, None if commands else "quoted; nothing to run")
    for figure in ledger.figures:
        add(figure, [f"python -m {module} {figure.id}"] if figure.function else [], figure.location)
    for own in demo_rows:
        add(own, [f"python -m {module} {own.id}"])
    return records


def _relative(word: str) -> str:
    """An absolute path below the current folder as a relative one; any other word as it is."""
    path = Path(word)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else word


def listing(ledger: Ledger, records: Sequence[dict[str, Any]]) -> str:
    """The records as lines, below the titles of their tables."""
    lines = []
    group = None
    titles = {t.id: f"{t.number}. {t.title}" for t in ledger.tables}
    titles |= {demo.id: f"Demo. {demo.title}" for demo in ledger.demos}
    for record in records:
        prefix = record["id"].partition("/")[0]
        title = titles.get(prefix, "Figures")
        if title != group:
            lines += ["", title] if group else [title]
            group = title
        lines.append(f"  {record['id']:32} {', '.join(record['statuses']):32} {record['name']}")
        lines += [f"      {command}" for command in record["commands"]]
        lines += [f"      {record['remark']}"] if record["remark"] else []
    return "\n".join(lines)
