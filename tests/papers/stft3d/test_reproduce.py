"""`python -m papers.stft3d.reproduce` as it is typed, and the paper's figures."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from common.reporting.ledger import load
from common.reporting.page import png
from common.reporting.runs import DemoRuns, Job
from data.demo.motion import generate_motion
from papers.stft3d import reproduce

ROOT = Path(__file__).resolve().parents[3]


def run(*arguments: str) -> str:
    command = [sys.executable, "-m", "papers.stft3d.reproduce", *arguments]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_complexity_as_json_and_nothing_else(tmp_path: Path) -> None:
    rows = ["table2/t-stft-16f", "table2/st-stft-16f", "table2/relpv-16f", "table3/ir-csn-101"]
    records = {r["row"]: r for r in json.loads(run(*rows, "--complexity", "--json", "--out", str(tmp_path)))}
    assert set(records) == set(rows)
    for record in records.values():
        assert record["params"] == pytest.approx(record["paper_params"], rel=0.01)
        assert record["macs_full"] > record["macs_paper_convention"]
    assert records["table2/t-stft-16f"]["macs_paper_convention"] == pytest.approx(10.30e9, rel=0.015)
    assert records["table2/st-stft-16f"]["macs_paper_convention"] == pytest.approx(10.63e9, rel=0.015)
    assert records["table3/ir-csn-101"]["macs_paper_convention"] == pytest.approx(56.5e9, rel=0.015)
    assert records["table2/relpv-16f"]["paper_macs"] is None
    assert records["table2/t-stft-16f"]["networks"]["text"]["params"] == pytest.approx(3.217e6, rel=0.001)


def test_figures() -> None:
    for figure in (reproduce.figure2(), reproduce.figure3(), reproduce.figure4()):
        assert png(figure).startswith(b"\x89PNG")


def test_figure_2_shows_a_clip_of_the_demo(tmp_path: Path) -> None:
    generate_motion(tmp_path / "motion", size=32, frames=8, train=1, val=1, test=1, classes=["move_left", "move_right"])
    ledger = load(ROOT / "papers" / "stft3d" / "ledger.yaml")
    figure = reproduce.figure2(Job(ledger, demos=[DemoRuns(ledger.demos[0], tmp_path / "motion")]))
    pictures = [axes.images[0].get_array() for part in figure.subfigs for axes in part.axes if axes.images]
    assert len(pictures) == 1 + 2 * 26
    assert pictures[0] is not None
    assert pictures[0].shape == (32, 32)
    assert np.ptp(np.asarray(pictures[0])) > 0


def test_figure_4_has_13_points_their_conjugates_and_zero() -> None:
    (axes,) = reproduce.figure4().axes
    legend = axes.get_legend()
    assert legend is not None
    names = [text.get_text() for text in legend.get_texts()]
    assert names == ["selected (13)", "complex conjugate, left out (13)", "zero, left out (1)"]
