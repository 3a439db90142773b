"""One structure, three renderings."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from common.evaluation.complexity import count
from common.reporting import tables
from common.reporting.ledger import Ledger, load
from common.reporting.results import Result
from common.reporting.tables import RenderedTable, paper_table


@pytest.fixture
def ledger(paper: Path) -> Ledger:
    return load(paper / "ledger.yaml")


def shown(ledger: Ledger, results: tuple[Result, ...] = ()) -> RenderedTable:
    row = ledger.tables[0].rows[0]
    counts = {label: ledger.complexity(spec) for label, spec in row.networks.items()}
    return paper_table(ledger, ledger.tables[0], {row.id: counts}, results)


def test_ours_stand_beside_the_papers(ledger: Ledger) -> None:
    table = shown(ledger)
    heads = [(h.group, h.name) for h in table.heads]
    assert heads == [
        ("", "Model"),
        ("", "Frames"),
        *(("Params", name) for name in ("paper", "ours", "Δ", "wide")),
        *(("FLOPs", name) for name in ("paper", "ours", "Δ", "full count")),
        ("Top 1", "paper"),
        ("", "Status"),
    ]
    assert table.cells[0][:10] == ["A", "8", "0.04K", "0.04K", "-10.0%", "0.07K", "32", "0.00G", "+0.0%", "0.00G"]
    assert table.cells[1] == ["<B>", *["–"] * 10, "L"]
    assert table.notes == ["Made up.", "a: A row of its own.", "`ours`: the network that is meant"]


def test_measured_rows_are_averaged(ledger: Ledger) -> None:
    results = tuple(Result(str(i), "table1/a", "real", {"top1": v}, {}) for i, v in enumerate((0.5, 0.6)))
    other = Result("9", "table1/a", "elsewhere", {"top1": 1.0}, {})
    table = shown(ledger, (*results, other))
    place = [(h.group, h.name) for h in table.heads].index(("Top 1", "ours"))
    assert table.cells[0][place : place + 2] == ["55.00", "+5.00"]
    assert table.cells[1][place : place + 2] == ["–", "–"]


def test_markdown(ledger: Ledger) -> None:
    lines = tables.to_markdown(shown(ledger)).splitlines()
    assert lines[0] == "### Table 1. Accuracy | cost"
    assert lines[2].startswith("| Model | Frames | Params paper | Params ours |")
    assert len({line.count("|") for line in lines[2:6]}) == 1
    assert "- Made up." in lines


def test_html_is_escaped_and_grouped(ledger: Ledger) -> None:
    page = tables.to_html(shown(ledger))
    assert "&lt;B&gt;" in page
    assert "<B>" not in page
    assert '<th class="group" colspan="4">Params</th>' in page
    assert '<td class="ours none">–</td>' in page
    assert "<code>ours</code>" in page
    assert page.count("<tr>") == page.count("</tr>") == 4


def test_terminal(ledger: Ledger) -> None:
    console = Console(width=200, file=io.StringIO(), record=True)
    console.print(tables.to_terminal(shown(ledger)))
    assert "-10.0%" in console.export_text()


def test_a_full_count_is_never_below_the_papers(ledger: Ledger) -> None:
    found = count(ledger.networks["linear"].build(), (1, 8))
    assert found.macs_full >= found.macs_paper
