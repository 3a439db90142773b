"""The ledger of the X-STFT paper fits the recipes, and its rows agree with one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.reporting.counting import complexity_records, count_rows
from common.reporting.ledger import Ledger
from tests.datasets import published_classes, read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "stft3d"


def test_rows_that_stand_in_two_tables_agree(ledger: Ledger) -> None:
    """Tables 2, 3 and 5 print some networks again."""
    rows = {row.id: row.paper for _, row in ledger.rows()}
    for method in ("st-stft", "s-stft", "t-stft"):
        a, b, c = rows[f"table2/{method}-32f"], rows[f"table3/{method}"], rows[f"table2/{method}-64f"]
        assert [a[k] for k in ("params", "flops", "top1", "top5")] == list(b.values())
        d = rows[f"table5/{method}-64f"]
        assert (c["params"], f"{c['flops']}×1×1", c["top1"], c["top5"]) == (
            d["params"],
            d["flops"],
            d["v1_top1"],
            d["v1_top5"],
        )
    assert rows["table4/leaky-relu"]["top1"] == rows["table2/st-stft-16f"]["top1"]


def test_every_measured_cell_reads_as_a_number(ledger: Ledger) -> None:
    for table, row in ledger.rows():
        for column in table.columns:
            if column.measure and row.paper[column.key] != "-":
                value = column.value(row.paper[column.key])
                assert value is not None, (row.id, column.key)
                assert column.measure in ("params", "macs") or 0 < value < 1


def test_the_papers_own_rows_are_computed_and_have_recipes(ledger: Ledger) -> None:
    own = {"ST-STFT", "S-STFT", "T-STFT", "ReLPV", "Fact. + DW"}
    for _, row in ledger.rows():
        if row.name in own:
            assert {"computed", "recipe"} <= set(row.statuses), row.id
            assert list(row.networks) == ["fitted", "text"]
        assert set(row.statuses) & {"computed", "recipe", "literature"}


def test_the_misprint_is_noted(ledger: Ledger) -> None:
    row = next(row for _, row in ledger.rows() if row.id == "table2/fact-dw-32f")
    assert row.note is not None
    assert "misprint" in row.note
    assert "20.60G" in row.note


def test_inputs_and_classes_fit_the_recipes(ledger: Ledger) -> None:
    """The network that is counted is the one that the recipe trains, at its clip size."""
    for _, row in ledger.rows():
        for dataset, recipe in row.recipes.items():
            model, data, _ = read_recipe(FOLDER / "recipes" / recipe.file, recipe.overrides)
            spec = next(iter(row.networks.values()))
            frames, size = data["num_frames"], data["crop_size"]
            assert spec.input == [1, 3, frames, size, size], row.id
            method = model["method"]
            assert ledger.network(spec).function == f"papers.stft3d.networks.{method.replace('-', '_')}"
            if dataset not in ("ucf101", "hmdb51"):
                assert ledger.network(spec).arguments.get("num_classes", 174) == published_classes(dataset), row.id
            activation = model.get("network", {}).get("activation")
            assert ledger.network(spec).arguments.get("activation") == activation
            if "from-kinetics" in recipe.file:
                _, start = ledger.start(recipe)
                before, at, _ = read_recipe(FOLDER / "recipes" / start.file, start.overrides)
                assert (before["method"], at["num_frames"], at["dataset"]) == (method, frames, "kinetics400"), row.id


@pytest.mark.slow
def test_counts_meet_the_paper(ledger: Ledger) -> None:
    rows = ["table2/t-stft-16f", "table2/st-stft-16f", "table2/relpv-16f", "table3/ir-csn-101"]
    records = {r["row"]: r for r in complexity_records(ledger, count_rows(ledger, rows))}
    assert set(records) == set(rows)
    for record in records.values():
        assert record["params"] == pytest.approx(record["paper_params"], rel=0.01)
        assert record["macs_full"] > record["macs_paper_convention"]
        if record["row"] != "table2/relpv-16f":
            assert record["macs_paper_convention"] == pytest.approx(record["paper_macs"], rel=0.015)
    assert records["table2/relpv-16f"]["paper_macs"] is None
    assert records["table2/t-stft-16f"]["networks"]["text"]["params"] == pytest.approx(3.217e6, rel=0.001)
