"""DepthwiseSTFT against the definition (Eq. 2 to 9 of the 3D paper), torch.stft, and itself in every mode."""

from __future__ import annotations

import cmath
import copy
import math
from contextlib import nullcontext
from itertools import product

import pytest
import torch
from torch import nn

from common.spectral import (
    S_FREQUENCIES,
    ST_FREQUENCIES,
    T_FREQUENCIES,
    DepthwiseSTFT,
    lowest_frequencies,
    reference_implementation,
    stft_kernels,
)

# Kernel size and spatial size: the paper's three layers, other odd sizes, feature maps smaller than the window.
CASES = [
    ((3, 3, 3), (4, 5, 6)),
    ((3, 3, 3), (1, 2, 1)),
    ((1, 3, 3), (2, 5, 4)),
    ((3, 1, 1), (5, 3, 2)),
    ((3, 1, 1), (1, 2, 3)),
    ((3, 1, 3), (4, 2, 5)),
    ((5, 3, 7), (3, 2, 4)),
    ((3, 3), (6, 5)),
    ((5, 5), (3, 7)),
    ((7, 7), (9, 5)),
    ((5, 1), (3, 4)),
    ((3,), (7,)),
    ((9,), (20,)),
]
every_way = pytest.mark.parametrize("way", [nullcontext, reference_implementation], ids=["ours", "reference"])


def by_definition(f: torch.Tensor, kernel_size: tuple[int, ...], frequencies: tuple[tuple[float, ...], ...]):
    """Eq. 2 in loops, f(y) = 0 outside: `f (C, *S)` to `(C * 2K, *S)`."""
    spatial = f.shape[1:]
    out = torch.zeros(f.shape[0], 2 * len(frequencies), *spatial, dtype=torch.float64)
    for c, (k, v) in product(range(f.shape[0]), enumerate(frequencies)):
        for x in product(*[range(s) for s in spatial]):
            total = 0j
            for delta in product(*[range(-(n // 2), n // 2 + 1) for n in kernel_size]):  # delta = x - y
                y = tuple(a - d for a, d in zip(x, delta, strict=True))
                if all(0 <= a < s for a, s in zip(y, spatial, strict=True)):
                    turn = sum(m / n * d for m, n, d in zip(v, kernel_size, delta, strict=True))
                    total += f[(c, *y)].item() * cmath.exp(-2j * math.pi * turn)
            out[(c, 2 * k, *x)] = total.real
            out[(c, 2 * k + 1, *x)] = total.imag
    return out.flatten(0, 1)


@every_way
@pytest.mark.parametrize(("kernel_size", "spatial"), CASES)
def test_equals_the_definition(kernel_size, spatial, way):
    torch.manual_seed(0)
    x = torch.randn(2, 2, *spatial, dtype=torch.float64)
    layer = DepthwiseSTFT(2, kernel_size).double()
    expected = torch.stack([by_definition(f, kernel_size, layer.frequencies) for f in x])
    with way():
        torch.testing.assert_close(layer(x), expected, rtol=0, atol=1e-12)


@every_way
def test_any_frequency_set_in_any_order(way):
    frequencies = ((2, 0, 1), (0, 0, 0), (0, 1.5, 1), (2, 0, -1), (1, -2, 3), (0, 0, 2))
    torch.manual_seed(0)
    x = torch.randn(1, 2, 3, 4, 5, dtype=torch.float64)
    layer = DepthwiseSTFT(2, (5, 3, 7), frequencies).double()
    with way():
        torch.testing.assert_close(layer(x)[0], by_definition(x[0], (5, 3, 7), frequencies), rtol=0, atol=1e-12)


def test_random_sizes_and_subsets():
    generator = torch.Generator().manual_seed(3)

    def draw(low: int, high: int) -> int:
        return int(torch.randint(low, high + 1, (), generator=generator))

    for _ in range(12):
        kernel_size = tuple(2 * draw(0, 2) + 1 for _ in range(draw(1, 3)))
        if max(kernel_size) == 1:
            continue
        spatial = tuple(draw(1, 4) for _ in kernel_size)
        subset = lowest_frequencies(kernel_size)[draw(0, 1) :] or lowest_frequencies(kernel_size)
        x = torch.randn(1, 1, *spatial, dtype=torch.float64, generator=generator)
        layer = DepthwiseSTFT(1, kernel_size, subset).double()
        torch.testing.assert_close(layer(x)[0], by_definition(x[0], kernel_size, subset), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [3, 5, 9])
def test_equals_torch_stft(n):
    """The phase convention of the docstring, on every position."""
    torch.manual_seed(0)
    r, length = n // 2, 20
    frequencies = [(m,) for m in range(1, r + 1)]
    x = torch.randn(3, length, dtype=torch.float64)
    stock = torch.stft(
        nn.functional.pad(x, (r, r)), n, 1, window=torch.ones(n).double(), center=False, return_complex=True
    )
    m = torch.arange(1, r + 1, dtype=torch.float64).view(-1, 1)
    expected = stock[:, 1:].conj() * torch.exp(-2j * math.pi * m * r / n)
    ours = DepthwiseSTFT(1, (n,), frequencies).double()(x.unsqueeze(1))
    torch.testing.assert_close(torch.complex(ours[:, 0::2], ours[:, 1::2]), expected, rtol=0, atol=1e-12)


def test_frequency_sets_of_the_paper():
    assert lowest_frequencies((3, 3, 3)) == ST_FREQUENCIES
    assert lowest_frequencies((1, 5, 5)) == S_FREQUENCIES
    assert lowest_frequencies((7, 1, 1)) == T_FREQUENCIES
    assert lowest_frequencies((3, 3)) == ((1, 0), (0, 1), (1, 1), (1, -1))
    assert lowest_frequencies((3, 1, 3)) == ((1, 0, 0), (0, 0, 1), (1, 0, 1), (1, 0, -1))
    assert lowest_frequencies((3,)) == ((1,),)
    # One of each conjugate pair of the 26 neighbours of zero (Figure 4).
    both = set(ST_FREQUENCIES) | {tuple(-m for m in v) for v in ST_FREQUENCIES}
    assert both == set(product((-1, 0, 1), repeat=3)) - {(0, 0, 0)}


def test_smallest_bank_is_a_basis():
    rows = stft_kernels((3, 3, 3)).flatten(1)
    torch.testing.assert_close(rows @ rows.T, 13.5 * torch.eye(26, dtype=torch.float64), rtol=0, atol=1e-12)
    with_constant = torch.cat([rows, torch.ones(1, 27, dtype=torch.float64)])
    assert torch.linalg.matrix_rank(with_constant) == 27


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (5, 7), (5,)])
def test_derivative_is_the_adjoint(kernel_size):
    torch.manual_seed(0)
    layer = DepthwiseSTFT(3, kernel_size).double()
    x = torch.randn(2, 3, *[4, 5, 3][: len(kernel_size)], dtype=torch.float64, requires_grad=True)
    wx = layer(x)
    y = torch.randn_like(wx)
    (wty,) = torch.autograd.grad(wx, x, y)
    torch.testing.assert_close((wx * y).sum(), (x * wty).sum())


@pytest.mark.parametrize(
    ("kernel_size", "spatial"),
    [((3, 3, 3), (2, 3, 2)), ((1, 3, 3), (2, 3, 2)), ((3, 1, 1), (4, 1, 2)), ((7, 7), (3, 4)), ((9,), (6,))],
)
@pytest.mark.parametrize("fast", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["fast", "whole"])
def test_first_and_second_derivatives(kernel_size, spatial, fast):
    layer = DepthwiseSTFT(2, kernel_size).double()
    x = torch.randn(2, 2, *spatial, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(layer, (x,))
    assert torch.autograd.gradgradcheck(layer, (x,), fast_mode=fast)


@pytest.mark.parametrize(("kernel_size", "spatial"), CASES)
def test_float32_agrees_with_the_reference(kernel_size, spatial):
    torch.manual_seed(0)
    x = torch.randn(2, 3, *spatial)
    results = []
    for way in (nullcontext, reference_implementation):
        leaf = x.clone().requires_grad_()
        with way():
            y = DepthwiseSTFT(3, kernel_size)(leaf)
        (y * torch.arange(y.numel()).view_as(y).sin()).sum().backward()
        results.append((y, leaf.grad))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-4)


def test_large_input_is_worked_through_in_slices(monkeypatch):
    x = torch.randn(2, 5, 4, 6, 6, requires_grad=True)
    layer = DepthwiseSTFT(5, (1, 3, 3))
    whole = layer(x)
    (grad,) = torch.autograd.grad(whole.square().sum(), x)
    monkeypatch.setattr("common.spectral.stft._BUFFER_BYTES", 3 * 9 * 4 * 36 * 4)
    parts = layer(x)
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(torch.autograd.grad(parts.square().sum(), x)[0], grad)


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 3, 3), (3, 1, 1)])
def test_strided_inputs(kernel_size):
    """Channels last, transposed, sliced and expanded inputs, and a gradient that is not contiguous."""
    torch.manual_seed(0)
    layer = DepthwiseSTFT(4, kernel_size)
    base = torch.randn(2, 4, 5, 6, 7)
    views = [
        base.contiguous(memory_format=torch.channels_last_3d),
        base.transpose(3, 4),
        torch.randn(2, 8, 5, 6, 14)[:, ::2, :, :, ::2],
        base[:1].expand(3, -1, -1, -1, -1),
    ]
    for x in views:
        leaf, copied = x.detach().requires_grad_(), x.detach().clone(memory_format=torch.contiguous_format)
        copied.requires_grad_()
        y = layer(leaf)
        with reference_implementation():
            expected = layer(copied)
        assert y.is_contiguous()
        torch.testing.assert_close(y, expected, rtol=1e-4, atol=1e-5)
        weight = torch.randn(y.transpose(1, 4).shape).transpose(1, 4)
        y.backward(weight)
        expected.backward(weight)
        torch.testing.assert_close(leaf.grad, copied.grad, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("options", [{"stride": (1, 2, 2)}, {"padding": 0}, {"stride": 2, "padding": (0, 1, 3)}])
def test_stride_and_padding(options):
    torch.manual_seed(0)
    x = torch.randn(1, 2, 5, 7, 6, dtype=torch.float64)
    layer = DepthwiseSTFT(2, (3, 3, 3), **options).double()
    # Subsampling the transform of the explicitly padded input gives the same.
    pad = [p for size in reversed(layer.padding) for p in (size, size)]
    wide = DepthwiseSTFT(2, (3, 3, 3)).double()(nn.functional.pad(x, pad))
    steps = [slice(1, s - 1, step) for s, step in zip(wide.shape[2:], layer.stride, strict=True)]
    torch.testing.assert_close(layer(x), wide[(slice(None), slice(None), *steps)], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (3, 1, 1)])
def test_autocast_is_a_float32_island(kernel_size):
    layer = DepthwiseSTFT(3, kernel_size)
    x = torch.randn(1, 3, 4, 5, 6)
    with torch.autocast("cpu", torch.bfloat16):
        y, low = layer(x), layer(x.bfloat16())
    assert y.dtype == low.dtype == torch.float32
    torch.testing.assert_close(y, layer(x), rtol=0, atol=0)
    torch.testing.assert_close(low, layer(x.bfloat16().float()), rtol=0, atol=0)


def test_nothing_to_train_or_save():
    layer = DepthwiseSTFT(3, (3, 3, 3))
    assert list(layer.parameters()) == []
    assert layer.state_dict() == {}
    assert [name for name, _ in layer.named_buffers()] == ["kernels", "factors"]
    assert layer.out_channels == 78


def test_converting_to_float64_is_exact():
    layer = DepthwiseSTFT(1, (7, 7)).half().double()
    torch.testing.assert_close(layer.kernels[:, 0], stft_kernels((7, 7)), rtol=0, atol=0)
    copied = copy.deepcopy(layer)
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    torch.testing.assert_close(copied(x), layer(x), rtol=0, atol=0)


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (7, 7)])
def test_no_device_is_assumed(kernel_size):
    """Every tensor made on the way lies where the input lies; a device without data shows it."""
    layer = DepthwiseSTFT(2, kernel_size).to("meta")
    x = torch.empty(1, 2, *[8] * len(kernel_size), device="meta", requires_grad=True)
    layer(x).sum().backward()
    assert x.grad.device.type == "meta"


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")  # the shape check is a constant of the trace
@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (3, 1, 1)])
def test_trace_and_export_see_stock_operators(kernel_size):
    layer = DepthwiseSTFT(2, kernel_size)
    x = torch.randn(1, 2, 3, 4, 5)
    traced = torch.jit.trace(layer, x)
    torch.testing.assert_close(traced(x), layer(x), rtol=1e-5, atol=1e-5)
    assert "PythonOp" not in str(traced.inlined_graph)
    exported = torch.export.export(layer, (x,))
    assert "conv3d" in str(exported.graph)
    torch.testing.assert_close(exported.module()(x), layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kernel_size": (3, 4, 3)}, "odd"),
        ({"kernel_size": (1, 1, 1)}, "nothing to transform"),
        ({"kernel_size": (3, 3, 3, 3)}, "1, 2 or 3 entries"),
        ({"kernel_size": 3}, "dims"),
        ({"kernel_size": (3, 3), "dims": 3}, "dims=3"),
        ({"kernel_size": (3, 3, 3), "frequencies": ()}, "empty"),
        ({"kernel_size": (3, 3, 3), "frequencies": [(1, 0)]}, "2 entries"),
        ({"kernel_size": (3, 1, 1), "frequencies": [(1, 1, 0)]}, "axis of size 1"),
        ({"kernel_size": (3,), "frequencies": [(1,), (-2,)]}, "the same"),
        ({"kernel_size": (3, 3), "stride": (1, 1, 1)}, "stride"),
        ({"kernel_size": (3, 3), "stride": 0}, "stride"),
        ({"kernel_size": (3, 3), "padding": -1}, "padding"),
        ({"kernel_size": (3, 3), "in_channels": 0}, "in_channels"),
    ],
)
def test_construction_errors(arguments, message):
    with pytest.raises(ValueError, match=message):
        DepthwiseSTFT(**{"in_channels": 2, **arguments})


def test_input_errors():
    layer = DepthwiseSTFT(2, (3, 3, 3))
    with pytest.raises(ValueError, match=r"takes \(B, 2, T, H, W\), but got \(1, 3, 4, 4, 4\)"):
        layer(torch.zeros(1, 3, 4, 4, 4))
    with pytest.raises(ValueError, match="got"):
        layer(torch.zeros(1, 2, 4, 4))
    with pytest.raises(TypeError, match="float64"):
        layer(torch.zeros(1, 2, 4, 4, 4, dtype=torch.float64))


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 3, 3), (3, 1, 1)])
def test_compiled_layer_equals_eager(kernel_size):
    layer = DepthwiseSTFT(2, kernel_size)
    x = torch.randn(1, 2, 3, 4, 5, requires_grad=True)
    y, expected = torch.compile(layer, backend="aot_eager", fullgraph=True)(x), layer(x)
    torch.testing.assert_close(y, expected)
    weight = torch.randn_like(y)
    torch.testing.assert_close(torch.autograd.grad(y, x, weight), torch.autograd.grad(expected, x, weight))


@pytest.mark.parametrize("kernel_size", [(3, 1, 1), (1, 3, 3), (3, 3, 3), (5, 5), (7,)])
def test_an_activation_in_place_may_follow(kernel_size: tuple[int, ...]) -> None:
    layer = DepthwiseSTFT(2, kernel_size).double()
    x = torch.randn(2, 2, *[6] * len(kernel_size), dtype=torch.float64, requires_grad=True)
    (in_place,) = torch.autograd.grad(torch.nn.ReLU(inplace=True)(layer(x)).square().sum(), x)
    (expected,) = torch.autograd.grad(torch.relu(layer(x)).square().sum(), x)
    torch.testing.assert_close(in_place, expected)
