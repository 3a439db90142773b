"""The ledger of the DTF paper is complete and says what the paper prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.reporting.ledger import Ledger, load
from tests.datasets import read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "dtf"


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return load(FOLDER / "ledger.yaml")


def test_every_row_and_figure_is_there(ledger: Ledger) -> None:
    assert [len(table.rows) for table in ledger.tables] == [5, 4, 5, 6, 30, 28]
    assert [figure.id for figure in ledger.figures] == [f"figure{i}" for i in range(1, 8)]


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ("table1a/2d-resnet", "23 72.0 90.3"),
        ("table1a/dtf-1d-plus", "28 74.2 91.6"),
        ("table1a/dtf-f", "23 75.0 92.2"),
        ("table1b/baseline", "- - 23 74.9 92.3"),
        ("table1b/correlation", "- ✓ 24 75.2 92.5"),
        ("table1c/res3-5", "- ✓ ✓ ✓ 25 77.1 93.1"),
        ("table1d/temporal-difference", "36 76.6 92.8"),
        ("table2/dtf-net-r50-64f", "R50 111×30 80.9 94.6"),
        ("table2/dtf-net-r101-32f", "R101 76×30 80.1 94.3"),
        ("table2/corrnet-r101", "R101 224×30 79.2 -"),
        ("table2/vivit", "ViT-L 3,992×12 81.3 94.7"),
        ("table2/dtf-transformer", "Swin-B 266×12 83.5 95.9"),
        ("table3/cpnet", "R34 N/A - - 57.7 84.0"),
        ("table3/dtf-net-r50-32f", "R50 51×3 55.1 83.0 66.2 90.3"),
        ("table3/dtf-net-r101-64f", "R101 152×3 57.1 84.1 68.9 92.6"),
        ("table3/dtf-transformer", "Swin-B 266×3 57.9 85.7 70.1 93.2"),
    ],
)
def test_numbers_are_as_printed(ledger: Ledger, row: str, numbers: str) -> None:
    found = {r.id: r for _, r in ledger.rows()}[row]
    assert " ".join(found.paper.values()) == numbers


def test_rows_that_stand_in_several_tables_agree(ledger: Ledger) -> None:
    rows = {row.id: row.paper for _, row in ledger.rows()}

    def numbers(name: str) -> list[str]:
        return [rows[name][key] for key in ("flops", "top1", "top5")]

    assert numbers("table1a/dtf") == numbers("table1b/dtf") == numbers("table1c/res5")
    assert numbers("table1a/2d-resnet") == numbers("table1c/2d-resnet") == numbers("table1d/2d-resnet")
    assert numbers("table1c/res2-5")[:2] == numbers("table1d/dtf")[:2]
    assert numbers("table2/dtf-net-r50-16f")[1:] == numbers("table1c/res2-5")[1:]
    for depth in (50, 101):
        for frames in (16, 32, 64):
            name = f"dtf-net-r{depth}-{frames}f"
            assert rows[f"table2/{name}"]["flops"].split("×")[0] == rows[f"table3/{name}"]["flops"].split("×")[0]


def test_own_rows_are_computed_in_both_readings_and_have_recipes(ledger: Ledger) -> None:
    for table, row in ledger.rows():
        if table.id.startswith("table1") or row.name.startswith("DTF"):
            assert {"computed", "recipe"} <= set(row.statuses), row.id
        else:
            assert row.statuses == ["literature"], row.id
        if row.name.startswith(("DTF-", "DTF,", "DTF_F")) or row.name == "DTF":
            assert list(row.networks) == ["author", "text"]


def test_rows_that_no_reading_gives_are_noted(ledger: Ledger) -> None:
    rows = {row.id: row for _, row in ledger.rows()}
    for name in (
        "table2/dtf-net-r50-64f",
        "table3/dtf-net-r50-64f",
        "table3/dtf-net-r101-16f",
        "table2/dtf-net-r101-64f",
    ):
        assert "No reading" in (rows[name].note or "")
    assert "does not say" in (rows["table1a/dtf-1d-plus"].note or "")
    assert "Not derivable" in (rows["table1d/temporal-difference"].note or "")


def test_the_counted_network_is_the_one_that_the_recipe_trains(ledger: Ledger) -> None:
    keys = {"block", "stages", "preset", "aggregation", "correlation", "num_frames"}
    for _, row in ledger.rows():
        for recipe in row.recipes.values():
            model, data, _ = read_recipe(FOLDER / "recipes" / recipe.file, recipe.overrides)
            label, spec = list(row.networks.items())[-1]  # the text's network, the default of the recipe
            assert label in ("text", "ours")
            network = ledger.network(spec)
            assert spec.input == [1, 3, data["num_frames"], data["crop_size"], data["crop_size"]], row.id
            options = model["network"]
            swin = "size" in options
            assert network.function == f"papers.dtf.networks.{'dtf_transformer' if swin else 'dtf_net'}"
            own = {k: str(v) for k, v in {**options, "num_frames": data["num_frames"]}.items() if k in keys}
            counted = {k: str(v) for k, v in network.arguments.items() if k in keys}
            counted.setdefault("num_frames", "64" if swin else "16")
            assert own == counted, row.id
            if not swin:
                assert network.arguments.get("depth", 50) == options["depth"]
                assert f"resnet{options['depth']}" in model["imagenet"]


def test_demos_show_the_block_and_a_control(ledger: Ledger) -> None:
    motion, order = ledger.demos
    assert [row.table_row for row in motion.rows] == ["table1a/dtf"]
    assert [row.table_row for row in order.rows] == ["table1a/dtf-1d", "table1a/dtf"]
