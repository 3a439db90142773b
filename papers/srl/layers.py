"""The spectral residual block (Figures 1 to 3) and the non-local blocks it is compared with (Tables 1, 3 and 8).

Every block takes and returns features (B,C,T,H,W) of a video or (B,C,H,W) of pictures, adds its branch to them, and
starts as the identity, so that it can be put into a trained network.
"""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.c2d_resnet import fold_frames, unfold_frames
from common.spectral import LearnableTransform2d, transform2d
from common.spectral.transforms import Spectrum, TransformName

Phi = Literal["both", "channel", "time"]
TimeMixing = Literal["mid", "pair"]


class ResidualBlock(nn.Module):
    """`x + branch(x)` on the frames of a clip; `branch` sees (B*T,C,H,W) and the number of clips B."""

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (4, 5):
            raise ValueError(
                f"{type(self).__name__} takes (batch, channels, frames, height, width) or (batch, channels, height, "
                f"width), but got {tuple(x.shape)}"
            )
        frames = fold_frames(x) if x.dim() == 5 else x
        y = frames + self.branch(frames, x.shape[0])
        return unfold_frames(y, x.shape[2]) if x.dim() == 5 else y

    def branch(self, frames: Tensor, batch: int) -> Tensor:
        """(B*T,C,H,W) -> (B*T,C,H,W)."""
        raise NotImplementedError


class SpectralReLU(nn.Module):
    """Eq. 6: max(W z + B, 0) with a trainable weight and bias for every frequency, shared by channels and frames.

    (N,K,H',W') -> the same shape. Starts as the plain ReLU.
    """

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.bias = nn.Parameter(torch.zeros(size))

    def forward(self, z: Tensor) -> Tensor:
        return F.relu(torch.addcmul(self.bias, self.weight, z), inplace=True)


class TemporalConv(nn.Module):
    """conv_t of Figure 3: a 1x1 convolution whose channels are the frames, with T^2 weights and no bias.

    Takes (B*T,K,H',W') with the frames of a clip behind one another. Starts as the identity.
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.weight = nn.Parameter(torch.eye(frames))

    def forward(self, z: Tensor) -> Tensor:
        mixed = torch.einsum("st,btn->bsn", self.weight, z.reshape(-1, self.frames, z[0].numel()))
        return mixed.reshape(z.shape)


class SRLBlock(ResidualBlock):
    """Spectral residual learning, Y = f^-1(alpha phi(f(X))) + X (Eq. 1, Figure 2), for one size of the features.

    phi is a bottleneck on the spectrum: 1x1 convolution to a share of the channels, BN, spectral ReLU, 1x1
    convolution back, BN; in a video the frames are mixed in between (Figure 3). A complex spectrum is taken as twice
    as many real channels, the two parts of a channel side by side, so that every group of a convolution sees both.

    Args:
        channels: of the features.
        size: (H, W) of the features; the spectral ReLU has a weight for each of their frequencies.
        frames: T of the clips that it takes; None for pictures. The temporal convolution has weights for each pair.
        transform: f, see `common.spectral.transform2d`; `fourier` is SRL-FFT, `orthogonal` is SRL-LO.
        spectrum: half or all of the Fourier frequencies.
        reduction: C/K, by how much phi narrows the channels. 2 fits the published counts; the text says 4.
        groups: of the 1x1 convolutions; by default 8 for `fourier` and 2 for other transforms (Section 3.3).
        phi: for videos, work along the channels, along time, or both (Table 9).
        conv_t: for `both`, one temporal convolution with BN and spectral ReLU in the middle of phi (`mid`, which fits
            the published counts), or one directly after each of the two convolutions (`pair`, as the text says).
        name: what errors call the block.

    Raises:
        ValueError: groups that do not divide the channels, or a size that the transform cannot take; in `forward`,
            features of another shape.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        frames: int | None = None,
        transform: TransformName = "fourier",
        spectrum: Spectrum = "half",
        reduction: int = 2,
        groups: int | None = None,
        phi: Phi = "both",
        conv_t: TimeMixing = "mid",
        name: str = "SRLBlock",
    ) -> None:
        super().__init__()
        if phi not in get_args(Phi) or conv_t not in get_args(TimeMixing):
            raise ValueError(f"phi is both, channel or time and conv_t mid or pair, not {phi!r} and {conv_t!r}")
        if phi == "time" and frames is None:
            raise ValueError("phi='time' needs frames: pictures have no time to work along")
        self.channels, self.size, self.frames, self.name = channels, (size[0], size[1]), frames, name
        self.transform = transform2d(transform, self.size, spectrum)
        self.alpha = nn.Parameter(torch.zeros(()))
        self.phi = self._phi(reduction, groups or (8 if transform == "fourier" else 2), phi, conv_t)

    def _phi(self, reduction: int, groups: int, phi: Phi, conv_t: TimeMixing) -> nn.Sequential:
        size = self.transform.spectrum_size
        wide = self.channels * self.transform.parts
        narrow = wide // reduction

        def channel_conv(start: int, end: int) -> nn.Conv2d:
            if start % groups or end % groups:
                raise ValueError(
                    f"{self.name}: {groups} groups do not divide the {start} and {end} channels of a spectral "
                    f"convolution (features of {self.channels} channels, reduction {reduction})"
                )
            return nn.Conv2d(start, end, 1, groups=groups, bias=False)

        def time_conv() -> list[nn.Module]:
            return [TemporalConv(self.frames)] if self.frames is not None and phi != "channel" else []

        if phi == "time":
            steps = [*time_conv(), nn.BatchNorm2d(wide), SpectralReLU(size), *time_conv(), nn.BatchNorm2d(wide)]
            return nn.Sequential(*steps)
        steps = [channel_conv(wide, narrow), nn.BatchNorm2d(narrow), SpectralReLU(size)]
        if conv_t == "pair":
            steps[1:1] = time_conv()
        elif mixing := time_conv():
            steps += [*mixing, nn.BatchNorm2d(narrow), SpectralReLU(size)]
        steps.append(channel_conv(narrow, wide))
        if conv_t == "pair":
            steps += time_conv()
        return nn.Sequential(*steps, nn.BatchNorm2d(wide))

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.size[0]}x{self.size[1]}, frames={self.frames}"

    def forward(self, x: Tensor) -> Tensor:
        shape = [self.channels, *([] if self.frames is None else [self.frames]), *self.size]
        pictures = self.frames is None and x.dim() == 5 and x.shape[2] == 1  # as a ResNet hands them on
        if list(x[:, :, 0].shape[1:] if pictures else x.shape[1:]) != shape:
            raise ValueError(
                f"{self.name} was built for features (batch, {', '.join(map(str, shape))}), channels"
                f"{'' if self.frames is None else ', frames'}, height and width, but got {tuple(x.shape)}: its "
                "spectral ReLU has weights for every frequency. Build the network for the size of its input "
                "(input_size, and num_frames for clips)."
            )
        return super().forward(x)

    def branch(self, frames: Tensor, batch: int) -> Tensor:
        # Spectra are float32 at least; phi has the dtype of its parameters.
        y = self.transform.inverse(self.phi(self.transform(frames).to(self.alpha.dtype)))
        return (self.alpha * y).to(frames.dtype)

    def reorthogonalize_(self) -> None:
        """Put learnable matrices back to orthogonal ones, to be called after every step of the optimiser."""
        if isinstance(self.transform, LearnableTransform2d):
            self.transform.reorthogonalize_()


class NonLocalBlock(ResidualBlock):
    """Non-local block (embedded Gaussian): every position attends to every one of the clip, or of its frame.

    theta, phi and g reduce to C/2 channels, W goes back, BN; no biases, which fits the published counts.

    Args:
        channels: of the features.
        subsample: max-pool phi and g 2x2, which leaves a quarter of the positions to attend to.
        joint: over all frames of a clip; else every frame by itself.
        fused: through PyTorch's fused attention, which never holds the whole matrix of affinities; else as published.
    """

    def __init__(self, channels: int, subsample: bool = False, joint: bool = True, fused: bool = True) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.joint, self.fused = joint, fused
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.pool = nn.MaxPool2d(2, ceil_mode=True) if subsample else nn.Identity()
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def branch(self, frames: Tensor, batch: int) -> Tensor:
        def positions(x: Tensor) -> Tensor:  # (clips or frames, 1 head, positions, channels), as fused attention wants
            x = x.unflatten(0, (batch if self.joint else len(frames), -1)).movedim(2, -1)
            return x.flatten(1, 3).unsqueeze(1).contiguous()

        query, key, value = (
            positions(self.theta(frames)),
            *(positions(self.pool(f(frames))) for f in (self.phi, self.g)),
        )
        if self.fused:
            y = F.scaled_dot_product_attention(query, key, value, scale=1.0)
        else:
            y = (query @ key.mT).softmax(dim=-1) @ value
        y = y[:, 0].mT.unflatten(2, (-1, *frames.shape[2:])).transpose(1, 2).flatten(0, 1)
        return self.norm(self.out(y))


class DoubleAttentionBlock(ResidualBlock):
    """A2: global descriptors are gathered by attention and handed out by attention, O(C^2 HW); C/4 of each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.features, self.gather, self.distribute = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def branch(self, frames: Tensor, batch: int) -> Tensor:
        def positions(x: Tensor) -> Tensor:  # (clips, channels, positions)
            return x.unflatten(0, (batch, -1)).transpose(1, 2).flatten(2)

        features, gather, hand_out = (positions(f(frames)) for f in (self.features, self.gather, self.distribute))
        descriptors = features @ gather.softmax(dim=2).mT  # (clips, C/4, C/4)
        y = descriptors @ hand_out.softmax(dim=1)
        y = y.unflatten(2, (-1, *frames.shape[2:])).transpose(1, 2).flatten(0, 1)
        return self.out(y)


class CompactNonLocalBlock(ResidualBlock):
    """CGNL: every pair of values of all positions and the channels of a group, by the Taylor series of the Gaussian
    kernel exp(-gamma (a - b)^2), O(C HW (P + 1)).

    Args:
        channels: of the features.
        groups: of the C/2 inner channels, and of the convolution back.
        order: P, of the Taylor series.
        gamma: of the kernel.
    """

    def __init__(self, channels: int, groups: int = 8, order: int = 3, gamma: float = 1e-4) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        if inner % groups or channels % groups:
            raise ValueError(f"{groups} groups do not divide the {inner} inner channels of {channels}")
        self.groups, self.order = groups, order
        self.terms = [(2 * gamma) ** p / math.factorial(p) * math.exp(-2 * gamma) for p in range(order + 1)]
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, channels)
        nn.init.zeros_(self.norm.weight)

    def branch(self, frames: Tensor, batch: int) -> Tensor:
        def grouped(x: Tensor) -> Tensor:  # (clips, frames, groups, values of a frame)
            return x.unflatten(1, (self.groups, -1)).unflatten(0, (batch, -1)).flatten(3)

        theta, phi, g = (grouped(f(frames)).float() for f in (self.theta, self.phi, self.g))
        y = torch.zeros_like(theta)
        power_theta, power_phi = torch.ones_like(theta), torch.ones_like(phi)
        for p, factor in enumerate(self.terms):
            if p:
                power_theta, power_phi = power_theta * theta, power_phi * phi
            # The mean, not the sum: the normalisation behind it takes out the factor.
            affinity = torch.einsum("btgn,btgn->bg", power_phi, g) / (phi.shape[1] * phi.shape[3])
            y = torch.addcmul(y, power_theta, factor * affinity[:, None, :, None])
        return self.norm(self.out(y.to(frames.dtype).reshape(len(frames), -1, *frames.shape[2:])))


class CrissCrossAttention(nn.Module):
    """Every position attends to those of its row and its column: (N,C,H,W) -> the same, O(C HW (H + W))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        query, key, value = self.query(x), self.key(x), self.value(x)
        height = x.shape[2]
        column = torch.einsum("nchw,ncgw->nhwg", query, key)
        # A position lies in its row and in its column and must count once.
        column = column.masked_fill(torch.eye(height, dtype=torch.bool, device=x.device)[:, None], -torch.inf)
        row = torch.einsum("nchw,nchv->nhwv", query, key)
        weight = torch.cat([column, row], dim=3).softmax(dim=3)
        y = torch.einsum("nhwg,ncgw->nchw", weight[..., :height], value)
        y = y + torch.einsum("nhwv,nchv->nchw", weight[..., height:], value)
        return self.gamma * y + x


class RecurrentCrissCrossBlock(ResidualBlock):
    """RCCA of CCNet: two criss-cross attentions between 3x3 convolutions to C/4 and back, in every frame.

    The two passes have their own weights, which fits the published count; in CCNet they share them.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.reduce = nn.Sequential(nn.Conv2d(channels, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner))
        self.passes = nn.Sequential(CrissCrossAttention(inner), CrissCrossAttention(inner))
        self.out = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def branch(self, frames: Tensor, batch: int) -> Tensor:
        return self.norm(self.out(self.passes(self.reduce(frames))))
