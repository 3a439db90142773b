"""The STFT segment of a network - STFT, batch normalisation, activation, pointwise convolution - as one module."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from common.spectral.stft import DepthwiseSTFT

_NORM = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POINTWISE = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class STFTPointwise(nn.Module):
    """STFT -> batch normalisation -> activation -> 1x1 convolution without bias."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        frequencies: Sequence[Sequence[float]] | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        memory_efficient: bool = False,
        dims: int | None = None,
    ) -> None:
        super().__init__()
        self.stft = DepthwiseSTFT(in_channels, kernel_size, frequencies, stride, padding, dims=dims)
        axes = len(self.stft.kernel_size)
        self.norm = _NORM[axes](self.stft.out_channels)
        self.activation = activation()
        self.pointwise = _POINTWISE[axes](self.stft.out_channels, out_channels, 1, bias=False)
        self.memory_efficient = memory_efficient

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.activation(self.norm(self.stft(x))))


def checkpoint_once(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)`; in training its inner tensors are recomputed in the backward pass instead of being kept."""
    return module(x)
