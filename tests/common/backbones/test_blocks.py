"""The pieces that backbones are built from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.backbones.blocks import DepthwiseConv3d, activation_factory, initialize_orthogonal


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("multiplier", [1, 2])
@pytest.mark.parametrize(
    ("kernel", "stride", "padding"),
    [
        ((1, 3, 3), (1, 1, 1), (0, 1, 1)),
        ((1, 5, 3), (1, 2, 1), (0, 0, 1)),
        ((3, 1, 1), (1, 1, 1), (1, 0, 0)),
        ((3, 1, 1), (2, 1, 1), (0, 0, 0)),
        ((3, 3, 3), (1, 1, 1), (1, 1, 1)),
        ((1, 3, 3), (2, 1, 1), (0, 1, 1)),
        ((3, 1, 1), (1, 2, 2), (1, 0, 0)),
    ],
)
def test_depthwise_convolution_is_a_grouped_convolution(
    kernel: tuple[int, int, int],
    stride: tuple[int, int, int],
    padding: tuple[int, int, int],
    multiplier: int,
    layout: torch.memory_format,
) -> None:
    torch.manual_seed(0)
    ours = DepthwiseConv3d(4, 4 * multiplier, kernel, stride, padding).double()
    theirs = nn.Conv3d(4, 4 * multiplier, kernel, stride, padding, groups=4, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    results = []
    for layer in (ours, theirs):
        x = torch.arange(2 * 4 * 5 * 7 * 6, dtype=torch.float64).sin().view(2, 4, 5, 7, 6)
        x = x.to(memory_format=layout).requires_grad_()
        y = layer(x)
        y.square().sum().backward()
        results.append((y, x.grad, layer.weight.grad))
    for actual, expected in zip(*results, strict=True):
        torch.testing.assert_close(actual, expected)


def test_activation_names() -> None:
    assert activation_factory("leaky_relu")().negative_slope == 0.01
    with pytest.raises(ValueError, match="activation 'swish' is not known; choose one of relu, leaky_relu"):
        activation_factory("swish")


def test_orthogonal_initialisation_covers_wide_and_tall_layers() -> None:
    network = nn.Sequential(nn.Conv3d(8, 4, (1, 3, 3)), nn.Conv2d(2, 30, 3), nn.Linear(5, 3), nn.BatchNorm1d(3))
    initialize_orthogonal(network)
    for layer in (network[0], network[1], network[2]):
        matrix = layer.weight.flatten(1)
        gram = matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix
        torch.testing.assert_close(gram, torch.eye(len(gram)), atol=1e-5, rtol=0)
        assert layer.bias is not None
        assert not layer.bias.any()
    assert network[3].weight.eq(1).all()
