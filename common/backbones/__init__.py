"""Backbones with a replaceable block."""

from common.backbones.blocks import ACTIVATIONS, ConvUnit3d, activation_factory, initialize_orthogonal
from common.backbones.bn_inception import BNInception3d, InceptionModule, InceptionWidths, scale_width

__all__ = [
    "ACTIVATIONS",
    "BNInception3d",
    "ConvUnit3d",
    "InceptionModule",
    "InceptionWidths",
    "activation_factory",
    "initialize_orthogonal",
    "scale_width",
]
