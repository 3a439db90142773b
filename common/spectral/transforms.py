"""Unitary transforms of whole feature maps: Fourier, cosine, Walsh-Hadamard, Haar, slant and learnable orthogonal.

The matrices are orthonormal, and in float64 exact to rounding: row `k` of `dct_matrix(n)` is the basis function `k`.
The layers transform every feature map by itself, along both axes (Chi et al., "Fast Non-Local Neural Networks with
Spectral Residual Learning", Eq. 2 and 3):

    f(X) = P X Q        f^-1(Z) = P* Z Q*        P (H,H) and Q (W,W) unitary, * the conjugate transpose

They are built for one size of the feature map, since what works on a spectrum depends on its size.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from common.spectral.constants import ConstantBuffers
from common.spectral.stft import without_autocast
from common.spectral.symbolic import fx_leaf

TransformName = Literal["fourier", "dct", "walsh-hadamard", "haar", "slant", "orthogonal"]
Spectrum = Literal["half", "full"]

# Matrices, (n, n) float64 on the CPU


def _grid(n: int) -> Tensor:
    if n < 1:
        raise ValueError(f"a transform needs at least one point, not {n}")
    return torch.arange(n, dtype=torch.float64, device="cpu")


def _power_of_two(n: int, name: str) -> int:
    """The exponent of `n`."""
    if n < 1 or n & (n - 1):
        below = 1 << max(n, 1).bit_length() - 1
        raise ValueError(
            f"the {name} transform takes sizes that are powers of two, not {n}: crop or pool to {below}, pad to "
            f"{2 * below}, or use the Fourier, cosine or learnable orthogonal transform, which take any size"
        )
    return n.bit_length() - 1


def _dft_parts(n: int) -> tuple[Tensor, Tensor]:
    # k m is reduced modulo n while it is exact, so that large matrices are as exact as small ones
    angle = torch.outer(_grid(n), _grid(n)).remainder(n) * (-2 * math.pi / n)
    return angle.cos() / math.sqrt(n), angle.sin() / math.sqrt(n)


def dft_matrix(n: int) -> Tensor:
    """Discrete Fourier transform, exp(-2 pi i k m / n) / sqrt(n): (n, n) complex128, unitary and symmetric.

    Raises:
        ValueError: for n < 1, as all functions here.
    """
    return torch.complex(*_dft_parts(n))


def dct_matrix(n: int) -> Tensor:
    """Orthonormal cosine transform (type II): row k is sqrt(2/n) cos(pi k (2m + 1) / 2n), row 0 is 1/sqrt(n)."""
    turns = torch.outer(_grid(n), 2 * _grid(n) + 1).remainder(4 * n) / (4 * n)
    matrix = math.sqrt(2 / n) * torch.cos(2 * math.pi * turns)
    matrix[0] = 1 / math.sqrt(n)
    return matrix


def walsh_hadamard_matrix(n: int) -> Tensor:
    """Walsh-Hadamard transform: entries +-1/sqrt(n), row k changes its sign k times.

    Raises:
        ValueError: for a size that is no power of two.
    """
    step = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64, device="cpu")
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    for _ in range(_power_of_two(n, "Walsh-Hadamard")):
        matrix = torch.kron(matrix, step)
    changes = (matrix[:, 1:] != matrix[:, :-1]).sum(dim=1)
    return matrix[changes.argsort()] / math.sqrt(n)


def haar_matrix(n: int) -> Tensor:
    """Haar transform: the mean, then differences of neighbouring halves, from the coarsest scale to the finest.

    Raises:
        ValueError: for a size that is no power of two.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    for _ in range(_power_of_two(n, "Haar")):
        coarse = matrix.repeat_interleave(2, dim=1)
        fine = torch.kron(torch.eye(len(matrix), dtype=torch.float64, device="cpu"), matrix.new_tensor([[1.0, -1.0]]))
        matrix = torch.cat([coarse, fine]) / math.sqrt(2)
    return matrix


def slant_matrix(n: int) -> Tensor:
    """Slant transform (Pratt, Chen and Welch, 1974): row 0 is constant, row 1 a straight line, the others follow by
    recursion. Its rows are those of the Walsh-Hadamard transform for n = 2.

    Raises:
        ValueError: for a size that is no power of two.
    """
    matrix = torch.ones(1, 1, dtype=torch.float64, device="cpu")
    for level in range(_power_of_two(n, "slant")):
        half = len(matrix)
        both = torch.block_diag(matrix, matrix) / math.sqrt(2)
        first, second = both[:half], both[half:]  # the same rows, on the left and on the right half of the signal
        plus, minus = first + second, first - second
        if level == 0:
            matrix = torch.cat([plus, minus])
            continue
        size = 2 * half
        a, b = math.sqrt(3 * size**2 / (4 * (size**2 - 1))), math.sqrt((size**2 - 4) / (4 * (size**2 - 1)))
        line = a * minus[0] + b * plus[1]
        curve = -b * minus[0] + a * plus[1]
        matrix = torch.cat([plus[:1], line[None], plus[2:], minus[1:2], curve[None], minus[2:]])
    return matrix


def random_orthogonal(n: int, generator: torch.Generator | None = None) -> Tensor:
    """A random orthogonal matrix, every one as likely: the orthogonal factor of a matrix of normal numbers."""
    _grid(n)
    return orthogonalized(torch.randn(n, n, dtype=torch.float64, device="cpu", generator=generator))


def orthogonalized(matrix: Tensor) -> Tensor:
    """The orthogonal factor of the QR decomposition whose triangular factor has a positive diagonal.

    Only so is it unique, and close to a matrix that is almost orthogonal: the signs that a library chooses would
    flip columns. Takes and returns (..., m, n) with m >= n; the columns of the result are orthonormal.
    """
    q, r = torch.linalg.qr(matrix)
    signs = torch.where(r.diagonal(dim1=-2, dim2=-1) < 0, -1.0, 1.0).to(q).unsqueeze(-2)
    return (q * signs).contiguous()  # LAPACK's is in column order, which `fully_shard` takes no parameters in


_MATRICES: dict[str, Callable[[int], Tensor]] = {
    "dct": dct_matrix,
    "walsh-hadamard": walsh_hadamard_matrix,
    "haar": haar_matrix,
    "slant": slant_matrix,
}

# Layers


class Transform2d(nn.Module):
    """A unitary transform of feature maps of one size.

    `forward`: (B, C, H, W) real -> (B, C * parts, *spectrum_size) real; `inverse` goes back. With two parts,
    channels `2c` and `2c + 1` are the real and the imaginary part of the spectrum of channel `c`.
    Both compute in float32 (or in float64, for such an input) under autocast too.

    Attributes:
        size: (H, W) of the feature maps.
        parts: 2 for a complex spectrum, else 1.
        spectrum_size: size of a spectrum.
    """

    def __init__(self, size: tuple[int, int], parts: int = 1, spectrum_size: tuple[int, int] | None = None) -> None:
        super().__init__()
        height, width = size
        if min(height, width) < 1:
            raise ValueError(f"{type(self).__name__} needs a feature map of at least 1x1, not {height}x{width}")
        self.size = (int(height), int(width))
        self.parts = parts
        self.spectrum_size = self.size if spectrum_size is None else spectrum_size

    def extra_repr(self) -> str:
        return f"{self.size[0]}x{self.size[1]}"

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        x = self._checked(x, self.size, "feature maps", 1)
        with without_autocast(x.device.type):
            return self._forward(x)

    def inverse(self, z: Tensor) -> Tensor:
        """Undo `forward`: (B, C * parts, *spectrum_size) -> (B, C, H, W)."""
        z = self._checked(z, self.spectrum_size, "spectra", self.parts)
        with without_autocast(z.device.type):
            return self._inverse(z)

    def _checked(self, x: Tensor, size: tuple[int, int], what: str, parts: int) -> Tensor:
        if x.dim() != 4 or tuple(x.shape[2:]) != size or x.shape[1] % parts:
            raise ValueError(
                f"{type(self).__name__} takes {what} (B, C{' * 2' if parts == 2 else ''}, {size[0]}, {size[1]}), "
                f"but got {tuple(x.shape)}; build the network for the size of its input"
            )
        return x if x.dtype == torch.float64 else x.float()

    def _forward(self, x: Tensor) -> Tensor:
        raise NotImplementedError

    def _inverse(self, z: Tensor) -> Tensor:
        raise NotImplementedError


class FourierTransform2d(Transform2d):
    """The two-dimensional Fourier transform with 1/sqrt(HW) both ways (Eq. 4 and 5), for any size.

    The feature maps are real, so half of the W frequencies, `W // 2 + 1`, tell the whole spectrum: the others are
    the conjugates. Of a `full` spectrum `inverse` keeps the real part (remark in Section 3.2).

    Args:
        size: (H, W) of the feature maps.
        spectrum: `half`, or `full` for all W frequencies.
    """

    def __init__(self, size: tuple[int, int], spectrum: Spectrum = "half") -> None:
        if spectrum not in get_args(Spectrum):
            raise ValueError(f"spectrum must be half or full, not {spectrum!r}")
        height, width = size
        super().__init__(size, parts=2, spectrum_size=(height, width // 2 + 1 if spectrum == "half" else width))
        self.spectrum = spectrum

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, spectrum={self.spectrum!r}"

    def _forward(self, x: Tensor) -> Tensor:
        if torch.compiler.is_exporting() or x.numel() == 0:  # MKL takes no empty batch
            return self._forward_by_products(x)
        transform = torch.fft.rfft2 if self.spectrum == "half" else torch.fft.fft2
        parts = torch.view_as_real(transform(x, norm="ortho"))
        return parts.movedim(-1, 2).flatten(1, 2)

    def _inverse(self, z: Tensor) -> Tensor:
        parts = z.unflatten(1, (-1, 2))
        if torch.compiler.is_exporting() or z.numel() == 0:
            return self._inverse_by_products(parts[:, :, 0], parts[:, :, 1])
        spectrum = torch.complex(parts[:, :, 0], parts[:, :, 1])
        if self.spectrum == "half":
            return torch.fft.irfft2(spectrum, s=self.size, norm="ortho")
        return torch.fft.ifft2(spectrum, norm="ortho").real

    # The same as products with real matrices: exchange formats know them everywhere, complex numbers hardly anywhere.

    def _matrices(self, like: Tensor) -> list[Tensor]:
        """Real and imaginary part of P (H, H) and Q (W, spectrum width)."""
        left, right = (_dft_parts(n) for n in self.size)
        return [part.to(like) for part in (*left, *(part[:, : self.spectrum_size[1]] for part in right))]

    def _forward_by_products(self, x: Tensor) -> Tensor:
        p_real, p_imag, q_real, q_imag = self._matrices(x)
        real, imag = x @ q_real, x @ q_imag
        parts = [p_real @ real - p_imag @ imag, p_real @ imag + p_imag @ real]
        return torch.stack(parts, dim=2).flatten(1, 2)

    def _inverse_by_products(self, real: Tensor, imag: Tensor) -> Tensor:
        p_real, p_imag, q_real, q_imag = self._matrices(real)
        real, imag = p_real @ real + p_imag @ imag, p_real @ imag - p_imag @ real
        if self.spectrum == "half":  # a frequency stands for its conjugate too, if that is another one
            column = torch.arange(self.spectrum_size[1], device=real.device)
            weight = torch.where((column == 0) | (2 * column == self.size[1]), 1.0, 2.0).to(real)
            real, imag = real * weight, imag * weight
        return real @ q_real.mT + imag @ q_imag.mT


class _Products(Transform2d):
    """Multiplication by real orthogonal matrices `left` (H, H) and `right` (W, W)."""

    left: Tensor
    right: Tensor

    def _forward(self, x: Tensor) -> Tensor:
        return self.left.to(x) @ (x @ self.right.to(x))

    def _inverse(self, z: Tensor) -> Tensor:
        return self.left.mT.to(z) @ (z @ self.right.mT.to(z))


class FixedTransform2d(ConstantBuffers, _Products):
    """A fixed real transform along both axes; its matrices are no parameters and not in the state dict.

    Args:
        name: `dct`, for any size, or `walsh-hadamard`, `haar` or `slant`, for powers of two.
        size: (H, W) of the feature maps.

    Raises:
        ValueError: for a size that the transform cannot take.
    """

    def __init__(self, name: str, size: tuple[int, int]) -> None:
        super().__init__(size)
        if name not in _MATRICES:
            raise ValueError(f"there is no fixed transform {name!r}; there are {', '.join(_MATRICES)}")
        self.name = name
        self.register_constants()

    def constants(self) -> dict[str, Tensor]:
        height, width = self.size
        matrix = _MATRICES[self.name]
        return {"left": matrix(height), "right": matrix(width).mT}  # rows of feature maps meet the columns of Q

    def extra_repr(self) -> str:
        return f"{self.name}, {super().extra_repr()}"


class LearnableTransform2d(_Products):
    """P X Q with trainable orthogonal P and Q, H^2 + W^2 parameters (Section 3.2, "LO"), for any size.

    A gradient step leaves the orthogonal matrices; `reorthogonalize_`, to be called after every step, puts P and Q
    back by QR decomposition, as in the paper.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__(size)
        self.left, self.right = (nn.Parameter(random_orthogonal(n).to(torch.empty(0))) for n in self.size)

    @torch.no_grad()
    def reorthogonalize_(self) -> None:
        """Replace P and Q by their orthogonal factors."""
        for matrix in (self.left, self.right):
            matrix.copy_(orthogonalized(matrix.double()))

    def orthogonality_error(self) -> float:
        """Largest entry of |P^T P - I| and |Q^T Q - I|, in float64."""
        with torch.no_grad():
            errors = []
            for matrix in (self.left.double(), self.right.double()):
                errors.append((matrix.mT @ matrix - torch.eye(len(matrix)).to(matrix)).abs().max())
            return float(max(errors))


def transform2d(name: TransformName, size: tuple[int, int], spectrum: Spectrum = "half") -> Transform2d:
    """The transform of that name for feature maps of `size` (H, W).

    Args:
        name: `fourier`, `dct`, `walsh-hadamard`, `haar`, `slant` or `orthogonal` (learnable).
        size: (H, W).
        spectrum: see `FourierTransform2d`; other transforms have no redundant half.

    Raises:
        ValueError: for an unknown name, or a size that the transform cannot take.
    """
    if name == "fourier":
        return FourierTransform2d(size, spectrum)
    if name == "orthogonal":
        return LearnableTransform2d(size)
    if name not in _MATRICES:
        raise ValueError(f"there is no transform {name!r}; there are {', '.join(get_args(TransformName))}")
    return FixedTransform2d(name, size)
