"""Spectral filters and transforms, and the fast layers built on them. Depends on torch alone."""

from common.spectral.constants import ConstantBuffers
from common.spectral.dft import RealDFT, irdft_matrix, rdft_matrix
from common.spectral.fused import STFTPointwise, checkpoint_once
from common.spectral.stft import (
    S_FREQUENCIES,
    ST_FREQUENCIES,
    T_FREQUENCIES,
    DepthwiseSTFT,
    lowest_frequencies,
    reference_implementation,
    stft_kernels,
)
from common.spectral.transforms import (
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

__all__ = [
    "ST_FREQUENCIES",
    "S_FREQUENCIES",
    "T_FREQUENCIES",
    "ConstantBuffers",
    "DepthwiseSTFT",
    "FixedTransform2d",
    "FourierTransform2d",
    "LearnableTransform2d",
    "RealDFT",
    "STFTPointwise",
    "Transform2d",
    "checkpoint_once",
    "dct_matrix",
    "dft_matrix",
    "haar_matrix",
    "irdft_matrix",
    "lowest_frequencies",
    "orthogonalized",
    "random_orthogonal",
    "rdft_matrix",
    "reference_implementation",
    "slant_matrix",
    "stft_kernels",
    "transform2d",
    "walsh_hadamard_matrix",
]
