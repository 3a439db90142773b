"""The Depthwise-STFT separable layer, the blocks of Figure 3, ReLPU, and the exchange of layers in any network.

Every layer and block maps (B,in,H,W) to (B,out,H',W'); the size stays at stride 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx, nn
from torchvision.ops import Conv2dNormActivation

from common.backbones import initialize_orthogonal
from common.spectral import DepthwiseSTFT

LEAKY_RELU = partial(nn.LeakyReLU, negative_slope=0.3, inplace=True)  # Section 4
KERNELS = (3, 5)  # the Depthwise-STFT layers of a block stand side by side


class DepthwiseSTFTSeparable(nn.Module):
    """Figure 1, right: the fixed n x n STFT of four frequencies, c to 8c channels, and a trainable 1x1 convolution.

    It has 8 c f weights (Table 1, divided by `groups`), whatever n is.

    Args:
        in_channels: c.
        out_channels: f.
        kernel_size: n, odd; one number or one per axis (an axis of size 1 leaves one frequency and 2c channels).
        stride, padding: as in a convolution; the default padding keeps the size at stride 1.
        groups: of the 1x1 convolution.
        bias: whether the 1x1 convolution has one.

    Raises:
        ValueError: an even size, or channels that the groups do not divide; in `forward` a wrong shape.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...] = 3,
        stride: int | tuple[int, ...] = 1,
        padding: int | tuple[int, ...] | None = None,
        groups: int = 1,
        bias: bool = False,
    ) -> None:
        super().__init__()
        self.stft = DepthwiseSTFT(in_channels, kernel_size, stride=stride, padding=padding, dims=2)
        self.pointwise = nn.Conv2d(self.stft.out_channels, out_channels, 1, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        return self.pointwise(self.stft(x))


def depthwise_separable(in_channels: int, out_channels: int, kernel_size: int = 3) -> nn.Sequential:
    """Figure 1, center, the layer that the one above can replace: n^2 c + c f weights (Table 1)."""
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, kernel_size, padding=kernel_size // 2, groups=in_channels, bias=False),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
    )


class Block1(nn.Module):
    """Figure 3a: bottleneck c to b, STFT 3x3 and 5x5 side by side (8b each), 1x1 from 16b to f, norm, activation.

    Nothing stands between the convolutions. Trainable weights without normalisation: (c + 16 f) b.
    `bottleneck_kernel` 3 instead of the text's 1 belongs to the structure that fits the published counts.
    `trainable` puts trainable depthwise convolutions (b each) in the place of the transforms: (c + 34 + 2 f) b.
    """

    def __init__(
        self,
        in_channels: int,
        bottleneck: int,
        out_channels: int,
        bottleneck_kernel: int = 1,
        trainable: bool = False,
    ) -> None:
        super().__init__()
        padding = bottleneck_kernel // 2
        self.reduce = nn.Conv2d(in_channels, bottleneck, bottleneck_kernel, padding=padding, bias=False)
        transforms: list[nn.Module] = [
            nn.Conv2d(bottleneck, bottleneck, n, padding=n // 2, groups=bottleneck, bias=False)
            if trainable
            else DepthwiseSTFT(bottleneck, (n, n))
            for n in KERNELS
        ]
        self.transforms = nn.ModuleList(transforms)
        outputs = (1 if trainable else 8) * len(KERNELS) * bottleneck
        self.expand = nn.Conv2d(outputs, out_channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = LEAKY_RELU()

    def transform(self, x: Tensor) -> Tensor:
        """The block without skip connection, norm and activation."""
        x = self.reduce(x)
        return self.expand(torch.cat([stft(x) for stft in self.transforms], dim=1))

    def forward(self, x: Tensor) -> Tensor:
        return self.activation(self.norm(self.transform(x)))


class Block2(Block1):
    """Figure 3b: Block 1 from f to f channels with a skip connection, which is added: 17 b f weights.

    With `fit`, which comes close to the published counts, the bottleneck is 3x3, and the input is concatenated and
    merged by a 1x1 from 2f to f: 25 b f + 2 f^2 weights.
    """

    def __init__(self, channels: int, bottleneck: int, fit: bool = False, trainable: bool = False) -> None:
        super().__init__(channels, bottleneck, channels, bottleneck_kernel=3 if fit else 1, trainable=trainable)
        self.merge = nn.Conv2d(2 * channels, channels, 1, bias=False) if fit else None

    def forward(self, x: Tensor) -> Tensor:
        y = self.transform(x)
        y = x + y if self.merge is None else self.merge(torch.cat([y, x], dim=1))
        return self.activation(self.norm(y))


class ReLPU(nn.Sequential):
    """The layer of reference [14]: 1x1 to a single channel, STFT to 8, ReLU, 1x1 to f; c + 8 f weights."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int) -> None:
        super().__init__()
        self.reduce = nn.Conv2d(in_channels, 1, 1, bias=False)
        self.stft = DepthwiseSTFT(1, (kernel_size, kernel_size))
        self.activation = nn.ReLU()
        self.expand = nn.Conv2d(8, out_channels, 1, bias=False)


class ReLPUBlock(nn.Module):
    """A block of Figure 3 made of ReLPU layers of sizes 3 and 5, which are added: 2 c + 16 f weights.

    A block from f to f channels has a skip connection. With `fit` that one concatenates the input and both layers and
    merges them by a 1x1 from 3f to f.
    """

    def __init__(self, in_channels: int, out_channels: int, fit: bool = False) -> None:
        super().__init__()
        self.skip = in_channels == out_channels
        self.layers = nn.ModuleList(ReLPU(in_channels, out_channels, n) for n in KERNELS)
        merged = (len(KERNELS) + 1) * out_channels
        self.merge = nn.Conv2d(merged, out_channels, 1, bias=False) if fit and self.skip else None
        self.norm = nn.BatchNorm2d(out_channels)
        self.activation = LEAKY_RELU()

    def forward(self, x: Tensor) -> Tensor:
        parts = [layer(x) for layer in self.layers] + ([x] if self.skip else [])
        y = sum(parts[1:], parts[0]) if self.merge is None else self.merge(torch.cat(parts, dim=1))
        return self.activation(self.norm(y))


class ShuffleUnit(nn.Module):
    """ShuffleNet (Zhang et al., Figure 2): grouped 1x1 to a quarter, shuffle, depthwise 3x3, grouped 1x1.

    At stride 1 the input is added. At stride 2 its 3x3 averages are concatenated, so the branch has out - in channels.
    `first_groups` are the groups of the first 1x1; it has one in the first unit of a network.
    """

    def __init__(self, in_channels: int, out_channels: int, stride: int, groups: int, first_groups: int) -> None:
        super().__init__()
        inner, new = out_channels // 4, out_channels - in_channels if stride == 2 else out_channels
        self.branch = nn.Sequential(
            Conv2dNormActivation(in_channels, inner, 1, groups=first_groups),
            nn.ChannelShuffle(groups),
            Conv2dNormActivation(inner, inner, 3, stride, groups=inner, activation_layer=None),
            Conv2dNormActivation(inner, new, 1, groups=groups, activation_layer=None),
        )
        self.shortcut = nn.AvgPool2d(3, stride=2, padding=1) if stride == 2 else None
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        y = self.branch(x)
        y = x + y if self.shortcut is None else torch.cat([self.shortcut(x), y], dim=1)
        return self.activation(y)


# The exchange of depthwise separable layers in any network

# What may stand between the depthwise and the 1x1 convolution. The paper's layer has nothing there.
_BETWEEN: tuple[type[nn.Module], ...] = (
    *(getattr(nn, name) for name in nn.modules.activation.__all__ if name != "MultiheadAttention"),
    nn.modules.batchnorm._NormBase,
    nn.GroupNorm,
    nn.modules.dropout._DropoutNd,
    nn.Identity,
)


class Swap(NamedTuple):
    """One layer exchanged: names of its depthwise and 1x1 convolution, and trainable values before and after."""

    depthwise: str
    pointwise: str
    before: int
    after: int


@dataclass
class SwapReport:
    """What `swap_depthwise_separable` did. `kept` gives the reason for every depthwise convolution that stays."""

    before: int
    after: int = 0
    swapped: list[Swap] = field(default_factory=list)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"{len(self.swapped)} layers exchanged; parameters {self.before:,} -> {self.after:,}"]
        lines += [f"  {s.depthwise} to {s.pointwise}: {s.before:,} -> {s.after:,}" for s in self.swapped]
        return "\n".join(lines + [f"  {name} stays: {reason}" for name, reason in self.kept.items()])


class _Tracer(fx.Tracer):
    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        leaf = super().is_leaf_module(module, name) or isinstance(module, (nn.Conv2d, *_BETWEEN))
        return leaf or next(module.children(), None) is None


def swap_depthwise_separable(network: nn.Module) -> SwapReport:
    """Put a `DepthwiseSTFTSeparable` in the place of every depthwise separable layer of a network, which is changed.

    Such a layer is a k x k convolution with one group per channel, whose result goes through nothing but
    normalisation, activation and dropout into a 1x1 convolution, and nowhere else. The flow of data is traced with
    `torch.fx`, so it does not matter how modules are nested or named. The new layer stands at the name of the
    depthwise convolution, with its size, stride and padding and the groups and bias of the 1x1 convolution; at the
    other names stands an identity. Its weights are orthogonal (Section 4), on the same device and of the same dtype.

    At equal channels the new layer is not smaller: 8 c f weights replace n^2 c + c f (Table 1).

    Args:
        network: any network of 2D convolutions that `torch.fx` can trace.

    Raises:
        ValueError: the network cannot be traced; nothing was changed.
    """
    try:
        graph = _Tracer().trace(network)
    except Exception as error:
        raise ValueError(
            f"{type(network).__name__} cannot be traced by torch.fx, so its depthwise separable layers cannot be "
            f"found: {error}. Exchange its parts one by one, or build it with DepthwiseSTFTSeparable."
        ) from error
    modules = dict(network.named_modules())
    calls: dict[str, list[fx.Node]] = {name: [] for name in modules}
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)].append(node)
    report = SwapReport(_trainable(network))
    exchanged: set[str] = set()
    for name, module in modules.items():
        if isinstance(module, nn.Conv2d) and 1 < module.groups == module.in_channels and name not in exchanged:
            chain, reason = _chain(name, module, modules, calls)
            if reason:
                report.kept[name] = reason
            else:
                report.swapped.append(_exchange(network, chain, module, modules))
                exchanged.update(chain)
    report.after = _trainable(network)
    return report


def _chain(
    name: str, conv: nn.Conv2d, modules: dict[str, nn.Module], calls: dict[str, list[fx.Node]]
) -> tuple[list[str], str]:
    """Names from a depthwise convolution to its 1x1 convolution, or why the layer cannot be exchanged."""
    if conv.out_channels != conv.in_channels:
        return [], f"it makes {conv.out_channels // conv.in_channels} channels of each one"
    if max(conv.kernel_size) == 1 or any(n % 2 == 0 for n in conv.kernel_size):
        return [], f"its kernel size is {conv.kernel_size}; the transform takes odd sizes larger than 1"
    if set(conv.dilation) != {1}:
        return [], f"its dilation is {conv.dilation}"
    if conv.padding_mode != "zeros" or isinstance(conv.padding, str):
        return (
            [],
            f"its padding is {conv.padding!r} with mode {conv.padding_mode!r}; the transform takes numbers, zeros",
        )
    names = [name]
    while True:
        if len(calls[name]) != 1:
            return [], f"{name} is called {len(calls[name])} times where the trace can see it"
        users = list(calls[name][0].users)
        if len(users) != 1 or users[0].op != "call_module":
            targets = ["the output" if u.op == "output" else getattr(u.target, "__name__", u.target) for u in users]
            return [], f"the result of {name} goes to {', '.join(map(str, targets))}, not to a 1x1 convolution alone"
        name = str(users[0].target)
        module = modules[name]
        names.append(name)
        if isinstance(module, nn.Conv2d):
            plain = module.kernel_size == (1, 1) and module.stride == (1, 1) and module.padding in ((0, 0), "valid")
            if plain and len(calls[name]) == 1:
                return names, ""
            return [], f"the convolution behind it, {name}, is not a 1x1 of stride 1 that is called once"
        if not isinstance(module, _BETWEEN):
            return [], f"{name} behind it is {type(module).__name__}, neither norm, activation nor dropout"


def _exchange(network: nn.Module, names: list[str], old: nn.Conv2d, modules: dict[str, nn.Module]) -> Swap:
    pointwise: Any = modules[names[-1]]
    padding: Any = old.padding
    bias = pointwise.bias is not None
    new = DepthwiseSTFTSeparable(
        old.in_channels, pointwise.out_channels, old.kernel_size, old.stride, padding, pointwise.groups, bias
    )
    initialize_orthogonal(new)
    new.to(old.weight).train(old.training)
    before = sum(_trainable(modules[name]) for name in names)
    for name, module in zip(names, [new, *(nn.Identity() for _ in names[1:])], strict=True):
        network.set_submodule(name, module)
    return Swap(names[0], names[-1], before, _trainable(new))


def _trainable(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)
