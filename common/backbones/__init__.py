"""Backbones with a replaceable block. The Swin Transformer is built on torchvision, which is imported with it."""

from typing import TYPE_CHECKING

from common.backbones.blocks import ACTIVATIONS, ConvUnit3d, activation_factory, initialize_orthogonal
from common.backbones.bn_inception import BNInception3d, InceptionModule, InceptionWidths, scale_width
from common.backbones.c2d_resnet import C2DBody, C2DResNet
from common.backbones.imagenet import load_imagenet
from common.backbones.resnet3d import ResNet3d, resnet3d_from_state_dict
from common.backbones.unet3d import ResidualUNet3d
from common.lazy import lazy_attributes

if TYPE_CHECKING:
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
    "ResNet3d",
    "ResidualUNet3d",
    "activation_factory",
    "initialize_orthogonal",
    "load_imagenet",
    "resnet3d_from_state_dict",
    "scale_width",
]

__getattr__, __dir__ = lazy_attributes(__name__, swin="C2DSwin")
