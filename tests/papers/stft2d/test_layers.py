"""The Depthwise-STFT separable layer against its definition and Table 1, the blocks, and the exchange of layers."""

from __future__ import annotations

import cmath
import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import Conv2dNormActivation, SqueezeExcitation

from common.spectral import DepthwiseSTFT
from papers.stft2d import DepthwiseSTFTSeparable, layers, networks, swap_depthwise_separable


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def convolution_weights(module: nn.Module) -> int:
    return sum(count(m) for m in module.modules() if isinstance(m, nn.Conv2d))


def equation_2(f: Tensor, v: tuple[float, float], n: int) -> Tensor:
    """F(v, x) = sum over y of f(x - y) exp(-j 2 pi v^T y), term by term; f (H,W) is zero outside."""
    height, width = f.shape
    result = torch.zeros(height, width, dtype=torch.complex128)
    for x1 in range(height):
        for x2 in range(width):
            for y1 in range(-(n // 2), n // 2 + 1):
                for y2 in range(-(n // 2), n // 2 + 1):
                    if 0 <= x1 - y1 < height and 0 <= x2 - y2 < width:
                        basis = cmath.exp(-2j * math.pi * (v[0] * y1 + v[1] * y2))
                        result[x1, x2] += complex(f[x1 - y1, x2 - y2]) * basis
    return result


@pytest.mark.parametrize("n", [3, 5, 7])
def test_layer_is_equation_2_and_a_linear_combination(n: int) -> None:
    torch.manual_seed(0)
    layer = DepthwiseSTFTSeparable(2, 3, n).double()
    x = torch.randn(1, 2, 6, 7, dtype=torch.float64)
    a = 1 / n
    maps = []
    for channel in x[0]:
        for v in ((a, 0), (0, a), (a, a), (a, -a)):  # Section 3, in the order of Eq. 7
            transformed = equation_2(channel, v, n)
            maps += [transformed.real, transformed.imag]
    expected = torch.einsum("fk,khw->fhw", layer.pointwise.weight.flatten(1), torch.stack(maps))
    torch.testing.assert_close(layer(x)[0], expected)


def test_relpu_is_its_equation() -> None:
    """One map, its transform at four frequencies, ReLU, a linear combination."""
    torch.manual_seed(0)
    layer = layers.ReLPU(4, 5, 3).double()
    x = torch.randn(1, 4, 6, 7, dtype=torch.float64)
    single = torch.einsum("c,chw->hw", layer.reduce.weight.detach().flatten(), x[0])
    a = 1 / 3
    maps = [equation_2(single, v, 3) for v in ((a, 0), (0, a), (a, a), (a, -a))]
    parts = torch.stack([part for z in maps for part in (z.real, z.imag)]).clamp(min=0)
    expected = torch.einsum("fk,khw->fhw", layer.expand.weight.flatten(1), parts)
    torch.testing.assert_close(layer(x)[0], expected)


@pytest.mark.parametrize("stride", [1, 2])
def test_shuffle_unit(stride: int) -> None:
    """Figure 2 of ShuffleNet: channels of the groups alternate before the depthwise convolution."""
    torch.manual_seed(0)
    unit = layers.ShuffleUnit(24 // stride, 24, stride, groups=3, first_groups=3).double().eval()
    first, _, depthwise, last = unit.branch
    for norm in (first[1], depthwise[1], last[1]):
        nn.init.normal_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)

    def step(part: nn.Module, x: Tensor, **options: int) -> Tensor:
        return part[1](F.conv2d(x, part[0].weight, **options))  # type: ignore[index,operator]

    x = torch.randn(2, 24 // stride, 5, 6, dtype=torch.float64)
    y = step(first, x, groups=3).relu()[:, [0, 2, 4, 1, 3, 5]]
    y = step(last, step(depthwise, y, stride=stride, padding=1, groups=6), groups=3)
    y = x + y if stride == 1 else torch.cat([F.avg_pool2d(x, 3, 2, 1), y], dim=1)
    torch.testing.assert_close(unit(x), y.relu())


# Table 1: standard convolution, depthwise separable, Depthwise-STFT separable.
@pytest.mark.parametrize(("c", "f"), [(3, 5), (16, 8), (64, 128)])
@pytest.mark.parametrize("n", [3, 5, 7])
def test_parameters_of_table1(c: int, f: int, n: int) -> None:
    with torch.device("meta"):
        standard = nn.Conv2d(c, f, n, bias=False)
        depthwise = layers.depthwise_separable(c, f, n)
        ours = DepthwiseSTFTSeparable(c, f, n)
    assert count(standard) == c * n**2 * f
    assert count(depthwise) == n**2 * c + c * f
    assert count(ours) == 8 * c * f
    assert not ours.stft.state_dict()


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(9, 8), (1, 1), (2, 13)])
def test_layer_keeps_the_shape_of_a_convolution(size: tuple[int, int], stride: int) -> None:
    x = torch.randn(2, 4, *size)
    expected = nn.Conv2d(4, 6, 5, stride, padding=2)(x).shape
    assert DepthwiseSTFTSeparable(4, 6, 5, stride)(x).shape == expected


@pytest.mark.parametrize(
    ("block", "weights"),
    [
        (lambda c, b, f: layers.Block1(c, b, f), lambda c, b, f: (c + 16 * f) * b),
        (lambda c, b, f: layers.Block2(f, b), lambda c, b, f: 17 * b * f),
        (lambda c, b, f: layers.Block2(f, b, fit=True), lambda c, b, f: 25 * b * f + 2 * f**2),
        (lambda c, b, f: layers.ReLPU(c, f, 3), lambda c, b, f: c + 8 * f),
        (lambda c, b, f: layers.ReLPUBlock(c, f), lambda c, b, f: 2 * c + 16 * f),
        (lambda c, b, f: layers.ReLPUBlock(f, f, fit=True), lambda c, b, f: 18 * f + 3 * f**2),
    ],
)
def test_weights_of_blocks(
    block: Callable[[int, int, int], nn.Module], weights: Callable[[int, int, int], int]
) -> None:
    assert convolution_weights(block(5, 4, 12)) == weights(5, 4, 12)


def test_block1_is_linear_up_to_its_normalisation() -> None:
    block = layers.Block1(3, 2, 6).double()
    x, y = torch.randn(2, 1, 3, 7, 7, dtype=torch.float64)
    torch.testing.assert_close(block.transform(x + 2 * y), block.transform(x) + 2 * block.transform(y))


def test_block2_adds_its_input() -> None:
    block = layers.Block2(6, 2).double().eval()
    nn.init.zeros_(block.expand.weight)
    x = torch.randn(2, 6, 5, 5, dtype=torch.float64)
    torch.testing.assert_close(block(x), nn.functional.leaky_relu(x / math.sqrt(1 + block.norm.eps), 0.3))


# The exchange of layers


def test_swap_on_mobilenet_v2() -> None:
    network = torchvision.models.mobilenet_v2(num_classes=7)
    before = count(network)
    report = swap_depthwise_separable(network)
    assert len(report.swapped) == 17
    assert not report.kept
    assert (report.before, report.after) == (before, count(network))
    first = report.swapped[0]
    assert (first.depthwise, first.pointwise) == ("features.1.conv.0.0", "features.1.conv.1")
    assert (first.before, first.after) == (9 * 32 + 2 * 32 + 32 * 16, 8 * 32 * 16)
    assert not any(isinstance(m, nn.Conv2d) and m.groups > 1 for m in network.modules())
    logits = network.train()(torch.randn(2, 3, 64, 64))
    assert logits.shape == (2, 7)
    logits.square().sum().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
    text = str(report)
    assert f"17 layers exchanged; parameters {before:,} -> {count(network):,}" in text
    assert "features.1.conv.0.0 to features.1.conv.1: 864 -> 4,096" in text
    assert not swap_depthwise_separable(network).swapped


@pytest.mark.parametrize(
    ("build", "layers_"),
    [
        (networks.mobilenet, 13),
        (networks.mobilenet_v2, 17),
        (networks.shufflenet, 16),
        (networks.shufflenet_v2, 19),
        (networks.stft, 0),
    ],
)
def test_swap_on_the_networks_of_table2(build: Callable[[], nn.Module], layers_: int) -> None:
    with torch.device("meta"):
        network = build()
        report = swap_depthwise_separable(network)
        assert len(report.swapped) == layers_
        assert not report.kept
        assert network.eval()(torch.randn(1, 3, 32, 32)).shape == (1, 10)


class Separable(nn.Module):
    """Parts as attributes and functions in between, as other libraries write it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_dw = nn.Conv2d(4, 4, 5, 2, 2, groups=4, bias=False)
        self.bn1 = nn.BatchNorm2d(4)
        self.act1 = nn.SiLU()
        self.conv_pw = nn.Conv2d(4, 6, 1, groups=2)
        self.head = nn.Conv2d(6, 6, 3, padding=1, groups=6)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.head(self.conv_pw(self.act1(self.bn1(self.conv_dw(x))))))


def test_swap_keeps_size_stride_groups_bias_mode_and_dtype() -> None:
    network = Separable().double().eval()
    x = torch.randn(1, 4, 9, 8, dtype=torch.float64)
    shape = network(x).shape
    report = swap_depthwise_separable(network)
    layer = network.conv_dw
    assert isinstance(layer, DepthwiseSTFTSeparable)
    assert (layer.stft.kernel_size, layer.stft.stride, layer.stft.padding) == ((5, 5), (2, 2), (2, 2))
    assert (layer.pointwise.groups, layer.pointwise.bias is None, layer.training) == (2, False, False)
    assert network(x).shape == shape
    assert network(x).dtype == torch.float64
    assert all(isinstance(m, nn.Identity) for m in (network.bn1, network.act1, network.conv_pw))
    assert (report.swapped[0].before, report.swapped[0].after) == (100 + 8 + 12 + 6, 8 * 4 * 6 // 2 + 6)
    assert report.kept == {"head": "the result of head goes to relu, not to a 1x1 convolution alone"}


class Twice(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(4, 4, 3, padding=1, groups=4)
        self.pointwise = nn.Conv2d(4, 4, 1)
        self.unused = nn.Conv2d(4, 4, 3, groups=4)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.depthwise(self.pointwise(self.depthwise(x))))


class Skip(Twice):
    def forward(self, x: Tensor) -> Tensor:
        x = self.depthwise(x)
        return x + self.pointwise(x)


def depthwise(**options: object) -> nn.Module:
    arguments: dict = {"in_channels": 4, "out_channels": 4, "kernel_size": 3, "groups": 4, "padding": 1} | options
    return nn.Sequential(nn.Conv2d(**arguments), nn.Conv2d(arguments["out_channels"], 6, 1))


@pytest.mark.parametrize(
    ("network", "name", "reason"),
    [
        (depthwise(out_channels=8), "0", "it makes 2 channels of each one"),
        (depthwise(kernel_size=2), "0", "its kernel size is (2, 2); the transform takes odd sizes larger than 1"),
        (depthwise(dilation=2), "0", "its dilation is (2, 2)"),
        (depthwise(padding_mode="reflect"), "0", "its padding is (1, 1) with mode 'reflect'"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4)), "0", "the result of 0 goes to the output, not to a 1x1"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.Conv2d(4, 4, 3)), "0", "behind it, 1, is not a 1x1"),
        (nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.MaxPool2d(2)), "0", "1 behind it is MaxPool2d, neither norm"),
        (
            nn.Sequential(Conv2dNormActivation(4, 4, groups=4), SqueezeExcitation(4, 2), nn.Conv2d(4, 4, 1)),
            "0.0",
            "the result of 0.2 goes to 1.avgpool, mul, not to a 1x1 convolution alone",
        ),
        (
            nn.Sequential(nn.Conv2d(4, 4, 3, groups=4), nn.ReLU(), nn.Conv2d(4, 4, 1, stride=2)),
            "0",
            "the convolution behind it, 2, is not a 1x1 of stride 1 that is called once",
        ),
        (Twice(), "depthwise", "depthwise is called 2 times"),
        (Twice(), "unused", "unused is called 0 times where the trace can see it"),
        (Skip(), "depthwise", "the result of depthwise goes to pointwise, add"),
    ],
)
def test_what_cannot_be_swapped_stays_and_is_named(network: nn.Module, name: str, reason: str) -> None:
    state = {key: value.clone() for key, value in network.state_dict().items()}
    report = swap_depthwise_separable(network)
    assert not report.swapped
    assert reason in report.kept[name]
    assert f"{name} stays: " in str(report)
    assert report.before == report.after
    for key, value in network.state_dict().items():
        assert torch.equal(value, state[key])


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_networks_that_cannot_be_traced_are_named() -> None:
    with pytest.raises(ValueError, match=r"Branching cannot be traced by torch\.fx"):
        swap_depthwise_separable(Branching())


def test_transform_is_shared_with_the_other_dimensions() -> None:
    assert type(DepthwiseSTFTSeparable(1, 1).stft) is DepthwiseSTFT
