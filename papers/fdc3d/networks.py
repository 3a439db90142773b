"""The networks that are compressed: 3D-ResNets (Sections 5.1 and 5.4) and the residual 3D U-Net (Section 5.6).

With a `rate` they have the shape that Algorithm 1 leaves, with untrained weights, so that what a rate really saves can
be counted without data.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from common.backbones.resnet3d import ResNet3d, Shortcut
from common.backbones.unet3d import Layout, Norm, ResidualUNet3d
from papers.fdc3d.layers import CompactConv3d, geometry, numeric_padding, replace_module
from papers.fdc3d.methods import MethodName
from papers.fdc3d.rates import KeepTemporal, find_layers, rates_of


def resnet(
    depth: int = 18,
    num_classes: int = 101,
    width: float = 1.0,
    shortcut: Shortcut = "B",
    rate: float | None = None,
    method: MethodName = "fdc3d",
    keep_temporal: KeepTemporal = "figure3",
) -> nn.Module:
    """3D-ResNet of 10 to 200 layers: video (B,3,T,H,W) to logits (B,`num_classes`). For `rate` see `compressed`."""
    network = ResNet3d(depth, num_classes, width, shortcut)
    if rate is None:
        return network
    return compressed(network, (1, 3, 16, 32, 32), rate, method, keep_temporal)


def unet(
    layout: Layout = "lee",
    in_channels: int = 4,
    out_channels: int = 3,
    width: float = 1.0,
    norm: Norm = "batch",
    rate: float | None = None,
    method: MethodName = "fdc3d",
) -> nn.Module:
    """Residual 3D U-Net: volume (B,4,D,H,W) to logits (B,3,D,H,W). For `rate` see `compressed`."""
    network = ResidualUNet3d(layout, in_channels, out_channels, width, norm)
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
