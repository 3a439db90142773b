"""A report: one self-contained HTML page, and the same in Markdown with its pictures beside it.

report = Report("Title", "subtitle", facts={"Commit": "1234567"})
report.section("Results")
report.text("What is shown."); report.table(shown); report.picture(figure, "curve", "Caption.")
report.write("runs/stft3d/report")      # index.html, report.md, curve.png
"""

from __future__ import annotations

import base64
import html
import io
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from jinja2 import Environment
from matplotlib.figure import Figure

from common.reporting.results import written_whole
from common.reporting.tables import Shown, inline_html, to_html, to_markdown


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
    pictures: dict[str, bytes] = field(default_factory=dict)

    def section(self, title: str) -> None:
        """Begin a section; what follows belongs to it."""
        anchor = re.sub(r"[^a-z0-9]+", "-", title.lower()).strip("-")
        self.sections.append(_Section(title, anchor))

    def _add(self, html: str, markdown: str) -> None:
        self.sections[-1].html.append(html)
        self.sections[-1].markdown.append(markdown)

    def text(self, text: str) -> None:
        """A paragraph; `code` between backquotes, **bold** between double stars."""
        self._add(f"<p>{inline_html(text)}</p>", text)

    def code(self, text: str) -> None:
        """Lines to type."""
        self._add(f"<pre><code>{html.escape(text)}</code></pre>", f"```\n{text}\n```")

    def table(self, table: Shown) -> None:
        """A table under its title."""
        anchor = f' id="{html.escape(table.id)}"' if table.id else ""
        self._add(f"<h3{anchor}>{html.escape(table.title)}</h3>{to_html(table)}", to_markdown(table))

    def picture(self, figure: Figure | bytes, name: str, caption: str) -> None:
        """A plot, or the bytes of a PNG; `name` is that of its file, without ending."""
        content = figure if isinstance(figure, bytes) else png(figure)
        self.pictures[f"{name}.png"] = content
        data = base64.b64encode(content).decode()
        alt = html.escape(caption, quote=True)
        self._add(
            f'<figure><img src="data:image/png;base64,{data}" alt="{alt}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>",
            f"![{caption}]({name}.png)\n\n*{caption}*",
        )

    def write(self, folder: str | Path) -> Path:
        """Write `index.html`, `report.md` and the pictures; returns the path of the page."""
        folder = Path(folder)
        for name, content in self.pictures.items():
            with written_whole(folder / name, "wb") as file:
                file.write(content)
        with written_whole(folder / "report.md") as file:
            file.write(self._markdown())
        page = Environment(autoescape=True).from_string(_PAGE).render(report=self, style=_STYLE)
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
  <dl>
  {%- for name, value in report.facts.items() %}
    <div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
  {%- endfor %}
  </dl>
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
</body>
</html>
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
th.group { text-align: center; color: var(--fg); border-left: 1px solid var(--line); }
th.text, td.text { text-align: left; }
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
