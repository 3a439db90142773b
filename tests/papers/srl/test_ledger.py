"""The ledger of the SRL paper is complete, says what the paper prints, and its counts meet it."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.reporting.ledger import Ledger, load
from tests.datasets import read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "srl"


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return load(FOLDER / "ledger.yaml")


def test_every_row_and_figure_is_there(ledger: Ledger) -> None:
    assert [len(table.rows) for table in ledger.tables] == [6, 22, 12, 6, 6, 12, 8, 4, 7, 7]
    assert [figure.id for figure in ledger.figures] == ["table1-measured", *(f"figure{i}" for i in range(1, 6))]
    assert [demo.id for demo in ledger.demos] == ["demo-video", "demo-pose"]


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ("table1/srl-fft", "O(CHWlog(HW))"),
        ("table2/cpn-ohkm-384x288", "ResNet-50 384x288 - - 71.6 - - - - -"),
        ("table2/simplebaseline-r101-512x384", "ResNet-101 512x384 49.52 52.99 74.2 89.7 80.7 70.2 81.8 79.5"),
        ("table2/srl-fft-r152-384x288", "ResNet-152 384x288 35.67 68.74 74.6 89.7 81.7 70.8 81.9 80.1"),
        ("table3/rcca-384x288", "384x288 2.76 0.92 72.8"),
        ("table3/srl-fft-256x192", "256x192 0.09 0.10 70.9"),
        ("table4/baseline-star", "66.3 87.1 71.4 61.3 74.6 72.0"),
        ("table4/srl-fft-4", "73.7 89.4 80.3 69.7 81.2 78.9"),
        ("table5/d1-d2-d3", "73.3 89.5 80.0 69.4 80.6 78.6"),
        ("table6/srl-lo-r50-384x288", "ResNet-50 384x288 72.8"),
        ("table8/nl", "64.48 85.48 321.50 1.23"),
        ("table8/srl-lo", "65.02 85.60 86.89 0.21"),
        ("table9/2-blocks", "64.79 85.71"),
        ("table9/time", "63.80 85.08"),
        ("table10/srl-fft-star", "8 72.7 90.9"),
    ],
)
def test_numbers_are_as_printed(ledger: Ledger, row: str, numbers: str) -> None:
    found = {r.id: r for _, r in ledger.rows()}[row]
    assert " ".join(found.paper.values()) == numbers


def test_rows_that_stand_in_two_tables_agree(ledger: Ledger) -> None:
    rows = {row.id: row.paper for _, row in ledger.rows()}
    for method, name in (("none", "simplebaseline"), ("srl-fft", "srl-fft")):
        for size in ("256x192", "384x288"):
            assert rows[f"table3/{method}-{size}"]["ap"] == rows[f"table2/{name}-r50-{size}"]["ap"]
    metrics = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar")
    for one, other in (
        ("table4/baseline", "table2/simplebaseline-r50-384x288"),
        ("table5/baseline", "table2/simplebaseline-r50-384x288"),
        ("table5/d1-d2-d3", "table2/srl-fft-r50-384x288"),
    ):
        assert [rows[one][k] for k in metrics] == [rows[other][k] for k in metrics]
    for depth, size in ((50, "256x192"), (50, "384x288"), (101, "256x192"), (152, "256x192")):
        for method, name in (("baseline", "simplebaseline"), ("srl-fft", "srl-fft")):
            assert rows[f"table6/{method}-r{depth}-{size}"]["ap"] == rows[f"table2/{name}-r{depth}-{size}"]["ap"]
    assert rows["table9/4-blocks"]["top1"] == rows["table8/srl-fft"]["top1"]
    assert rows["table9/1-block"] == rows["table9/channel-time"]


def test_the_papers_own_rows_are_computed_and_have_recipes(ledger: Ledger) -> None:
    for table, row in ledger.rows():
        if row.name.startswith(("SRL", "+")) and table.id != "table1":
            assert {"computed", "recipe"} <= set(row.statuses), row.id


def test_inputs_fit_the_recipes(ledger: Ledger) -> None:
    """The network that is counted is the one that the recipe trains, at its input size."""
    for _, row in ledger.rows():
        for recipe in row.recipes.values():
            model, data, _ = read_recipe(FOLDER / "recipes" / recipe.file, recipe.overrides)
            arguments = ledger.network(next(iter(row.networks.values()))).arguments
            spec = next(iter(row.networks.values()))
            pose = "pose" in recipe.file
            if pose:
                assert spec.input == [1, 3, data["height"], data["width"]], row.id
            else:
                assert spec.input == [1, 3, data["num_frames"], data["crop_size"], data["crop_size"]], row.id
            expected = {"depth": 50 if pose else 18, "block": "srl-fft", "positions": "every"}
            for key in ("depth", "block", "positions", "phi", "groups", "block_positions", "short_receptive_field"):
                trained = model["network"].get(key)
                counted = arguments.get(key, expected.get(key))
                if key == "block_positions" and arguments.get("block") in ("none", "dilated"):
                    continue  # no blocks, so no places
                if key in ("positions", "short_receptive_field"):
                    trained, counted = trained or expected.get(key), counted or expected.get(key)
                assert trained == counted, (row.id, key)


def test_added_parameters_of_table_8(ledger: Ledger) -> None:
    rows = {row.id: row for _, row in ledger.rows()}
    column = next(table for table in ledger.tables if table.id == "table8").column("params")
    assert column is not None
    for name, params in (("srl-fft", 88_128), ("srl-lo", 88_976), ("nl", 329_216), ("c2d", 0)):
        row = rows[f"table8/{name}"]
        found = ledger.complexity(row.networks["added"])
        assert found.params == params
        assert column.print(found.params, row.paper["params"]) in (row.paper["params"], "0.00")
