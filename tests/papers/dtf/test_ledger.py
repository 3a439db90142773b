"""The ledger of the DTF paper fits the recipes, and its rows agree with one another."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.reporting.counting import complexity_records, count_rows
from common.reporting.ledger import Ledger
from tests.datasets import read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "dtf"


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


@pytest.mark.slow
def test_counts_meet_the_paper(ledger: Ledger) -> None:
    found = complexity_records(ledger, count_rows(ledger, ["table1a/dtf", "table1a/dtf-1d"]))
    records = {record["row"]: record for record in found}
    for name, record in records.items():
        assert record["macs_paper_convention"] == pytest.approx(record["paper_macs"], rel=0.03), name
        assert record["macs_full"] > record["macs_paper_convention"]
    author, text = (records["table1a/dtf"]["networks"][label] for label in ("author", "text"))
    assert author["params"] - text["params"] == pytest.approx(3 * 2 * 512**2, rel=0.01)  # the complex mixing
