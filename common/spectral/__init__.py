"""Fixed spectral filters and the fast layers built on them. Depends on torch alone."""

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

__all__ = [
    "ST_FREQUENCIES",
    "S_FREQUENCIES",
    "T_FREQUENCIES",
    "DepthwiseSTFT",
    "STFTPointwise",
    "checkpoint_once",
    "lowest_frequencies",
    "reference_implementation",
    "stft_kernels",
]
