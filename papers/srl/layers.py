"""The spectral residual block (Figures 1 to 3) and the non-local blocks it is compared with (Tables 1, 3 and 8).

Every block takes and returns features (B,C,T,H,W) of clips or (B,C,H,W) of images. Unless stated otherwise it adds its
branch to them and starts as the identity, so that it can be inserted into a trained network.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.c2d_resnet import fold_frames, unfold_frames
from common.backbones.options import changed
from common.spectral import LearnableTransform2d, transform2d
from common.spectral.stft import without_autocast
from common.spectral.symbolic import fx_leaf
from common.spectral.transforms import Spectrum, TransformName

Phi = Literal["both", "channel", "time"]
TimeMixing = Literal["mid", "pair"]
NonLocalPool = Literal["before", "after"]


class FeatureBlock(nn.Module):
    """A module on features that works on frames: clips are folded into (B*T,C,H,W) and unfolded again."""

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() not in (4, 5):
            raise ValueError(
                f"{type(self).__name__} takes (batch, channels, frames, height, width) or (batch, channels, height, "
                f"width), but got {tuple(x.shape)}"
            )
        if x.dim() == 4:
            return self.on_frames(x, 1)
        return unfold_frames(self.on_frames(fold_frames(x), x.shape[2]), x.shape[2])

    def on_frames(self, frames: Tensor, time: int) -> Tensor:
        """(B*T,C,H,W) -> (B*T,C,H,W), T = `time`."""
        raise NotImplementedError


def positions(frames: Tensor, time: int) -> Tensor:
    """(B*T,C,H,W) -> (B,C,T*H*W)."""
    return unfold_frames(frames, time).flatten(2)


def frames_of(values: Tensor, like: Tensor, time: int) -> Tensor:
    """(B,C,T*H*W) -> (B*T,C,H,W), the inverse of `positions`; H and W are those of `like`."""
    return fold_frames(values.unflatten(2, (time, *like.shape[2:])))


@dataclass(frozen=True)
class SpectralOptions:
    """Options of an SRL block.

    Attributes:
        spectrum: `half` or `full`, the Fourier frequencies that phi works on.
        reduction: C/K, by how much phi narrows the channels. 2 fits the published counts; the text says 4.
        groups: of the 1x1 convolutions; None: 8 for `fourier` and 2 for other transforms (Section 3.3).
        phi: in clips, work along the channels, along time, or both (Table 9).
        conv_t: for `phi="both"`, one temporal convolution with BN and spectral ReLU in the middle of phi (`mid`, which
            fits the published counts), or one directly after each of the two convolutions (`pair`, as the text says).
    """

    spectrum: Spectrum = "half"
    reduction: int = 2
    groups: int | None = None
    phi: Phi = "both"
    conv_t: TimeMixing = "mid"

    def __post_init__(self) -> None:
        if self.phi not in get_args(Phi) or self.conv_t not in get_args(TimeMixing):
            raise ValueError(
                f"phi is both, channel or time and conv_t mid or pair, not {self.phi!r} and {self.conv_t!r}"
            )


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


class TemporalMixing(nn.Module):
    """conv_t of Figure 3: a 1x1 convolution whose channels are the frames, with T^2 weights and no bias.

    Takes (B*T,K,H',W') with the frames of a clip behind one another. Starts as the identity.
    """

    def __init__(self, frames: int) -> None:
        super().__init__()
        self.frames = frames
        self.weight = nn.Parameter(torch.eye(frames))

    def forward(self, z: Tensor) -> Tensor:
        mixed = torch.einsum("st,btn->bsn", self.weight, z.unflatten(0, (-1, self.frames)).flatten(2))
        return mixed.unflatten(2, z.shape[1:]).flatten(0, 1)


class SRLBlock(FeatureBlock):
    """Spectral residual learning, Y = f^-1(alpha phi(f(X))) + X (Eq. 1, Figure 2), for one size of the features.

    phi is a bottleneck on the spectrum: 1x1 convolution to fewer channels, BN, spectral ReLU, 1x1 convolution back, BN;
    in clips the frames are mixed in between (Figure 3). A complex spectrum is taken as twice as many real channels, the
    two parts of a channel side by side, so that every group of a convolution sees both.

    Args:
        channels: of the features.
        size: (H, W) of the features; the spectral ReLU has a weight for each of their frequencies.
        frames: T of the clips; None for images. The temporal convolution has a weight for each pair of frames.
        transform: f, see `common.spectral.transform2d`; `fourier` is SRL-FFT, `orthogonal` is SRL-LO.
        options: of phi.
        name: of the block in errors.
        changes: options that differ from `options`, by name.

    Raises:
        ValueError: groups that do not divide the channels, or a size that the transform does not take; in `forward`,
            features of another shape.
    """

    def __init__(
        self,
        channels: int,
        size: tuple[int, int],
        frames: int | None = None,
        transform: TransformName = "fourier",
        options: SpectralOptions = SpectralOptions(),
        name: str = "SRLBlock",
        **changes: Any,
    ) -> None:
        super().__init__()
        options = changed(options, changes)
        if options.phi == "time" and frames is None:
            raise ValueError("phi='time' needs frames: images have no time to work along")
        self.channels, self.size, self.frames, self.name = channels, (size[0], size[1]), frames, name
        self.transform = transform2d(transform, self.size, options.spectrum)
        self.alpha = nn.Parameter(torch.zeros(1))  # one axis: `fully_shard` takes no scalars
        self.phi = self._phi(options, options.groups or (8 if transform == "fourier" else 2))

    def _phi(self, options: SpectralOptions, groups: int) -> nn.Sequential:
        size = self.transform.spectrum_size
        wide = self.channels * self.transform.parts
        narrow = wide // options.reduction

        def channel_conv(start: int, end: int) -> nn.Conv2d:
            if start % groups or end % groups:
                raise ValueError(
                    f"{self.name}: {groups} groups do not divide the {start} and {end} channels of a spectral "
                    f"convolution (features of {self.channels} channels, reduction {options.reduction})"
                )
            return nn.Conv2d(start, end, 1, groups=groups, bias=False)

        def time_conv() -> list[nn.Module]:
            return [] if self.frames is None or options.phi == "channel" else [TemporalMixing(self.frames)]

        if options.phi == "time":
            steps = [*time_conv(), nn.BatchNorm2d(wide), SpectralReLU(size), *time_conv(), nn.BatchNorm2d(wide)]
            return nn.Sequential(*steps)
        steps = [channel_conv(wide, narrow), nn.BatchNorm2d(narrow), SpectralReLU(size)]
        if options.conv_t == "pair":
            steps[1:1] = time_conv()
        elif mixing := time_conv():
            steps += [*mixing, nn.BatchNorm2d(narrow), SpectralReLU(size)]
        steps.append(channel_conv(narrow, wide))
        if options.conv_t == "pair":
            steps += time_conv()
        return nn.Sequential(*steps, nn.BatchNorm2d(wide))

    def extra_repr(self) -> str:
        return f"{self.channels}, {self.size[0]}x{self.size[1]}, frames={self.frames}"

    @fx_leaf
    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        shape = [self.channels, *([] if self.frames is None else [self.frames]), *self.size]
        images = self.frames is None and x.dim() == 5 and x.shape[2] == 1  # as a ResNet passes them on
        if list(x[:, :, 0].shape[1:] if images else x.shape[1:]) != shape:
            raise ValueError(
                f"{self.name} was built for features (batch, {', '.join(map(str, shape))}), channels"
                f"{'' if self.frames is None else ', frames'}, height and width, but got {tuple(x.shape)}: its "
                "spectral ReLU has weights for every frequency. Build the network for the size of its input "
                "(input_size, and num_frames for clips)."
            )
        return super().forward(x)

    def on_frames(self, frames: Tensor, time: int) -> Tensor:
        # Spectra have at least float32; phi works in the dtype of its parameters.
        spectrum = self.transform(frames).to(self.alpha.dtype)
        y = self.transform.inverse(self.phi(spectrum))
        return frames + (self.alpha * y).to(frames.dtype)

    def reorthogonalize_(self) -> None:
        """Make learnable matrices orthogonal again, to be called after every step of the optimiser."""
        if isinstance(self.transform, LearnableTransform2d):
            self.transform.reorthogonalize_()


class NonLocalBlock(FeatureBlock):
    """Non-local block (embedded Gaussian): every position attends to all positions of the clip.

    theta, phi and g reduce to C/2 channels, W goes back, BN; no biases, which fits the published counts.

    Args:
        channels: of the features.
        pool: 2x2 max-pooling of what is attended to, `before` phi and g as in the released code, or `after` them as the
            text says; odd sizes are rounded down. None attends to all positions.
        scaled: divide the affinities by the root of C/2, as the released code does and the text does not.
        fused: use PyTorch's fused attention, which never holds the whole matrix of affinities, but has no second
            derivatives on every device. `torch.func` gets the plain form.
    """

    def __init__(
        self, channels: int, pool: NonLocalPool | None = None, scaled: bool = True, fused: bool = True
    ) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        self.pool, self.fused = pool, fused
        self.scale = inner**-0.5 if scaled else 1.0
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        self.norm = nn.BatchNorm2d(channels)
        nn.init.zeros_(self.norm.weight)

    def on_frames(self, frames: Tensor, time: int) -> Tensor:
        window = (min(2, frames.shape[2]), min(2, frames.shape[3]))  # one row or column is not pooled
        attended = F.max_pool2d(frames, window) if self.pool == "before" else frames
        keys, values = self.phi(attended), self.g(attended)
        if self.pool == "after":
            keys, values = F.max_pool2d(keys, window), F.max_pool2d(values, window)
        # (B, 1 head, positions, channels)
        query, key, value = (positions(x, time).mT.unsqueeze(1) for x in (self.theta(frames), keys, values))
        if self.fused and not torch._C._are_functorch_transforms_active():
            y = F.scaled_dot_product_attention(
                query.contiguous(), key.contiguous(), value.contiguous(), scale=self.scale
            )
        else:
            y = (query @ key.mT * self.scale).softmax(dim=-1) @ value
        return frames + self.norm(self.out(frames_of(y[:, 0].mT, frames, time)))


class DoubleAttentionBlock(FeatureBlock):
    """A2: global descriptors are gathered by attention over positions and distributed by attention over descriptors.

    O(C^2 HW); C/4 features and C/4 descriptors. Its authors released no code.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.features, self.gather, self.distribute = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, bias=False)
        nn.init.zeros_(self.out.weight)

    def on_frames(self, frames: Tensor, time: int) -> Tensor:
        features, gather, distribute = (
            positions(conv(frames), time) for conv in (self.features, self.gather, self.distribute)
        )
        descriptors = features @ gather.softmax(dim=2).mT  # (B,C/4,C/4)
        y = descriptors @ distribute.softmax(dim=1)
        return frames + self.out(frames_of(y, frames, time))


class CompactNonLocalBlock(FeatureBlock):
    """CGNL: every pair of values of all positions and the channels of a group, O(C HW (P + 1)).

    Affinities are the Taylor series of order P of the Gaussian kernel exp(-gamma |a - b|^2) with |a| = |b| = 1, and
    are summed, not averaged.

    Args:
        channels: of the features.
        groups: of the C/2 inner channels, and of the convolution back.
        order: P.
    """

    gamma = 1e-4

    def __init__(self, channels: int, groups: int = 8, order: int = 3) -> None:
        super().__init__()
        inner = max(1, channels // 2)
        if inner % groups or channels % groups:
            raise ValueError(f"{groups} groups do not divide the {inner} inner channels of {channels}")
        self.groups, self.order = groups, order
        self.theta, self.phi, self.g = (nn.Conv2d(channels, inner, 1, bias=False) for _ in range(3))
        self.out = nn.Conv2d(inner, channels, 1, groups=groups, bias=False)
        self.norm = nn.GroupNorm(groups, channels)
        nn.init.zeros_(self.norm.weight)

    def on_frames(self, frames: Tensor, time: int) -> Tensor:
        y = self.attend(*(positions(conv(frames), time) for conv in (self.theta, self.phi, self.g)))
        return frames + self.norm(self.out(frames_of(y.to(frames.dtype), frames, time)))

    def attend(self, theta: Tensor, phi: Tensor, g: Tensor) -> Tensor:
        """(B,C/2,N) each -> (B,C/2,N), in float32 or float64."""
        with without_autocast(theta.device.type):
            shape = theta.shape
            theta, phi, g = (
                (x if x.dtype == torch.float64 else x.float()).unflatten(1, (self.groups, -1)).flatten(2)
                for x in (theta, phi, g)
            )
            y = torch.zeros_like(theta)
            power_theta, power_phi = torch.ones_like(theta), torch.ones_like(phi)
            for p in range(self.order + 1):
                if p:
                    power_theta, power_phi = power_theta * theta, power_phi * phi
                factor = (2 * self.gamma) ** p / math.factorial(p) * math.exp(-2 * self.gamma)
                affinity = (power_phi.unsqueeze(2) @ g.unsqueeze(3)).squeeze(3)  # (B,groups,1)
                y = torch.addcmul(y, power_theta, factor * affinity)
            return y.view(shape)


class CrissCrossAttention(nn.Module):
    """Every position attends to its row and its column: (N,C,H,W) -> the same, O(C HW (H + W))."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        inner = max(1, channels // 8)
        self.query, self.key = (nn.Conv2d(channels, inner, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.gamma = nn.Parameter(torch.zeros(1))

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


def _conv3x3(in_channels: int, out_channels: int) -> nn.Sequential:
    """With BN and LeakyReLU(0.01), the activation of CCNet's in-place normalisation."""
    conv = nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(out_channels), nn.LeakyReLU(0.01))


class RecurrentCrissCrossBlock(FeatureBlock):
    """RCCA of CCNet in every frame: a 3x3 convolution to C/4, two criss-cross attentions, a 3x3 convolution back.

    Args:
        channels: of the features.
        released: the head of CCNet's released code, without dropout and classifier, instead of the layout that fits the
            published counts. Both attentions share their weights, a further 3x3 convolution follows them, and the last
            one takes the input beside their result and replaces the features. It has three times the parameters, and
            does not start as the identity.
    """

    def __init__(self, channels: int, released: bool = False) -> None:
        super().__init__()
        inner = max(1, channels // 4)
        self.released = released
        self.reduce = _conv3x3(channels, inner)
        first = CrissCrossAttention(inner)
        self.passes = nn.Sequential(first, first if released else CrissCrossAttention(inner))
        if released:
            self.after = _conv3x3(inner, inner)
            self.merge = _conv3x3(channels + inner, channels)
        else:
            self.out = nn.Conv2d(inner, channels, 3, padding=1, bias=False)
            self.norm = nn.BatchNorm2d(channels)
            nn.init.zeros_(self.norm.weight)

    def on_frames(self, frames: Tensor, time: int) -> Tensor:
        y = self.passes(self.reduce(frames))
        if self.released:
            return self.merge(torch.cat([frames, self.after(y)], dim=1))
        return frames + self.norm(self.out(y))
