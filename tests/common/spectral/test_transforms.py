"""The matrices against their definitions, the layers against the matrices, and what keeps learnt ones orthogonal."""

from __future__ import annotations

import cmath
import copy
import io
import math

import numpy as np
import pytest
import scipy.fft
import scipy.linalg
import torch
from torch import nn

from common.evaluation.complexity import count
from common.spectral import (
    FixedTransform2d,
    FourierTransform2d,
    LearnableTransform2d,
    Transform2d,
    dct_matrix,
    dft_matrix,
    haar_matrix,
    orthogonalized,
    random_orthogonal,
    slant_matrix,
    transform2d,
    walsh_hadamard_matrix,
)

ANY_SIZE = ["fourier", "fourier-full", "dct", "orthogonal"]
POWERS_OF_TWO = ["walsh-hadamard", "haar", "slant"]
CASES = [(name, size) for name in ANY_SIZE for size in ((7, 5), (12, 9), (8, 4), (1, 3), (6, 1))]
CASES += [(name, size) for name in POWERS_OF_TWO for size in ((8, 4), (1, 2), (16, 32))]


def build(name: str, size: tuple[int, int]) -> Transform2d:
    name, _, variant = name.replace("walsh-", "walsh_").partition("-")
    transform = transform2d(name.replace("_", "-"), size, variant or "half").double()
    if isinstance(transform, LearnableTransform2d):  # float32 numbers are orthogonal to seven digits only
        transform.reorthogonalize_()
    return transform


@pytest.mark.parametrize("n", [1, 2, 3, 8, 15, 64, 257])
def test_dft_and_dct_are_those_of_scipy(n: int) -> None:
    identity = np.eye(n)
    torch.testing.assert_close(dft_matrix(n), torch.from_numpy(scipy.fft.fft(identity, norm="ortho", axis=0)))
    torch.testing.assert_close(dct_matrix(n), torch.from_numpy(scipy.fft.dct(identity, norm="ortho", axis=0)))
    direct = [[cmath.exp(-2j * math.pi * k * m / n) / math.sqrt(n) for m in range(n)] for k in range(n)]
    torch.testing.assert_close(dft_matrix(n), torch.tensor(direct, dtype=torch.complex128))


@pytest.mark.parametrize("n", [1, 2, 4, 32])
def test_walsh_hadamard_rows_change_sign_in_order(n: int) -> None:
    matrix = walsh_hadamard_matrix(n)
    signs = (matrix * math.sqrt(n)).round()
    torch.testing.assert_close(matrix * math.sqrt(n), signs)
    assert (signs[:, 1:] != signs[:, :-1]).sum(1).tolist() == list(range(n))
    natural = torch.from_numpy(scipy.linalg.hadamard(n)).double()
    assert {tuple(row.tolist()) for row in natural} == {tuple(row.tolist()) for row in signs}


def test_haar_of_four_points() -> None:
    root = math.sqrt(2)
    expected = [[1, 1, 1, 1], [1, 1, -1, -1], [root, -root, 0, 0], [0, 0, root, -root]]
    torch.testing.assert_close(haar_matrix(4), torch.tensor(expected, dtype=torch.float64) / 2)
    ramp = haar_matrix(16) @ torch.arange(16.0, dtype=torch.float64)
    assert ramp[1:].lt(0).all()  # every later row is a step down
    torch.testing.assert_close(ramp[8:], ramp[8:9].expand(8))


def test_slant_of_four_points_and_its_straight_line() -> None:
    f = 1 / math.sqrt(5)
    expected = [[1, 1, 1, 1], [3 * f, f, -f, -3 * f], [1, -1, -1, 1], [f, -3 * f, 3 * f, -f]]
    torch.testing.assert_close(slant_matrix(4), torch.tensor(expected, dtype=torch.float64) / 2)
    for n in (2, 8, 64):
        steps = slant_matrix(n)[1].diff()
        torch.testing.assert_close(steps, steps[:1].expand(n - 1))
    ramp = slant_matrix(32) @ torch.arange(32.0, dtype=torch.float64)
    torch.testing.assert_close(ramp[2:], torch.zeros(30, dtype=torch.float64), atol=1e-12, rtol=0)


@pytest.mark.parametrize("function", [dct_matrix, dft_matrix, haar_matrix, slant_matrix, walsh_hadamard_matrix])
@pytest.mark.parametrize("n", [1, 2, 16, 128])
def test_matrices_are_unitary(function, n: int) -> None:
    matrix = function(n)
    product = matrix @ matrix.mH
    torch.testing.assert_close(product, torch.eye(n, dtype=product.dtype), atol=1e-13, rtol=0)


@pytest.mark.parametrize(("name", "function"), [("Haar", haar_matrix), ("slant", slant_matrix)])
def test_sizes_that_are_no_power_of_two_are_refused(name: str, function) -> None:
    with pytest.raises(ValueError, match=rf"{name} transform takes .* powers of two, not 12: .* to 8, pad to 16"):
        function(12)
    with pytest.raises(ValueError, match="powers of two, not 14"):
        transform2d("walsh-hadamard", (16, 14))


def test_unknown_names_and_sizes_are_refused() -> None:
    with pytest.raises(ValueError, match="no transform 'fft'; there are fourier, dct"):
        transform2d("fft", (4, 4))  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no fixed transform 'fourier'"):
        FixedTransform2d("fourier", (4, 4))
    with pytest.raises(ValueError, match="at least 1x1, not 0x4"):
        transform2d("fourier", (0, 4))
    with pytest.raises(ValueError, match="half or full, not 'whole'"):
        FourierTransform2d((4, 4), spectrum="whole")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="at least one point, not 0"):
        dct_matrix(0)


@pytest.mark.parametrize(("name", "size"), CASES)
def test_inverse_is_exact_and_energy_stays(name: str, size: tuple[int, int]) -> None:
    transform = build(name, size)
    x = torch.randn(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    z = transform(x)
    assert z.shape == (2, 3 * transform.parts, *transform.spectrum_size)
    torch.testing.assert_close(transform.inverse(z), x, atol=1e-13, rtol=0)
    weight = torch.ones(transform.spectrum_size[1], dtype=torch.float64)
    if name == "fourier":  # Parseval: the frequencies left out are the conjugates of those that are kept
        weight[1 : (size[1] + 1) // 2] = 2
    energy = (z.square() * weight).sum((2, 3)).unflatten(1, (3, -1)).sum(2)
    torch.testing.assert_close(energy, x.square().sum((2, 3)))


@pytest.mark.parametrize(("name", "size"), CASES)
def test_layers_are_products_with_the_matrices(name: str, size: tuple[int, int]) -> None:
    transform = build(name, size)
    x = torch.randn(1, 2, *size, dtype=torch.float64)
    if isinstance(transform, FourierTransform2d):
        z = dft_matrix(size[0]) @ x.to(torch.complex128) @ dft_matrix(size[1])[:, : transform.spectrum_size[1]]
        expected = torch.stack([z.real, z.imag], dim=2).flatten(1, 2)
    elif isinstance(transform, LearnableTransform2d):
        expected = transform.left @ x @ transform.right
    else:
        matrices = {"dct": dct_matrix, "walsh-hadamard": walsh_hadamard_matrix, "haar": haar_matrix}
        function = matrices.get(name, slant_matrix)
        expected = function(size[0]) @ x @ function(size[1]).mT
    torch.testing.assert_close(transform(x), expected, atol=1e-13, rtol=0)


@pytest.mark.parametrize("size", [(6, 6), (5, 4), (4, 7), (1, 1)])
def test_half_and_full_spectrum_are_the_same_spectrum(size: tuple[int, int]) -> None:
    half, full = FourierTransform2d(size), FourierTransform2d(size, spectrum="full")
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    torch.testing.assert_close(half(x), full(x)[..., : half.spectrum_size[1]])
    z = torch.randn(1, 2, *size, dtype=torch.float64)  # of a spectrum that no real map has, the real part is kept
    expected = torch.fft.ifft2(torch.complex(z[:, :1], z[:, 1:]), norm="ortho").real
    torch.testing.assert_close(full.inverse(z), expected)


@pytest.mark.parametrize(
    ("name", "size"), [(name, (4, 2)) for name in ANY_SIZE + POWERS_OF_TWO] + [("fourier", (3, 5))]
)
def test_gradients(name: str, size: tuple[int, int]) -> None:
    transform = build(name, size if name in POWERS_OF_TWO else (size[0] - 1, size[1] + 1))
    parameters = [p.detach().clone().requires_grad_() for p in transform.parameters()]
    names = [n for n, _ in transform.named_parameters()]

    def there(x: torch.Tensor, *values: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(transform, dict(zip(names, values, strict=True)), (x,))

    x = torch.randn(1, 2, *transform.size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(there, (x, *parameters))
    z = torch.randn(1, 2 * transform.parts, *transform.spectrum_size, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(transform.inverse, (z,))


def test_errors_name_the_layer_and_the_shapes() -> None:
    with pytest.raises(
        ValueError, match=r"FourierTransform2d takes feature maps \(B, C, 8, 6\), but got \(1, 2, 8, 7\)"
    ):
        FourierTransform2d((8, 6))(torch.zeros(1, 2, 8, 7))
    with pytest.raises(ValueError, match=r"takes spectra \(B, C \* 2, 8, 4\), but got \(1, 3, 8, 4\)"):
        FourierTransform2d((8, 6)).inverse(torch.zeros(1, 3, 8, 4))


@pytest.mark.parametrize("name", ANY_SIZE + POWERS_OF_TWO)
def test_spectra_are_float32_under_autocast_and_for_half_precision(name: str) -> None:
    transform = build(name, (8, 4)).float()
    x = torch.randn(1, 3, 8, 4)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        z = transform(x.bfloat16())
        back = transform.inverse(z.bfloat16())
    assert z.dtype == back.dtype == torch.float32
    torch.testing.assert_close(z, transform(x.bfloat16().float()))


def test_fixed_matrices_are_buffers_that_keep_their_precision() -> None:
    transform = FixedTransform2d("dct", (5, 6))
    assert not list(transform.parameters())
    assert not transform.state_dict()
    assert transform.left.dtype == torch.float32
    torch.testing.assert_close(copy.deepcopy(transform).double().left, dct_matrix(5), atol=0, rtol=0)
    with torch.device("meta"):
        empty = nn.Sequential(FixedTransform2d("haar", (4, 8)))
    full = empty.to_empty(device="cpu")
    torch.testing.assert_close(full[0].right, haar_matrix(8).mT.float())


def test_learnable_matrices_are_state_and_start_orthogonal() -> None:
    torch.manual_seed(0)
    transform = LearnableTransform2d((9, 5))
    assert sum(p.numel() for p in transform.parameters()) == 9 * 9 + 5 * 5
    assert transform.orthogonality_error() < 1e-6
    other = LearnableTransform2d((9, 5))
    other.load_state_dict(transform.state_dict())
    torch.testing.assert_close(other.left, transform.left)
    torch.manual_seed(0)
    torch.testing.assert_close(LearnableTransform2d((9, 5)).left, transform.left)


def test_random_orthogonal_matrices_are_uniform() -> None:
    generator = torch.Generator().manual_seed(0)
    matrices = torch.stack([random_orthogonal(3, generator) for _ in range(2000)])
    assert matrices.mean(0).abs().max() < 0.06  # every entry has mean 0 and variance 1/n
    assert (matrices.square().mean(0) - 1 / 3).abs().max() < 0.03


def test_orthogonalized_stays_close_to_an_almost_orthogonal_matrix() -> None:
    exact = random_orthogonal(12, torch.Generator().manual_seed(0))
    near = exact + 1e-4 * torch.randn(12, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    result = orthogonalized(near)
    assert (result - exact).abs().max() < 1e-3  # the signs of a library's QR would flip whole columns
    torch.testing.assert_close(result.mT @ result, torch.eye(12, dtype=torch.float64), atol=1e-14, rtol=0)
    assert not torch.allclose(torch.linalg.qr(near)[0], exact, atol=1e-3)


@pytest.mark.parametrize("corrected", [True, False])
def test_drift_of_the_learnt_matrices(corrected: bool) -> None:
    """Twenty steps of SGD: the matrices stay orthogonal with the QR step only."""
    torch.manual_seed(0)
    transform = LearnableTransform2d((8, 6))
    start = transform.left.detach().clone()
    optimizer = torch.optim.SGD(transform.parameters(), lr=0.1, momentum=0.9)
    x, target = torch.randn(4, 3, 8, 6), torch.randn(4, 3, 8, 6)
    for _ in range(20):
        optimizer.zero_grad()
        (transform(x) - target).square().mean().backward()
        optimizer.step()
        if corrected:
            transform.reorthogonalize_()
    assert (transform.left - start).abs().max() > 0.01
    if corrected:
        assert transform.orthogonality_error() < 1e-5
    else:
        assert transform.orthogonality_error() > 0.01


@pytest.mark.parametrize("spectrum", ["half", "full"])
@pytest.mark.parametrize("size", [(6, 5), pytest.param((4, 8), marks=pytest.mark.slow)])
def test_fourier_exports_as_real_products(spectrum: str, size: tuple[int, int]) -> None:
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")

    class ThereAndBack(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.transform = FourierTransform2d(size, spectrum)  # type: ignore[arg-type]

        def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            z = self.transform(x)
            return z, self.transform.inverse(z * torch.arange(1, 5).view(-1, 1, 1))

    network, x = ThereAndBack().eval(), torch.randn(2, 2, *size)
    file = io.BytesIO()
    torch.onnx.export(network, (x,), dynamo=True).save(file)
    session = onnxruntime.InferenceSession(file.getvalue())
    found = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    for ours, theirs in zip(network(x), found, strict=True):
        torch.testing.assert_close(torch.from_numpy(theirs), ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ANY_SIZE + POWERS_OF_TWO)
def test_every_transform_can_be_counted(name: str) -> None:
    complexity = count(build(name, (8, 16)), (1, 3, 8, 16))
    assert complexity.macs_full > 0
    if name == "dct":
        assert complexity.macs_paper == 3 * 8 * 16 * (8 + 16)
        assert (complexity.params, complexity.fixed_values) == (0, 8 * 8 + 16 * 16)
