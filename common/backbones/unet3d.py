"""Residual 3D U-Net for volumes, in two layouts.

`lee` is the network of Lee et al. (arXiv:1706.00120): five levels, pooling within slices only, kernels of one slice in
front. `isotropic` is the usual 3D form: 3x3x3 kernels and pooling in all directions. Both add the skip connections
instead of joining them, and have residual modules of three convolutions.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.blocks import checked_clip
from common.backbones.bn_inception import scale_width

Layout = Literal["lee", "isotropic"]
Norm = Literal["batch", "group"]

WIDTHS: dict[str, tuple[int, ...]] = {"lee": (28, 36, 48, 64, 80), "isotropic": (32, 64, 128, 256, 512)}


def _norm(kind: str, channels: int) -> nn.Module:
    if kind == "batch":
        return nn.BatchNorm3d(channels)
    # Eight groups, or fewer where they do not divide the channels.
    return nn.GroupNorm(next(groups for groups in (8, 4, 2, 1) if channels % groups == 0), channels)


def _same(kernel: tuple[int, int, int]) -> tuple[int, int, int]:
    return (kernel[0] // 2, kernel[1] // 2, kernel[2] // 2)


class _Unit(nn.Module):
    """Convolution without bias, normalisation, and (unless `activation` is None) an activation; keeps the size."""

    def __init__(
        self, in_channels: int, out_channels: int, kernel: tuple[int, int, int], norm: str, activation: nn.Module | None
    ) -> None:
        super().__init__()
        self.conv = nn.Conv3d(in_channels, out_channels, kernel, padding=_same(kernel), bias=False)
        self.norm = _norm(norm, out_channels)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(x))
        return x if self.activation is None else self.activation(x)


class ResidualModule(nn.Module):
    """Three convolution units, the first one's output added to the last: (B,C,T,H,W) -> (B,`out_channels`,T,H,W)."""

    def __init__(
        self, in_channels: int, out_channels: int, first: tuple[int, int, int], norm: str, activation: nn.Module
    ) -> None:
        super().__init__()
        self.unit1 = _Unit(in_channels, out_channels, first, norm, activation)
        self.unit2 = _Unit(out_channels, out_channels, (3, 3, 3), norm, activation)
        self.unit3 = _Unit(out_channels, out_channels, (3, 3, 3), norm, None)
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        x = self.unit1(x)
        return self.activation(self.unit3(self.unit2(x)) + x)


class _Interpolate(nn.Module):
    """Trilinear to the size of the skip connection, then a 1x1x1 unit."""

    def __init__(self, in_channels: int, out_channels: int, norm: str, activation: nn.Module) -> None:
        super().__init__()
        self.unit = _Unit(in_channels, out_channels, (1, 1, 1), norm, activation)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        return self.unit(F.interpolate(x, skip.shape[2:], mode="trilinear", align_corners=False)) + skip


class _Deconvolve(nn.Module):
    """A transposed 3x3x3 convolution of stride 2 to the size of the skip connection."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.conv = nn.ConvTranspose3d(in_channels, out_channels, 3, stride=2, padding=1, output_padding=1)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        depth, height, width = skip.shape[2:]
        # Odd sizes, which pooling rounded up, are one less than twice those below.
        return self.conv(x)[:, :, :depth, :height, :width] + skip


class ResidualUNet3d(nn.Module):
    """Residual 3D U-Net: volume (B,`in_channels`,T,H,W), float, to one map of logits per output, (B,out,T,H,W).

    Any T, H, W of at least 1; pooling rounds up, and the way up goes back to the exact size. Evaluation on sizes far
    below 16 is possible but says little, and batch statistics in training need more than one voxel at the bottom.

    Args:
        layout: `lee` (28-36-48-64-80 channels, 1x3x3 then two 3x3x3 convolutions, 1x2x2 pooling, 1x5x5 in and out) or
            `isotropic` (32-64-128-256-512 channels, three 3x3x3 convolutions, 2x2x2 pooling, transposed convolutions).
        in_channels: of the volume, 4 modalities by default.
        out_channels: maps of logits, 3 regions by default.
        width: multiplies every channel number.
        norm: `batch`, or `group` (8 groups), which does not look at other volumes of a batch.

    Raises:
        ValueError: an option is not known, or the input is not (B,`in_channels`,T,H,W).
    """

    def __init__(
        self,
        layout: Layout = "lee",
        in_channels: int = 4,
        out_channels: int = 3,
        width: float = 1.0,
        norm: Norm = "batch",
    ) -> None:
        super().__init__()
        if layout not in WIDTHS:
            raise ValueError(f"layout {layout!r} is not known; choose one of {', '.join(WIDTHS)}")
        if norm not in ("batch", "group"):
            raise ValueError(f"norm {norm!r} is not known; choose batch or group")
        lee = layout == "lee"
        widths = [scale_width(channels, width) for channels in WIDTHS[layout]]
        activation: nn.Module = nn.ELU(inplace=True) if lee else nn.ReLU(inplace=True)
        first = (1, 3, 3) if lee else (3, 3, 3)
        self.in_channels = in_channels
        self.input = _Unit(in_channels, widths[0], (1, 5, 5), norm, activation) if lee else nn.Identity()
        incoming = [widths[0] if lee else in_channels, *widths]
        self.encoder = nn.ModuleList(
            ResidualModule(before, channels, first, norm, activation)
            for before, channels in zip(incoming, widths, strict=False)
        )
        # Rounding up lets the way up reach odd sizes, and keeps one voxel of maps that are already that small.
        self.pool = nn.MaxPool3d((1, 2, 2) if lee else 2, ceil_mode=True)
        self.up, self.decoder = nn.ModuleList(), nn.ModuleList()
        for below, channels in reversed(list(zip(widths[1:], widths[:-1], strict=True))):
            self.up.append(_Interpolate(below, channels, norm, activation) if lee else _Deconvolve(below, channels))
            self.decoder.append(ResidualModule(channels, channels, first, norm, activation))
        kernel = (1, 5, 5) if lee else (1, 1, 1)
        self.output = nn.Conv3d(widths[0], out_channels, kernel, padding=_same(kernel))
        for module in self.modules():
            if isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, volume: Tensor) -> Tensor:
        x = self.input(checked_clip(volume, self.in_channels, "depth"))
        skips: list[Tensor] = []
        for level, module in enumerate(self.encoder):
            x = module(self.pool(x) if level else x)
            skips.append(x)
        skips.pop()
        for up, module in zip(self.up, self.decoder, strict=True):
            x = module(up(x, skips.pop()))
        return self.output(x)
