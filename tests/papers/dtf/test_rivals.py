"""The modules of Tables 1a and 1d against their published definitions, frame by frame and offset by offset, in float64.

Temporal Shift and Temporal Difference were also run next to their released code with the same weights: outputs agree to
1e-15.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.dtf.layers import (
    CorrelationBlock,
    DynamicTemporalConv,
    ShiftedConv,
    TemporalConv,
    TemporalDifferenceBlock,
)


def clip(*shape: int) -> Tensor:
    torch.manual_seed(0)
    return torch.randn(*shape, dtype=torch.float64)


@pytest.mark.parametrize("side", [1, 3])
def test_temporal_convolution_sums_over_three_frames(side: int) -> None:
    layer = TemporalConv(nn.Conv2d(6, 4, side, 2, side // 2, bias=False)).double()
    x = clip(2, 6, 5, 5, 7)
    for t in range(5):
        taps = [(tap, t + tap - 1) for tap in range(3) if 0 <= t + tap - 1 < 5]
        expected = sum(F.conv2d(x[:, :, s], layer.weight[:, :, tap], None, 2, side // 2) for tap, s in taps)
        torch.testing.assert_close(layer(x)[:, :, t], expected)


def test_dynamic_convolution_mixes_kernels_at_every_position() -> None:
    layer = DynamicTemporalConv(nn.Conv2d(8, 4, 1, bias=False), temperature=2.0).double()
    x = clip(2, 8, 5, 3, 2)
    first, _, second = layer.router
    out = layer(x)
    for b, y, u in itertools.product(range(2), range(3), range(2)):
        mean = x[b, :, :, y, u].mean(1)
        hidden = (first.weight[:, :, 0, 0] @ mean + first.bias).relu()
        weights = ((second.weight[:, :, 0, 0] @ hidden + second.bias) / 2.0).softmax(0)
        kernel = (weights[:, None, None, None] * layer.weight[..., 0, 0]).sum(0)
        expected = F.conv1d(x[b, :, :, y, u][None], kernel, padding=1)[0]
        torch.testing.assert_close(out[b, :, :, y, u], expected)


def test_temporal_shift() -> None:
    """The first eighth of the channels comes from the next frame, the second from the previous one; zeros beyond."""
    conv = nn.Conv2d(16, 4, 1, bias=False).double()
    layer = ShiftedConv(conv).double()
    layer.load_state_dict(conv.state_dict())
    x = clip(2, 16, 4, 3, 5)
    for t in range(4):
        frame = x[:, :, t].clone()
        frame[:, :2] = x[:, :2, t + 1] if t < 3 else 0
        frame[:, 2:4] = x[:, 2:4, t - 1] if t else 0
        torch.testing.assert_close(layer(x)[:, :, t], conv(frame))


def test_learnable_correlation() -> None:
    """Filters W of every frame, channel and offset: S = sum over c of W A B, the first frame with itself; then 1x1."""
    block = CorrelationBlock(4, 3).double()
    nn.init.normal_(block.weight)
    nn.init.normal_(block.project.weight)
    x = clip(1, 4, 3, 3, 4)
    out = block(x)
    for t, y, u in itertools.product(range(3), range(3), range(4)):
        scores = torch.zeros(9, dtype=torch.float64)
        for i in range(9):
            v, w = y + i // 3 - 1, u + i % 3 - 1
            if 0 <= v < 3 and 0 <= w < 4:
                scores[i] = (block.weight[t, :, i] * x[0, :, max(t - 1, 0), y, u] * x[0, :, t, v, w]).sum()
        expected = x[0, :, t, y, u] + block.project.weight[:, :, 0, 0] @ scores
        torch.testing.assert_close(out[0, :, t, y, u], expected)


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_temporal_difference(size: tuple[int, int]) -> None:
    """The long-term module: both directions share their layers; odd maps are pooled without their last row."""
    channels, time = 32, 4
    block = TemporalDifferenceBlock(channels).double().eval()
    for parameter in block.parameters():
        nn.init.normal_(parameter, std=0.3)
    x = clip(2, channels, time, *size)
    reduced = [block.reduce(x[:, :, t]) for t in range(time)]
    aligned = [block.align(frame) for frame in reduced]

    def gate(difference: Tensor) -> Tensor:
        height, width = size
        pooled = difference[:, :, : height // 2 * 2, : width // 2 * 2].unfold(2, 2, 2).unfold(3, 2, 2).mean((4, 5))
        rows = [y * (height // 2) // height for y in range(height)]
        columns = [u * (width // 2) // width for u in range(width)]
        coarse = block.coarse(pooled)[:, :, rows][:, :, :, columns]
        return torch.sigmoid(block.expand((difference + block.fine(difference) + coarse) / 3)) - 0.5

    zero = torch.zeros_like(reduced[0])
    scaled = []
    for t in range(time):
        ahead = aligned[t + 1] - reduced[t] if t + 1 < time else zero
        back = aligned[t - 1] - reduced[t] if t else zero
        scaled.append(x[:, :, t] * (1 + (gate(ahead) + gate(back)) / 2))
    for t in range(time):
        taps = [(tap, t + tap - 1) for tap in range(3) if 0 <= t + tap - 1 < time]
        expected = sum(block.shift.weight[:, 0, tap] * scaled[s] for tap, s in taps)
        torch.testing.assert_close(block(x)[:, :, t], expected)


def test_temporal_difference_starts_with_a_shift() -> None:
    weight = TemporalDifferenceBlock(16).shift.weight[:, 0, :, 0, 0]
    assert weight.tolist() == [[0, 0, 1]] * 2 + [[1, 0, 0]] * 2 + [[0, 1, 0]] * 12
