"""Tables with the paper's numbers beside ours, as Markdown, HTML and terminal output from one structure.

A paper's number stands in a column called "paper" as printed; a number of ours was produced by a program and stands in
a column called "ours" or after a named network. What is missing is a dash, never a zero.
"""

from __future__ import annotations

import html
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rich.table import Table as RichTable

from common.evaluation.complexity import Complexity
from common.reporting.ledger import DASH, Column, Ledger, Row, Table
from common.reporting.results import Result

STATUS_MARKS = {"computed": "C", "demo": "D", "recipe": "R", "literature": "L", "diagram": "G"}


@dataclass
class Head:
    """A column: `group` spans neighbouring columns; `kind` is text, paper, ours, difference or other."""

    name: str
    group: str = ""
    kind: str = "text"


@dataclass
class Shown:
    """A table to show. `cells[i][j]` is text; `notes` stand below it."""

    title: str
    heads: list[Head]
    cells: list[list[str]]
    notes: list[str] = field(default_factory=list)
    id: str = ""


def paper_table(
    ledger: Ledger,
    table: Table,
    complexities: Mapping[str, Mapping[str, Complexity]],
    results: Sequence[Result] = (),
    rows: Sequence[Row] | None = None,
) -> Shown:
    """A table of the paper with ours beside it.

    Args:
        ledger, table: where it stands.
        complexities: row id -> label of the network -> what was counted.
        results: measured rows; several of one entry and data set are averaged.
        rows: the rows to show; all by default.
    """
    rows = list(table.rows if rows is None else rows)
    counted = {row.id: complexities.get(row.id, {}) for row in rows}
    labels = [list(counts) for counts in counted.values()]
    others = list(dict.fromkeys(label for names in labels for label in names[1:]))
    extra = [c for c in (Column("params", "Params", "params"), Column("macs", "MACs", "macs")) if any(labels)]
    columns = table.columns + [c for c in extra if table.column(str(c.measure)) is None]

    heads = [Head("Model")]
    cells: list[list[str]] = [[row.name] for row in rows]

    def add(head: Head, values: list[str]) -> None:
        if head.kind in ("text", "paper") or any(v != DASH for v in values):
            heads.append(head)
            for line, value in zip(cells, values, strict=True):
                line.append(value)

    for column in columns:
        printed = [row.paper.get(column.key) for row in rows]
        shown = [DASH if p in (None, "-") else str(p) for p in printed]
        if column.measure is None:
            add(Head(column.name), shown)
            continue
        if column.key in {c.key for c in table.columns}:
            add(Head("paper", column.name, "paper"), shown)
        primary: list[float | None]
        if column.measure in ("params", "macs"):
            primary = [_counted(next(iter(counted[row.id].values()), None), column.measure) for row in rows]
        else:
            primary = [_measured(results, row.id, column) for row in rows]
        add(Head("ours", column.name, "ours"), [column.print(v, p) for v, p in zip(primary, printed, strict=True)])
        differences = [_difference(column, v, column.value(p)) for v, p in zip(primary, printed, strict=True)]
        add(Head("Δ", column.name, "difference"), differences)
        for label in others if column.measure == "params" else []:
            values = [_counted(dict(list(counted[row.id].items())[1:]).get(label), column.measure) for row in rows]
            texts = [column.print(v, p) for v, p in zip(values, printed, strict=True)]
            add(Head(label, column.name, "other"), texts)
        if column.measure == "macs":
            full = [next(iter(counted[row.id].values()), None) for row in rows]
            texts = [column.print(None if c is None else c.macs_full, p) for c, p in zip(full, printed, strict=True)]
            add(Head("full count", column.name, "other"), texts)
    primary_labels = [names[0] if names else DASH for names in labels]
    if any(label not in ("ours", DASH) for label in primary_labels):
        add(Head("Network"), primary_labels)
    add(Head("Status"), [" ".join(STATUS_MARKS[s] for s in row.statuses) for row in rows])
    notes = [table.note] if table.note else []
    for note in dict.fromkeys(row.note for row in rows if row.note):
        about = ", ".join(row.id.partition("/")[2] for row in rows if row.note == note)
        notes.append(f"{about}: {note}")
    used = dict.fromkeys(label for names in labels for label in names)
    notes += [f"`{label}`: {ledger.labels[label]}" for label in used if label in ledger.labels]
    return Shown(f"{table.number}. {table.title}", heads, cells, notes, table.id)


def _counted(complexity: Complexity | None, measure: str) -> float | None:
    if complexity is None:
        return None
    return complexity.params if measure == "params" else complexity.macs_paper


def _measured(results: Sequence[Result], entry: str, column: Column) -> float | None:
    values = [
        r.metrics[column.measure]
        for r in results
        if r.entry == entry and r.dataset == (column.dataset or "") and column.measure in r.metrics
    ]
    return sum(values) / len(values) if values else None


def _difference(column: Column, ours: float | None, paper: float | None) -> str:
    """Counts as a percentage of the paper's number, everything else as a plain difference in printed units."""
    if ours is None or paper is None:
        return DASH
    if column.measure in ("params", "macs") and paper:
        return f"{100 * (ours / paper - 1):+.1f}%"
    return f"{(ours - paper) / column.scale:+.2f}"


# Rendering


def to_markdown(table: Shown, heading: str = "###") -> str:
    """A GitHub table with its title and notes."""
    names = [(f"{h.group} " if h.group else "") + h.name for h in table.heads]
    align = [":--" if h.kind == "text" else "--:" for h in table.heads]
    lines = [names, align, *([_escape(c) for c in row] for row in table.cells)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in table.notes)
    return "\n\n".join(part for part in (f"{heading} {table.title}", text, notes) if part)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def to_html(table: Shown) -> str:
    """A `<table>` in a scrolling frame, with two header lines where columns are grouped."""
    grouped = any(h.group for h in table.heads)
    first, second = [], []
    for i, head in enumerate(table.heads):
        if not head.group:
            first.append(f'<th class="text"{" rowspan=2" if grouped else ""}>{html.escape(head.name)}</th>')
            continue
        if i == 0 or table.heads[i - 1].group != head.group:
            span = sum(1 for h in table.heads if h.group == head.group)
            first.append(f'<th class="group" colspan="{span}">{html.escape(head.group)}</th>')
        second.append(f'<th class="{head.kind}">{html.escape(head.name)}</th>')
    header = f"<tr>{''.join(first)}</tr>" + (f"<tr>{''.join(second)}</tr>" if grouped else "")
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{h.kind if c != DASH else h.kind + " none"}">{html.escape(c)}</td>'
            for h, c in zip(table.heads, row, strict=True)
        )
        + "</tr>"
        for row in table.cells
    )
    notes = "".join(f"<li>{inline_html(note)}</li>" for note in table.notes)
    return f'<div class="scroll"><table><thead>{header}</thead><tbody>{body}</tbody></table></div>' + (
        f'<ul class="notes">{notes}</ul>' if notes else ""
    )


def inline_html(text: str) -> str:
    """HTML of text with `code` between backquotes and **bold** between double stars."""
    text = re.sub(r"`([^`]+)`", r"<code>\1</code>", html.escape(text))
    return re.sub(r"[*][*]([^*]+)[*][*]", r"<strong>\1</strong>", text)


def to_terminal(table: Shown) -> RichTable:
    """For `rich.print`."""
    shown = RichTable(title=table.title, title_justify="left", caption="\n".join(table.notes), caption_justify="left")
    styles = {"ours": "bold", "difference": "dim", "other": "dim"}
    for head in table.heads:
        name = f"{head.group}\n{head.name}" if head.group else head.name
        justify = "left" if head.kind == "text" else "right"
        shown.add_column(name, justify=justify, style=styles.get(head.kind, ""), no_wrap=True)  # type: ignore[arg-type]
    for row in table.cells:
        shown.add_row(*row)
    return shown
