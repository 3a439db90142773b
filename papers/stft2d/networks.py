"""The networks of Table 2, for CIFAR's 32x32 pictures and any other size.

Every function returns a module that maps pictures (B,3,H,W), float, to logits (B,`num_classes`); `network.features`
ends before the global average pooling and `network.head` is the classifier. Weights start orthogonal (Section 4).

The networks of the paper take `block`: `text` builds the blocks as the text describes them (default), `fit` those that
come close to the published parameter counts; see this folder's README.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torchvision
from torch import Tensor, fx, nn
from torchvision.ops import Conv2dNormActivation

from common.backbones import initialize_orthogonal
from papers.stft2d.layers import Block1, Block2, ReLPUBlock, ShuffleUnit

Block = Literal["text", "fit"]
BLOCKS = 16
POOL_EVERY = 4


def _check(image: Tensor) -> None:
    if image.dim() != 4 or image.shape[1] != 3:
        raise ValueError(f"the network takes pictures of shape (batch, 3, height, width), not {tuple(image.shape)}")


fx.wrap("_check")  # so that torch.fx, which `swap_depthwise_separable` uses, can trace the networks


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
        _check(image)
        return self.head(self.features(image).mean(dim=(2, 3)))


def _sixteen(blocks: Sequence[nn.Module], channels: int, num_classes: int) -> ImageClassifier:
    """Figure 3c: 2x2 max-pools behind blocks 4, 8 and 12; sizes are rounded up, so that one pixel stays one."""
    features: list[nn.Module] = []
    for number, block in enumerate(blocks, start=1):
        features.append(block)
        if number % POOL_EVERY == 0 and number < BLOCKS:
            features.append(nn.MaxPool2d(2, ceil_mode=True))
    return ImageClassifier(features, nn.Linear(channels, num_classes))


def _fits(block: Block) -> bool:
    if block not in ("text", "fit"):
        raise ValueError(f"block {block!r} is not known; choose text or fit")
    return block == "fit"


def stft(num_classes: int = 10, b: int = 64, f: int = 128, block: Block = "text") -> ImageClassifier:
    """The paper's network (Figure 3c): Block 1 and 15 times Block 2, `b` channels in the bottlenecks, `f` elsewhere.

    Weights of the blocks without normalisation: (271 f + 3) b as the text has it, (391 f + 3) b + 30 f^2 fitted.
    """
    fit = _fits(block)
    return _sixteen([Block1(3, b, f), *(Block2(f, b, fit) for _ in range(BLOCKS - 1))], f, num_classes)


def depthwise_separable(num_classes: int = 10, b: int = 64, f: int = 128) -> ImageClassifier:
    """The network of Figure 3c with trainable depthwise convolutions, as large as `stft(num_classes, b, f)`.

    Its bottlenecks are widened until both have about the same number of weights: to b (271 f + 3) / (47 f + 547).
    """
    wide = max(1, round(b * (271 * f + 3) / (47 * f + 547)))
    first = Block1(3, wide, f, trainable=True)
    return _sixteen([first, *(Block2(f, wide, trainable=True) for _ in range(BLOCKS - 1))], f, num_classes)


def relpu(num_classes: int = 10, f: int = 256, block: Block = "text") -> ImageClassifier:
    """The network of Figure 3c with ReLPU layers (Section 4), whose bottleneck is a single channel."""
    fit = _fits(block)
    return _sixteen([ReLPUBlock(3, f), *(ReLPUBlock(f, f, fit) for _ in range(BLOCKS - 1))], f, num_classes)


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
