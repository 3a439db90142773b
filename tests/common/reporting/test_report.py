"""The report stands alone."""

from __future__ import annotations

import re
from pathlib import Path

from matplotlib.figure import Figure

from common.reporting.page import Report
from common.reporting.tables import ColumnHeader, RenderedTable


def make() -> Report:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1])
    report = Report("A <title>", "subtitle", {"Commit": "abc & def"})
    report.section("First part")
    report.text("Some `code` and **weight**, 1 < 2.")
    report.table(
        RenderedTable("T", [ColumnHeader("Name"), ColumnHeader("ours", "n", "ours")], [["x", "–"]], ["note"], "table1")
    )
    report.picture(figure, "curve", 'A "curve".')
    report.section("Second part")
    report.code("make reproduce")
    return report


def test_the_page_loads_nothing(tmp_path: Path) -> None:
    page = make().write(tmp_path / "report").read_text()
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert "url(" not in page
    assert "@import" not in page
    assert page.count("<script") == page.count("<script>") == 1  # the one that sorts tables
    assert "http" not in page
    assert 'src="data:image/png;base64,iVBOR' in page


def test_contents_and_escapes(tmp_path: Path) -> None:
    page = make().write(tmp_path).read_text()
    anchors = re.findall(r'href="#([^"]+)"', page)
    assert anchors == ["first-part", "second-part"]
    assert all(f'id="{anchor}"' in page for anchor in anchors)
    assert "A &lt;title&gt;" in page
    assert "abc &amp; def" in page
    assert "<code>code</code> and <strong>weight</strong>, 1 &lt; 2." in page
    assert "prefers-color-scheme: dark" in page
    assert "A &quot;curve&quot;." in page


def test_sections_of_one_title_have_anchors_of_their_own(tmp_path: Path) -> None:
    report = Report("A title")
    for title in ("Plots", "Plots", "Plots 2", "Plots"):
        report.section(title)
    anchors = re.findall(r'<section id="([^"]+)"', report.write(tmp_path).read_text())
    assert anchors == ["plots", "plots-2", "plots-2-2", "plots-3"]


def test_the_markdown_has_its_pictures(tmp_path: Path) -> None:
    make().write(tmp_path)
    text = (tmp_path / "report.md").read_text()
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", text)
    assert pictures == ["curve.png"]
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
    assert "| Commit | abc & def |" in text
    assert "## Second part\n\n```\nmake reproduce\n```" in text
