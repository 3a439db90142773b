"""Frequency Domain Compact 3D Convolutional Neural Networks.

Hanting Chen, Yunhe Wang, Han Shu, Yehui Tang, Chunjing Xu, Boxin Shi, Chao Xu, Qi Tian, Chang Xu. CVPR, 2020.
"""

from papers.fdc3d.compression import Compressed, Report, choose_executions, compress, measure
from papers.fdc3d.files import load_compact, save_compact
from papers.fdc3d.layers import CompactConv3d, MaskedConv3d
from papers.fdc3d.lightning_module import FDC3DModule, FDC3DVolumeModule
from papers.fdc3d.networks import resnet, unet

__all__ = [
    "CompactConv3d",
    "Compressed",
    "FDC3DModule",
    "FDC3DVolumeModule",
    "MaskedConv3d",
    "Report",
    "choose_executions",
    "compress",
    "load_compact",
    "measure",
    "resnet",
    "save_compact",
    "unet",
]
