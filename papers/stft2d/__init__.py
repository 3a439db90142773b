"""Depthwise-STFT Based Separable Convolutional Neural Networks.

Sudhakar Kumawat, Shanmuganathan Raman. IEEE ICASSP, 2020.
"""

from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    """The modules are imported when they are asked for, so that networks and layers need no Lightning."""
    if name == "STFT2DModule":
        from papers.stft2d import lightning_module

        return getattr(lightning_module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
