"""Multiply-adds against definitions worked out by hand and against PyTorch's own counter."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import pytest
import torch
import torchvision
from pytorchvideo.layers.swish import Swish
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.evaluation.complexity import Complexity, Cost, UnknownOperatorError, count, fft_cost
from common.spectral import DepthwiseSTFT, STFTPointwise


class Run(nn.Module):
    """Runs a function of its inputs."""

    def __init__(self, function: Callable[..., Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.function(*inputs)


def full(function: Callable[..., Tensor], *inputs: Tensor | tuple[int, ...]) -> int:
    return count(Run(function), *inputs).macs_full


@pytest.mark.parametrize(
    ("layer", "shape", "macs"),
    [
        (nn.Conv1d(4, 6, 3, padding=1), (2, 4, 10), 2 * 6 * 10 * 4 * 3),
        (nn.Conv2d(4, 8, 3, stride=2, groups=2, bias=False), (1, 4, 9, 9), 8 * 4 * 4 * 2 * 9),
        (nn.Conv3d(3, 5, (1, 3, 3), padding="same"), (1, 3, 4, 6, 6), 5 * 4 * 6 * 6 * 3 * 9),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 4 * 25 * 6 * 4),
        (nn.Linear(7, 5), (3, 2, 7), 6 * 7 * 5),
    ],
)
def test_convolutions_and_linear_layers(layer: nn.Module, shape: tuple[int, ...], macs: int) -> None:
    found = count(layer, shape)
    assert found.macs_paper == found.macs_full == macs
    assert found.params == sum(p.numel() for p in layer.parameters())


@pytest.mark.parametrize(
    ("layer", "per_element"),
    [
        (nn.BatchNorm3d(4), 1),
        (nn.GroupNorm(2, 4), 4),
        (nn.GroupNorm(2, 4, affine=False), 3),
        (nn.LayerNorm(6), 4),
        (nn.ReLU(), 0),
        (nn.LeakyReLU(), 1),
        (nn.GELU(), 1),
        (Swish(), 1),
        (nn.Softmax(dim=1), 4),
        (nn.Dropout(), 0),
        (nn.MaxPool3d(3, 1, 1), 0),
        (nn.AvgPool3d(3, 1, 1), 27),
        (nn.Upsample(scale_factor=1, mode="trilinear"), 8),
    ],
)
def test_other_layers_cost_nothing_in_the_papers_convention(layer: nn.Module, per_element: int) -> None:
    found = count(layer, (2, 4, 6, 6, 6))
    assert found.macs_paper == 0
    assert found.macs_full == per_element * 2 * 4 * 6 * 6 * 6


def test_products() -> None:
    assert full(torch.matmul, (5, 3, 4), (4, 6)) == 5 * 3 * 4 * 6
    assert full(torch.bmm, (5, 3, 4), (5, 4, 6)) == 5 * 3 * 4 * 6
    assert full(lambda a, b: torch.einsum("bchw,cd->bdhw", a, b), (2, 3, 4, 5), (3, 7)) == 2 * 3 * 4 * 5 * 7
    assert full(lambda a, b: torch.einsum("...c,cd->...d", a, b), (2, 3, 4, 5), (5, 7)) == 2 * 3 * 4 * 5 * 7
    assert full(lambda a, b, c: torch.einsum("ij,jk,kl->il", a, b, c), (2, 3), (3, 4), (4, 5)) == 24 + 40
    assert full(lambda a: torch.einsum("ij->j", a), (2, 3)) == 6
    q = (2, 3, 5, 8)
    attention = count(Run(F.scaled_dot_product_attention), q, q, q)
    assert attention.macs_paper == 2 * (2 * 3 * 5 * 5 * 8)
    assert attention.macs_full == attention.macs_paper + 5 * (2 * 3 * 5 * 5)


def test_a_complex_product_is_one_for_the_papers() -> None:
    a = torch.zeros(3, 4, dtype=torch.complex64)
    network = Run(lambda a, b: a @ b.T)
    products = 3 * 3 * 4
    found = count(network, a, a)
    assert (found.macs_paper, found.macs_full) == (products, 4 * products)


def test_elementwise_complex_arithmetic() -> None:
    z, x = torch.zeros(6, dtype=torch.complex64), torch.zeros(6)
    assert full(torch.mul, z, z) == 4 * 6
    assert full(torch.mul, z, x) == 2 * 6
    assert full(torch.add, z, z) == 2 * 6
    assert full(torch.mul, x, x) == 6
    assert full(torch.abs, z) == 3 * 6
    assert full(lambda n: n * n, torch.zeros(6, dtype=torch.int64)) == 0
    with pytest.raises(UnknownOperatorError, match="aten::tanh is not known for complex numbers"):
        full(torch.tanh, z)


@pytest.mark.parametrize(
    ("transform", "points", "times", "real"),
    [
        (torch.fft.fft, 8, 3 * 4 * 6, True),
        (lambda x: torch.fft.fft(x.to(torch.complex64), dim=1), 4, 3 * 6 * 8, False),
        (torch.fft.rfft, 8, 3 * 4 * 6, True),
        (lambda x: torch.fft.rfft(x, n=5, dim=2), 5, 3 * 4 * 8, True),
        (torch.fft.rfft2, 48, 12, True),
        (lambda x: torch.fft.rfftn(x, dim=(1, 2, 3)), 192, 3, True),
        (torch.fft.fftn, 576, 1, True),
    ],
)
def test_ffts(transform: Callable[[Tensor], Tensor], points: int, times: int, real: bool) -> None:
    expected = math.ceil(times * (1.25 if real else 2.5) * points * math.log2(points))
    assert fft_cost(points, times, real) == expected
    found = count(Run(transform), (3, 4, 6, 8))
    assert found.macs_full == expected
    assert found.macs_paper == 0


@pytest.mark.parametrize("sizes", [(6, 8), (7, 7), (5, 6)])
def test_a_real_transform_and_its_inverse_cost_the_same(sizes: tuple[int, int]) -> None:
    network = Run(lambda x: torch.fft.irfft2(torch.fft.rfft2(x), s=x.shape[-2:]))
    points = math.prod(sizes)
    found = count(network, (2, 3, *sizes))
    assert found.by_operator["fft_rfft2"] == found.by_operator["fft_irfft2"]
    assert found.macs_full == 2 * fft_cost(points, 6, real=True)


def test_sampling_and_scattering() -> None:
    grid = torch.zeros(2, 5, 6, 2)
    assert full(lambda x, g: F.grid_sample(x, g, align_corners=False), (2, 3, 8, 8), grid) == 4 * (2 * 3 * 30 + 2 * 30)
    index = torch.zeros(7, 4, dtype=torch.int64)
    assert full(lambda x, s: x.scatter_add(0, index.to(x.device), s), (3, 4), (7, 4)) == 28
    assert full(lambda x: F.unfold(x, 3), (1, 2, 6, 6)) == 0


VIDEO = torchvision.models.video


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        (VIDEO.r3d_18, (2, 3, 8, 56, 56)),
        (VIDEO.mc3_18, (1, 3, 8, 56, 56)),
        (VIDEO.r2plus1d_18, (1, 3, 8, 56, 56)),
        (VIDEO.s3d, (1, 3, 16, 224, 224)),
        (VIDEO.mvit_v2_s, (1, 3, 16, 224, 224)),
        (VIDEO.swin3d_t, (1, 3, 8, 112, 112)),
        (torchvision.models.mobilenet_v3_small, (1, 3, 64, 64)),
    ],
)
def test_agrees_with_pytorchs_counter(build: Callable[[], nn.Module], shape: tuple[int, ...]) -> None:
    with torch.device("meta"):
        network = build().eval()
    with FlopCounterMode(display=False) as counter:
        network(torch.empty(shape, device="meta"))
    found = count(network, shape)
    assert 2 * found.macs_paper == counter.get_total_flops()
    assert found.macs_full > found.macs_paper
    assert found.params == sum(p.numel() for p in network.parameters())


def test_fixed_filters_cost_but_are_no_parameters() -> None:
    layer = DepthwiseSTFT(5, (3, 3, 3))
    found = count(layer, (2, 5, 4, 6, 7))
    assert found.params == 0
    assert found.fixed_values == 26 * 27
    assert found.macs_paper == 2 * 5 * 26 * 27 * (4 * 6 * 7)  # as defined, not as the fast form computes it


def test_the_definition_is_counted_whatever_runs() -> None:
    fused = STFTPointwise(4, 6, (3, 3, 3), memory_efficient=True)
    found = count(fused, (1, 4, 4, 5, 5))
    positions = 100
    assert found.macs_paper == positions * (4 * 26 * 27 + 4 * 26 * 6)
    assert found.macs_full == found.macs_paper + positions * 4 * 26 * 2  # norm and LeakyReLU
    assert found.params == 2 * 4 * 26 + 4 * 26 * 6
    assert found.by_module["pointwise"] == (positions * 4 * 26 * 6,) * 2


def test_complex_parameters_count_two_values() -> None:
    class Filter(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(5, dtype=torch.complex64))
            self.frozen = nn.Parameter(torch.ones(3), requires_grad=False)

        def forward(self, x: Tensor) -> Tensor:
            return torch.fft.irfft(torch.fft.rfft(x) * self.weight, n=8)

    found = count(Filter(), (2, 8))
    assert found.params == 10
    assert found.by_operator["mul"] == (0, 4 * 2 * 5)


def test_the_network_is_left_as_it_is() -> None:
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.BatchNorm3d(4), nn.Dropout(0.5)).train()
    before = {k: v.clone() for k, v in network.state_dict().items()}
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    for device in ("meta", "cpu"):
        count(network, (1, 3, 4, 5, 5), device=device)
    assert torch.equal(torch.rand(3), expected)
    assert all(module.training for module in network.modules())
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    assert all(p.device.type == "cpu" for p in network.parameters())


def test_meta_and_cpu_agree() -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.SiLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    meta, cpu = (count(network, torch.rand(2, 3, 9, 9), device=device) for device in ("meta", "cpu"))
    assert meta == cpu


def test_autocasting_regions_are_counted() -> None:
    def island(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return torch.fft.rfft(x).abs()

    assert full(island, (2, 8)) == fft_cost(8, 2, real=True) + 3 * 2 * 5


def test_autocasting_regions_of_networks_without_memory_are_counted() -> None:
    class Island(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            with torch.autocast(x.device.type, enabled=False):
                return torch.fft.rfft(super().forward(x)).abs()

    with torch.device("meta"):
        network = nn.Sequential(Island(4, 8), nn.BatchNorm1d(5))
    assert count(network, (2, 4)).macs_full == 2 * 4 * 8 + fft_cost(8, 2, real=True) + 3 * 2 * 5 + 2 * 5
    assert count(network, torch.empty(2, 4, device="meta"), device="cpu") == count(network, (2, 4))
    assert network[0].weight.is_meta


class _Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x * x


def test_an_unknown_operator_is_an_error() -> None:
    class Inner(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.linalg.inv(x)

    network = nn.Sequential(nn.ReLU(), nn.Sequential(Inner()), Inner())
    with pytest.raises(UnknownOperatorError) as raised:
        count(network, (2, 4, 4))
    text = str(raised.value)
    assert "aten::linalg_inv" in text
    assert "1.0" in text
    assert "2" in text
    assert 'handles={"aten::linalg_inv": lambda inputs, outputs: Cost(full=...)}' in text
    found = count(network, (2, 4, 4), handles={"aten::linalg_inv": lambda inputs, outputs: Cost(full=64)})
    assert found.macs_full == 128


def test_an_own_autograd_function_is_unknown() -> None:
    with pytest.raises(UnknownOperatorError, match=r"prim::PythonOp\._Square"):
        count(Run(lambda x: _Square.apply(x)), (3,))


def test_errors_of_the_network_say_what_was_counted() -> None:
    with pytest.raises(RuntimeError) as raised:
        count(nn.Linear(3, 4), (2, 5))
    assert "multiply-adds of Linear for an input of 2x5" in raised.value.__notes__[0]


def test_json_and_text() -> None:
    found = count(nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)), (1, 3, 5, 5))
    assert Complexity(**json.loads(json.dumps(found.to_dict()))).macs_full == found.macs_full
    text = str(found)
    assert "convolution" in text
    assert "972" in text
    assert "116 trainable parameters" in text
