"""The transform of short signals as a real matrix product, against torch's transforms."""

from __future__ import annotations

import pytest
import torch

from common.evaluation.complexity import count
from common.spectral import RealDFT, irdft_matrix, rdft_matrix


@pytest.mark.parametrize("points", [1, 2, 3, 4, 5, 8, 16, 33, 64])
@pytest.mark.parametrize("norm", ["backward", "ortho"])
def test_equals_torch(points: int, norm: str) -> None:
    dft = RealDFT(points, norm).double()
    x = torch.randn(2, points, 3, 4, dtype=torch.float64)
    expected = torch.fft.rfft(x, dim=1, norm=norm)
    spectrum = dft(x)
    torch.testing.assert_close(torch.complex(spectrum[:, :, 0], spectrum[:, :, 1]), expected, atol=1e-12, rtol=0)
    torch.testing.assert_close(dft.inverse(spectrum), x, atol=1e-12, rtol=0)
    # Values that no real signal has are left out, as torch's inverse transform does.
    other = torch.randn(2, points // 2 + 1, 2, 3, dtype=torch.float64)
    inverse = torch.fft.irfft(torch.complex(other[:, :, 0], other[:, :, 1]), n=points, dim=1, norm=norm)
    torch.testing.assert_close(dft.inverse(other), inverse, atol=1e-12, rtol=0)


def test_orthonormal_rows_keep_energy() -> None:
    matrix = rdft_matrix(9, "ortho")
    x = torch.randn(9, dtype=torch.float64)
    energy = (matrix @ x).view(-1, 2).square().sum(1)
    torch.testing.assert_close(energy[0] + 2 * energy[1:].sum(), x.square().sum())
    torch.testing.assert_close(irdft_matrix(9) @ rdft_matrix(9), torch.eye(9, dtype=torch.float64))


def test_matrices_are_no_parameters_and_keep_their_digits() -> None:
    dft = RealDFT(8)
    assert not dft.state_dict()
    assert not list(dft.parameters())
    assert dft.half().forward_matrix.dtype == torch.float32
    assert dft.double().forward_matrix.equal(rdft_matrix(8))
    assert count(dft, (1, 8, 4)).macs_paper == 0  # counted as a Fourier transform
    with pytest.raises(ValueError, match="at least 1 point"):
        RealDFT(0)
