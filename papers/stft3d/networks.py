"""The networks of Tables 2 and 3: X-STFT (Figures 5 to 7) and those it is compared with, on one BN-Inception.

Every function returns a module that maps a video (B,3,T,H,W), float, to logits (B,`num_classes`), for any T, H
and W. It takes `STFT3DOptions`, as one object or by name: `t_stft(174, width=0.5, head="mlp")`.

Widths, and what cannot be matched to the published counts, are explained in this folder's README.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

from torch import Tensor, nn

from common.backbones import (
    BNInception3d,
    C2DResNet,
    ConvUnit3d,
    activation_factory,
    initialize_orthogonal,
    scale_width,
)
from common.backbones.bn_inception import I3D_POOLS, SPATIAL_POOLS
from common.backbones.options import changed
from papers.stft3d import layers

Head = Literal["linear", "mlp"]
Activation = Literal["leaky_relu", "relu", "selu", "elu"]
NORM = (1e-5, 0.1)  # eps and momentum of batch normalisation
S3D_NORM = (1e-3, 1e-3)  # those of the released code and of torchvision


@dataclass(frozen=True)
class STFT3DOptions:
    """Options of every network of this paper.

    Attributes:
        width: multiplies every channel number; 1 is the paper's network.
        activation: activation after every layer (Table 4). None: LeakyReLU(0.01) in the X-STFT networks and Fact.+DW,
            ReLU in the others.
        head: `linear`, global average pooling and one linear layer as the text says, or `mlp`, 1024-2048-512-classes,
            which fits the published parameter counts.
        dropout: probability before the classifier.
        memory_efficient: training stores little more than the input of each fixed transform and recomputes the rest;
            gradients are equal. Only for networks with fixed transforms.
        norm_momentum: weight of a batch in the running statistics of batch normalisation. None: 0.001 in S3D and S3D-G,
            as in their released code, which takes thousands of steps to settle, and 0.1 in the others.
    """

    width: float = 1.0
    activation: Activation | None = None
    head: Head = "linear"
    dropout: float = 0.0
    memory_efficient: bool = False
    norm_momentum: float | None = None


def _without_transforms(name: str, options: STFT3DOptions, changes: Mapping[str, Any]) -> STFT3DOptions:
    options = changed(options, changes)
    if options.memory_efficient:
        raise ValueError(f"memory_efficient is for networks with fixed transforms, which {name} lacks")
    return options


def _initialize(network: BNInception3d, options: STFT3DOptions, norm: tuple[float, float] = NORM) -> None:
    """Orthogonal weights, and the constants of every batch normalisation."""
    initialize_orthogonal(network)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps, module.momentum = norm
            if options.norm_momentum is not None:
                module.momentum = options.norm_momentum


def _even(value: float) -> int:
    return max(2, 2 * round(value / 2))


def _x_stft(
    block: Callable[..., nn.Module], bottleneck: Callable[[int], int], num_classes: int, options: STFT3DOptions
) -> BNInception3d:
    """Figures 5b to 7b: block 1, pool, block 2, and nine Inception modules; nothing reduces time.

    `bottleneck` turns a reduction width of Inception-v1 into that of the block.
    """
    activation = activation_factory(options.activation or "leaky_relu")
    extra = {"memory_efficient": True} if options.memory_efficient else {}

    def make_block(in_channels: int, reduction: int, out_channels: int) -> nn.Module:
        return block(in_channels, bottleneck(reduction), out_channels, activation=activation, **extra)

    network = BNInception3d(
        first=make_block(3, scale_width(24, options.width), scale_width(64, options.width)),
        block=make_block,
        num_classes=num_classes,
        activation=activation,
        pools=SPATIAL_POOLS,
        width=options.width,
        head=options.head,
        dropout=options.dropout,
    )
    _initialize(network, options)
    return network


def _inception(
    block: Callable[..., nn.Module],
    first: Callable[..., nn.Module],
    num_classes: int,
    options: STFT3DOptions,
    *,
    time: bool = True,
    gate: Callable[[int], nn.Module] | None = None,
    norm: tuple[float, float] = NORM,
) -> BNInception3d:
    """Inception-v1 over video. With `time`, pools look over time and halve it as in I3D."""
    activation = activation_factory(options.activation or "relu")
    network = BNInception3d(
        first=first(scale_width(64, options.width), activation=activation),
        block=partial(block, activation=activation),
        num_classes=num_classes,
        activation=activation,
        pools=I3D_POOLS if time else SPATIAL_POOLS,
        pool_time=time,
        gate=gate,
        width=options.width,
        head=options.head,
        dropout=options.dropout,
    )
    _initialize(network, options, norm)
    return network


def st_stft(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """ST-STFT (Figure 5): fixed 3x3x3 transforms of 13 frequencies; 2.81 M parameters at 174 classes."""
    return _x_stft(layers.STSTFTBlock, lambda b: _even(b / 9), num_classes, changed(options, changes))


def s_stft(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """S-STFT (Figure 6): fixed 1x3x3 transforms of 4 frequencies, trainable 3x1x1; 2.92 M parameters."""
    return _x_stft(layers.SSTFTBlock, lambda b: _even(b / 3), num_classes, changed(options, changes))


def t_stft(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """T-STFT (Figure 7): trainable 1x3x3, fixed 3x1x1 transforms of one frequency; 3.22 M parameters."""
    return _x_stft(layers.TSTFTBlock, int, num_classes, changed(options, changes))


def relpv(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """ReLPV (Section 6.1): ST-STFT with a bottleneck of one channel everywhere; 1.73 M parameters."""
    return _x_stft(layers.STSTFTBlock, lambda b: 1, num_classes, changed(options, changes))


def fact_dw(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """Fact.+DW (Section 6.1): T-STFT with its fixed transform made trainable; 3.23 M parameters."""
    options = _without_transforms("Fact.+DW", options, changes)
    return _x_stft(layers.FactorizedDepthwiseBlock, int, num_classes, options)


def i3d(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """I3D: 7x7x7 stem with stride 2, dense 3x3x3 convolutions, time halved three times; 12.47 M parameters."""
    stem = partial(ConvUnit3d, 3, kernel_size=(7, 7, 7), stride=(2, 2, 2))
    return _inception(layers.ConvBlock, stem, num_classes, _without_transforms("I3D", options, changes))


def i2d(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """I2D: I3D with every kernel one frame long; frames are averaged, so their order is lost; 5.78 M parameters."""
    stem = partial(ConvUnit3d, 3, kernel_size=(1, 7, 7), stride=(1, 2, 2))
    block = partial(layers.ConvBlock, kernel_size=(1, 3, 3))
    return _inception(block, stem, num_classes, _without_transforms("I2D", options, changes), time=False)


def s3d(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """S3D: I3D with every dense kernel split into a spatial and a temporal one; 8.09 M parameters.

    Weights of `torchvision.models.video.s3d` fit, see `convert_torchvision_weights`.
    """
    options = _without_transforms("S3D", options, changes)
    return _inception(layers.SeparableConvBlock, layers.SeparableStem, num_classes, options, norm=S3D_NORM)


def s3d_g(num_classes: int = 174, options: STFT3DOptions = STFT3DOptions(), **changes: Any) -> BNInception3d:
    """S3D-G: S3D with a feature gate behind block 2 and every branch of the Inception modules; 9.31 M parameters."""
    options = _without_transforms("S3D-G", options, changes)
    return _inception(
        layers.SeparableConvBlock, layers.SeparableStem, num_classes, options, gate=layers.FeatureGate, norm=S3D_NORM
    )


def convert_torchvision_weights(state: Mapping[str, Tensor], network: nn.Module) -> dict[str, Tensor]:
    """The state dict of `torchvision.models.video.s3d` in the names of `s3d`, for `network.load_state_dict`.

    Raises:
        ValueError: the network or the number of its classes differs.
    """
    own = network.state_dict()
    if [value.numel() for value in state.values()] != [value.numel() for value in own.values()]:
        raise ValueError(
            "these are not weights of torchvision's s3d for this network; build s3d with width 1, the linear head and "
            "their number of classes"
        )
    return {name: value.reshape(own[name].shape) for name, value in zip(own, state.values(), strict=True)}


#: blocks that `stft_c2d` takes, by name
_C2D_BLOCKS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "st-stft": layers.STSTFTBlock,
    "s-stft": layers.SSTFTBlock,
    "t-stft": layers.TSTFTBlock,
    "fact-dw": layers.FactorizedDepthwiseBlock,
}


def stft_c2d(
    num_classes: int = 400,
    block: Literal["st-stft", "s-stft", "t-stft", "fact-dw"] = "t-stft",
    depth: int = 18,
    width: float = 1.0,
    layers: Sequence[int] | None = None,
    strides: Sequence[int] = (1, 2, 2, 2),
    stages: Sequence[int] = (3, 4),
    dropout: float = 0.5,
) -> C2DResNet:
    """A ResNet over frames with a block of this paper after the 3x3 convolutions of some stages.

    It is not in the paper: it sets the blocks beside the operators of other papers on one backbone. Their bottleneck is
    a quarter of the channels.

    Args:
        num_classes: number of classes.
        block: which one.
        depth, width, layers, strides: of `common.backbones.C2DBody`.
        stages: stages with blocks, 2 to 5; one in every residual block.
        dropout: probability before the classifier.

    Raises:
        ValueError: an unknown block, or an option out of range.
    """
    if block not in _C2D_BLOCKS:
        raise ValueError(f"block {block!r} is not known; choose one of {', '.join(_C2D_BLOCKS)}")

    def mid_block(channels: int, stage: int, index: int) -> nn.Module | None:
        return _C2D_BLOCKS[block](channels, _even(channels / 4), channels) if stage in stages else None

    return C2DResNet(depth, num_classes, dropout, width=width, layers=layers, strides=strides, mid_block=mid_block)
