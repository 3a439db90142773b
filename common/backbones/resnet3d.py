"""3D-ResNets for video: every convolution of a ResNet extended over time (Hara et al., CVPR 2018).

Parameters are named as in the public state dicts of these networks (`conv1, bn1, layer1.0.conv1, ...,
layer2.0.downsample.0, fc`), which therefore load as they are; `resnet3d_from_state_dict` reads depth, shortcut,
width and classes off one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.blocks import checked_clip
from common.backbones.bn_inception import scale_width

Shortcut = Literal["A", "B"]

#: blocks of the four stages, by depth; from 50 on they are bottlenecks
BLOCKS: dict[int, tuple[int, int, int, int]] = {
    10: (1, 1, 1, 1),
    18: (2, 2, 2, 2),
    34: (3, 4, 6, 3),
    50: (3, 4, 6, 3),
    101: (3, 4, 23, 3),
    152: (3, 8, 36, 3),
    200: (3, 24, 36, 3),
}


class ZeroPadShortcut(nn.Module):
    """Shortcut A, without parameters: every `stride`-th frame, row and column, and zeros for the new channels.

    (B,C,T,H,W) -> (B,`out_channels`,T',H',W') with T' = ceil(T / stride).
    """

    def __init__(self, out_channels: int, stride: int) -> None:
        super().__init__()
        self.out_channels = out_channels
        self.stride = stride

    def forward(self, x: Tensor) -> Tensor:
        s = self.stride
        return F.pad(x[:, :, ::s, ::s, ::s], (0, 0, 0, 0, 0, 0, 0, self.out_channels - x.shape[1]))


class BasicBlock3d(nn.Module):
    """Two 3x3x3 convolutions and a shortcut: (B,C,T,H,W) -> (B,planes,T',H',W'), T' = ceil(T / stride)."""

    expansion = 1

    def __init__(self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, planes, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(planes, planes, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(y)) + shortcut)


class Bottleneck3d(nn.Module):
    """1x1x1, 3x3x3 and 1x1x1 convolutions and a shortcut: (B,C,T,H,W) -> (B,4*planes,T',H',W')."""

    expansion = 4

    def __init__(self, in_channels: int, planes: int, stride: int, downsample: nn.Module | None) -> None:
        super().__init__()
        self.conv1 = nn.Conv3d(in_channels, planes, 1, bias=False)
        self.bn1 = nn.BatchNorm3d(planes)
        self.conv2 = nn.Conv3d(planes, planes, 3, stride, padding=1, bias=False)
        self.bn2 = nn.BatchNorm3d(planes)
        self.conv3 = nn.Conv3d(planes, planes * self.expansion, 1, bias=False)
        self.bn3 = nn.BatchNorm3d(planes * self.expansion)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = downsample

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.relu(self.bn2(self.conv2(y)))
        return self.relu(self.bn3(self.conv3(y)) + shortcut)


class ResNet3d(nn.Module):
    """A 3D-ResNet: video (B,3,T,H,W), float, to logits (B,`num_classes`). Any T, H, W of at least 1.

    A 7x7x7 convolution of stride (1,2,2), a 3x3x3 max-pool of stride 2, four stages of which the last three halve time
    and space, the mean over time and space, and a linear layer.

    Args:
        depth: 10, 18, 34, 50, 101, 152 or 200.
        num_classes: number of classes.
        width: multiplies every channel number.
        shortcut: where shapes change, `A` pads with zeros and `B` projects by a 1x1x1 convolution. By default `B`.

    Attributes:
        arguments: the above, which build such a network again.

    Raises:
        ValueError: the depth or the shortcut is not known, or the input is not (B,3,T,H,W).
    """

    def __init__(self, depth: int = 18, num_classes: int = 101, width: float = 1.0, shortcut: Shortcut = "B") -> None:
        super().__init__()
        if depth not in BLOCKS:
            raise ValueError(f"there is no 3D-ResNet of depth {depth}; choose one of {', '.join(map(str, BLOCKS))}")
        if shortcut not in ("A", "B"):
            raise ValueError(f"shortcut {shortcut!r} is not known; choose A (zero padding) or B (projection)")
        self.arguments = {"depth": depth, "num_classes": num_classes, "width": width, "shortcut": shortcut}
        block = Bottleneck3d if depth >= 50 else BasicBlock3d
        channels = scale_width(64, width)
        self.conv1 = nn.Conv3d(3, channels, 7, stride=(1, 2, 2), padding=3, bias=False)
        self.bn1 = nn.BatchNorm3d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool3d(3, stride=2, padding=1)
        for stage, blocks in enumerate(BLOCKS[depth]):
            planes, layer = scale_width(64 * 2**stage, width), nn.Sequential()
            for index in range(blocks):
                stride = 2 if stage and not index else 1
                out = planes * block.expansion
                downsample: nn.Module | None = None
                if stride > 1 or channels != out:
                    downsample = (
                        ZeroPadShortcut(out, stride)
                        if shortcut == "A"
                        else nn.Sequential(nn.Conv3d(channels, out, 1, stride, bias=False), nn.BatchNorm3d(out))
                    )
                layer.append(block(channels, planes, stride, downsample))
                channels = out
            self.add_module(f"layer{stage + 1}", layer)
        self.fc = nn.Linear(channels, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv3d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, video: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(checked_clip(video)))))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # type: ignore[operator]
        return self.fc(x.mean(dim=(2, 3, 4)))


def resnet3d_from_state_dict(state: Mapping[str, Tensor]) -> ResNet3d:
    """The network that a state dict of a 3D-ResNet belongs to, with its weights.

    Depth, shortcut, width and number of classes are read off the keys and shapes. Keys may begin with `module.`, as
    those of networks trained on several GPUs do; counters of batches, which old files lack, start at zero.
    `common.backbones.imagenet.read_image_weights` reads the public files.

    Raises:
        ValueError: the keys are not those of a 3D-ResNet; the first that differ are named.
    """
    state = {key.removeprefix("module."): value for key, value in state.items()}
    layers = {tuple(key.split(".")[:2]) for key in state if key.startswith("layer")}
    blocks = tuple(sum(layer == f"layer{i}" for layer, _ in layers) for i in (1, 2, 3, 4))
    bottleneck = "layer1.0.conv3.weight" in state
    depths = [d for d, b in BLOCKS.items() if b == blocks and (d >= 50) == bottleneck]
    if not depths or "fc.weight" not in state or "conv1.weight" not in state:
        raise ValueError(
            "not the state dict of a 3D-ResNet: its keys should be conv1.weight, layer1.0.conv1.weight, ..., "
            f"fc.weight, of {', '.join(map(str, BLOCKS))} layers; "
            f"they are {', '.join(list(state)[:4])}, ... with stages of {blocks} blocks"
        )
    with torch.device("meta"):
        network = ResNet3d(
            depths[0],
            num_classes=len(state["fc.weight"]),
            width=len(state["conv1.weight"]) / 64,
            shortcut="B" if "layer2.0.downsample.0.weight" in state else "A",
        )
    network.to_empty(device="cpu")
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.reset_running_stats()
    try:
        # A dict without versions: batch normalisation then takes a missing counter as zero.
        network.load_state_dict(dict(state))
    except RuntimeError as error:
        raise ValueError(f"not the state dict of a 3D-ResNet-{depths[0]}: {error}") from error
    return network.eval()
