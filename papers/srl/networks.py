"""The networks of the paper: C2D ResNets for video (Tables 7 to 10) and SimpleBaseline for human pose (Tables 2 to 6).

A block is chosen by name:

    none                         the plain network
    srl-fft, srl-lo              SRL with the Fourier transform, or with learnable orthogonal matrices
    srl-dct, srl-walsh-hadamard, srl-haar, srl-slant
                                 SRL with the other transforms that Section 3.2 names
    nl, a2, cgnl, rcca           the non-local blocks of Table 1
    nl-pool-after, nl-unscaled, rcca-released
                                 other readings of them, see `layers`
    dilated                      no block; dilated convolutions in res4 (2) and res5 (4)

SRL blocks are built for one size of their input, so the networks take `input_size` (and `num_frames`); the others
take any.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal, get_args

from torch import Tensor, nn

from common.backbones import C2DBody, C2DResNet
from common.backbones.bn_inception import scale_width
from common.backbones.c2d_resnet import LAYERS, STAGES
from common.backbones.options import changed
from common.spectral.transforms import TransformName
from papers.srl import layers
from papers.srl.layers import SpectralOptions

BlockName = Literal[
    "none",
    "srl-fft",
    "srl-lo",
    "srl-dct",
    "srl-walsh-hadamard",
    "srl-haar",
    "srl-slant",
    "nl",
    "nl-pool-after",
    "nl-unscaled",
    "a2",
    "cgnl",
    "rcca",
    "rcca-released",
    "dilated",
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


@dataclass(frozen=True)
class NetworkOptions(SpectralOptions):
    """Options of both networks, besides those of SRL blocks.

    Attributes:
        depth: of the ResNet: 18, 34, 50, 101 or 152.
        block: what is inserted, see the module's docstring.
        width: multiplies every channel number; 1 is the paper's network.
        layers: residual blocks of the four stages, in place of those of the ResNet.
    """

    depth: int = 50
    block: BlockName = "srl-fft"
    width: float = 1.0
    layers: Sequence[int] | None = None

    @property
    def dilations(self) -> tuple[int, int, int, int]:
        return (1, 1, 2, 4) if self.block == "dilated" else (1, 1, 1, 1)

    def is_last(self, stage: int, index: int) -> bool:
        """Whether a residual block is the last one of its stage; an unknown depth is left to `C2DBody` to refuse."""
        return index == (self.layers or LAYERS.get(self.depth, LAYERS[50]))[stage - 2] - 1

    def make_block(self, channels: int, size: tuple[int, int], frames: int | None, name: str) -> nn.Module | None:
        """The block for features of `channels`, `size` (H,W) and, in clips, `frames`; None without a block.

        In clips the non-local block attends over all frames, to positions pooled 2x2; in images to all positions, since
        Table 3 compares without sub-sampling.

        Raises:
            ValueError: an unknown name, or options that the block does not take.
        """
        given = {field.name: getattr(self, field.name) for field in fields(SpectralOptions)}
        if self.block in _TRANSFORMS:
            return layers.SRLBlock(channels, size, frames, _TRANSFORMS[self.block], SpectralOptions(**given), name)
        if other := [field.name for field in fields(SpectralOptions) if given[field.name] != field.default]:
            raise ValueError(f"{', '.join(other)}: options of SRL blocks, not of {self.block}")
        pool: Any = None if frames is None else "before"
        others: dict[str, Callable[[], nn.Module | None]] = {
            "none": lambda: None,
            "dilated": lambda: None,
            "nl": lambda: layers.NonLocalBlock(channels, pool),
            "nl-pool-after": lambda: layers.NonLocalBlock(channels, pool and "after"),
            "nl-unscaled": lambda: layers.NonLocalBlock(channels, pool, scaled=False),
            "a2": lambda: layers.DoubleAttentionBlock(channels),
            "cgnl": lambda: layers.CompactNonLocalBlock(channels),
            "rcca": lambda: layers.RecurrentCrissCrossBlock(channels),
            "rcca-released": lambda: layers.RecurrentCrissCrossBlock(channels, released=True),
        }
        if self.block not in others:
            raise ValueError(f"there is no block {self.block!r}; there are {', '.join(get_args(BlockName))}")
        return others[self.block]()


@dataclass(frozen=True)
class VideoOptions(NetworkOptions):
    """Options of the C2D ResNet: ResNet-18 in Tables 7 to 9, ResNet-50 in Table 10.

    Attributes:
        positions: of the blocks: `every`, after every residual block of res3 and res4 (4 blocks in ResNet-18, Table 8);
            `stages`, after the last one of each of the two; `res4`, after the last one of res4 (Table 9: 4, 2 and 1).
        strides: of the four stages.
        temporal_pool: a max-pool of two frames, stride two, behind res2 (pool2 of Table 7).
        dropout: probability before the classifier; 0.5 in the paper.
    """

    depth: int = 18
    positions: Positions = "every"
    strides: Sequence[int] = (1, 2, 2, 2)
    temporal_pool: bool = True
    dropout: float = 0.5


@dataclass(frozen=True)
class PoseOptions(NetworkOptions):
    """Options of SimpleBaseline: ResNet-50, 101 or 152 in Table 2.

    Attributes:
        block_positions: `d1`, `d2`, ... after a deconvolution (Table 5), by default after each; `res2` to `res5` after
            the last residual block of a stage of the encoder (Table 4).
        num_deconv: deconvolutions, by default 3, and 1 with `short_receptive_field`.
        deconv_channels: of every deconvolution, before `width`.
        short_receptive_field: the baseline* of Table 4: stride 1 in res4 and res5, and one deconvolution. With
            `block="dilated"` those stages are dilated by 2 and 4.
    """

    block_positions: Sequence[str] | None = None
    num_deconv: int | None = None
    deconv_channels: int = 256
    short_receptive_field: bool = False

    @property
    def strides(self) -> tuple[int, int, int, int]:
        return (1, 2, 1, 1) if self.short_receptive_field else (1, 2, 2, 2)

    @property
    def deconvolutions(self) -> int:
        return (1 if self.short_receptive_field else 3) if self.num_deconv is None else self.num_deconv

    def places(self) -> list[str]:
        """Where the blocks stand. Raises ValueError for a place that the network does not have."""
        decoder = [f"d{k}" for k in range(1, self.deconvolutions + 1)]
        known = [*(f"res{stage}" for stage in STAGES), *decoder]
        places = decoder if self.block_positions is None else list(self.block_positions)
        if wrong := [place for place in places if place not in known]:
            raise ValueError(f"there is no position {wrong[0]!r} in this network; there are {', '.join(known)}")
        return places


def stage_sizes(input_size: tuple[int, int], strides: Sequence[int]) -> dict[int, tuple[int, int]]:
    """Size (H,W) of the features of the stages 2 to 5 of a ResNet: the stem divides by 4, each stage by its stride."""
    sizes = {}
    height, width = (-(-n // 4) for n in input_size)
    for stage, stride in zip(STAGES, strides, strict=True):
        height, width = (-(-n // stride) for n in (height, width))
        sizes[stage] = (height, width)
    return sizes


def srl_c2d(
    num_classes: int = 400,
    num_frames: int = 8,
    input_size: int | tuple[int, int] = 224,
    options: VideoOptions = VideoOptions(),
    **changes: Any,
) -> C2DResNet:
    """C2D ResNet for video (Table 7) with blocks in res3 and res4: (B,3,T,H,W) -> logits (B,`num_classes`).

    Args:
        num_classes: number of classes.
        num_frames, input_size: of the clips; input_size is (H,W), or one number for a square.
        options: of the network.
        changes: options that differ from `options`, by name.

    Raises:
        ValueError: an unknown name, or a size or option that the block does not take.
    """
    options = changed(options, changes)
    if options.positions not in get_args(Positions):
        raise ValueError(f"positions is one of {', '.join(get_args(Positions))}, not {options.positions!r}")
    sizes = stage_sizes((input_size, input_size) if isinstance(input_size, int) else input_size, options.strides)
    frames = -(-num_frames // 2) if options.temporal_pool else num_frames
    stages = (4,) if options.positions == "res4" else (3, 4)

    def after(channels: int, stage: int, index: int) -> nn.Module | None:
        if stage not in stages or not (options.positions == "every" or options.is_last(stage, index)):
            return None
        return options.make_block(channels, sizes[stage], frames, f"layer{stage - 1}.{index}.after")

    return C2DResNet(
        options.depth,
        num_classes,
        options.dropout,
        width=options.width,
        layers=options.layers,
        strides=options.strides,
        dilations=options.dilations,
        temporal_pool_after_stage=(2,) if options.temporal_pool else (),
        after_block=after,
    )


class PoseResNet(C2DBody):
    """SimpleBaseline (Figure 4): a ResNet, deconvolutions (kernel 4, stride 2) with BN and ReLU, a 1x1 convolution.

    Images (B,3,H,W) -> heatmaps (B,joints,H/4,W/4). Parameters are named as in the published network (`conv1`,
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
        for index, layer in enumerate(self.deconv_layers):
            y = layer(y)
            number, within = divmod(index, 3)
            if within == 2 and f"d{number + 1}" in self.blocks:
                y = self.blocks[f"d{number + 1}"](y)
        return self.final_layer(y)


def pose_resnet(
    num_joints: int = 17, input_size: tuple[int, int] = (256, 192), options: PoseOptions = PoseOptions(), **changes: Any
) -> PoseResNet:
    """SimpleBaseline with blocks: images (B,3,H,W) -> heatmaps (B,`num_joints`,H/4,W/4).

    Args:
        num_joints: number of heatmaps; 17 in COCO.
        input_size: (H,W) of the images.
        options: of the network.
        changes: options that differ from `options`, by name.

    Raises:
        ValueError: an unknown block or position, or a size or option that the block does not take.
    """
    options = changed(options, changes)
    places, sizes = options.places(), stage_sizes(input_size, options.strides)

    def in_encoder(channels: int, stage: int, index: int) -> nn.Module | None:
        if f"res{stage}" not in places or not options.is_last(stage, index):
            return None
        return options.make_block(channels, sizes[stage], None, f"layer{stage - 1}.{index}.after")

    def in_decoder(channels: int, number: int) -> nn.Module | None:
        if f"d{number}" not in places:
            return None
        size = (sizes[5][0] * 2**number, sizes[5][1] * 2**number)
        return options.make_block(channels, size, None, f"blocks.d{number}")

    return PoseResNet(
        options.depth,
        num_joints,
        options.deconvolutions,
        scale_width(options.deconv_channels, options.width),
        in_decoder,
        width=options.width,
        layers=options.layers,
        strides=options.strides,
        dilations=options.dilations,
        after_block=in_encoder,
    )
