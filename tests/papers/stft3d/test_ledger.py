"""The ledger of the X-STFT paper is complete and says what the paper prints."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.reporting.ledger import Ledger, load
from tests.datasets import published_classes, read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "stft3d"


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return load(FOLDER / "ledger.yaml")


def test_every_row_and_figure_is_there(ledger: Ledger) -> None:
    assert [len(table.rows) for table in ledger.tables] == [7, 21, 13, 4, 27, 18, 19, 14, 14]
    assert [figure.id for figure in ledger.figures] == [f"figure{i}" for i in range(1, 9)]


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ("table1/something-v2", "174 1,68,913 24,777 27,157"),
        ("table2/i3d-64f", "64 12.90M 107.89G 45.8 76.5"),
        ("table2/relpv-32f", "32 4.78M - 40.69 71.20"),
        ("table2/fact-dw-32f", "32 6.28M 20.79G 44.62 74.37"),
        ("table2/t-stft-16f", "16 6.27M 10.30G 46.74 76.15"),
        ("table2/i2d-64f", "64 6.79M - 34.4 69.0"),
        ("table3/ir-csn-152", "29.6M 74.0G 48.22 -"),
        ("table3/3d-shufflenetv1-2.0x", "3.94M 0.78G 33.91 62.52"),
        ("table4/selu", "SELU 32.83 61.83"),
        ("table5/t-stft-64f-kinetics", "BN-Inception RGB Kinetics 6.27M 64 41.21G×1×1 52.42 81.8 64.66 90.84"),
        ("table5/stm-16f", "ResNet-50 RGB ImageNet 26M 16 67G×3×10 50.7 80.4 64.2 89.8"),
        ("table6/bertasius-pose-flow", "Pose+Flow PoseTrack - 18.8"),
        ("table6/t-stft", "RGB Kinetics 64 44.3"),
        ("table7/3d-resnext-101", "× 16 94.89"),
        ("table7/t-stft-kinetics", "Kinetics 16 96.94"),
        ("table8/t-stft", "BN-Inception × 61.1 85.2"),
        ("table9/t-stft", "Kinetics 94.7 71.5"),
    ],
)
def test_numbers_are_as_printed(ledger: Ledger, row: str, numbers: str) -> None:
    found = {r.id: r for _, r in ledger.rows()}[row]
    assert " ".join(found.paper.values()) == numbers


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
