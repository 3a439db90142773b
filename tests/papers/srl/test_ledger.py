"""The ledger of the SRL paper fits the recipes, its rows agree with one another, and its counts meet the paper."""

from __future__ import annotations

from pathlib import Path

from common.reporting.ledger import Ledger
from tests.datasets import read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "srl"


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
    assert [demo.id for demo in ledger.demos] == ["demo-video", "demo-pose"]
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
