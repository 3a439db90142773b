"""A contact sheet of a dataset as one HTML page that needs nothing else."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence

from jinja2 import Environment

from data._thumbnails import Thumbnails

MARK = '<meta name="generator" content="python -m data.browse">'


def contact_sheet(
    title: str, facts: Mapping[str, str], notes: Sequence[str], views: Sequence[Thumbnails], class_names: Sequence[str]
) -> str:
    """The page; all texts are escaped.

    Args:
        title: heading.
        facts: names and values below it.
        notes: what is wrong with the dataset as a whole.
        views: the items.
        class_names: in the order of the labels.
    """
    environment = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True)
    environment.filters["data_url"] = lambda jpeg: f"data:image/jpeg;base64,{base64.b64encode(jpeg).decode()}"
    labels = sorted({-1 if view.entry.label is None else view.entry.label for view in views})
    return environment.from_string(_PAGE).render(
        mark=MARK,
        style=_STYLE,
        script=_SCRIPT,
        title=title,
        facts=facts,
        notes=notes,
        views=views,
        classes=[(label, class_names[label] if label >= 0 else "no label") for label in labels],
        splits=list(dict.fromkeys(view.entry.split for view in views)),
    )


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
{{ mark | safe }}
<title>{{ title }}</title>
<style>{{ style | safe }}</style>
</head>
<body>
<header>
<h1>{{ title }}</h1>
<dl>
{% for name, value in facts.items() %}
<div><dt>{{ name }}</dt><dd>{{ value }}</dd></div>
{% endfor %}
</dl>
{% for note in notes %}
<p class="problem">{{ note }}</p>
{% endfor %}
</header>
<form id="filter" autocomplete="off">
<label>Class <select id="label"><option value="">all</option>
{% for label, name in classes %}
<option value="{{ label }}">{{ name }}</option>
{% endfor %}
</select></label>
<label>Split <select id="split"><option value="">all</option>
{% for split in splits %}
<option>{{ split }}</option>
{% endfor %}
</select></label>
<label><input type="checkbox" id="problems"> problems only</label>
<output id="count">{{ views | length }} shown</output>
</form>
<main>
{% for view in views %}
<article data-label="{{ -1 if view.entry.label is none else view.entry.label }}" data-split="{{ view.entry.split }}"
{%- if view.problem %} data-problem{% endif %}>
<h2>{{ view.entry.label_name or "no label" }} <span>{{ view.entry.split }}</span></h2>
<p class="path">{{ view.entry.path }}</p>
{% if view.problem %}
<p class="problem">{{ view.problem }}</p>
{% endif %}
{% if view.facts %}
<p class="facts">{{ view.facts | join(" · ") }}</p>
{% endif %}
{% for caption, picture in (("as stored", view.stored), (view.caption, view.network)) if picture %}
<figure><figcaption>{{ caption }}</figcaption><img decoding="async" alt="{{ view.entry.path }}, {{ caption }}"
  src="{{ picture | data_url }}"></figure>
{% endfor %}
</article>
{% endfor %}
</main>
<script>{{ script | safe }}</script>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light dark; --fg: #1c2430; --dim: #5d6b7c; --bg: #ffffff; --soft: #f4f6f9; --line: #dde3ea;
  --bad: #a4161a; --bad-bg: #fdecec; }
@media (prefers-color-scheme: dark) {
  :root { --fg: #e4e9ef; --dim: #97a5b5; --bg: #14181e; --soft: #1c222b; --line: #323c49; --bad: #ffb3b3;
    --bad-bg: #3d1b1f; }
}
* { box-sizing: border-box; }
[hidden] { display: none !important; }
body { margin: 0; color: var(--fg); background: var(--bg); overflow-wrap: anywhere;
  font: 15px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; }
header, form, main { padding: 0 1.25rem; max-width: 110rem; margin: 0 auto; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: 1.25rem 0 .75rem; }
dl { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(15rem, 100%), 1fr)); gap: .6rem 1.5rem;
  margin: 0 0 1rem; }
dt { font-size: .74rem; letter-spacing: .05em; text-transform: uppercase; color: var(--dim); }
dd { margin: 0; font-size: .92rem; }
form { position: sticky; top: 0; z-index: 1; display: flex; flex-wrap: wrap; gap: .5rem 1.25rem; align-items: center;
  padding-block: .6rem; background: var(--bg); border-bottom: 1px solid var(--line); }
select { font: inherit; max-width: 14rem; }
output { color: var(--dim); margin-left: auto; }
main { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(21rem, 100%), 1fr)); gap: 1rem;
  align-items: start; padding-block: 1rem 3rem; }
article { background: var(--soft); border: 1px solid var(--line); border-radius: 10px; padding: .75rem; min-width: 0; }
article[data-problem] { border-color: var(--bad); }
h2 { font-size: 1rem; margin: 0; }
h2 span { font-weight: 400; font-size: .8rem; color: var(--dim); border: 1px solid var(--line); border-radius: 4px;
  padding: 0 .35em; margin-left: .25em; }
p { margin: .25rem 0; }
.path { font: .78rem/1.4 ui-monospace, SFMono-Regular, Menlo, Consolas, monospace; color: var(--dim); }
.facts { font-size: .85rem; font-variant-numeric: tabular-nums; }
.problem { color: var(--bad); background: var(--bad-bg); border-radius: 6px; padding: .25rem .5rem; font-size: .85rem; }
figure { margin: .5rem 0 0; }
figure img { display: block; max-width: 100%; height: auto; border-radius: 4px; }
figcaption { font-size: .75rem; color: var(--dim); }
"""

_SCRIPT = """
const find = id => document.getElementById(id), cards = [...document.querySelectorAll("article")];
function update() {
  let count = 0;
  for (const card of cards) {
    const data = card.dataset;
    card.hidden = (find("label").value && data.label !== find("label").value)
      || (find("split").value && data.split !== find("split").value)
      || (find("problems").checked && !("problem" in data));
    count += !card.hidden;
  }
  find("count").textContent = `${count} shown`;
}
find("filter").addEventListener("input", update);
"""
