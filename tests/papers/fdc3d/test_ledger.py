"""The ledger of the FDC3D paper is complete and says what the paper prints."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from common.comparison.study import load as load_study
from common.reporting.ledger import Ledger, load
from papers.fdc3d.methods import METHODS

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "fdc3d"


@pytest.fixture(scope="module")
def ledger() -> Ledger:
    return load(FOLDER / "ledger.yaml")


def test_every_row_and_figure_is_there(ledger: Ledger) -> None:
    assert [len(table.rows) for table in ledger.tables] == [2, 1 + 8, 6, 9, 2]
    assert [figure.id for figure in ledger.figures] == ["figure1", "figure2", "figure3", "figure4", "ladder"]


@pytest.mark.parametrize(
    ("row", "numbers"),
    [
        ("section1/resnet-50-3d", "354MB 22G"),
        ("section1/resnet-50-2d", "103MB 4G"),
        ("table1/baseline", "1× 72.50 -"),
        ("table1/tp-2x", "2× - 5.72"),
        ("table1/tp-4x", "4× - 14.24"),
        ("table1/fp-4x", "4× - 6.92"),
        ("table1/rp-2x", "2× - 0.41"),
        ("table1/fdc3d-2x", "2× - 0.10"),
        ("table1/fdc3d-4x", "4× - 2.16"),
        ("table2/channels-2x", "2× 0.81"),
        ("table2/dct-4x", "4× 2.96"),
        ("table3/resnet-34", "1× 81.1 -"),
        ("table3/resnet-50-4x", "4× - 1.63"),
        ("table3/resnet-101-2x", "2× - 0.02"),
        ("table4/unet", "1× 0.7974 0.7971 0.6908"),
        ("table4/fc3d-unet", "2× 0.7832 0.7831 0.6816"),
    ],
)
def test_numbers_are_as_printed(ledger: Ledger, row: str, numbers: str) -> None:
    found = {r.id: r for _, r in ledger.rows()}[row]
    assert " ".join(found.paper.values()) == numbers


def test_the_demos_compress_at_both_rates(ledger: Ledger) -> None:
    assert [demo.id for demo in ledger.demos] == ["motion", "brain"]
    for demo in ledger.demos:
        assert [row.id.partition("/")[2] for row in demo.rows] == ["dense", "fdc3d-2x", "fdc3d-4x", "dense-longer"]
        assert [row.starts_from for row in demo.rows] == [None, *[f"{demo.id}/dense"] * 3]


def test_the_study_holds_every_method_at_both_rates() -> None:
    chosen = set()
    for method in load_study(FOLDER / "claims.yaml").methods.values():
        words = shlex.split(method.options)
        given = dict(zip(words[::2], words[1::2], strict=True))
        if method.starts_from and "--model.compression.rate" in given:
            chosen.add((given["--model.compression.method"], given["--model.compression.rate"]))
    assert chosen == {(method, rate) for method in METHODS for rate in ("2", "4")}


def test_networks_fit_the_recipes(ledger: Ledger) -> None:
    """The network that is counted is the one that the recipe trains, at its size of input."""
    for _, row in ledger.rows():
        for recipe in row.recipes.values():
            config = yaml.safe_load((FOLDER / "recipes" / recipe.file).read_text())
            data, model = config["data"]["init_args"], config["model"]["init_args"]
            given = dict(zip(recipe.overrides[::2], recipe.overrides[1::2], strict=True))
            spec = next(iter(row.networks.values()))
            network = ledger.network(spec)
            options = {**model.get("compression", {})}
            options |= {k.rpartition(".")[2]: v for k, v in given.items() if k.startswith("--model.compression.")}
            assert network.arguments.get("rate") == (float(options["rate"]) if "rate" in options else None), row.id
            assert network.arguments.get("method", "fdc3d") == options.get("method", "fdc3d"), row.id
            if "patch_size" in data:
                assert spec.input == [1, 4, *data["patch_size"]]
            else:
                size = data["crop_size"]
                assert spec.input == [1, 3, data["num_frames"], size, size]
                assert network.arguments.get("depth", 18) == int(
                    given.get("--model.network.depth", model["network"]["depth"])
                ), row.id
