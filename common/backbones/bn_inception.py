"""BN-Inception (Inception-v1 with batch normalisation) for video, with a replaceable block.

Every 3x3x3 convolution of the original, together with the 1x1x1 reduction before it, is one *block*: a module
built by `block(in_channels, bottleneck, out_channels)`. Exchanging the block turns I3D into S3D, I2D or an
X-STFT network; the rest stays.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from common.backbones.blocks import ActivationFactory, ConvUnit3d, checked_clip
from common.spectral.folding import evaluates, hooked
from common.spectral.symbolic import fx_leaf

BlockFactory = Callable[[int, int, int], nn.Module]
Pool = tuple[tuple[int, int, int], tuple[int, int, int]]

# (kernel, stride) of the four max-pools: spatial only, or those of I3D, which also halve time twice.
SPATIAL_POOLS: tuple[Pool, ...] = (((1, 3, 3), (1, 2, 2)),) * 4
I3D_POOLS: tuple[Pool, ...] = (*SPATIAL_POOLS[:2], ((3, 3, 3), (2, 2, 2)), ((2, 2, 2), (2, 2, 2)))


@dataclass(frozen=True)
class InceptionWidths:
    """Channels of one Inception module; a branch of a block is (bottleneck, output)."""

    pointwise: int
    branch1: tuple[int, int]
    branch2: tuple[int, int]
    pool_projection: int

    @property
    def out_channels(self) -> int:
        return self.pointwise + self.branch1[1] + self.branch2[1] + self.pool_projection


# Inception-v1, modules 3b, 3c | 4b-4f | 5b, 5c, as in I3D.
STAGES: tuple[tuple[InceptionWidths, ...], ...] = (
    (
        InceptionWidths(64, (96, 128), (16, 32), 32),
        InceptionWidths(128, (128, 192), (32, 96), 64),
    ),
    (
        InceptionWidths(192, (96, 208), (16, 48), 64),
        InceptionWidths(160, (112, 224), (24, 64), 64),
        InceptionWidths(128, (128, 256), (24, 64), 64),
        InceptionWidths(112, (144, 288), (32, 64), 64),
        InceptionWidths(256, (160, 320), (32, 128), 128),
    ),
    (
        InceptionWidths(256, (160, 320), (32, 128), 128),
        InceptionWidths(384, (192, 384), (48, 128), 128),
    ),
)


def scale_width(channels: int, width: float) -> int:
    """`channels * width`, rounded to an even number of at least 2; unchanged at width 1.

    Raises:
        ValueError: the width is not positive.
    """
    if width <= 0:
        raise ValueError(f"width is {width}; it multiplies the numbers of channels, so it must be greater than 0.")
    return channels if width == 1 else max(2, 2 * round(channels * width / 2))


def _max_of_three(x: Tensor, dim: int) -> Tensor:
    """The maximum of every entry and its two neighbours along an axis."""
    n = x.shape[dim]
    if n == 1:
        return x
    pairs = torch.maximum(x.narrow(dim, 0, n - 1), x.narrow(dim, 1, n - 1))
    out = torch.empty_like(x)
    out.narrow(dim, 0, 1).copy_(pairs.narrow(dim, 0, 1))
    out.narrow(dim, n - 1, 1).copy_(pairs.narrow(dim, n - 2, 1))
    torch.maximum(pairs.narrow(dim, 0, n - 2), pairs.narrow(dim, 1, n - 2), out=out.narrow(dim, 1, n - 2))
    return out


class _BranchPool(nn.MaxPool3d):
    """Max-pool of stride 1 over 3 or no frames and 3x3 pixels, on the CPU over channels-last tensors, for which torch
    has vectorised kernels. In evaluation it takes one axis after the other, which needs no indices.
    """

    def __init__(self, time: int) -> None:
        super().__init__((time, 3, 3), stride=1, padding=(time // 2, 1, 1))
        self.axes = (3, 2, 1) if time == 3 else (3, 2)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        if x.device.type != "cpu":
            return super().forward(x)
        if evaluates(x):
            x = x.movedim(1, -1).contiguous()
            for axis in self.axes:
                x = _max_of_three(x, axis)
            return x.movedim(-1, 1)
        # Permuted rather than by `memory_format`, which `torch.vmap` does not take.
        return super().forward(x.movedim(1, -1).contiguous().movedim(-1, 1)).contiguous()


class InceptionModule(nn.Module):
    """Four branches side by side: 1x1x1 unit, block, block, max-pool + 1x1x1 unit.

    (B,C,T,H,W) -> (B,`widths.out_channels`,T,H,W). `gate` builds one module per branch from its channel
    number (the feature gating of S3D-G); None leaves the branches as they are.
    """

    def __init__(
        self,
        in_channels: int,
        widths: InceptionWidths,
        block: BlockFactory,
        activation: ActivationFactory,
        pool_time: bool = True,
        gate: Callable[[int], nn.Module] | None = None,
    ) -> None:
        super().__init__()
        self.branches = nn.ModuleList(
            [
                ConvUnit3d(in_channels, widths.pointwise, activation=activation),
                block(in_channels, *widths.branch1),
                block(in_channels, *widths.branch2),
                nn.Sequential(
                    _BranchPool(3 if pool_time else 1),
                    ConvUnit3d(in_channels, widths.pool_projection, activation=activation),
                ),
            ]
        )
        if gate is not None:
            outputs = (widths.pointwise, widths.branch1[1], widths.branch2[1], widths.pool_projection)
            self.branches = nn.ModuleList(
                nn.Sequential(branch, gate(channels)) for branch, channels in zip(self.branches, outputs, strict=True)
            )

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([branch(x) for branch in self.branches], dim=1)


# Allocators ask the system for larger blocks anew each time, whose pages then take as long as a convolution.
_MAP_BYTES = 32 * 2**20


class BNInception3d(nn.Module):
    """BN-Inception over clips: video (B,3,T,H,W), float, to logits (B,`num_classes`). Any T, H, W of at least 1.

    Layers: `first`, pool, block, pool, Inception 1-2, pool, Inception 3-7, pool, Inception 8-9, global average
    over time and space, `head`.

    In evaluation on the CPU without gradients it works in channels-last order. Where `first` and the block behind it
    say by an attribute `reach` how many frames before and after one their output depends on, large clips pass them
    in slices.

    Args:
        first: the first layer, 3 -> `scale_width(64, width)` channels.
        block: builds each block from (in_channels, bottleneck, out_channels).
        num_classes: number of classes.
        activation: constructor of the activation of the 1x1x1 units.
        pools: (kernel, stride) of the four max-pools.
        pool_time: whether the pools of the Inception modules look over 3 frames.
        gate: builds the module behind block 2 and behind every branch, see `InceptionModule`.
        width: multiplies every channel number.
        head: `linear`, the classifier of the papers' text, or `mlp`, 1024-2048-512-classes.
        dropout: probability before the classifier.

    Raises:
        ValueError: the input is not (B,3,T,H,W).
    """

    def __init__(
        self,
        first: nn.Module,
        block: BlockFactory,
        num_classes: int,
        activation: ActivationFactory,
        pools: Sequence[Pool] = SPATIAL_POOLS,
        pool_time: bool = True,
        gate: Callable[[int], nn.Module] | None = None,
        width: float = 1.0,
        head: Literal["linear", "mlp"] = "linear",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()

        def scaled(channels: int) -> int:
            return scale_width(channels, width)

        self._first_channels, channels = scaled(64), scaled(192)
        self.features = nn.Sequential()
        self.features.add_module("first", first)
        self.features.add_module("pool1", _max_pool(pools[0]))
        block2 = block(scaled(64), scaled(64), channels)
        self.features.add_module("block2", block2 if gate is None else nn.Sequential(block2, gate(channels)))
        number = 0
        for index, (stage, pool) in enumerate(zip(STAGES, pools[1:], strict=True)):
            self.features.add_module(f"pool{index + 2}", _max_pool(pool))
            for full in stage:
                widths = InceptionWidths(
                    scaled(full.pointwise),
                    (scaled(full.branch1[0]), scaled(full.branch1[1])),
                    (scaled(full.branch2[0]), scaled(full.branch2[1])),
                    scaled(full.pool_projection),
                )
                number += 1
                module = InceptionModule(channels, widths, block, activation, pool_time, gate)
                self.features.add_module(f"inception{number}", module)
                channels = widths.out_channels
        self.dropout = nn.Dropout(dropout)
        self.head = _head(head, channels, num_classes, width)

    def forward(self, video: Tensor) -> Tensor:
        video = checked_clip(video)
        x = self._evaluated(video) if evaluates(video) else self.features(video)
        return self.head(self.dropout(x.mean(dim=(2, 3, 4))))

    def _evaluated(self, x: Tensor) -> Tensor:
        """`self.features(x)` in channels-last order, a part of the clips and frames at a time in the first layers,
        whose maps are large.
        """
        x = x.contiguous(memory_format=torch.channels_last_3d)
        layers: list[Any] = list(self.features)
        first, pool1, block2, pool2, *rest = layers
        step = _MAP_BYTES // (self._first_channels * math.prod(x.shape[3:]) * x.element_size())
        clips, _, frames = x.shape[:3]
        pairs = ((first, pool1), (block2, pool2))
        sees_neighbours = all(hasattr(block, "reach") and pool.kernel_size[0] == 1 for block, pool in pairs)
        if step >= clips * frames or not sees_neighbours or hooked(*self.features.modules()):
            return self.features(x)
        groups = []
        for group in x.split(max(1, step // frames)):
            for block, pool in pairs:
                group = _in_slices(block, pool, group, min(frames, step - 2) if step >= 6 else frames)
            groups.append(group)
        x = torch.cat(groups)
        for layer in rest:
            x = layer(x)
        return x


def _in_slices(block: Any, pool: nn.Module, x: Tensor, step: int) -> Tensor:
    """`pool(block(x))`, which looks at single frames behind the block, for `step` frames at a time."""
    parts, frames, reach = [], x.shape[2], block.reach
    for start in range(0, frames, step):
        stop, low = min(start + step, frames), max(start - reach, 0)
        y = block(x[:, :, low : stop + reach])
        parts.append(pool(y[:, :, start - low : stop - low]))
    return torch.cat(parts, dim=2)


def _max_pool(pool: Pool) -> nn.Module:
    kernel, stride = pool
    # Rounding up keeps one frame or pixel of maps that are already that small.
    return nn.MaxPool3d(kernel, stride, padding=tuple((k - 1) // 2 for k in kernel), ceil_mode=kernel[0] == 2)


def _head(kind: str, channels: int, num_classes: int, width: float) -> nn.Module:
    if kind == "linear":
        return nn.Linear(channels, num_classes)
    if kind == "mlp":
        hidden1, hidden2 = scale_width(2048, width), scale_width(512, width)
        return nn.Sequential(
            nn.Linear(channels, hidden1),
            nn.ReLU(inplace=True),
            nn.Linear(hidden1, hidden2),
            nn.ReLU(inplace=True),
            nn.Linear(hidden2, num_classes),
        )
    raise ValueError(f"head {kind!r} is not known; choose linear or mlp")
