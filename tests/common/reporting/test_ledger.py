"""Reading and checking ledgers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from common.evaluation.complexity import Complexity, count
from common.reporting.ledger import Column, LedgerError, load

PARAMS = Column("params", "Params", "params")
MACS = Column("flops", "FLOPs", "macs")
TOP1 = Column("top1", "Top 1", "top1", scale=0.01)
MILLIONS = Column("params", "# Params(M)", "params", scale=1e6)


@pytest.mark.parametrize(
    ("column", "printed", "value"),
    [
        (PARAMS, "6.27M", 6.27e6),
        (MACS, "41.21G×1×1", 41.21e9),
        (MACS, "153G×3×2", 153e9),
        (TOP1, "46.74", 0.4674),
        (MILLIONS, "34.00", 34e6),
        (PARAMS, "88,128", 88128),
        (PARAMS, "-", None),
        (MACS, "92+92", None),
        (PARAMS, "×", None),
        (Column("frames", "Frames"), "16", None),
    ],
)
def test_printed_numbers_are_read(column: Column, printed: str, value: float | None) -> None:
    found = column.value(printed)
    assert found is None if value is None else found == pytest.approx(value)


def test_ours_are_printed_like_the_papers() -> None:
    assert PARAMS.print(6_275_950, "6.27M") == "6.28M"
    assert MACS.print(10_345_173_248, "10.30G") == "10.35G"
    assert MACS.print(41.37e9, "41.21G×1×1") == "41.37G"
    assert PARAMS.print(22.21e6, "22.1M") == "22.21M"
    assert PARAMS.print(1.5e6, "-") == "1.50M"
    assert MILLIONS.print(34.004e6, "34.00") == "34.00"
    assert TOP1.print(0.5, "46.74") == "50.00"
    assert TOP1.print(None, "46.74") == "–"


def doubled(network: nn.Module, *inputs: Sequence[int]) -> Complexity:
    """A counter of a paper that counts everything twice."""
    found = count(network, *inputs)
    return replace(found, params=2 * found.params, macs_paper=2 * found.macs_paper)


def test_what_a_network_adds_to_another_counted_by_the_papers_convention(paper: Path) -> None:
    path = paper / "ledger.yaml"
    narrow = "  narrow: {function: torch.nn.Linear, arguments: {in_features: 8, out_features: 1}}\ntables:"
    extra = f", baseline: narrow, counter: {__name__}.doubled"
    text = (
        path.read_text()
        .replace("tables:", narrow, 1)
        .replace("ours: {network: linear", f"ours: {{network: linear{extra}")
    )
    path.write_text(text)
    ledger = load(path)
    found = ledger.complexity(ledger.tables[0].rows[0].networks["ours"])
    assert (found.params, found.macs_paper) == (2 * (4 - 1) * 9, 2 * (4 - 1) * 8)
    assert found.macs_full == (4 - 1) * 8
    path.write_text(text.replace("baseline: narrow", "baseline: narow"))
    with pytest.raises(LedgerError, match=r"table1/a: no network 'narow'. Did you mean narrow\?"):
        load(path)


def test_selection(paper: Path) -> None:
    ledger = load(paper / "ledger.yaml")
    everything = ["table1/a", "table1/b", "figure1", "figure2", "demo/one", "demo/two"]
    assert ledger.select([]) == everything
    assert ledger.select(["demo", "table1/b"]) == ["table1/b", "demo/one", "demo/two"]
    with pytest.raises(LedgerError, match=r"'tabel1'\. Did you mean table1\?"):
        ledger.select(["tabel1"])


def test_networks_are_built_and_counted(paper: Path) -> None:
    ledger = load(paper / "ledger.yaml")
    row = ledger.tables[0].rows[0]
    assert [ledger.complexity(spec).params for spec in row.networks.values()] == [36, 72]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"50.0"]', "50.0]", r"ledger.yaml:21: expected str, found 50.0. Quote it"),
        ("note: A row of its own.", "nodes: x", r"21: unknown key 'nodes' of table1/a. Did you mean note\?"),
        ("name: A\n", "name: A\n        name: B\n", r":23: name is given twice"),
        ("        name: A\n", "", r":21: name of table1/a is missing"),
        ("- [b, ", "- [a, ", r"table1/a: the id is taken by line 21"),
        ("statuses: [computed, recipe]", "statuses: [guessed]", r"table1/a: unknown status 'guessed'"),
        ("input: [1, 8]", "inputs: [1, 8]", r":\d+: unknown key 'inputs' in shared of table1"),
        ("[computed, recipe]", "[recipe]", r"table1/a: status computed and what it needs"),
        ("ours: {network: linear", "ours: {network: linaer", r"no network 'linaer'. Did you mean linear\?"),
        ("{file: demo.yaml", "{file: none.yaml", r"no recipe none.yaml"),
        ("dataset: real}", "dataset: other}", r"no column shows real; there are other"),
        (
            '["8", ',
            "[",
            r":21: a has 3 values; the columns are frames, params, flops, top1",
        ),
        ("table_row: table1/a, overrides", "table_row: table1/c, overrides", r"demo/two: there is no row table1/c"),
        ("function: curve", "", r"figure2: status computed needs a function"),
        ("title: A tiny paper", "title: [", r"ledger.yaml"),
    ],
)
def test_mistakes_are_named(paper: Path, old: str, new: str, message: str) -> None:
    path = paper / "ledger.yaml"
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(LedgerError, match=message):
        load(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(LedgerError, match="No such file"):
        load(tmp_path / "ledger.yaml")


def test_nothing_in_a_ledger_runs(paper: Path) -> None:
    path = paper / "ledger.yaml"
    path.write_text(path.read_text().replace("A tiny paper", "!!python/object/apply:os.getcwd []"))
    with pytest.raises(LedgerError, match="python/object"):
        load(path)
