"""What a rate saves: the counts of the whole networks, transforms included."""

from __future__ import annotations

import pytest
import torch

from common.evaluation.complexity import count
from papers.fdc3d import networks

SHAPE = (1, 3, 16, 112, 112)


# Speed-ups in multiply-adds at 2x and 4x with 5 and with 4 of 7 rows, counted apart from this code.
@pytest.mark.parametrize(
    ("depth", "floor2", "figure2", "floor4", "figure4"),
    [
        (18, 1.70, 1.88, 2.28, 2.63),
        pytest.param(34, 1.79, 1.92, 2.68, 2.98, marks=pytest.mark.slow),
        pytest.param(50, 1.61, 1.74, 2.33, 2.62, marks=pytest.mark.slow),
    ],
)
def test_speedups_of_resnets(depth: int, floor2: float, figure2: float, floor4: float, figure4: float) -> None:
    def macs(**options: object) -> int:
        with torch.device("meta"):
            return count(networks.resnet(depth=depth, **options), SHAPE).macs_paper  # type: ignore[arg-type]

    dense = macs()
    result = [dense / macs(rate=rate, keep_temporal=keep) for rate in (2, 4) for keep in ("floor", "figure3")]
    assert result == pytest.approx([floor2, figure2, floor4, figure4], abs=0.012)


def test_parameters_fall_by_the_rate() -> None:
    with torch.device("meta"):
        params = [count(networks.resnet(rate=rate), SHAPE).params for rate in (None, 2, 4)]
    assert params[0] / params[1] == pytest.approx(1.99, abs=0.01)
    assert params[0] / params[2] == pytest.approx(3.97, abs=0.02)


def test_speedups_of_the_unet() -> None:
    shape = (1, 4, 32, 48, 32)
    for layout, expected in (("lee", 1.81), ("isotropic", 1.90)):
        with torch.device("meta"):
            result = [count(networks.unet(layout=layout, rate=rate), shape).macs_paper for rate in (None, 2)]  # type: ignore[arg-type]
        assert result[0] / result[1] == pytest.approx(expected, abs=0.03)


def test_a_compressed_network_runs_and_keeps_three_channels() -> None:
    network = networks.resnet(5, depth=10, width=1 / 8, rate=4)
    assert network.conv1.kept_channels == 3  # type: ignore[union-attr]
    assert network.conv1.kept_rows == 4  # type: ignore[union-attr]
    with torch.no_grad():
        assert network.eval()(torch.randn(2, 3, 8, 32, 32)).shape == (2, 5)
    channels_only = networks.resnet(5, depth=10, width=1 / 8, rate=2, method="channels")
    assert isinstance(channels_only.conv1, torch.nn.Conv3d)
