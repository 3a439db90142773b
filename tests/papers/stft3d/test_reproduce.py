"""The paper's figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from common.reporting.ledger import Ledger
from common.reporting.runs import DemoRuns, Job
from data.demo.motion import generate_motion
from papers.stft3d import figures


def test_figure_2_shows_a_clip_of_the_demo(tmp_path: Path, ledger: Ledger) -> None:
    generate_motion(tmp_path / "motion", size=32, frames=8, train=1, val=1, test=1, classes=["move_left", "move_right"])
    figure = figures.figure2(Job(ledger, demos=[DemoRuns(ledger.demos[0], tmp_path / "motion")]))
    pictures = [axes.images[0].get_array() for part in figure.subfigs for axes in part.axes if axes.images]
    assert len(pictures) == 1 + 2 * 26
    assert pictures[0] is not None
    assert pictures[0].shape == (32, 32)
    assert np.ptp(np.asarray(pictures[0])) > 0


def test_figure_4_has_13_points_their_conjugates_and_zero() -> None:
    (axes,) = figures.figure4().axes
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["selected (13)", "complex conjugate, left out (13)", "zero, left out (1)"]
