"""The study of operators across papers: every method trains for a step, with all options on all data."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from common.comparison.study import load
from common.training import cli, lightning_cli
from tests.datasets import write_dataset

STUDY = load(Path(__file__).resolve().parents[3] / "common/comparison/operators/study.yaml")


@pytest.fixture(scope="module")
def motion(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    return write_dataset("motion", tmp_path_factory.mktemp("motion"))


@pytest.mark.parametrize("method", STUDY.methods)
def test_a_method_trains(method: str, motion: list[str], tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    for data in (name for name in STUDY.data if method in STUDY.methods_on(name)):
        lightning_cli.check_arguments(["fit", *STUDY.arguments(data, method, 0.03)])
    done = cli.run(["fit", *STUDY.arguments("motion", method, 0.03), *motion, "--trainer.fast_dev_run", "1"])
    assert done.trainer.global_step == 1
    assert 100_000 < sum(p.numel() for p in done.model.network.parameters()) < 200_000  # one backbone for all
    network, clip = done.model.network.double().eval(), torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        for parameter in network.parameters():  # new blocks do little
            parameter += 0.05 * torch.randn_like(parameter)
        difference = (network(clip) - network(clip.flip(2))).abs().max()
    order_blind = STUDY.methods[method].bound_on("motion") == 0.5  # cannot tell a motion from the opposite one
    assert (difference < 1e-12) == order_blind
