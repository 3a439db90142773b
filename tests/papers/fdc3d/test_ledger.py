"""The ledger of the FDC3D paper fits the recipes, and its rows agree with one another."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
import yaml

from common.comparison.study import load as load_study
from common.reporting.counting import count_rows
from common.reporting.ledger import Ledger
from papers.fdc3d.methods import METHODS

FOLDER = Path(__file__).resolve().parents[3] / "papers" / "fdc3d"


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


@pytest.mark.slow
def test_counts_meet_the_paper(ledger: Ledger) -> None:
    rows = ["section1/resnet-50-3d", "section1/resnet-50-2d", "table1/baseline", "table1/fdc3d-2x", "table4/unet"]
    counts = {row: next(iter(found.values())) for row, found in count_rows(ledger, rows).items()}
    assert counts["section1/resnet-50-3d"].params * 8 / 2**20 == pytest.approx(354.0, abs=0.1)
    assert counts["section1/resnet-50-3d"].macs_paper / 1e9 == pytest.approx(10.07, abs=0.01)
    assert counts["section1/resnet-50-2d"].macs_paper / 1e9 == pytest.approx(4.09, abs=0.03)
    dense, compact = (counts[f"table1/{name}"].macs_paper for name in ("baseline", "fdc3d-2x"))
    assert dense / compact == pytest.approx(1.88, abs=0.01)
    assert counts["table4/unet"].macs_paper / 1e9 == pytest.approx(680, abs=1)
