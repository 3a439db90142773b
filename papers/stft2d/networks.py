"""The networks of Table 2, for CIFAR's 32x32 images and any other size.

Every function returns a module that maps images (B,3,H,W), float, to logits (B,`num_classes`); `network.features` ends
before the global average pooling and `network.head` is the classifier. Weights start orthogonal (Section 4).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torchvision
from torch import Tensor, nn
from torchvision.ops import Conv2dNormActivation

from common.backbones import initialize_orthogonal
from common.backbones.options import changed
from common.spectral.symbolic import fx_leaf
from papers.stft2d.layers import Block1, Block2, ReLPUBlock, ShuffleUnit

BLOCKS = 16
POOL_EVERY = 4


@dataclass(frozen=True)
class STFT2DOptions:
    """Options of the networks of Figure 3c: `stft`, `depthwise_separable` and `relpu`.

    Attributes:
        b: channels of the bottlenecks of `stft`; `depthwise_separable` is made as large as that.
        f: channels of the blocks. Table 2 has 256 for `relpu`.
        block: blocks of `stft` and `relpu` as the `text` describes them, or those that `fit` the published parameter
            counts; see this folder's README.

    Raises:
        ValueError: an unknown block.
    """

    b: int = 64
    f: int = 128
    block: Literal["text", "fit"] = "text"

    def __post_init__(self) -> None:
        if self.block not in ("text", "fit"):
            raise ValueError(f"block {self.block!r} is not known; choose text or fit")


@fx_leaf
def _checked(image: Tensor) -> Tensor:
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"the network takes images of shape (batch, 3, height, width), not {tuple(image.shape)}")
    return image


class ImageClassifier(nn.Module):
    """`features`, global average pooling, `head`: (B,3,H,W) -> (B,classes).

    Raises:
        ValueError: the input is not (B,3,H,W).
    """

    def __init__(self, features: Sequence[nn.Module], head: nn.Module) -> None:
        super().__init__()
        self.features = nn.Sequential(*features)
        self.head = head
        initialize_orthogonal(self)

    def forward(self, image: Tensor) -> Tensor:
        return self.head(self.features(_checked(image)).mean(dim=(2, 3)))


def _sixteen(blocks: Sequence[nn.Module], channels: int, num_classes: int) -> ImageClassifier:
    """Figure 3c: 2x2 max-pools behind blocks 4, 8 and 12; sizes are rounded up, so that one pixel stays one."""
    features: list[nn.Module] = []
    for number, block in enumerate(blocks, start=1):
        features.append(block)
        if number % POOL_EVERY == 0 and number < BLOCKS:
            features.append(nn.MaxPool2d(2, ceil_mode=True))
    return ImageClassifier(features, nn.Linear(channels, num_classes))


def stft(num_classes: int = 10, options: STFT2DOptions = STFT2DOptions(), **changes: Any) -> ImageClassifier:
    """The paper's network (Figure 3c): Block 1 and 15 times Block 2.

    Weights of the blocks without normalisation: (271 f + 3) b as the text has it, (391 f + 3) b + 30 f^2 fitted.
    """
    o = changed(options, changes)
    blocks = [Block1(3, o.b, o.f), *(Block2(o.f, o.b, o.block == "fit") for _ in range(BLOCKS - 1))]
    return _sixteen(blocks, o.f, num_classes)


def depthwise_separable(
    num_classes: int = 10, options: STFT2DOptions = STFT2DOptions(), **changes: Any
) -> ImageClassifier:
    """The network of Figure 3c with trainable depthwise convolutions, as large as `stft` with the same options.

    Its bottlenecks are widened until both have about the same number of weights: to b (271 f + 3) / (47 f + 547).
    """
    o = changed(options, changes)
    wide = max(1, round(o.b * (271 * o.f + 3) / (47 * o.f + 547)))
    first = Block1(3, wide, o.f, trainable=True)
    return _sixteen([first, *(Block2(o.f, wide, trainable=True) for _ in range(BLOCKS - 1))], o.f, num_classes)


def relpu(num_classes: int = 10, options: STFT2DOptions = STFT2DOptions(f=256), **changes: Any) -> ImageClassifier:
    """The network of Figure 3c with ReLPU layers (Section 4), whose bottleneck is a single channel."""
    o = changed(options, changes)
    fit = o.block == "fit"
    return _sixteen([ReLPUBlock(3, o.f), *(ReLPUBlock(o.f, o.f, fit) for _ in range(BLOCKS - 1))], o.f, num_classes)


def mobilenet(num_classes: int = 10) -> ImageClassifier:
    """MobileNet of width 1 (Howard et al., Table 1) with stride 1 in the first layer: 32x32 ends at 2x2."""
    widths = (64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    features: list[nn.Module] = [Conv2dNormActivation(3, 32, 3)]
    channels = 32
    for number, width in enumerate(widths):
        stride = 2 if number in (1, 3, 5, 11) else 1
        features.append(Conv2dNormActivation(channels, channels, 3, stride, groups=channels))
        features.append(Conv2dNormActivation(channels, width, 1))
        channels = width
    return ImageClassifier(features, nn.Linear(channels, num_classes))


def mobilenet_v2(num_classes: int = 10) -> ImageClassifier:
    """MobileNet-V2 of torchvision with stride 1 in the first layer: 32x32 ends at 2x2."""
    network = torchvision.models.mobilenet_v2(num_classes=num_classes)
    network.features[0][0].stride = (1, 1)
    return ImageClassifier(list(network.features), network.classifier)


def shufflenet(num_classes: int = 10, groups: int = 2) -> ImageClassifier:
    """ShuffleNet of width 1 (Zhang et al., Table 1), first layer of stride 1, no pooling: 32x32 ends at 4x4.

    Two groups give the 800 features of Table 2. `groups` is 1, 2, 3, 4 or 8.
    """
    widths = {1: 144, 2: 200, 3: 240, 4: 272, 8: 384}
    if groups not in widths:
        raise ValueError(f"groups must be one of {', '.join(map(str, widths))}, but is {groups}")
    features: list[nn.Module] = [Conv2dNormActivation(3, 24, 3)]
    channels = 24
    for stage, units in enumerate((4, 8, 4)):
        for number in range(units):
            width = widths[groups] * 2**stage
            first_groups = 1 if channels == 24 else groups
            features.append(ShuffleUnit(channels, width, 1 if number else 2, groups, first_groups))
            channels = width
    return ImageClassifier(features, nn.Linear(channels, num_classes))


def shufflenet_v2(num_classes: int = 10) -> ImageClassifier:
    """ShuffleNet-V2 1x of torchvision, first layer of stride 1, no pooling: 32x32 ends at 4x4."""
    network = torchvision.models.shufflenet_v2_x1_0(num_classes=num_classes)
    network.conv1[0].stride = (1, 1)
    return ImageClassifier([network.conv1, network.stage2, network.stage3, network.stage4, network.conv5], network.fc)
