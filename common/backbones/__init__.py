"""Backbones with a replaceable block."""

from common.backbones.blocks import ACTIVATIONS, ConvUnit3d, activation_factory, initialize_orthogonal
from common.backbones.bn_inception import BNInception3d, InceptionModule, InceptionWidths, scale_width
from common.backbones.c2d_resnet import C2DBody, C2DResNet
from common.backbones.imagenet import load_imagenet
from common.backbones.swin import C2DSwin

__all__ = [
    "ACTIVATIONS",
    "BNInception3d",
    "C2DBody",
    "C2DResNet",
    "C2DSwin",
    "ConvUnit3d",
    "InceptionModule",
    "InceptionWidths",
    "activation_factory",
    "initialize_orthogonal",
    "load_imagenet",
    "scale_width",
]
