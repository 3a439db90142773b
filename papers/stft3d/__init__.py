"""Depthwise Spatio-Temporal STFT Convolutional Neural Networks for Human Action Recognition.

Sudhakar Kumawat, Manisha Verma, Yuta Nakashima, Shanmuganathan Raman. IEEE TPAMI, 2022.
"""

from typing import TYPE_CHECKING

from common.lazy import lazy_attributes

if TYPE_CHECKING:
    from papers.stft3d.lightning_module import STFT3DModule
    from papers.stft3d.networks import fact_dw, i2d, i3d, relpv, s3d, s3d_g, s_stft, st_stft, stft_c2d, t_stft

__all__ = ["STFT3DModule", "fact_dw", "i2d", "i3d", "relpv", "s3d", "s3d_g", "s_stft", "st_stft", "stft_c2d", "t_stft"]

__getattr__, __dir__ = lazy_attributes(
    __name__, lightning_module="STFT3DModule", networks="fact_dw i2d i3d relpv s3d s3d_g s_stft st_stft stft_c2d t_stft"
)
