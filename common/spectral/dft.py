"""The discrete Fourier transform of short real signals as a product with a real matrix.

For the 4 to 64 frames of a clip this takes no complex tensor: it exports to ONNX, compiles, and needs no copy where the
time axis is not the last in memory.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

from common.spectral.constants import ConstantBuffers
from common.spectral.stft import uses_reference_implementation
from common.spectral.symbolic import fx_leaf

Norm = Literal["backward", "ortho"]


def rdft_matrix(points: int, norm: Norm = "backward") -> Tensor:
    """Real matrix (2M, `points`), M = points // 2 + 1, float64: rows 2m and 2m + 1 give the real and imaginary part of
    frequency m, as `torch.fft.rfft` defines them."""
    m = torch.arange(points // 2 + 1, dtype=torch.float64)
    # The product of integers is exact and kept small, so that the angles are.
    angle = 2 * math.pi / points * (m[:, None] * torch.arange(points, dtype=torch.float64) % points)
    scale = points**-0.5 if norm == "ortho" else 1.0
    return scale * torch.stack([angle.cos(), -angle.sin()], dim=1).flatten(0, 1)


def irdft_matrix(points: int, norm: Norm = "backward") -> Tensor:
    """Real matrix (`points`, 2M), float64, of `torch.fft.irfft(..., n=points)`; columns ordered as the rows above.

    The imaginary parts of frequency 0 and, for an even number of points, of the highest one do not count.
    """
    weight = torch.full((points // 2 + 1, 1), 2.0, dtype=torch.float64)
    weight[0] = 1
    if points % 2 == 0:
        weight[-1] = 1
    inverse = (rdft_matrix(points).unflatten(0, (-1, 2)) * weight[:, :, None]).flatten(0, 1).T / points
    inverse[:, 1] = 0
    if points % 2 == 0:
        inverse[:, -1] = 0
    return inverse * (points**0.5 if norm == "ortho" else 1.0)


class RealDFT(ConstantBuffers):
    """Spectrum of real signals over dimension 1: (B,`points`,...) -> (B,M,2,...), the 2 being real and imaginary part.

    `inverse` is `torch.fft.irfft` for the same number of points. While multiply-adds are counted, stock Fourier
    transforms run instead. Both matrices are buffers outside of the state dict.

    Args:
        points: number of samples, at least 1.
        norm: `backward` (1/points on the inverse, Eq. 2 of most texts) or `ortho` (its root on both).
    """

    def __init__(self, points: int, norm: Norm = "backward") -> None:
        super().__init__()
        if points < 1:
            raise ValueError(f"a transform takes at least 1 point, not {points}")
        self.points, self.norm = points, norm
        self.register_constants()

    def constants(self) -> dict[str, Tensor]:
        return {
            "forward_matrix": rdft_matrix(self.points, self.norm),
            "inverse_matrix": irdft_matrix(self.points, self.norm),
        }

    def extra_repr(self) -> str:
        return f"points={self.points}, norm={self.norm!r}"

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        if uses_reference_implementation() and not torch.compiler.is_exporting():
            return torch.view_as_real(torch.fft.rfft(x, dim=1, norm=self.norm)).movedim(-1, 2)
        return self._product("forward_matrix", x).unflatten(1, (-1, 2))

    def inverse(self, spectrum: Tensor) -> Tensor:
        """(B,M,2,...) -> (B,`points`,...)."""
        if uses_reference_implementation() and not torch.compiler.is_exporting():
            y = torch.view_as_complex(spectrum.movedim(2, -1).contiguous())
            return torch.fft.irfft(y, n=self.points, dim=1, norm=self.norm)
        return self._product("inverse_matrix", spectrum.flatten(1, 2))

    def _product(self, name: str, x: Tensor) -> Tensor:
        """The matrix `name` times `x` along dimension 1."""
        matrix = self.constant(name, x)
        # `@` and `len(x)` would fix the batch size of an exported program.
        y = torch.bmm(matrix.expand(x.shape[0], -1, -1), x.to(matrix.dtype).flatten(2))
        return y.unflatten(2, x.shape[2:])
