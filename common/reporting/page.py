"""A report: one self-contained HTML page, and the same in Markdown with its images next to it.

report = Report("Title", "subtitle", facts={"Commit": "1234567"})
report.section("Results")
report.text("What is shown."); report.table(shown); report.picture(figure, "curve", "Caption.")
report.write("runs/stft3d/report")      # index.html, report.md, curve.png
"""

from __future__ import annotations

import base64
import html
import io
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import chain, count
from pathlib import Path

import torch
from jinja2 import Environment
from matplotlib.figure import Figure

from common.output_files import written_whole
from common.provenance import git_state, package_versions
from common.reporting import plots
from common.reporting.ledger import DASH, Ledger
from common.reporting.runs import DemoRuns, Job
from common.reporting.tables import (
    RenderedTable,
    demo_table,
    inline_html,
    paper_table,
    score_name,
    status_table,
    to_html,
    to_markdown,
)

EXPLANATION = (
    "The columns called **paper** repeat what the paper prints; **ours** was counted or measured by the programs of "
    "this repository; Δ is ours against the paper's; a dash means that there is no number. Multiply-adds follow the "
    "paper's convention (convolutions and matrix products); the **full count** adds normalisation, activations, "
    "pooling, element-wise arithmetic and transforms. "
    "Status: C computed here, D shown by the demo, R complete recipe for the real data, L quoted from the literature."
)


@dataclass
class _Section:
    title: str
    anchor: str
    html: list[str] = field(default_factory=list)
    markdown: list[str] = field(default_factory=list)


@dataclass
class Report:
    """Collects sections, then writes them. `facts` stand at the top."""

    title: str
    subtitle: str = ""
    facts: Mapping[str, str] = field(default_factory=dict)
    sections: list[_Section] = field(default_factory=list)
    images: dict[str, bytes] = field(default_factory=dict)

    def section(self, title: str) -> None:
        """Begin a section; what follows belongs to it."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        taken = {section.anchor for section in self.sections}
        anchors = chain([anchor], (f"{anchor}-{number}" for number in count(2)))
        anchor = next(each for each in anchors if each not in taken)
        self.sections.append(_Section(title, anchor))

    def _add(self, html: str, markdown: str) -> None:
        self.sections[-1].html.append(html)
        self.sections[-1].markdown.append(markdown)

    def text(self, text: str) -> None:
        """A paragraph; `code` between backquotes, **bold** between double stars."""
        self._add(f"<p>{inline_html(text)}</p>", text)

    def link(self, text: str, target: str) -> None:
        """A line that leads to another page."""
        self._add(f'<p><a href="{html.escape(target)}">{html.escape(text)}</a></p>', f"[{text}]({target})")

    def code(self, text: str) -> None:
        """Lines to type."""
        self._add(f"<pre><code>{html.escape(text)}</code></pre>", f"```\n{text}\n```")

    def table(self, table: RenderedTable) -> None:
        """A table under its title."""
        anchor = f' id="{html.escape(table.id)}"' if table.id else ""
        self._add(f"<h3{anchor}>{html.escape(table.title)}</h3>{to_html(table)}", to_markdown(table))

    def picture(self, figure: Figure | bytes, name: str, caption: str) -> None:
        """A plot, or the bytes of a PNG; `name` is that of its file, without ending."""
        content = figure if isinstance(figure, bytes) else png(figure)
        self.images[f"{name}.png"] = content
        data = base64.b64encode(content).decode()
        alt = html.escape(caption, quote=True)
        self._add(
            f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>",
            f"![{caption}]({name}.png)\n\n*{caption}*",
        )

    def write(self, folder: str | Path) -> Path:
        """Write `index.html`, `report.md` and the images; returns the path of the page."""
        folder = Path(folder)
        for name, content in self.images.items():
            with written_whole(folder / name, "wb") as file:
                file.write(content)
        with written_whole(folder / "report.md") as file:
            file.write(self._markdown())
        page = Environment(autoescape=True).from_string(_PAGE).render(report=self, style=_STYLE, script=_SCRIPT)
        with written_whole(folder / "index.html") as file:
            file.write(page)
        return folder / "index.html"

    def _markdown(self) -> str:
        facts = "\n".join(["| | |", "| :-- | :-- |", *(f"| {k} | {v} |" for k, v in self.facts.items())])
        parts = [f"# {self.title}", self.subtitle, facts if self.facts else ""]
        for section in self.sections:
            parts += [f"## {section.title}", *section.markdown]
        return "\n\n".join(part for part in parts if part) + "\n"


def png(figure: Figure) -> bytes:
    """A figure as a PNG file."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ report.title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<nav>
  <strong>Contents</strong>
  <ol>
  {%- for section in report.sections %}
    <li><a href="#{{ section.anchor }}">{{ section.title }}</a></li>
  {%- endfor %}
  </ol>
</nav>
<main>
<header>
  <h1>{{ report.title }}</h1>
  <p class="subtitle">{{ report.subtitle }}</p>
  {%- if report.facts %}
  <dl>
  {%- for name, value in report.facts.items() %}
    <div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
  {%- endfor %}
  </dl>
  {%- endif %}
</header>
{%- for section in report.sections %}
<section id="{{ section.anchor }}">
<h2>{{ section.title }}</h2>
{%- for part in section.html %}
{{ part | safe }}
{%- endfor %}
</section>
{%- endfor %}
</main>
<script>{{ script | safe }}</script>
</body>
</html>
"""

# Sorts a table by a column when its header is clicked, or Enter is pressed on it; the third time in the paper's order.
_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], rows = [...body.rows];
  if (rows.length < 3) continue;
  const heads = [...table.tHead.rows[0].cells], own = [...(table.tHead.rows[1] || {cells: []}).cells];
  const columns = heads.flatMap(head => head.className == "group" ? own.splice(0, head.colSpan) : head);
  columns.forEach((head, column) => {
    let turn = 0;
    const value = row => {
      const text = row.cells[column].textContent.trim();
      const found = column && text.replace(/[,\u2009]/g, "").match(/^[+\u2212-]?\\d+(\\.\\d+)?/);
      const scale = {k: 1e3, M: 1e6, G: 1e9}[(text.match(/\\d\\s?([kMG])/) || [])[1]] || 1;
      return found ? scale * parseFloat(found[0].replace("\u2212", "-")) : text;
    };
    const sort = () => {
      turn = (turn + 1) % 3;
      columns.forEach(other => other.removeAttribute("aria-sort"));
      if (turn) head.setAttribute("aria-sort", turn == 1 ? "ascending" : "descending");
      const order = (a, b) => {
        const [x, y] = [value(a), value(b)], numbers = (typeof x == "number") - (typeof y == "number");
        if (numbers) return -numbers;
        return (turn == 2 ? -1 : 1) * (typeof x == "number" ? x - y : x.localeCompare(y));
      };
      body.append(...(turn ? [...rows].sort(order) : rows));
    };
    head.tabIndex = 0;
    head.title = "Sort";
    head.addEventListener("click", sort);
    head.addEventListener("keydown", event => { if (event.key == "Enter") sort(); });
  });
}
"""

_STYLE = """
:root { --fg: #1c2430; --dim: #5d6b7c; --bg: #ffffff; --soft: #f4f6f9; --line: #dde3ea; --accent: #0b5cad; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e4e9ef; --dim: #97a5b5; --bg: #14181e; --soft: #1c222b; --line: #323c49; --accent: #7fbcff; }
}
* { box-sizing: border-box; }
html { scroll-behavior: smooth; scroll-padding-top: 1rem; }
body { margin: 0; color: var(--fg); background: var(--bg);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
nav { position: fixed; inset: 0 auto 0 0; width: 15rem; padding: 2rem 1.25rem; overflow-y: auto;
  background: var(--soft); border-right: 1px solid var(--line); font-size: .875rem; }
nav ol { list-style: none; margin: .75rem 0 0; padding: 0; }
nav li { margin: .4rem 0; }
nav a { color: var(--dim); text-decoration: none; }
nav a:hover { color: var(--accent); }
main { margin-left: 15rem; padding: 2rem 3rem 5rem; max-width: 84rem; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .35rem; max-width: 50rem; }
h2 { font-size: 1.3rem; margin: 3rem 0 .75rem; padding-bottom: .35rem; border-bottom: 1px solid var(--line); }
h3 { font-size: 1.02rem; margin: 2rem 0 .6rem; }
p { max-width: 50rem; margin: .6rem 0; }
.subtitle { color: var(--dim); }
code { font: .88em ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; background: var(--soft);
  padding: .1em .3em; border-radius: 4px; }
pre { background: var(--soft); border: 1px solid var(--line); border-radius: 8px; padding: .8rem 1rem;
  overflow-x: auto; }
pre code { background: none; padding: 0; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(13.5rem, 1fr)); gap: .9rem 1.5rem;
  margin: 1.25rem 0 0; padding: 1rem 1.25rem; background: var(--soft);
  border: 1px solid var(--line); border-radius: 10px; }
dt { font-size: .74rem; letter-spacing: .05em; text-transform: uppercase; color: var(--dim); }
dd { margin: .05rem 0 0; overflow-wrap: anywhere; font-size: .92rem; }
.scroll { overflow-x: auto; border: 1px solid var(--line); border-radius: 10px; width: fit-content; max-width: 100%; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; white-space: nowrap; }
th, td { padding: .36rem .8rem; text-align: right; }
th { background: var(--soft); font-weight: 600; color: var(--dim); }
th[tabindex] { cursor: pointer; }
th[tabindex]:hover, th[tabindex]:focus-visible { color: var(--accent); }
th[aria-sort=ascending]::after { content: " ↑"; }
th[aria-sort=descending]::after { content: " ↓"; }
a { color: var(--accent); }
th.group { text-align: center; color: var(--fg); border-left: 1px solid var(--line); }
th.text, td.text { text-align: left; }
td.long { white-space: normal; min-width: 15rem; max-width: 28rem; }
tr:has(td.long) td { vertical-align: top; }
thead tr:last-child th { border-bottom: 1px solid var(--line); }
td.paper, th.paper { border-left: 1px solid var(--line); }
td.ours { color: var(--accent); font-weight: 600; }
td.difference, td.other { color: var(--dim); }
td.none { color: var(--dim); font-weight: 400; opacity: .5; }
tbody tr + tr td { border-top: 1px solid var(--line); }
tbody tr:hover td { background: var(--soft); }
.notes { color: var(--dim); font-size: .85rem; padding-left: 1.1rem; max-width: 60rem; }
figure { margin: 1.25rem 0 2rem; width: fit-content; max-width: 100%; }
figure img { display: block; max-width: 100%; max-height: 44rem; background: #fff; border: 1px solid var(--line);
  border-radius: 10px; padding: .75rem; }
figcaption { color: var(--dim); font-size: .85rem; margin-top: .45rem; max-width: 50rem; }
@media (max-width: 60rem) {
  nav { position: static; width: auto; border-right: 0; border-bottom: 1px solid var(--line); padding: 1.25rem; }
  main { margin-left: 0; padding: 1.5rem 1.25rem 4rem; }
}
@media print { nav { display: none; } main { margin: 0; padding: 0; max-width: none; } .scroll { overflow: visible; } }
"""


def write_report(
    job: Job,
    folder: Path,
    facts: Mapping[str, str],
    command: str,
    epochs: int | None = None,
    claims: Sequence[RenderedTable] = (),
) -> Path:
    """The page, the Markdown and the images; returns the path of the page. `claims` are tables of the paper's claims
    as they were decided before."""
    ledger = job.ledger
    report = Report(ledger.title, f"{ledger.authors}. The paper's numbers next to what this machine found.", facts)
    if job.failures:
        report.section("Failures")
        for failure in job.failures:
            report.text(failure)
    if claims:
        report.section("Claims of the paper, tested")
        report.text(f"Trained before, not in this run; again: `make claims PAPER={ledger.paper}`.")
        for claims_table in claims:
            report.table(claims_table)
    for runs in job.demos:
        if runs.rows:
            _report_demo(report, ledger, runs, epochs)
    report.section("Tables of the paper")
    report.text(EXPLANATION)
    for table in ledger.tables:
        report.table(paper_table(ledger, table, job.counts, job.results))
    for table in ledger.tables:
        if len(points := paper_points(ledger, table.id)) > 3:
            own = [row.name for row in table.rows if "recipe" in row.statuses]
            title = f"{table.number}: the paper's accuracy against the paper's FLOPs"
            report.picture(
                plots.accuracy_against_cost(points, title, highlight=own),
                f"{table.id}-cost",
                f"All values as printed in {table.number}; labels are frames, areas are parameters.",
            )
    report.section("Figures of the paper")
    for figure in ledger.figures:
        if figure.id in job.figures:
            report.picture(
                job.figures[figure.id], figure.id, f"{figure.number}. {figure.title}. Code: {figure.location}."
            )
    for figure in ledger.figures:
        if figure.id not in job.figures:
            report.text(f"**{figure.number}. {figure.title}.** {figure.location}")
    report.section("Coverage")
    report.table(status_table(ledger))
    report.section("Reproduce")
    report.text("The whole report, a list of all rows with their commands, and one row on the real data:")
    report.code(f"{command}\n{command} --list\n{command} ROW --data DIR")
    return report.write(folder)


def _report_demo(report: Report, ledger: Ledger, runs: DemoRuns, epochs: int | None) -> None:
    """Table, learning curves, cost and confusion of one demo."""
    demo = runs.demo
    report.section("Demo, measured here" if len(ledger.demos) == 1 else f"Demo, measured here: {demo.title}")
    report.text(demo.text)
    if epochs is not None:
        report.text(f"**Trained for {epochs} epochs instead of the recipe's, to try things out.**")
    report.table(demo_table(demo, runs.rows))
    curves = {run.name: run.curve("train_loss") for run in runs.rows}
    if any(len(points) > 1 for points in curves.values()):
        report.picture(
            plots.learning_curves({k: v for k, v in curves.items() if v}, "Training loss on the demo", "loss"),
            f"{demo.id}-curves",
            "Mean training loss of every epoch on the demo data.",
        )
    points = [
        plots.Point(
            run.name,
            run.complexity().macs_paper,
            run.result.metrics[demo.score],
            size=run.complexity().params,
        )
        for run in runs.rows
        if demo.score in run.result.metrics
    ]
    if points:
        name = "top-1 accuracy (%)" if demo.score == "top1" else f"{score_name(demo)} (%)"
        report.picture(
            plots.accuracy_against_cost(points, f"Demo: {score_name(demo)} against cost", name),
            f"{demo.id}-cost",
            f"Measured here, on the demo data: {score_name(demo)} against multiply-adds; areas are parameters.",
        )
    if names := runs.rows[0].class_names():
        report.picture(
            plots.confusion_matrices({run.name: run.confusion() for run in runs.rows}, names),
            f"{demo.id}-confusion",
            f"Measured here: what the networks take the test data for ({runs.rows[0].result.videos}).",
        )
    for number, (found, files) in enumerate(runs.frequencies):
        order = {name: groups["order"] for name, groups in found.items()}
        said = [f"{name} {100 * o['as it is']:.0f} % to {100 * o['reversed']:.0f} %" for name, o in order.items()]
        report.picture(
            plots.frequency_use(found, files),
            f"{demo.id}-frequencies" + (f"-{number + 1}" if number else ""),
            f"Measured here: accuracy on {files} test clips from which a part was taken away; dotted, as they are. "
            f"Played backwards: from {', '.join(said)}.",
        )


def run_facts(job: Job, seconds: float) -> dict[str, str]:
    """When, where and with what the report was made."""
    state, versions = git_state(), package_versions()
    commit = f"{state['commit'][:12]}{' with changes' if state['dirty'] else ''}" if state["commit"] else DASH
    facts = {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Commit": commit,
        "Machine": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items() if name != "gpu"),
        "Duration": f"{seconds / 60:.1f} min",
    }
    if runs := job.trained():
        trained = [run for run in runs if not run.reused]
        videos = sum(run.result.facts["videos"] or 0 for run in runs)
        expected = sum(run.result.facts["videos_expected"] or 0 for run in runs)
        facts["Demo"] = f"{len(runs)} trainings, {len(trained)} of them in this run"
        facts["Tested on"] = f"{videos} of {expected} test files ({len(runs)} trainings)"
        facts["Seed"] = ", ".join(sorted({str(run.result.facts["seed"]) for run in runs}))
    return facts


def paper_points(ledger: Ledger, table_id: str, measure: str = "top1") -> list[plots.Point]:
    """The paper's accuracies and multiply-adds of a table, by network name."""
    table = next(t for t in ledger.tables if t.id == table_id)
    cost, accuracy, params = table.column("macs"), table.column(measure), table.column("params")
    frames = next((c for c in table.columns if c.key == "frames"), None)
    points = []
    for row in table.rows:
        x = cost.value(row.paper[cost.key]) if cost else None
        y = accuracy.value(row.paper[accuracy.key]) if accuracy else None
        if x is not None and y is not None:
            label = row.paper[frames.key] if frames else ""
            points.append(plots.Point(row.name, x, y, label, params.value(row.paper[params.key]) if params else None))
    return points
