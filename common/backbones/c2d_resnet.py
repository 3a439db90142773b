"""ResNet over the frames of a clip (C2D): 2D convolutions, with places where a block that looks across time is put in.

Parameters are named as in torchvision's ResNet, so ImageNet state dicts and those of other image networks built on it
load without renaming (`common.backbones.imagenet`). Stages are numbered as in papers: 2 to 5 are `layer1` to `layer4`.
Features are (B,C,T,H,W); in memory frames come before channels, so that folding them into the batch copies nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.bn_inception import scale_width
from common.spectral.folding import evaluates
from common.spectral.symbolic import fx_leaf

LAYERS: dict[int, tuple[int, int, int, int]] = {
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
}
STAGES = (2, 3, 4, 5)

#: from (channels, stage 2 to 5, index of the residual block in its stage) to a module that keeps (B,channels,T,H,W)
Insert = Callable[[int, int, int], nn.Module | None]
#: from (the first convolution of a residual block, stage, index) to what stands in its place, on (B,C,T,H,W)
ReplaceConv = Callable[[nn.Conv2d, int, int], nn.Module | None]


def fold_frames(x: Tensor) -> Tensor:
    """(B,C,T,H,W) -> (B*T,C,H,W); no copy where frames come before channels in memory."""
    return x.transpose(1, 2).flatten(0, 1)


def unfold_frames(x: Tensor, frames: int) -> Tensor:
    """(B*T,C,H,W) -> (B,C,T,H,W) for T = `frames`; never a copy, B may be 0."""
    return x.unflatten(0, (-1, frames)).transpose(1, 2)


@fx_leaf
def as_video(x: Tensor) -> Tensor:
    """A video (B,3,T,H,W) as it is, images (B,3,H,W) as videos of one frame.

    Raises:
        ValueError: it is neither.
    """
    if x.dim() not in (4, 5) or x.shape[1] != 3:
        raise ValueError(
            "the network takes a video (batch, 3, frames, height, width) or images (batch, 3, height, width), "
            f"not {tuple(x.shape)}"
        )
    return x if x.dim() == 5 else x.unsqueeze(2)


@fx_leaf
def _as_given(y: Tensor, x: Tensor) -> Tensor:
    """Features (B,C,T,H,W) of a video `x` as they are, of images without T."""
    return y if x.dim() == 5 else y.squeeze(2)


def _frames_of(x: Tensor) -> Tensor:
    """`fold_frames`; where a CPU evaluates with channels last in memory, for which torch's 2D kernels are faster."""
    frames = fold_frames(x)
    return frames.contiguous(memory_format=torch.channels_last) if evaluates(x) else frames


class TemporalStem(nn.Conv3d):
    """The first convolution, with temporal kernel = stride: (B,3,T,H,W) -> (B,out,T//frames,H',W').

    At most frames-1 frames at the end are left out. Runs as a 2D convolution over groups of frames.

    Args:
        out_channels: of the output.
        frames: kernel and stride in time.
        size, step, margin: kernel, stride and padding in space.
        bias: whether it has one.

    Raises:
        ValueError: the clip is shorter than `frames`.
    """

    def __init__(
        self, out_channels: int, frames: int, size: int = 7, step: int = 2, margin: int = 3, bias: bool = False
    ) -> None:
        kernel, stride = (frames, size, size), (frames, step, step)
        super().__init__(3, out_channels, kernel, stride, (0, margin, margin), bias=bias)
        self.margin = margin

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        step = self.stride[0]
        if x.shape[2] < step:
            raise ValueError(f"the first convolution takes at least {step} frames, but the clip has {x.shape[2]}")
        time = x.shape[2] // step
        groups = x[:, :, : time * step].unflatten(2, (time, step)).movedim(3, 2)
        y = F.conv2d(
            fold_frames(groups.flatten(1, 2)), self.weight.flatten(1, 2), self.bias, self.stride[1:], self.margin
        )
        return unfold_frames(y, time)


class _Residual(nn.Module):
    """What both residual blocks share: the shortcut and the places for other modules; (B,C,T,H,W) in and out."""

    expansion: int
    conv1: nn.Module

    def __init__(
        self,
        in_channels: int,
        channels: int,
        stride: int,
        dilation: int,
        stage: int,
        index: int,
        first_conv: ReplaceConv | None = None,
        mid_block: Insert | None = None,
        after_block: Insert | None = None,
    ) -> None:
        super().__init__()
        self.stage, self.index = stage, index
        out = channels * self.expansion
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or in_channels != out:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, out, 1, stride, bias=False),
                nn.BatchNorm2d(out),
            )
        self._add_convolutions(in_channels, channels, stride, dilation)
        replaced = first_conv(self.conv1, stage, index) if first_conv else None  # type: ignore[arg-type]
        self._replaced = replaced is not None
        if replaced is not None:
            self.conv1 = replaced
        self.mid = mid_block(channels, stage, index) if mid_block else None
        self.after = after_block(out, stage, index) if after_block else None

    def _add_convolutions(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        raise NotImplementedError

    def inserted_modules(self) -> list[nn.Module]:
        """The modules of others in this block, and those inside them."""
        roots = [self.mid, self.after, self.conv1 if self._replaced else None]
        return [module for root in roots if root is not None for module in root.modules()]

    def _first(self, x: Tensor, frames: Tensor) -> Tensor:
        return _frames_of(self.conv1(x)) if self._replaced else self.conv1(frames)

    def _middle(self, frames: Tensor, time: int) -> Tensor:
        return frames if self.mid is None else _frames_of(self.mid(unfold_frames(frames, time)))

    def _branch(self, x: Tensor, frames: Tensor) -> Tensor:
        raise NotImplementedError

    def forward(self, x: Tensor) -> Tensor:
        frames = _frames_of(x)
        shortcut = frames if self.downsample is None else self.downsample(frames)
        y = unfold_frames(self.relu(self._branch(x, frames) + shortcut), x.shape[2])
        return y if self.after is None else self.after(y)


class BasicBlock(_Residual):
    """Two 3x3 convolutions; a `mid_block` stands after the first one."""

    expansion = 1

    def _add_convolutions(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, dilation, dilation, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def _branch(self, x: Tensor, frames: Tensor) -> Tensor:
        y = self.relu(self.bn1(self._middle(self._first(x, frames), x.shape[2])))
        return self.bn2(self.conv2(y))


class Bottleneck(_Residual):
    """1x1, 3x3 and 1x1 convolutions; a `mid_block` stands after the 3x3 one, before its normalisation."""

    expansion = 4

    def _add_convolutions(self, in_channels: int, channels: int, stride: int, dilation: int) -> None:
        self.conv1 = nn.Conv2d(in_channels, channels, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, stride, dilation, dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.conv3 = nn.Conv2d(channels, channels * 4, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(channels * 4)

    def _branch(self, x: Tensor, frames: Tensor) -> Tensor:
        y = self.relu(self.bn1(self._first(x, frames)))
        y = self.relu(self.bn2(self._middle(self.conv2(y), x.shape[2])))
        return self.bn3(self.conv3(y))


class C2DBody(nn.Module):
    """ResNet without its head, over a video (B,3,T,H,W) or images (B,3,H,W), to features of stage 5.

    A video gives (B,C,T',H',W'), images give (B,C,H',W'). Any T, H, W.

    Args:
        depth: 18 or 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        width: multiplies every channel number.
        layers: residual blocks of the four stages, in place of those of `depth`, which then chooses the kind alone.
        stem_stride: frames that one step of the first convolution takes in (kernel = stride in time); 1 is plain.
        temporal_pool_after_stage: stages (2 to 5) that are followed by a max-pool of two frames, stride two.
        strides, dilations: of the 3x3 convolutions, a number for each stage.
        first_conv: replaces the first convolution of residual blocks; it gets that convolution, stage and index.
        mid_block: a module after the 3x3 convolution (the first one in basic blocks), before its normalisation.
        after_block: a module after a residual block.

    The three functions return a module that takes (B,C,T,H,W), or None to leave a place as it is.

    Raises:
        ValueError: an unknown depth, or a stage that does not exist.
    """

    def __init__(
        self,
        depth: int = 50,
        width: float = 1.0,
        layers: Sequence[int] | None = None,
        stem_stride: int = 1,
        temporal_pool_after_stage: Sequence[int] = (),
        strides: Sequence[int] = (1, 2, 2, 2),
        dilations: Sequence[int] = (1, 1, 1, 1),
        first_conv: ReplaceConv | None = None,
        mid_block: Insert | None = None,
        after_block: Insert | None = None,
    ) -> None:
        super().__init__()
        if depth not in LAYERS:
            raise ValueError(f"there is no ResNet-{depth}; choose one of {', '.join(map(str, LAYERS))}")
        counts = tuple(LAYERS[depth] if layers is None else layers)
        for name, values in (("layers", counts), ("strides", strides), ("dilations", dilations)):
            if len(values) != 4 or min(values) < 1:
                raise ValueError(f"{name} takes a number of at least 1 for each of the four stages, not {list(values)}")
        if not set(temporal_pool_after_stage) <= set(STAGES):
            raise ValueError(f"temporal_pool_after_stage names stages 2 to 5, not {list(temporal_pool_after_stage)}")
        kind = BasicBlock if depth < 50 else Bottleneck
        channels = scale_width(64, width)
        self.stem_stride = stem_stride
        self.conv1: nn.Module = (
            nn.Conv2d(3, channels, 7, 2, 3, bias=False) if stem_stride == 1 else TemporalStem(channels, stem_stride)
        )
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        # Rounded up: a single frame is kept.
        self.temporal_pool = nn.MaxPool3d((2, 1, 1), ceil_mode=True)
        self.temporal_pool_after_stage = tuple(temporal_pool_after_stage)
        for number, stage in enumerate(STAGES):
            planes = scale_width(64 * 2**number, width)
            blocks = []
            for index in range(counts[number]):
                stride = strides[number] if index == 0 else 1
                place = (stride, dilations[number], stage, index)
                blocks.append(kind(channels, planes, *place, first_conv, mid_block, after_block))
                channels = planes * kind.expansion
            self.add_module(f"layer{number + 1}", nn.Sequential(*blocks))
        self.out_channels = channels
        inserted = {id(module) for block in self.residual_blocks() for module in block.inserted_modules()}
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Conv3d) and id(module) not in inserted:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def stages(self, x: Tensor) -> list[Tensor]:
        """The features after each of the stages 2 to 5, (B,C,T,H,W) of a video or (B,C,H,W) of images.

        Raises:
            ValueError: the input is no video or image with 3 channels, or has fewer frames than the stem takes in.
        """
        video = as_video(x)
        y = _frames_of(self.conv1(video)) if self.stem_stride > 1 else self.conv1(_frames_of(video))
        y = unfold_frames(self.maxpool(self.relu(self.bn1(y))), video.shape[2] // self.stem_stride)
        found = []
        for number, stage in enumerate(STAGES):
            y = self.get_submodule(f"layer{number + 1}")(y)
            found.append(_as_given(y, x))
            if stage in self.temporal_pool_after_stage:
                y = self.temporal_pool(y)
        return found

    def residual_blocks(self) -> list[_Residual]:
        """All residual blocks from the first to the last; each knows its `stage` and `index`."""
        return [module for module in self.modules() if isinstance(module, _Residual)]

    def forward(self, x: Tensor) -> Tensor:
        return self.stages(x)[-1]


class C2DResNet(C2DBody):
    """Classifier over clips: video (B,3,T,H,W), or images (B,3,H,W), to logits (B,`num_classes`).

    Global average over time and space, dropout, one linear layer `fc`.

    Args:
        depth, num_classes: of the network.
        dropout: probability before `fc`.
        body: the other arguments of `C2DBody`.
    """

    def __init__(self, depth: int = 50, num_classes: int = 400, dropout: float = 0.0, **body: Any) -> None:
        super().__init__(depth, **body)
        self.dropout = nn.Dropout(dropout)
        self.fc = nn.Linear(self.out_channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.dropout(self.stages(x)[-1].flatten(2).mean(2)))
