"""Frequency Domain Compact 3D Convolutional Neural Networks.

Hanting Chen, Yunhe Wang, Han Shu, Yehui Tang, Chunjing Xu, Boxin Shi, Chao Xu, Qi Tian, Chang Xu. CVPR, 2020.
"""

from typing import TYPE_CHECKING

from common.lazy import lazy_attributes

if TYPE_CHECKING:
    from papers.fdc3d.compression import Compressed, compress
    from papers.fdc3d.deployment import fold_batch_norms, trim_producers
    from papers.fdc3d.files import load_compact, save_compact
    from papers.fdc3d.layers import CompactConv3d, MaskedConv3d
    from papers.fdc3d.lightning_module import FDC3DModule, FDC3DVolumeModule
    from papers.fdc3d.networks import resnet, unet
    from papers.fdc3d.rates import CompressionOptions
    from papers.fdc3d.report import CompressionReport
    from papers.fdc3d.timing import choose_executions, measure

__all__ = [
    "CompactConv3d",
    "Compressed",
    "CompressionOptions",
    "CompressionReport",
    "FDC3DModule",
    "FDC3DVolumeModule",
    "MaskedConv3d",
    "choose_executions",
    "compress",
    "fold_batch_norms",
    "load_compact",
    "measure",
    "resnet",
    "save_compact",
    "trim_producers",
    "unet",
]

__getattr__, __dir__ = lazy_attributes(
    __name__,
    compression="Compressed compress",
    deployment="fold_batch_norms trim_producers",
    files="load_compact save_compact",
    layers="CompactConv3d MaskedConv3d",
    lightning_module="FDC3DModule FDC3DVolumeModule",
    networks="resnet unet",
    rates="CompressionOptions",
    report="CompressionReport",
    timing="choose_executions measure",
)
