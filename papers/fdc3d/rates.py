"""Which convolutions of a network are pruned, and how many channels and rows of each are kept; the options."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from papers.fdc3d.layers import numeric_padding
from papers.fdc3d.learning import Importance
from papers.fdc3d.methods import METHODS, CompressionError, MethodName

#: how many of t rows p_t drops: `figure3` ceil(p_t t), which keeps 4 of 7 as Figure 3 shows; `floor` keeps 5 of 7
KeepTemporal = Literal["figure3", "floor"]
#: p_c or p_t: one number, or one per layer by name (0 for the others)
Rate = float | Mapping[str, float]

#: layers with at most this many input channels read an image or its modalities, none of which can go
FEW_CHANNELS = 4


@dataclass(frozen=True)
class ConvLayer:
    """A convolution of a network, as `find_layers` saw it run.

    Attributes:
        name, conv: of the module.
        size, out: (T,H,W) of its input and its output, empty if it is not called.
        fixed: why nothing of it can be pruned, or "".
    """

    name: str
    conv: nn.Conv3d
    size: tuple[int, ...]
    out: tuple[int, ...]
    fixed: str

    @property
    def whole(self) -> tuple[int, int]:
        """(c, t)."""
        return self.conv.in_channels, self.conv.kernel_size[0]

    @property
    def channels_note(self) -> str:
        """Why its channels are kept, or ""."""
        if self.conv.groups > 1:
            return f"channels kept: {self.conv.groups} groups"
        return f"channels kept: reads {self.conv.in_channels}" if self.conv.in_channels <= FEW_CHANNELS else ""

    @property
    def note(self) -> str:
        """Why it is not pruned, or not in all ways; empty if it is."""
        if self.fixed:
            return self.fixed
        short = "channels only: kernel of one frame" if self.conv.kernel_size[0] == 1 else ""
        return "; ".join(filter(None, (self.channels_note, short)))

    def kept(self, channel_rate: float, temporal_rate: float, keep_temporal: KeepTemporal) -> tuple[int, int]:
        """(c', t')."""
        c, t = self.whole
        if self.fixed:
            return c, t
        product = round(t * temporal_rate, 9)
        dropped = math.ceil(product) if keep_temporal == "figure3" else math.floor(product)
        channels = c if self.channels_note else max(1, c - math.floor(round(c * channel_rate, 9)))
        return channels, max(1, t - dropped)

    def macs(self, channels: int, rows: int) -> int:
        """Multiply-adds for one input; with the transform, if rows are dropped."""
        if not self.size:
            return 0
        conv = self.conv
        t = conv.kernel_size[0]
        area = math.prod(conv.kernel_size[1:])
        products = conv.out_channels * channels // conv.groups * rows * area * math.prod(self.out)
        transform = channels * t * rows * self.out[0] * math.prod(self.size[1:]) if rows < t else 0
        return products + transform


def find_layers(network: nn.Module, x: Tensor) -> list[ConvLayer]:
    """Every Conv3d in the order of its first call in `network(x)`; those that are not called come last.

    Raises:
        CompressionError: there is none.
    """
    convolutions = {name: module for name, module in network.named_modules() if isinstance(module, nn.Conv3d)}
    names = {module: name for name, module in convolutions.items()}
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        seen.setdefault(names[module], (tuple(inputs[0].shape[2:]), tuple(output.shape[2:])))  # type: ignore[index]

    with torch.no_grad(), ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        network(x[:1])
    if not convolutions:
        raise CompressionError(f"{type(network).__name__} has no torch.nn.Conv3d")
    return [
        ConvLayer(name, convolutions[name], *seen.get(name, ((), ())), _fixed(convolutions[name], name in seen))
        for name in dict.fromkeys([*seen, *convolutions])
    ]


def _fixed(conv: nn.Conv3d, called: bool) -> str:
    if not called:
        return "left alone: not called"
    if numeric_padding(conv) is None:
        return f"left alone: padding {conv.padding!r}, mode {conv.padding_mode!r}"
    if "weight" not in conv._parameters:
        return "left alone: its weight is computed from other parameters"
    if type(conv).forward is not nn.Conv3d.forward:
        return f"left alone: {type(conv).__name__} computes more than a convolution"
    return ""


def rates_of(rate: float, method: MethodName = "fdc3d") -> tuple[float, float]:
    """(p_c, p_t) for a speed-up of 3x3x3 layers by Eq. 13: 2 gives (1/4, 1/3), 4 gives (5/8, 1/3), as in Section 5.1.

    Methods that prune no rows take it all from the channels.

    Raises:
        CompressionError: the rate is below 1.
    """
    if not rate >= 1:
        raise CompressionError(f"the rate is a speed-up of at least 1, not {rate}")
    temporal = 1 / 3 if METHODS[method].prunes_rows and rate >= 1.5 else 0.0
    return 1 - 1 / (rate * (1 - temporal)), temporal


def rates_for_speedup(
    layers: Sequence[ConvLayer], macs: int, speedup: float, method: MethodName, keep_temporal: KeepTemporal
) -> tuple[float, float]:
    """(p_c, p_t) with the smallest common p_c at which the `macs` of the network fall by `speedup`.

    Raises:
        CompressionError: the speed-up cannot be reached.
    """
    temporal = 1 / 3 if METHODS[method].prunes_rows else 0.0
    rest = macs - sum(layer.macs(*layer.whole) for layer in layers)

    def reached(rate: float) -> float:
        return macs / (rest + sum(layer.macs(*layer.kept(rate, temporal, keep_temporal)) for layer in layers))

    low, high = 0.0, 0.99
    if reached(high) < speedup:
        raise CompressionError(
            f"a speed-up of {speedup}x cannot be reached: with almost all channels gone it is {reached(high):.2f}x in "
            "multiply-adds; the rest is in layers that cannot be pruned"
        )
    if reached(0.0) >= speedup:
        return 0.0, temporal
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= speedup else (middle, high)
    return high, temporal


def kept_sizes(
    layers: Sequence[ConvLayer], channel_rate: Rate, temporal_rate: Rate, keep_temporal: KeepTemporal
) -> dict[str, tuple[int, int]]:
    """(c', t') of every layer by name.

    Raises:
        CompressionError: a rate lies outside of [0, 1), or names a layer that does not exist.
    """
    names = {layer.name for layer in layers}
    for rate in (channel_rate, temporal_rate):
        values = rate if isinstance(rate, Mapping) else {"": rate}
        unknown = [name for name in values if name and name not in names]
        if unknown:
            raise CompressionError(f"there is no convolution {unknown[0]!r}; there are {', '.join(sorted(names))}")
        bad = [value for value in values.values() if not 0 <= value < 1]
        if bad:
            raise CompressionError(f"a pruning rate lies in [0, 1), not {bad[0]}")

    def of_layer(rate: Rate, name: str) -> float:
        return float(rate.get(name, 0.0)) if isinstance(rate, Mapping) else float(rate)

    return {
        layer.name: layer.kept(of_layer(channel_rate, layer.name), of_layer(temporal_rate, layer.name), keep_temporal)
        for layer in layers
    }


@dataclass(frozen=True)
class CompressionOptions:
    """How a network is compressed. One of `rate`, `speedup`, and `channel_rate` with `temporal_rate` must be given.

    Attributes:
        rate: speed-up of 3x3x3 layers by the paper's formula: 2 or 4 as in its tables, or any other; see `rates_of`.
        speedup: speed-up of the whole network in multiply-adds, transforms included.
        channel_rate: p_c: a number, or one per layer by name (0 for the others).
        temporal_rate: p_t, likewise.
        method: one of `papers.fdc3d.methods.METHODS`.
        importance: of temporal rows: `energy`, norms of the rows of all S f_j; `paper`, of their sum over j, as
            Section 3.1 writes V and the l2,1 term. The sum loses more of the output.
        keep_temporal: `figure3` drops ceil(p_t t) rows, `floor` floor(p_t t). They differ for t = 7: 4 or 5 are kept.
        gamma: weight of the l1 penalty on beta in Eq. 9, relative to the norm of Y.
        lambda_: weight of the l2,1 penalty in Eq. 9, relative to the norm of G.
        steps: batches per layer at most; training steps in all for `regularisation`.
        tolerance: a layer has converged when its loss changes by less than this fraction of it.
        learning_rate: of `regularisation`.
        seed: of the sampled positions.
    """

    rate: float | None = None
    speedup: float | None = None
    channel_rate: Rate | None = None
    temporal_rate: Rate | None = None
    method: MethodName = "fdc3d"
    importance: Importance = "energy"
    keep_temporal: KeepTemporal = "figure3"
    gamma: float = 0.2
    lambda_: float = 0.1
    steps: int = 10
    tolerance: float = 1e-4
    learning_rate: float = 1e-3
    seed: int = 0

    def check(self) -> None:
        """Raise CompressionError for a value out of its range, or where it is not clear how much to prune."""
        for name, choices in (
            ("method", tuple(METHODS)),
            ("importance", get_args(Importance)),
            ("keep_temporal", get_args(KeepTemporal)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise CompressionError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        by_rates = self.channel_rate is not None or self.temporal_rate is not None
        if (self.rate is not None) + (self.speedup is not None) + by_rates != 1:
            raise CompressionError("give one of: rate, speedup, or channel_rate and temporal_rate")
        if self.steps < 1:
            raise CompressionError(f"steps must be at least 1, not {self.steps}")

    def rates(self, layers: list[ConvLayer], macs: int) -> tuple[Rate, Rate]:
        """p_c and p_t for the layers of a network with a number of multiply-adds."""
        if self.rate is not None:
            return rates_of(self.rate, self.method)
        if self.speedup is not None:
            return rates_for_speedup(layers, macs, self.speedup, self.method, self.keep_temporal)
        temporal = self.temporal_rate or 0.0
        given = any(temporal.values()) if isinstance(temporal, Mapping) else temporal
        if given and not METHODS[self.method].prunes_rows:
            raise CompressionError(
                f"method {self.method} prunes channels only; its temporal rate must be 0, not {temporal}"
            )
        return self.channel_rate or 0.0, temporal
