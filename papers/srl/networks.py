"""The networks of the paper: C2D ResNets for video (Tables 7 to 10) and SimpleBaseline for human pose (Tables 2 to 6).

A block is chosen by name, None leaving the plain network:

    srl-fft, srl-lo              SRL with the Fourier transform, or with learnable orthogonal matrices
    srl-dct, srl-walsh-hadamard, srl-haar, srl-slant
                                 SRL with the other transforms that Section 3.2 names
    nl, a2, cgnl, rcca           the non-local blocks of Table 1
    dilated                      no block; dilated convolutions in res4 (2) and res5 (4)

SRL blocks are built for one size of their input, so the networks take `input_size` (and `num_frames`); the others
take any. `SRLOptions` are those of `layers.SRLBlock`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypedDict, Unpack, get_args

from torch import Tensor, nn

from common.backbones import C2DBody, C2DResNet
from common.backbones.bn_inception import scale_width
from common.backbones.c2d_resnet import LAYERS, STAGES
from common.spectral.transforms import Spectrum, TransformName
from papers.srl.layers import (
    CompactNonLocalBlock,
    DoubleAttentionBlock,
    NonLocalBlock,
    Phi,
    RecurrentCrissCrossBlock,
    SRLBlock,
    TimeMixing,
)

Block = Literal[
    "srl-fft", "srl-lo", "srl-dct", "srl-walsh-hadamard", "srl-haar", "srl-slant", "nl", "a2", "cgnl", "rcca", "dilated"
]
Positions = Literal["every", "stages", "res4"]

_TRANSFORMS: dict[str, TransformName] = {
    "srl-fft": "fourier",
    "srl-lo": "orthogonal",
    "srl-dct": "dct",
    "srl-walsh-hadamard": "walsh-hadamard",
    "srl-haar": "haar",
    "srl-slant": "slant",
}
_DILATIONS = (1, 1, 2, 4)


class SRLOptions(TypedDict, total=False):
    """What SRL blocks take beside their transform; see `layers.SRLBlock`."""

    spectrum: Spectrum
    reduction: int
    groups: int | None
    phi: Phi
    conv_t: TimeMixing


def make_block(
    block: Block | None,
    channels: int,
    size: tuple[int, int],
    frames: int | None,
    name: str,
    options: SRLOptions,
) -> nn.Module | None:
    """The block of that name for features of `channels`, `size` (H,W) and, in a video, `frames`; None for no block.

    In a video the non-local block attends over all frames, to positions pooled 2x2; in pictures to all positions,
    since Table 3 compares without sub-sampling.

    Raises:
        ValueError: an unknown name, or options that the block does not take.
    """
    if block in _TRANSFORMS:
        return SRLBlock(channels, size, frames, _TRANSFORMS[block], name=name, **options)
    if options:
        raise ValueError(f"{', '.join(options)}: options of SRL blocks, not of {block or 'a network without blocks'}")
    others: dict[str | None, Callable[[], nn.Module | None]] = {
        None: lambda: None,
        "dilated": lambda: None,
        "nl": lambda: NonLocalBlock(channels, subsample=frames is not None),
        "a2": lambda: DoubleAttentionBlock(channels),
        "cgnl": lambda: CompactNonLocalBlock(channels),
        "rcca": lambda: RecurrentCrissCrossBlock(channels),
    }
    if block not in others:
        raise ValueError(f"there is no block {block!r}; there are {', '.join(get_args(Block))} and None")
    return others[block]()


def stage_sizes(input_size: tuple[int, int], strides: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Size (H,W) of the features of the stages 2 to 5 of a ResNet: the stem divides by 4, each stage by its stride."""
    sizes = {}
    height, width = (-(-n // 4) for n in input_size)
    for stage, stride in zip(STAGES, strides, strict=True):
        height, width = (-(-n // stride) for n in (height, width))
        sizes[stage] = (height, width)
    return sizes


def _residual_blocks(depth: int, layers: Sequence[int] | None) -> dict[int, int]:
    """Number of residual blocks by stage; an unknown depth is left to `C2DBody` to refuse."""
    return dict(zip(STAGES, layers or LAYERS.get(depth, LAYERS[50]), strict=True))


def srl_c2d(
    depth: int = 18,
    num_classes: int = 400,
    block: Block | None = "srl-fft",
    positions: Positions = "every",
    *,
    num_frames: int = 8,
    input_size: int | tuple[int, int] = 224,
    width: float = 1.0,
    dropout: float = 0.0,
    layers: Sequence[int] | None = None,
    strides: Sequence[int] = (1, 2, 2, 2),
    **options: Unpack[SRLOptions],
) -> C2DResNet:
    """C2D ResNet for video (Table 7) with blocks in res3 and res4: (B,3,T,H,W) -> logits (B,`num_classes`).

    Args:
        depth: 18, as in Tables 7 to 9, 50 as in Table 10, or another ResNet of `C2DBody`.
        num_classes: number of classes.
        block: what is put in, see the module's text.
        positions: `every`, after every residual block of res3 and res4 (4 blocks in ResNet-18, Table 8); `stages`,
            after the last one of each of the two; `res4`, after the last one of res4 (Table 9: 4, 2 and 1 block).
        num_frames, input_size: of the clips; input_size is (H,W), or one number for a square.
        width: multiplies every channel number.
        dropout: probability before the classifier.
        layers, strides: residual blocks and stride of every stage, in place of those of the ResNet.
        options: of SRL blocks.

    Raises:
        ValueError: an unknown name, or a size or option that the block does not take.
    """
    if positions not in get_args(Positions):
        raise ValueError(f"positions is one of {', '.join(get_args(Positions))}, not {positions!r}")
    sizes = stage_sizes((input_size, input_size) if isinstance(input_size, int) else input_size, strides)
    frames = -(-num_frames // 2)  # pool2 of Table 7, behind res2
    counts = _residual_blocks(depth, layers)
    stages = (4,) if positions == "res4" else (3, 4)

    def after(channels: int, stage: int, index: int) -> nn.Module | None:
        if stage not in stages or (positions != "every" and index != counts[stage] - 1):
            return None
        return make_block(block, channels, sizes[stage], frames, f"layer{stage - 1}.{index}.after", options)

    return C2DResNet(
        depth,
        num_classes,
        dropout,
        width=width,
        layers=layers,
        strides=strides,
        dilations=_DILATIONS if block == "dilated" else (1, 1, 1, 1),
        temporal_pool_after_stage=(2,),
        after_block=after,
    )


class PoseResNet(C2DBody):
    """SimpleBaseline (Figure 4): a ResNet, deconvolutions (kernel 4, stride 2) with BN and ReLU, a 1x1 convolution.

    Picture (B,3,H,W) -> heatmaps (B,joints,H/4,W/4). Parameters are named as in the published network (`conv1`,
    `layer1`, ..., `deconv_layers.0`, `final_layer`), whose state dicts load; blocks behind deconvolutions are `blocks`.

    Args:
        num_joints: number of heatmaps.
        num_deconv, deconv_channels: of the decoder.
        deconv_block: from (channels, number of the deconvolution from 1) to a module that follows it, or None.
        depth, body: as in `C2DBody`.
    """

    #: modules that an ImageNet network does not have (`common.backbones.load_imagenet`)
    new_for_images = ("deconv_layers", "final_layer", "blocks")

    def __init__(
        self,
        depth: int,
        num_joints: int,
        num_deconv: int = 3,
        deconv_channels: int = 256,
        deconv_block: Callable[[int, int], nn.Module | None] = lambda channels, number: None,
        **body: Any,
    ) -> None:
        super().__init__(depth, **body)
        steps: list[nn.Module] = []
        channels = self.out_channels
        for _ in range(num_deconv):
            deconv = nn.ConvTranspose2d(channels, deconv_channels, 4, 2, 1, bias=False)
            nn.init.normal_(deconv.weight, std=0.001)
            steps += [deconv, nn.BatchNorm2d(deconv_channels), nn.ReLU(inplace=True)]
            channels = deconv_channels
        self.deconv_layers = nn.Sequential(*steps)
        blocks = {f"d{k}": deconv_block(channels, k) for k in range(1, num_deconv + 1)}
        self.blocks = nn.ModuleDict({name: block for name, block in blocks.items() if block is not None})
        self.final_layer = nn.Conv2d(channels, num_joints, 1)
        for parameter, std in zip(self.final_layer.parameters(), (0.001, 0.0), strict=True):
            nn.init.normal_(parameter, std=std)

    def forward(self, x: Tensor) -> Tensor:
        y = self.stages(x)[-1]
        for number, start in enumerate(range(0, len(self.deconv_layers), 3), 1):
            y = self.deconv_layers[start : start + 3](y)
            if f"d{number}" in self.blocks:
                y = self.blocks[f"d{number}"](y)
        return self.final_layer(y)


def pose_resnet(
    depth: int = 50,
    num_joints: int = 17,
    block: Block | None = None,
    block_positions: Sequence[str] | None = None,
    *,
    input_size: tuple[int, int] = (256, 192),
    num_deconv: int | None = None,
    deconv_channels: int = 256,
    width: float = 1.0,
    layers: Sequence[int] | None = None,
    short_receptive_field: bool = False,
    **options: Unpack[SRLOptions],
) -> PoseResNet:
    """SimpleBaseline with blocks: pictures (B,3,H,W) -> heatmaps (B,`num_joints`,H/4,W/4).

    Args:
        depth: 50, 101 or 152 in the paper.
        num_joints: number of heatmaps; 17 in COCO.
        block: what is put in, see the module's text.
        block_positions: `d1`, `d2`, ... after a deconvolution (Table 5), by default after each; `res2` to `res5` after
            the last residual block of a stage of the encoder (Table 4).
        input_size: (H,W) of the pictures.
        num_deconv: deconvolutions, by default 3, and 1 with `short_receptive_field`.
        deconv_channels: of every deconvolution, before `width`.
        width: multiplies every channel number.
        layers: residual blocks of every stage, in place of those of the ResNet.
        short_receptive_field: the baseline* of Table 4: stride 1 in res4 and res5, and one deconvolution. With
            `block="dilated"` those stages are dilated by 2 and 4 instead of reaching less far.
        options: of SRL blocks.

    Raises:
        ValueError: an unknown block or position, or a size or option that the block does not take.
    """
    strides = (1, 2, 1, 1) if short_receptive_field else (1, 2, 2, 2)
    count = (1 if short_receptive_field else 3) if num_deconv is None else num_deconv
    decoder = [f"d{k}" for k in range(1, count + 1)]
    known = [*(f"res{s}" for s in STAGES), *decoder]
    chosen = decoder if block_positions is None else block_positions
    if wrong := [position for position in chosen if position not in known]:
        raise ValueError(f"there is no position {wrong[0]!r} in this network; there are {', '.join(known)}")
    sizes = stage_sizes(input_size, strides)
    counts = _residual_blocks(depth, layers)

    def in_encoder(channels: int, stage: int, index: int) -> nn.Module | None:
        if f"res{stage}" not in chosen or index != counts[stage] - 1:
            return None
        return make_block(block, channels, sizes[stage], None, f"layer{stage - 1}.{index}.after", options)

    def in_decoder(channels: int, number: int) -> nn.Module | None:
        if f"d{number}" not in chosen:
            return None
        size = (sizes[5][0] * 2**number, sizes[5][1] * 2**number)
        return make_block(block, channels, size, None, f"blocks.d{number}", options)

    return PoseResNet(
        depth,
        num_joints,
        count,
        scale_width(deconv_channels, width),
        in_decoder,
        width=width,
        layers=layers,
        strides=strides,
        dilations=_DILATIONS if block == "dilated" else (1, 1, 1, 1),
        after_block=in_encoder,
    )
