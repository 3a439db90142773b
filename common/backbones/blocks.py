"""Small pieces that every backbone is built from: the convolution unit, activations, initialisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.spectral.folding import conv_norm, is_channels_last, reshaped
from common.spectral.symbolic import fx_leaf, is_proxy

ActivationFactory = Callable[[], nn.Module]
Size3 = int | tuple[int, int, int]

ACTIVATIONS: dict[str, ActivationFactory] = {
    "relu": partial(nn.ReLU, inplace=True),
    "leaky_relu": partial(nn.LeakyReLU, negative_slope=0.01, inplace=True),
    "selu": partial(nn.SELU, inplace=True),
    "elu": partial(nn.ELU, inplace=True),
}


def activation_factory(name: str) -> ActivationFactory:
    """The constructor of an activation by name: `relu`, `leaky_relu` (slope 0.01), `selu` or `elu`.

    Raises:
        ValueError: the name is none of these.
    """
    if name not in ACTIVATIONS:
        raise ValueError(f"activation {name!r} is not known; choose one of {', '.join(ACTIVATIONS)}")
    return ACTIVATIONS[name]


class DepthwiseConv3d(nn.Conv3d):
    """A 3D convolution with one group per channel, without bias; (B,C,T,H,W) -> (B,out,T',H',W').

    Kernels that cover only space or only time run as 2D convolutions on the CPU, up to four times as fast
    (`make bench`); parameters and results are those of `torch.nn.Conv3d`.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: tuple[int, int, int],
        stride: Size3 = 1,
        padding: tuple[int, int, int] = (0, 0, 0),
    ) -> None:
        super().__init__(in_channels, out_channels, kernel_size, stride, padding, groups=in_channels, bias=False)

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        # Compilers and traces fix the sizes that the 2D forms depend on.
        general = torch.compiler.is_compiling() or torch.jit.is_tracing() or is_proxy(x)
        if general or x.device.type != "cpu" or x.dim() != 5 or x.numel() == 0:
            return super()._conv_forward(x, weight, bias)
        batch, channels, time, height, width = x.shape
        assert not isinstance(self.padding, str)
        only_space = (self.kernel_size[0], self.stride[0], self.padding[0]) == (1, 1, 0)
        only_time = self.kernel_size[1:] == (1, 1) and self.stride[1:] == (1, 1) and self.padding[1:] == (0, 0)
        channels_last = is_channels_last(x)
        if only_space and channels_last:
            frames = reshaped(x, batch * time, height, width)
            y = F.conv2d(frames, weight.squeeze(2), bias, self.stride[1:], self.padding[1:], groups=channels)
            return reshaped(y, batch, time, *y.shape[2:])
        if only_space and self.out_channels == channels:
            # Every frame of every channel is a channel of its own: nothing is copied but the small weight.
            frames = x.reshape(batch, channels * time, height, width)
            weight = weight.squeeze(2).repeat_interleave(time, dim=0)
            bias = None if bias is None else bias.repeat_interleave(time)
            y = F.conv2d(frames, weight, bias, self.stride[1:], self.padding[1:], groups=channels * time)
            return y.view(batch, channels, time, *y.shape[2:])
        if only_time:
            # Time is the height and a whole frame the width of an image.
            lines = reshaped(x, batch, time, height * width) if channels_last else x.flatten(3)
            y = F.conv2d(lines, weight.squeeze(-1), bias, (self.stride[0], 1), (self.padding[0], 0), groups=channels)
            return reshaped(y, batch, -1, height, width) if channels_last else y.unflatten(3, (height, width))
        return super()._conv_forward(x, weight, bias)


class ConvUnit3d(nn.Sequential):
    """Convolution without bias, batch normalisation, activation: (B,C,T,H,W) -> (B,out,T',H',W').

    The padding keeps the size at stride 1 (kernel sizes are odd). In evaluation without gradients on the CPU the
    normalisation is folded into a convolution with fewer weights than inputs, anew in every call.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Size3 = 1,
        stride: Size3 = 1,
        groups: int = 1,
        activation: ActivationFactory = ACTIVATIONS["relu"],
    ) -> None:
        size = (kernel_size,) * 3 if isinstance(kernel_size, int) else kernel_size
        padding = (size[0] // 2, size[1] // 2, size[2] // 2)
        super().__init__()
        self.conv = (
            DepthwiseConv3d(in_channels, out_channels, size, stride, padding)
            if 1 < groups == in_channels
            else nn.Conv3d(in_channels, out_channels, size, stride, padding, groups=groups, bias=False)
        )
        self.norm = nn.BatchNorm3d(out_channels)
        self.activation = activation()

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(conv_norm(self.conv, self.norm, x))


@fx_leaf
def checked_clip(x: Tensor, channels: int = 3, axis: str = "frames") -> Tensor:
    """The input of a network, (B,`channels`,T,H,W); `axis` is the name of T.

    Raises:
        ValueError: it has another shape.
    """
    if x.dim() != 5 or x.shape[1] != channels:
        raise ValueError(f"the network takes (batch, {channels}, {axis}, height, width), not {tuple(x.shape)}")
    return x


def initialize_orthogonal(network: nn.Module) -> None:
    """Orthogonal weights for every convolution and linear layer, zero biases; normalisations keep ones and zeros.

    A convolution weight (out, in, *kernel) is made orthogonal as the matrix (out, in * kernel).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
