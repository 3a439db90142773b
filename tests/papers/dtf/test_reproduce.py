"""The paper's figures."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from common.training.cli import run as spectral
from data.demo.motion import generate_motion
from papers.dtf import figures

ROOT = Path(__file__).resolve().parents[3]


def test_reach_in_time_is_what_the_kernels_allow() -> None:
    found = figures.reaches((0, 1, 2, 4), frames=16)
    assert found == {"DTF_1d-Net": [1, 3, 5, 9], "DTF-Net": [1, 16, 16, 16]}


def test_figure_2_shows_equal_curves() -> None:
    last = [axes for axes in figures.figure2().axes if axes.get_title().startswith("equal")]
    for axes in last:
        product, convolved = (torch.as_tensor(line.get_ydata()) for line in axes.get_lines())
        torch.testing.assert_close(product, convolved)


def test_figure_7_shows_the_network_of_the_demo(tmp_path: Path) -> None:
    data = tmp_path / "clips"
    generate_motion(data, size=32, frames=8, train=1, val=1, test=1)
    recipe = ROOT / "papers/dtf/recipes/demo.yaml"
    places = ["--data.root", str(data), "--data.manifest", str(data / "manifest.csv")]
    small = ["--trainer.max_epochs", "1", "--trainer.default_root_dir", str(tmp_path), "--name", "fit"]
    spectral(["fit", "--config", str(recipe), *places, *small])
    job: Any = SimpleNamespace(find=lambda entry: (SimpleNamespace(folder=tmp_path), data))
    figure = figures.figure7(job)
    titles = [axes.get_title(loc="left") for axes in figure.axes if axes.get_title(loc="left")]
    assert [title.split(",")[0] for title in titles] == ["move_left", "move_right", "move_up", "move_down"]
