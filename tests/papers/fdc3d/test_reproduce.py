"""The paper's figures from trained demo networks."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from common.reporting.ledger import load
from common.reporting.page import png
from common.reporting.reproduce import main
from common.reporting.results import ReproduceError
from common.reporting.runs import Job
from papers.fdc3d import figures, networks

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "papers" / "fdc3d"
FIGURES = {name: getattr(figures, name) for name in ("figure2", "figure3", "figure4", "ladder")}


def test_figures_without_the_demo_say_what_they_need() -> None:
    for function in FIGURES.values():
        with pytest.raises(ReproduceError, match="it is drawn from the demo"):
            function(None)
    with pytest.raises(ReproduceError, match="name motion/dense, too"):
        figures.figure2(Job(load(FOLDER / "ledger.yaml")))


def test_the_picture_of_a_filter() -> None:
    conv = nn.Conv3d(3, 8, 7, bias=False)
    transform = figures.first_layer_transforms(conv)["OT (learned)"]
    figure = figures.filter_figure(conv, transform, 4)
    assert png(figure).startswith(b"\x89PNG")
    pictures = [[np.asarray(axes.images[0].get_array()) for axes in part.axes] for part in figure.subfigs]
    assert [len(part) for part in pictures] == [7, 7, 7]
    assert sum(len(axes.patches) for part in figure.subfigs for axes in part.axes) == 4
    # The rows are the transform of the slices, and all of them would give the filter back.
    slices, rows = (np.stack(part).reshape(7, -1) for part in pictures[:2])
    np.testing.assert_allclose(transform.numpy() @ slices, rows, atol=1e-5)
    whole = figures.mask_rows(conv, transform, 7).masked_weight()
    torch.testing.assert_close(whole, conv.weight)


def test_transforms_of_figure_2_are_orthogonal() -> None:
    conv: nn.Conv3d = networks.resnet(5, depth=10, width=1 / 8).conv1  # type: ignore[assignment]
    found = figures.first_layer_transforms(conv)
    assert list(found) == ["min l2", "DCT", "OT (learned)"]
    for transform in found.values():
        torch.testing.assert_close(transform @ transform.T, torch.eye(7), atol=1e-5, rtol=0)


@pytest.mark.slow
def test_a_small_demo_and_all_figures(tmp_path: Path) -> None:
    """Dense networks and those of FDC3D at 2x, trained for an epoch, with every figure."""
    rows = ["motion/dense", "motion/fdc3d-2x", "brain/dense", "brain/fdc3d-2x", *FIGURES]
    assert main(FOLDER, figures.__name__, [*rows, "--epochs", "1", "--out", str(tmp_path / "fdc3d")]) == 0
    for name in FIGURES:
        assert (tmp_path / "fdc3d" / "figures" / f"{name}.png").stat().st_size > 10_000
    result = json.loads(next(tmp_path.glob("fdc3d/brain/fdc3d-2x/*/result.json")).read_text())
    for key in ("dice_et", "lost_dice", "speedup_formula", "speedup_macs", "speedup_measured"):
        assert key in result
