"""Tables with the paper's numbers next to ours, as Markdown, HTML and terminal output from one structure.

A paper's number stands in a column called "paper" as printed; a number of ours was produced by a program and stands in
a column called "ours" or after a named network. What is missing is a dash, never a zero.
"""

from __future__ import annotations

import html
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.table import Table as RichTable
from rich.text import Text

from common.evaluation.complexity import Complexity
from common.reporting.ledger import DASH, STATUSES, Column, Demo, Ledger, Row, Table
from common.reporting.results import Result
from common.reporting.runs import Trained

LONG = 50


@dataclass
class ColumnHeader:
    """A column: `group` spans neighbouring columns; `kind` is text, paper, ours, difference or other."""

    name: str
    group: str = ""
    kind: str = "text"


@dataclass
class RenderedTable:
    """A table to show. `cells[i][j]` is text; `notes` stand below it."""

    title: str
    heads: list[ColumnHeader]
    cells: list[list[str]]
    notes: list[str] = field(default_factory=list)
    id: str = ""


def paper_table(
    ledger: Ledger,
    table: Table,
    complexities: Mapping[str, Mapping[str, Complexity]],
    results: Sequence[Result] = (),
    rows: Sequence[Row] | None = None,
) -> RenderedTable:
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
    extra = [c for c in (Column("params", "Params", "params"), Column("macs", "MACs", "macs")) if any(labels)]
    columns = table.columns + [c for c in extra if table.column(str(c.measure)) is None]

    heads = [ColumnHeader("Model")]
    cells: list[list[str]] = [[row.name] for row in rows]

    def add(head: ColumnHeader, values: list[str]) -> None:
        if head.kind in ("text", "paper") or any(v != DASH for v in values):
            heads.append(head)
            for line, value in zip(cells, values, strict=True):
                line.append(value)

    for column in columns:
        for head, values in _columns_of(column, column.key in {c.key for c in table.columns}, rows, counted, results):
            add(head, values)
    primary_labels = [names[0] if names else DASH for names in labels]
    if any(label not in ("ours", DASH) for label in primary_labels):
        add(ColumnHeader("Network"), primary_labels)
    add(ColumnHeader("Status"), [" ".join(STATUSES[s] for s in row.statuses) for row in rows])
    notes = [table.note] if table.note else []
    for note in dict.fromkeys(row.note for row in rows if row.note):
        about = ", ".join(row.id.partition("/")[2] for row in rows if row.note == note)
        notes.append(f"{about}: {note}")
    used = dict.fromkeys(label for names in labels for label in names)
    notes += [f"`{label}`: {ledger.labels[label]}" for label in used if label in ledger.labels]
    return RenderedTable(f"{table.number}. {table.title}", heads, cells, notes, table.id)


def summary_table(ledger: Ledger, counts: Mapping[str, Mapping[str, Complexity]]) -> RenderedTable:
    """One line a table: how many of its parameters and multiply-adds were counted, and how far they lie from the paper.

    A row is compared by its first network.
    """
    heads = [
        ColumnHeader("Table"),
        *(ColumnHeader(name, kind="ours") for name in ("counted", "compared", "within 1 %")),
    ]
    heads.append(ColumnHeader("largest difference"))
    cells = []
    for table in ledger.tables:
        if rows := [row for row in table.rows if counts.get(row.id)]:
            differences = _count_differences(table, rows, counts)
            largest, what = max(differences, key=lambda pair: abs(pair[0]), default=(0.0, ""))
            said = f"{100 * largest:+.1f} %: {what}" if differences else "nothing printed to compare with"
            near = _within(differences, 0.01)
            cells.append([f"{table.number}. {table.title}", str(len(rows)), str(len(differences)), str(near), said])
    return RenderedTable("Counted here, next to the paper", heads, cells)


def counts_overview(papers: Mapping[str, tuple[Ledger, Mapping[str, Mapping[str, Complexity]]]]) -> RenderedTable:
    """One line a paper: how far its parameters and multiply-adds, counted here, lie from the printed ones.

    Args:
        papers: name of a paper -> its ledger and the counts of its rows.
    """
    heads = [ColumnHeader("Paper"), ColumnHeader("rows counted", kind="ours")]
    heads += [ColumnHeader("numbers compared", kind="ours")]
    for group in ("best-matching variant", "default network"):
        heads += [ColumnHeader(name, group, kind="ours") for name in ("within 1 %", "within 5 %")]
    cells = []
    for name, (ledger, counts) in papers.items():
        by_table = [(table, [row for row in table.rows if counts.get(row.id)]) for table in ledger.tables]
        counted = sum(len(rows) for _, rows in by_table)
        closest, of_text = (
            [d for table, rows in by_table for d in _count_differences(table, rows, counts, label)]
            for label in ("", "text")
        )
        near = [_within(found, limit) for found in (closest, of_text) for limit in (0.01, 0.05)]
        cells.append([name, *(str(value) for value in (counted, len(closest), *near))])
    cells.append(["all", *(str(sum(int(line[k]) for line in cells)) for k in range(1, 7))])
    notes = [
        "Printed parameters and multiply-adds next to those counted here as the paper counts. A network that several "
        "tables print counts each time, and some baselines of stft3d are networks of torchvision and pytorchvideo.",
        "Best-matching variant: the network that comes nearest to the table. Its classifier (stft3d), block (stft2d) "
        "or layout (srl) was chosen to meet these counts, so agreement there is a fit and confirms nothing; in dtf it "
        "is the released code.",
        "Default network: what the recipes train. In stft3d, stft2d and dtf it follows the text. In srl it is the "
        "variant that was fitted to the counts. For fdc3d and baselines there is one variant.",
    ]
    return RenderedTable("Counts of the papers' tables", heads, cells, notes)


def _count_differences(
    table: Table, rows: Sequence[Row], counts: Mapping[str, Mapping[str, Complexity]], label: str = ""
) -> list[tuple[float, str]]:
    """Relative differences of the counts of a table from those printed, with what each is of.

    A row is compared by its network with this label, or else by its first.
    """
    differences = []
    for measure, column in ((m, table.column(m)) for m in ("params", "macs")):
        for row in rows if column is not None else ():
            own = counts[row.id]
            ours = _counted(own.get(label) or next(iter(own.values())), measure)
            paper = column.value(row.paper.get(column.key))  # type: ignore[union-attr]
            if ours is not None and paper:
                differences.append((ours / paper - 1, f"{measure} of {row.name}"))
    return differences


def _within(differences: Sequence[tuple[float, str]], limit: float) -> int:
    return sum(abs(difference) <= limit for difference, _ in differences)


def _columns_of(
    column: Column,
    is_printed: bool,
    rows: Sequence[Row],
    counted: Mapping[str, Mapping[str, Complexity]],
    results: Sequence[Result],
) -> Iterator[tuple[ColumnHeader, list[str]]]:
    """The columns that show one of the ledger's: the paper's, ours, their difference, and further counts."""
    printed = [row.paper.get(column.key) for row in rows]
    shown = [DASH if p in (None, "-") else str(p) for p in printed]
    if column.measure is None:
        yield ColumnHeader(column.name), shown
        return
    if is_printed:
        yield ColumnHeader("paper", column.name, "paper"), shown

    def texts(values: Sequence[float | None]) -> list[str]:
        return [column.print(v, p) for v, p in zip(values, printed, strict=True)]

    firsts = [next(iter(counted[row.id].values()), None) for row in rows]
    primary: list[float | None]
    if column.measure in ("params", "macs"):
        primary = [_counted(first, column.measure) for first in firsts]
    else:
        primary = [_measured(results, row.id, column) for row in rows]
    yield ColumnHeader("ours", column.name, "ours"), texts(primary)
    differences = [_difference(column, v, column.value(p)) for v, p in zip(primary, printed, strict=True)]
    yield ColumnHeader("Δ", column.name, "difference"), differences
    if column.measure == "params":
        rest = [dict(list(counted[row.id].items())[1:]) for row in rows]
        for label in dict.fromkeys(label for counts in rest for label in counts):
            values = [_counted(counts.get(label), column.measure) for counts in rest]
            yield ColumnHeader(label, column.name, "other"), texts(values)
    if column.measure == "macs":
        full = [None if first is None else first.macs_full for first in firsts]
        yield ColumnHeader("full count", column.name, "other"), texts(full)


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


def to_markdown(table: RenderedTable) -> str:
    """A GitHub table with its title and notes."""
    names = [(f"{h.group} " if h.group else "") + h.name for h in table.heads]
    align = [":--" if h.kind == "text" else "--:" for h in table.heads]
    lines = [names, align, *([_escape(c) for c in row] for row in table.cells)]
    text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    notes = "\n".join(f"- {note}" for note in table.notes)
    return "\n\n".join(part for part in (f"### {table.title}", text, notes) if part)


def _escape(text: str) -> str:
    return text.replace("|", "\\|")


def to_html(table: RenderedTable) -> str:
    """A `<table>` in a scrolling frame, with two header lines where columns are grouped."""
    grouped = any(h.group for h in table.heads)
    first, second = [], []
    for i, head in enumerate(table.heads):
        if not head.group:
            first.append(f'<th class="{head.kind}"{" rowspan=2" if grouped else ""}>{html.escape(head.name)}</th>')
            continue
        if i == 0 or table.heads[i - 1].group != head.group:
            span = sum(1 for h in table.heads if h.group == head.group)
            first.append(f'<th class="group" colspan="{span}">{html.escape(head.group)}</th>')
        second.append(f'<th class="{head.kind}">{html.escape(head.name)}</th>')
    header = f"<tr>{''.join(first)}</tr>" + (f"<tr>{''.join(second)}</tr>" if grouped else "")
    body = "".join(
        "<tr>"
        + "".join(
            f'<td class="{h.kind}{" none" if c == DASH else " long" if len(c) > LONG else ""}">{inline_html(c)}</td>'
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


def to_terminal(table: RenderedTable) -> RichTable:
    """For `rich.print`."""
    shown = RichTable(title=table.title, title_justify="left", caption="\n".join(table.notes), caption_justify="left")
    styles = {"ours": "bold", "difference": "dim", "other": "dim"}
    for head in table.heads:
        name = f"{head.group}\n{head.name}" if head.group else head.name
        justify = "left" if head.kind == "text" else "right"
        position = len(shown.columns)
        long = any(len(row[position]) > LONG for row in table.cells)  # sentences wrap, numbers and names do not
        shown.add_column(name, justify=justify, style=styles.get(head.kind, ""), no_wrap=not long)  # type: ignore[arg-type]
    for row in table.cells:
        shown.add_row(*(Text(cell.replace("**", "")) for cell in row))
    return shown


def demo_table(demo: Demo, runs: Sequence[Trained]) -> RenderedTable:
    """What was measured on the generated data."""
    names = dict.fromkeys(k for run in runs for k in run.result.metrics if k != "loss")
    columns = demo.columns or [Column(k, k.replace("top", "top ").replace("_", " "), k, 0.01) for k in names]
    columns = columns if demo.columns else [*columns, Column("loss", "loss", "loss")]
    heads = [ColumnHeader("Network"), *(ColumnHeader(c.name, kind="ours") for c in columns)]
    heads += [ColumnHeader(name) for name in ("Params", "MACs", "Tested on", "Seed", "Time")]
    cells = []
    for run in runs:
        complexity, found = run.complexity(), run.result.metrics
        line = [run.name]
        line += [f"{found[c.measure] / c.scale:.2f}" if c.measure in found else DASH for c in columns]
        line += [f"{complexity.params:,}", f"{complexity.macs_paper / 1e6:,.1f} M", run.result.videos]
        cells.append([*line, str(run.result.facts["seed"]), f"{run.seconds():.0f} s"])
    return RenderedTable(f"Demo. {demo.title}", heads, cells, [], demo.id)


def score_name(demo: Demo) -> str:
    """`accuracy` for `top1`."""
    return {"top1": "accuracy", "ap": "AP", "dice": "Dice"}.get(demo.score, demo.score.replace("_", " "))


def status_table(ledger: Ledger) -> RenderedTable:
    """How many rows and figures have which status."""
    heads = [ColumnHeader("Table or figure"), ColumnHeader("entries", "", "text"), *(ColumnHeader(s) for s in STATUSES)]
    groups: list[tuple[str, list[Any]]] = [(f"{t.number}. {t.title}", t.rows) for t in ledger.tables]
    groups.append(("Figures", ledger.figures))
    cells = []
    for name, entries in groups:
        numbers = [sum(s in e.statuses for e in entries) for s in STATUSES]
        cells.append([name, str(len(entries)), *(str(n) if n else DASH for n in numbers)])
    return RenderedTable(
        "Every row and figure of the paper", heads, cells, ["An entry can have several statuses."], "status"
    )
