"""Small pieces that every backbone is built from: the convolution unit, activations, initialisation."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

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


class ConvUnit3d(nn.Sequential):
    """Convolution without bias, batch normalisation, activation: (B,C,T,H,W) -> (B,out,T',H',W').

    The padding keeps the size at stride 1 (kernel sizes are odd).
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
        self.conv = nn.Conv3d(in_channels, out_channels, size, stride, padding, groups=groups, bias=False)
        self.norm = nn.BatchNorm3d(out_channels)
        self.activation = activation()


def initialize_orthogonal(network: nn.Module) -> None:
    """Orthogonal weights for every convolution and linear layer, zero biases; normalisations keep ones and zeros.

    A convolution weight (out, in, *kernel) is made orthogonal as the matrix (out, in * kernel).
    """
    for module in network.modules():
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.Linear):
            nn.init.orthogonal_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
