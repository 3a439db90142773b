"""The networks that are compressed: 3D-ResNets (Sections 5.1 and 5.4) and the residual 3D U-Net (Section 5.6).

With a `rate` they have the shape that Algorithm 1 leaves, with untrained weights, so that what a rate really saves can
be counted without data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from common.backbones.options import changed
from common.backbones.resnet3d import ResNet3d, Shortcut
from common.backbones.unet3d import Layout, Norm, ResidualUNet3d
from papers.fdc3d.layers import CompactConv3d, geometry, numeric_padding, replace_module
from papers.fdc3d.methods import MethodName
from papers.fdc3d.rates import KeepTemporal, find_layers, rates_of


@dataclass(frozen=True)
class ResNetOptions:
    """Options of the 3D-ResNets.

    Attributes:
        depth: 10, 18, 34, 50, 101, 152 or 200 layers.
        width: multiplies every channel number; 1 is the paper's network.
        shortcut: where shapes change, `A` pads with zeros and `B` projects by a 1x1x1 convolution.
    """

    depth: int = 18
    width: float = 1.0
    shortcut: Shortcut = "B"


@dataclass(frozen=True)
class UNetOptions:
    """Options of the residual 3D U-Net.

    Attributes:
        layout: `lee`, of the work that the paper cites, or `isotropic`, see `common.backbones.ResidualUNet3d`.
        width: multiplies every channel number.
        norm: batch or group normalisation.
    """

    layout: Layout = "lee"
    width: float = 1.0
    norm: Norm = "batch"


def resnet(
    num_classes: int = 101,
    options: ResNetOptions = ResNetOptions(),
    *,
    rate: float | None = None,
    method: MethodName = "fdc3d",
    keep_temporal: KeepTemporal = "figure3",
    **changes: Any,
) -> nn.Module:
    """3D-ResNet: video (B,3,T,H,W) to logits (B,`num_classes`). For `rate` and what follows it see `compressed`."""
    options = changed(options, changes)
    network = ResNet3d(num_classes=num_classes, **asdict(options))
    return network if rate is None else compressed(network, (1, 3, 16, 32, 32), rate, method, keep_temporal)


def unet(
    num_regions: int = 3,
    in_channels: int = 4,
    options: UNetOptions = UNetOptions(),
    *,
    rate: float | None = None,
    method: MethodName = "fdc3d",
    **changes: Any,
) -> nn.Module:
    """Residual 3D U-Net: (B,`in_channels`,D,H,W) to logits (B,`num_regions`,D,H,W). For `rate` see `compressed`."""
    options = changed(options, changes)
    network = ResidualUNet3d(in_channels=in_channels, out_channels=num_regions, **asdict(options))
    return network if rate is None else compressed(network, (1, in_channels, 16, 32, 32), rate, method)


def compressed(
    network: nn.Module,
    shape: Sequence[int],
    rate: float,
    method: MethodName = "fdc3d",
    keep_temporal: KeepTemporal = "figure3",
) -> nn.Module:
    """Put a fresh `CompactConv3d` in the place of every convolution that `compress` would prune, in place.

    Args:
        network: any network with 3D convolutions.
        shape: of an input, on which the network is run once.
        rate: speed-up of 3x3x3 layers by Eq. 13.
        method: one of `papers.fdc3d.methods.METHODS`; those that compare channels only prune no rows.
        keep_temporal: how many rows of 7 stay.
    """
    x = torch.zeros(tuple(shape), device=next(network.parameters()).device)
    channel_rate, temporal_rate = rates_of(rate, method)
    training = network.training
    for layer in find_layers(network.eval(), x):
        channels, rows = layer.kept(channel_rate, temporal_rate, keep_temporal)
        if (channels, rows) != layer.whole:
            shape_of_layer = geometry(layer.conv) | {"padding": numeric_padding(layer.conv)}
            compact = CompactConv3d(**shape_of_layer, kept_channels=channels, kept_rows=rows)
            replace_module(network, layer.conv, compact.to(layer.conv.weight.device))
    return network.train(training)
