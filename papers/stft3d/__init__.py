"""Depthwise Spatio-Temporal STFT Convolutional Neural Networks for Human Action Recognition.

Sudhakar Kumawat, Manisha Verma, Yuta Nakashima, Shanmuganathan Raman. IEEE TPAMI, 2022.
"""

from typing import TYPE_CHECKING, Any

from papers.stft3d.networks import fact_dw, i2d, i3d, relpv, s3d, s3d_g, s_stft, st_stft, t_stft

if TYPE_CHECKING:
    from papers.stft3d.lightning_module import STFT3DModule

__all__ = ["STFT3DModule", "fact_dw", "i2d", "i3d", "relpv", "s3d", "s3d_g", "s_stft", "st_stft", "t_stft"]


def __getattr__(name: str) -> Any:
    """The modules are imported when they are asked for, so that networks and layers need no Lightning."""
    if name == "STFT3DModule":
        from papers.stft3d import lightning_module

        return getattr(lightning_module, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
