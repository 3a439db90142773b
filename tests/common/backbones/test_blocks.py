"""The pieces that backbones are built from."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from common.backbones.blocks import ConvUnit3d, DepthwiseConv3d, activation_factory, initialize_orthogonal
from common.backbones.bn_inception import scale_width
from tests.networks import assert_orthogonal


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
    assert_orthogonal(network)
    for layer in (network[0], network[1], network[2]):
        assert layer.bias is not None
        assert not layer.bias.any()
    assert network[3].weight.eq(1).all()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last_3d])
@pytest.mark.parametrize("shape", [(1, 3, 4, 5, 6), (2, 3, 1, 1, 1), (1, 3, 1, 7, 1)])
@pytest.mark.parametrize(
    ("kernel", "groups", "outputs"), [((1, 1, 1), 1, 8), ((1, 3, 3), 3, 3), ((3, 1, 1), 3, 6), ((3, 3, 3), 1, 4)]
)
def test_a_unit_folds_its_normalisation_in_evaluation(
    kernel: tuple[int, int, int], groups: int, outputs: int, shape: tuple[int, ...], layout: torch.memory_format
) -> None:
    torch.manual_seed(0)
    unit = ConvUnit3d(3, outputs, kernel, groups=groups).double().eval()
    nn.init.uniform_(unit.norm.weight, 0.5, 2)
    nn.init.normal_(unit.norm.bias)
    nn.init.normal_(unit.norm.running_mean)
    nn.init.uniform_(unit.norm.running_var, 0.5, 2)
    x = torch.randn(shape, dtype=torch.float64).to(memory_format=layout)
    expected = unit(x.requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(unit(x), expected, rtol=1e-12, atol=1e-12)
        unit.norm.running_mean += 1  # the fold follows the statistics
        torch.testing.assert_close(unit(x), unit.activation(unit.norm(unit.conv(x))), rtol=1e-12, atol=1e-12)


def test_a_unit_runs_the_hooks_of_its_parts_and_what_stands_in_their_place() -> None:
    unit = ConvUnit3d(3, 4).eval()
    calls = []
    unit.norm.register_forward_pre_hook(lambda *_: calls.append("norm"))
    unit.conv.register_forward_hook(lambda *_: calls.append("conv"))
    with torch.no_grad():
        unit(torch.zeros(1, 3, 2, 2, 2))
        assert calls == ["conv", "norm"]
        unit.norm = nn.Identity()
        unit(torch.zeros(1, 3, 2, 2, 2))
        assert calls == ["conv", "norm", "conv"]


@pytest.mark.parametrize("width", [0, -0.5])
def test_a_width_that_leaves_no_channels_is_refused(width: float) -> None:
    with pytest.raises(ValueError, match=r"must be greater than 0"):
        scale_width(64, width)
