"""DTF-Net, DTF-Transformer, and the networks they are compared with, on one backbone each.

Every network maps a video (B,3,T,H,W), float, to logits (B,`num_classes`), for any H and W. The first convolution takes
in `early_stride` frames a step, so that blocks see T / `early_stride` of them. Image weights are put in with
`common.backbones.load_imagenet(network, source)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from common.backbones import C2DResNet
from common.backbones.c2d_resnet import LAYERS, STAGES
from common.backbones.swin import C2DSwin
from papers.dtf import layers
from papers.dtf.layers import DTFBlock, DTFOptions, Preset

Block = Literal[
    "2d",
    "dtf",
    "dtf-f",
    "dtf-1d",
    "dtf-1d+",
    "temporal-conv",
    "temporal-shift",
    "correlation",
    "temporal-difference",
]
Network = TypeVar("Network", C2DResNet, C2DSwin)

#: replace the first convolution of a residual block (Tables 1a and 1d)
_FIRST: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "dtf-1d": layers.TemporalConv,
    "dtf-1d+": layers.DynamicTemporalConv,
    "temporal-conv": layers.TemporalConv,
    "temporal-shift": layers.ShiftedConv,
}
#: stand after the 3x3 convolution, beside the DTF block
_MIDDLE: dict[str, Callable[[int], nn.Module]] = {
    "correlation": layers.CorrelationBlock,
    "temporal-difference": layers.TemporalDifferenceBlock,
}
BLOCKS: tuple[str, ...] = ("2d", "dtf", "dtf-f", *_FIRST, *_MIDDLE)


def dtf_net(
    num_classes: int = 400,
    depth: int = 50,
    num_frames: int = 16,
    block: Block = "dtf",
    stages: Sequence[int] = STAGES,
    num_blocks: int | None = None,
    preset: Preset | DTFOptions = "paper",
    aggregation: bool = True,
    correlation: bool = True,
    kernel_size: int = 3,
    share: int = 16,
    early_stride: int = 4,
    dropout: float = 0.5,
    width: float = 1.0,
    layers: Sequence[int] | None = None,
) -> C2DResNet:
    """A C2D ResNet with temporal blocks (Section 3.4, Figure 5a).

    Args:
        num_classes: number of classes.
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        num_frames: frames of a clip, a multiple of `early_stride`; the paper takes 16 to 64.
        block: `dtf`; `dtf-f`, one filter for all positions; `dtf-1d` and `temporal-conv`, the first convolution of each
            bottleneck over three frames; `dtf-1d+`, four such mixed at every position; `temporal-shift`,
            `correlation`, `temporal-difference`; `2d`, none.
        stages: which of the stages 2 to 5 have the block (Table 1c).
        num_blocks: that many of their residual blocks, counted from the last one back, have it (Figure 6a); all by
            default.
        preset: `paper`, `author` (the released code), or `DTFOptions`.
        aggregation, correlation: of the DTF block (Table 1b).
        kernel_size: side of the neighbourhood.
        share: G, channels that share a filter.
        early_stride: frames a step of the first convolution.
        dropout: probability before the classifier.
        width: multiplies every channel number.
        layers: residual blocks of the four stages, by default those of `depth`.

    Raises:
        ValueError: an unknown block or stage, or `num_frames` is no multiple of `early_stride`.
    """
    _check(block, num_frames, early_stride)
    if not set(stages) <= set(STAGES):
        raise ValueError(f"stages names some of {list(STAGES)}, not {list(stages)}")
    counts = dict(zip(STAGES, LAYERS.get(depth, (0,) * 4) if layers is None else layers, strict=True))
    places = [(stage, index) for stage in STAGES if stage in stages for index in range(counts[stage])]
    chosen = _last(places, num_blocks)
    make = _middle(block, num_frames // early_stride, preset, aggregation, correlation, kernel_size, share)

    def first_conv(conv: nn.Conv2d, stage: int, index: int) -> nn.Module | None:
        return _FIRST[block](conv) if block in _FIRST and (stage, index) in chosen else None

    def mid_block(channels: int, stage: int, index: int) -> nn.Module | None:
        return make(channels) if make and (stage, index) in chosen else None

    return C2DResNet(
        depth,
        num_classes,
        dropout,
        width=width,
        layers=layers,
        stem_stride=early_stride,
        first_conv=first_conv,
        mid_block=mid_block,
    )


def dtf_transformer(
    num_classes: int = 400,
    size: Literal["t", "s", "b"] = "b",
    num_frames: int = 64,
    block: Block = "dtf",
    stages: Sequence[int] = (1, 2, 3, 4),
    num_blocks: int | None = None,
    preset: Preset | DTFOptions = "paper",
    aggregation: bool = True,
    correlation: bool = True,
    kernel_size: int = 3,
    share: int = 16,
    early_stride: int = 4,
    dropout: float = 0.5,
    **swin: Any,
) -> C2DSwin:
    """A Swin Transformer over frames with temporal blocks behind the attention over regular windows (Figure 5b).

    At 224 x 224 the maps of the last stage are one window, so that none of its blocks shifts and all have the temporal
    block: 13 in Swin-B, which gives the paper's multiply-adds.

    Args:
        size: `t`, `s` or `b`.
        block: `dtf`, `dtf-f`, `correlation`, `temporal-difference` or `2d`.
        stages: which of the stages 1 to 4 have the block.
        num_blocks: that many blocks, counted from the last one back; all by default.
        swin: `embed_dim`, `depths`, `heads`, `window`, `image_size`, `stochastic_depth`, `patch_norm` of
            `common.backbones.swin.C2DSwin`.

    The other arguments are those of `dtf_net`.

    Raises:
        ValueError: an unknown block, one that replaces a convolution, or `num_frames` is no multiple of `early_stride`.
    """
    _check(block, num_frames, early_stride)
    if block in _FIRST:
        raise ValueError(f"block {block!r} replaces a convolution, which a Swin Transformer does not have")
    if not set(stages) <= {1, 2, 3, 4}:
        raise ValueError(f"stages names some of [1, 2, 3, 4], not {list(stages)}")
    make = _middle(block, num_frames // early_stride, preset, aggregation, correlation, kernel_size, share)
    places: list[tuple[int, int]] = []

    def build(mid_block: Callable[[int, int, int], nn.Module | None]) -> C2DSwin:
        # The released code gives up the layer normalisation of the patches.
        norm = {"patch_norm": preset != "author"}
        return C2DSwin(size, num_classes, dropout, early_stride, mid_block, **{**norm, **swin})

    if make is None:
        return build(lambda channels, stage, index: None)
    if num_blocks is not None:
        with torch.device("meta"):  # only asks which places there are
            build(lambda channels, stage, index: places.append((stage, index)) if stage in stages else None)
        chosen = _last(places, num_blocks)
        return build(lambda channels, stage, index: make(channels) if (stage, index) in chosen else None)
    return build(lambda channels, stage, index: make(channels) if stage in stages else None)


def _check(block: str, num_frames: int, early_stride: int) -> None:
    if block not in BLOCKS:
        raise ValueError(f"block {block!r} is not known; choose one of {', '.join(BLOCKS)}")
    if early_stride < 1 or num_frames < early_stride or num_frames % early_stride:
        raise ValueError(f"num_frames={num_frames} is no multiple of early_stride={early_stride}")


def _last(places: list[Any], number: int | None) -> list[Any]:
    if number is None:
        return places
    if not 0 <= number <= len(places):
        raise ValueError(f"num_blocks={number}, but there are {len(places)} places for the block")
    return places[len(places) - number :]


def _middle(
    block: str,
    frames: int,
    preset: Preset | DTFOptions,
    aggregation: bool,
    correlation: bool,
    kernel_size: int,
    share: int,
) -> Callable[[int], nn.Module] | None:
    if block not in ("dtf", "dtf-f"):
        return _MIDDLE.get(block)
    return partial(
        DTFBlock,
        frames=frames,
        kernel_size=kernel_size,
        share=share,
        aggregation=aggregation,
        correlation=correlation,
        dynamic=block == "dtf",
        preset=preset,
    )


def dtf_blocks(network: nn.Module) -> dict[str, DTFBlock]:
    """The DTF blocks of a network by their path in it, from the first to the last."""
    return {name: module for name, module in network.named_modules() if isinstance(module, DTFBlock)}


def grad_cam_layer(network: nn.Module) -> nn.Module:
    """The module whose output (B,C,T,H,W) Grad-CAM looks at in Figure 7: stage res5, or the last features of a Swin.

    Raises:
        ValueError: the network is none of this file.
    """
    if isinstance(network, C2DResNet):
        return network.get_submodule("layer4")
    if isinstance(network, C2DSwin):
        return network.permute
    raise ValueError(f"the Grad-CAM layer of {type(network).__name__} is not known; name a module of it")


def resample_frames(network: Network, num_frames: int) -> Network:
    """Turn a network for clips of another length into one for `num_frames`, keeping its filters; see
    `DTFBlock.resampled`. Changes the network in place and returns it.

    Raises:
        ValueError: `num_frames` is no multiple of the frames that the first convolution takes in.
    """
    early_stride = network.stem_stride
    if num_frames < early_stride or num_frames % early_stride:
        raise ValueError(f"num_frames={num_frames} is no multiple of early_stride={early_stride}")
    for name, block in dtf_blocks(network).items():
        network.set_submodule(name, block.resampled(num_frames // early_stride))
    return network


def convert_author_weights(state: Mapping[str, Tensor], network: Network) -> dict[str, Tensor]:
    """The state dict of the released code in the names and the order of this one's.

    Args:
        state: of the released ResNet or Swin; `common.backbones.imagenet.read_image_weights` reads a file.
        network: of the same size, made with `preset="author"`.

    Returns:
        What `network.load_state_dict` takes. What the released code holds but never uses is left out.

    Raises:
        ValueError: the weights are not those of such a network.
    """
    blocks = dtf_blocks(network)
    if isinstance(network, C2DSwin):
        state = network.rename_image_weights(state)
    own = network.state_dict()
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        path, found, rest = name.replace(".dtf_blk.", ".dtf_block.").partition(".dtf_block.")
        if found:
            block = blocks.get(f"{path}.mid")
            if (block is None and isinstance(network, C2DSwin)) or rest == "weights_cor":
                continue  # shifted windows have a block that is never called; the other is a constant
            key, value = f"{path}.mid.{_AUTHOR_NAMES.get(rest, rest)}", _author_value(rest, value, block)
        elif isinstance(network, C2DSwin):
            if re.fullmatch(r"features\.\d+\.\d+\.conv\.weight", name):
                continue  # a convolution that is never called
            key = re.sub(r"^fc\.", "head.", name)
        else:
            key = name
            if value.dim() == 5 and key in own and own[key].dim() == 4:
                value = value.squeeze(2)
        converted[key] = value
    wrong = [
        n for n in {**own, **converted} if n not in own or n not in converted or own[n].shape != converted[n].shape
    ]
    if wrong:
        raise ValueError(
            f"these are not the released weights of this {type(network).__name__}; make it with preset='author' and "
            f"the same depth and clip length. {len(wrong)} tensors are missing, unknown or of another shape: "
            + ", ".join(wrong[:4])
        )
    return converted


_AUTHOR_NAMES = {
    "filter_g.weight": "predict.weight",
    "linear1.complex_weight": "mix",
    "alpha1": "alpha",
    "norm1.norm.running_mean": "norm.running_mean",
    "norm1.norm.running_var": "norm.running_var",
    "norm1.norm.num_batches_tracked": "norm.num_batches_tracked",
}


def _author_value(name: str, value: Tensor, block: DTFBlock | None) -> Tensor:
    if block is not None and name == "filter_g.weight" and value.shape[1] % block.frames == 0:
        # The predictor's inputs run over channels, then frames; here over frames, then channels.
        return value.unflatten(1, (-1, block.frames)).transpose(1, 2).flatten(1, 2)
    if name == "linear1.complex_weight":
        return value.movedim(-1, 0)
    if name in ("alpha1", "bias"):
        return value.flatten()[:, None, None]
    return value
