"""What every layer and network of this paper survives; the properties are those of `tests.robustness`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from torch import nn

from papers.dtf.layers import (
    CorrelationBlock,
    DTFBlock,
    DynamicTemporalConv,
    ShiftedConv,
    TemporalConv,
    TemporalDifferenceBlock,
)
from papers.dtf.networks import dtf_net, dtf_transformer
from tests import robustness
from tests.robustness import Build, Shape


def conv(side: int) -> nn.Conv2d:
    return nn.Conv2d(32, 24, side, 2, side // 2, bias=False)


def net(**options: object) -> nn.Module:
    return dtf_net(5, 16, width=0.25, layers=(1, 1, 1, 1), dropout=0.0, **options)


def transformer(**options: object) -> nn.Module:
    return dtf_transformer(
        5, 16, size="t", embed_dim=16, depths=(2, 2, 1, 1), heads=(1, 2, 2, 4), dropout=0.0, **options
    )


CLIP = (2, 32, 4, 6, 5)
VIDEO = (2, 3, 16, 40, 48)
LAYERS: dict[str, tuple[Build, Shape]] = {
    "dtf": (lambda: DTFBlock(32, 4), CLIP),
    "dtf, released code": (lambda: DTFBlock(32, 4, preset="author"), CLIP),
    "dtf, one filter": (lambda: DTFBlock(32, 4, dynamic=False), CLIP),
    "dtf, nine frames": (lambda: DTFBlock(32, 9, aggregation=False, correlation=False), (2, 32, 9, 6, 5)),
    "dtf, one frame": (lambda: DTFBlock(32, 1), (2, 32, 1, 6, 5)),
    "temporal convolution": (lambda: TemporalConv(conv(1)), CLIP),
    "dynamic temporal convolution": (lambda: DynamicTemporalConv(conv(1)), CLIP),
    "temporal shift": (lambda: ShiftedConv(conv(3)), CLIP),
    "correlation": (lambda: CorrelationBlock(32, 4), CLIP),
    "temporal difference": (lambda: TemporalDifferenceBlock(32), CLIP),
}
NETWORKS: dict[str, tuple[Build, Shape]] = {
    "DTF-Net": (net, VIDEO),
    "DTF-Net, released code": (lambda: net(preset="author", num_blocks=2), VIDEO),
    "DTF_1d+": (lambda: net(block="dtf-1d+"), VIDEO),
    "Correlation": (lambda: net(block="correlation"), VIDEO),
    "Temporal Difference": (lambda: net(block="temporal-difference"), VIDEO),
    "DTF-Transformer": (transformer, VIDEO),
    "DTF-Transformer, released code": (lambda: transformer(preset="author"), VIDEO),
}
CASES = LAYERS | NETWORKS


@pytest.mark.parametrize("name", CASES)
@robustness.every_quick_check
def test_property(check: Callable[[Build, Shape], None], name: str) -> None:
    check(*CASES[name])


@pytest.mark.parametrize("name", CASES)
def test_takes_one_pixel_and_odd_sizes(name: str) -> None:
    build, shape = CASES[name]
    small = [(1, 1), (7, 3)] if name in LAYERS else [(33, 31), (5, 9)]
    robustness.takes_sizes(build, shape, [(*shape[1:3], *size) for size in small])


@pytest.mark.parametrize(
    "name", ["dtf", *(pytest.param(name, marks=pytest.mark.slow) for name in LAYERS if name != "dtf")]
)
def test_layers_export_with_dynamic_batch_height_and_width(name: str) -> None:
    build, shape = LAYERS[name]
    robustness.exports(build, shape, [(5, *shape[1:3], 22, 21), (6, *shape[1:3], 9, 10)])


@pytest.mark.slow
@pytest.mark.parametrize("name", LAYERS)
def test_layers_compile_with_changing_sizes(name: str) -> None:
    build, shape = LAYERS[name]
    # Frames are the batch of a 2D convolution, for which PyTorch compiles anew beyond 16.
    batch = 3 if name in ("correlation", "temporal difference") else 5
    robustness.compiles(build, shape, [(3, *shape[1:3], 8, 7), (batch, *shape[1:3], 11, 12)])


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_export_and_run_in_onnxruntime(name: str, tmp_path: Path) -> None:
    """With dynamic batch, height and width; the windows of a Swin depend on the size, so there the batch alone."""
    build, (_, channels, time, *_) = NETWORKS[name]
    if name.startswith("DTF-Transformer"):
        shape, sizes, dynamic = VIDEO, [(5, *VIDEO[1:])], (0,)
    else:
        # Temporal Difference halves the maps of the last stage: at least two positions are to be left.
        shape, dynamic = (2, channels, time, 136, 140), (0, 3, 4)
        sizes = [(5, channels, time, 150, 133)]
    robustness.exports(build, shape, sizes, dynamic)
    robustness.exports_to_onnx(build, shape, tmp_path, sizes, dynamic)
