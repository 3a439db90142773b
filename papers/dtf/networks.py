"""DTF-Net and DTF-Transformer, and the networks they are compared with on the same backbones.

Every network maps a video (B,3,T,H,W), float, to logits (B,`num_classes`), for any H and W. The stem takes in
`stem_stride` frames at a time, so that blocks see T / `stem_stride` of them. Image weights are loaded with
`common.backbones.load_imagenet(network, source)`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, TypeVar

import torch
from torch import Tensor, nn

from common.backbones import C2DResNet
from common.backbones.c2d_resnet import LAYERS, STAGES
from common.backbones.options import changed
from papers.dtf import layers
from papers.dtf.layers import DTFBlock, DTFOptions

if TYPE_CHECKING:
    from common.backbones import C2DSwin  # imports torchvision, which a ResNet does not need

TemporalModule = Literal[
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
Network = TypeVar("Network", C2DResNet, "C2DSwin")

#: modules that replace the first convolution of a residual block (Tables 1a and 1d)
_REPLACE_CONV: dict[str, Callable[[nn.Conv2d], nn.Module]] = {
    "dtf-1d": layers.TemporalConv,
    "dtf-1d+": layers.DynamicTemporalConv,
    "temporal-conv": layers.TemporalConv,
    "temporal-shift": layers.ShiftedConv,
}
#: modules after the 3x3 convolution, where the DTF block stands, from (channels, frames)
_INSERT: dict[str, Callable[..., nn.Module]] = {
    "correlation": layers.CorrelationBlock,
    "temporal-difference": lambda channels, frames: layers.TemporalDifferenceBlock(channels),
}
BLOCKS: tuple[str, ...] = ("2d", "dtf", "dtf-f", *_REPLACE_CONV, *_INSERT)


@dataclass(frozen=True)
class BackboneOptions(DTFOptions):
    """Options that DTF-Net and DTF-Transformer share, besides those of the DTF block.

    Attributes:
        block: the temporal module (Tables 1a and 1d). `dtf`; `dtf-f`, with one filter for all positions; `dtf-1d` and
            `temporal-conv`, the first convolution of a residual block over three frames; `dtf-1d+`, four such mixed
            at every position; `temporal-shift`, `correlation`, `temporal-difference`; `2d`, none. Those that replace
            a convolution need a ResNet.
        stages: the stages with the module (Table 1c), 2 to 5 of a ResNet, 1 to 4 of a Swin; None: all.
        num_blocks: the number of blocks with the module, counted from the last (Figure 6a); None: all.
        stem_stride: temporal kernel and stride of the stem; `num_frames` is a multiple of it.
        dropout: probability before the classifier.
    """

    block: TemporalModule = "dtf"
    stages: Sequence[int] | None = None
    num_blocks: int | None = None
    stem_stride: int = 4
    dropout: float = 0.5


@dataclass(frozen=True)
class DTFNetOptions(BackboneOptions):
    """Options of DTF-Net.

    Attributes:
        depth: 18, 34 (basic blocks), 50, 101 or 152 (bottlenecks).
        width: multiplies the number of channels.
        layers: residual blocks of the four stages; None: those of `depth`.
        strides: of the four stages.
    """

    depth: int = 50
    width: float = 1.0
    layers: Sequence[int] | None = None
    strides: Sequence[int] = (1, 2, 2, 2)


@dataclass(frozen=True)
class DTFTransformerOptions(BackboneOptions):
    """Options of DTF-Transformer.

    Attributes:
        size: `t`, `s` or `b`.
        embed_dim, depths, heads: channels of the first stage, blocks and heads of each stage; None: those of `size`.
        window: side of the attention windows.
        image_size: side of the frames in training. In stages whose map is then one window, no block shifts.
        patch_norm: layer normalisation after the patch embedding, which the released code leaves out; None: with the
            preset `paper` alone.
        stochastic_depth: probability of dropping the last residual branch; None: that of `size`.
    """

    size: Literal["t", "s", "b"] = "b"
    embed_dim: int | None = None
    depths: Sequence[int] | None = None
    heads: Sequence[int] | None = None
    window: int = 7
    image_size: int = 224
    patch_norm: bool | None = None
    stochastic_depth: float | None = None


def dtf_net(
    num_classes: int = 400,
    num_frames: int = 16,
    options: DTFNetOptions = DTFNetOptions(),
    **changes: Any,
) -> C2DResNet:
    """A C2D ResNet with temporal blocks (Section 3.4, Figure 5a).

    Args:
        num_classes: number of classes.
        num_frames: frames of a clip, a multiple of the temporal stride of the stem; 16 to 64 in the paper.
        options: of the network.
        changes: options to change, by name.

    Raises:
        ValueError: an option is out of range, or `num_frames` is no multiple of `stem_stride`.
    """
    options = changed(options, changes)
    _check(options, num_frames, STAGES)
    counts = options.layers or LAYERS.get(options.depth, (0,) * 4)
    stages = STAGES if options.stages is None else options.stages
    places = [(stage, i) for stage, n in zip(STAGES, counts, strict=True) if stage in stages for i in range(n)]
    chosen = _last(places, options.num_blocks)
    insert = _insert(options, num_frames)
    replacement = _REPLACE_CONV.get(options.block)

    def first_conv(conv: nn.Conv2d, stage: int, index: int) -> nn.Module | None:
        return replacement(conv) if replacement and (stage, index) in chosen else None

    def mid_block(channels: int, stage: int, index: int) -> nn.Module | None:
        return insert(channels) if insert and (stage, index) in chosen else None

    return C2DResNet(
        options.depth,
        num_classes,
        options.dropout,
        width=options.width,
        layers=options.layers,
        strides=options.strides,
        stem_stride=options.stem_stride,
        first_conv=first_conv,
        mid_block=mid_block,
    )


def dtf_transformer(
    num_classes: int = 400,
    num_frames: int = 64,
    options: DTFTransformerOptions = DTFTransformerOptions(),
    **changes: Any,
) -> C2DSwin:
    """A Swin Transformer over frames with temporal blocks behind the attention over regular windows (Figure 5b).

    At 224 x 224 the maps of the last stage are one window, so that none of its blocks shifts and both have the temporal
    block: 13 in Swin-B, which gives the paper's multiply-adds.

    Args:
        num_classes, num_frames, options, changes: as for `dtf_net`.

    Raises:
        ValueError: as for `dtf_net`, or a block that replaces a convolution.
    """
    from common.backbones import C2DSwin

    options = changed(options, changes)
    if options.block in _REPLACE_CONV:
        raise ValueError(f"block {options.block!r} replaces a convolution, which a Swin Transformer does not have")
    _check(options, num_frames, (1, 2, 3, 4))
    insert = _insert(options, num_frames)

    def build(mid_block: Callable[[int, int, int], nn.Module | None]) -> C2DSwin:
        return C2DSwin(
            options.size,
            num_classes,
            options.dropout,
            options.stem_stride,
            mid_block,
            options.image_size,
            options.embed_dim,
            options.depths,
            options.heads,
            options.window,
            options.preset != "author" if options.patch_norm is None else options.patch_norm,
            options.stochastic_depth,
        )

    places: list[tuple[int, int]] = []
    with torch.device("meta"):  # only asks which places there are
        build(lambda channels, stage, index: places.append((stage, index)))
    chosen = _last([p for p in places if options.stages is None or p[0] in options.stages], options.num_blocks)
    return build(lambda channels, *place: insert(channels) if insert and place in chosen else None)


def _check(options: BackboneOptions, num_frames: int, stages: Sequence[int]) -> None:
    if options.block not in BLOCKS:
        raise ValueError(f"block {options.block!r} is not known; choose one of {', '.join(BLOCKS)}")
    if options.stages is not None and not set(options.stages) <= set(stages):
        raise ValueError(f"stages names some of {list(stages)}, not {list(options.stages)}")
    _check_frames(num_frames, options.stem_stride)


def _check_frames(num_frames: int, stem_stride: int) -> None:
    if stem_stride < 1 or num_frames < stem_stride or num_frames % stem_stride:
        raise ValueError(f"num_frames={num_frames} is no multiple of stem_stride={stem_stride}")


def _last(places: list[tuple[int, int]], number: int | None) -> list[tuple[int, int]]:
    if number is None:
        return places
    if not 0 <= number <= len(places):
        raise ValueError(f"num_blocks={number}, but there are {len(places)} places for the block")
    return places[len(places) - number :]


def _insert(options: BackboneOptions, num_frames: int) -> Callable[[int], nn.Module] | None:
    """From the number of channels to the module after a 3x3 convolution or an attention; None where there is none."""
    frames = num_frames // options.stem_stride
    if options.block in ("dtf", "dtf-f"):
        return partial(DTFBlock, frames=frames, options=options, dynamic=options.block == "dtf")
    return partial(_INSERT[options.block], frames=frames) if options.block in _INSERT else None


def dtf_blocks(network: nn.Module) -> dict[str, DTFBlock]:
    """The DTF blocks of a network by their path in it, from the first to the last."""
    return {name: module for name, module in network.named_modules() if isinstance(module, DTFBlock)}


def grad_cam_layer(network: nn.Module) -> nn.Module:
    """The module whose output (B,C,T,H,W) Grad-CAM looks at in Figure 7: stage res5, or the last features of a Swin.

    Raises:
        ValueError: the network is none of this file.
    """
    from common.backbones import C2DSwin

    if isinstance(network, C2DResNet):
        return network.get_submodule("layer4")
    if isinstance(network, C2DSwin):
        return network.permute
    raise ValueError(f"the Grad-CAM layer of {type(network).__name__} is not known; name a module of it")


def resample_frames(network: Network, num_frames: int) -> Network:
    """Turn a network for clips of another length into one for `num_frames`, keeping its filters; see
    `DTFBlock.resampled`. Changes the network in place and returns it.

    Raises:
        ValueError: `num_frames` is no multiple of the temporal stride of the stem.
    """
    _check_frames(num_frames, network.stem_stride)
    for name, block in dtf_blocks(network).items():
        network.set_submodule(name, block.resampled(num_frames // network.stem_stride))
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
    if not isinstance(network, C2DResNet):
        state = network.rename_image_weights(state)
    own = network.state_dict()
    converted: dict[str, Tensor] = {}
    for name, value in state.items():
        path, found, rest = name.replace(".dtf_blk.", ".dtf_block.").partition(".dtf_block.")
        if found:
            block = blocks.get(f"{path}.mid")
            if (block is None and not isinstance(network, C2DResNet)) or rest == "weights_cor":
                continue  # shifted windows have a block that is never called; the other is a constant
            key, value = f"{path}.mid.{_AUTHOR_NAMES.get(rest, rest)}", _author_value(rest, value, block)
        elif not isinstance(network, C2DResNet):
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
