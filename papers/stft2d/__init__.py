"""Depthwise-STFT Based Separable Convolutional Neural Networks.

Sudhakar Kumawat, Shanmuganathan Raman. IEEE ICASSP, 2020.
"""

from typing import TYPE_CHECKING

from common.lazy import lazy_attributes

if TYPE_CHECKING:
    from papers.stft2d.layers import DepthwiseSTFTSeparable, swap_depthwise_separable
    from papers.stft2d.lightning_module import STFT2DModule
    from papers.stft2d.networks import (
        depthwise_separable,
        mobilenet,
        mobilenet_v2,
        relpu,
        shufflenet,
        shufflenet_v2,
        stft,
    )

__all__ = [
    "DepthwiseSTFTSeparable",
    "STFT2DModule",
    "depthwise_separable",
    "mobilenet",
    "mobilenet_v2",
    "relpu",
    "shufflenet",
    "shufflenet_v2",
    "stft",
    "swap_depthwise_separable",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    layers="DepthwiseSTFTSeparable swap_depthwise_separable",
    lightning_module="STFT2DModule",
    networks="depthwise_separable mobilenet mobilenet_v2 relpu shufflenet shufflenet_v2 stft",
)
