"""Depthwise-STFT Based Separable Convolutional Neural Networks.

Sudhakar Kumawat, Shanmuganathan Raman. IEEE ICASSP, 2020.
"""

from typing import TYPE_CHECKING

from common.lazy import lazy_attributes
from papers.stft2d.layers import DepthwiseSTFTSeparable, swap_depthwise_separable
from papers.stft2d.networks import depthwise_separable, mobilenet, mobilenet_v2, relpu, shufflenet, shufflenet_v2, stft

if TYPE_CHECKING:
    from papers.stft2d.lightning_module import STFT2DModule

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

__getattr__ = lazy_attributes(__name__, lightning_module="STFT2DModule")
