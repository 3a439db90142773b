"""The blocks of Figure 1: ST-, S- and T-STFT, Fact.+DW, and those of the networks they are compared with.

Every block is built as `Block(in_channels, bottleneck, out_channels)` and maps (B,in,T,H,W) to (B,out,T,H,W).
Each layer, fixed or trainable, is followed by batch normalisation and an activation (Section 4). An output depends on
`reach` frames before and after its own.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from common.backbones import ACTIVATIONS, ConvUnit3d
from common.backbones.blocks import ActivationFactory
from common.spectral import DepthwiseSTFT, STFTPointwise, checkpoint_once
from common.spectral.folding import conv_norm, evaluates, hooked
from common.spectral.fused import stft_norm

LEAKY_RELU = ACTIVATIONS["leaky_relu"]


class STSTFTBlock(nn.Sequential):
    """Figure 1c: 1x1x1 to b channels, 3x3x3 STFT of 13 frequencies to 26b, 1x1x1 to the output.

    Trainable weights without normalisation: (c + 26 f) b (Section 3.3).
    """

    reach = 1
    window = (3, 3, 3)
    separate = False  # a trainable depthwise 1x3x3 before the transform

    def __init__(
        self,
        in_channels: int,
        bottleneck: int,
        out_channels: int,
        activation: ActivationFactory = LEAKY_RELU,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        self.reduce = ConvUnit3d(in_channels, bottleneck, activation=activation)
        if self.separate:
            self.spatial = ConvUnit3d(bottleneck, bottleneck, (1, 3, 3), groups=bottleneck, activation=activation)
        self.transform = STFTPointwise(
            bottleneck, out_channels, self.window, activation=activation, memory_efficient=memory_efficient
        )
        self.norm = nn.BatchNorm3d(out_channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        return self.activation(self.transform(self.spatial(x) if self.separate else x, self.norm))


class TSTFTBlock(STSTFTBlock):
    """Figure 1g: 1x1x1 to b channels, trainable depthwise 1x3x3, 3x1x1 STFT of one frequency to 2b, 1x1x1.

    Trainable weights without normalisation: (c + 9 + 2 f) b (Section 3.3).
    """

    window = (3, 1, 1)
    separate = True


class SSTFTBlock(nn.Module):
    """Figure 1f: 1x1x1 to b channels, 1x3x3 STFT of 4 frequencies to 8b, trainable depthwise 3x1x1, 1x1x1.

    The depthwise convolution acts on the 8b transformed channels: only so has the block the (c + 8n + 8f) b
    trainable weights of Section 3.3.
    """

    reach = 1

    def __init__(
        self,
        in_channels: int,
        bottleneck: int,
        out_channels: int,
        activation: ActivationFactory = LEAKY_RELU,
        memory_efficient: bool = False,
    ) -> None:
        super().__init__()
        stft = DepthwiseSTFT(bottleneck, (1, 3, 3))
        self.reduce = ConvUnit3d(in_channels, bottleneck, activation=activation)
        self.transform = nn.Sequential(
            OrderedDict(
                stft=stft,
                norm=nn.BatchNorm3d(stft.out_channels),
                activation=activation(),
                temporal=ConvUnit3d(
                    stft.out_channels, stft.out_channels, (3, 1, 1), groups=stft.out_channels, activation=activation
                ),
                pointwise=nn.Conv3d(stft.out_channels, out_channels, 1, bias=False),
            )
        )
        self.norm = nn.BatchNorm3d(out_channels)
        self.activation = activation()
        self.memory_efficient = memory_efficient

    def forward(self, x: Tensor) -> Tensor:
        x = self.reduce(x)
        parts: Any = self.transform
        if not evaluates(x) or hooked(parts):
            x = checkpoint_once(parts, x) if self.memory_efficient else parts(x)
            return self.activation(self.norm(x))
        x = parts.temporal(parts.activation(stft_norm(parts.stft, parts.norm, x)))
        return self.activation(conv_norm(parts.pointwise, self.norm, x))


class FactorizedDepthwiseBlock(nn.Sequential):
    """Figure 1e, Fact.+DW: the T-STFT block with its fixed STFT made a trainable depthwise 3x1x1, b to 2b."""

    reach = 1

    def __init__(
        self,
        in_channels: int,
        bottleneck: int,
        out_channels: int,
        activation: ActivationFactory = LEAKY_RELU,
    ) -> None:
        super().__init__()
        self.reduce = ConvUnit3d(in_channels, bottleneck, activation=activation)
        self.spatial = ConvUnit3d(bottleneck, bottleneck, (1, 3, 3), groups=bottleneck, activation=activation)
        self.temporal = ConvUnit3d(bottleneck, 2 * bottleneck, (3, 1, 1), groups=bottleneck, activation=activation)
        self.expand = ConvUnit3d(2 * bottleneck, out_channels, activation=activation)


class ConvBlock(nn.Sequential):
    """Figure 1a: 1x1x1 reduction, dense convolution. Kernel (3,3,3) makes I3D, (1,3,3) makes I2D."""

    reach = 1

    def __init__(
        self,
        in_channels: int,
        bottleneck: int,
        out_channels: int,
        kernel_size: tuple[int, int, int] = (3, 3, 3),
        activation: ActivationFactory = ACTIVATIONS["relu"],
    ) -> None:
        super().__init__()
        self.reduce = ConvUnit3d(in_channels, bottleneck, activation=activation)
        self.conv = ConvUnit3d(bottleneck, out_channels, kernel_size, activation=activation)


class SeparableConvBlock(nn.Sequential):
    """Figure 1d, S3D: 1x1x1 reduction, 1x3x3 convolution, 3x1x1 convolution."""

    reach = 1

    def __init__(
        self,
        in_channels: int,
        bottleneck: int,
        out_channels: int,
        activation: ActivationFactory = ACTIVATIONS["relu"],
    ) -> None:
        super().__init__()
        self.reduce = ConvUnit3d(in_channels, bottleneck, activation=activation)
        self.spatial = ConvUnit3d(bottleneck, out_channels, (1, 3, 3), activation=activation)
        self.temporal = ConvUnit3d(out_channels, out_channels, (3, 1, 1), activation=activation)


class SeparableStem(nn.Sequential):
    """The first layer of S3D: 1x7x7 and 7x1x1 convolutions of stride 2, (B,3,T,H,W) -> (B,out,T/2,H/2,W/2)."""

    def __init__(self, out_channels: int, activation: ActivationFactory = ACTIVATIONS["relu"]) -> None:
        super().__init__()
        self.spatial = ConvUnit3d(3, out_channels, (1, 7, 7), (1, 2, 2), activation=activation)
        self.temporal = ConvUnit3d(out_channels, out_channels, (7, 1, 1), (2, 1, 1), activation=activation)


class FeatureGate(nn.Module):
    """S3D-G: every channel times a sigmoid of a linear function of all channel means; the shape stays."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.linear(x.mean(dim=(2, 3, 4))))
        return x * gate[:, :, None, None, None]
