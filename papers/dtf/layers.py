"""The dynamic temporal filter block (Section 3) and the temporal modules it is compared with (Tables 1a and 1d).

Every module maps a video (B,C,T,H,W) to one of the same shape, or of the channels and size of the convolution it
replaces. Inside, tensors have frames before channels, (B,T,C,H,W): C2D backbones hold them like this, and a transform
over time is one matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.backbones.c2d_resnet import fold_frames, unfold_frames
from common.backbones.options import changed
from common.spectral import RealDFT
from common.spectral.stft import without_autocast
from common.spectral.symbolic import fx_leaf
from papers.dtf.kernels import (
    circular_convolution,
    correlate,
    counts_operations,
    frame_aggregation,
    frame_correlation,
    kernels_apply,
)

Preset = Literal["paper", "author"]

#: where the paper's equations and the released code differ
PRESETS: dict[str, dict[str, Any]] = {
    "paper": {
        "skip": "enhanced",
        "expand": "channel",
        "pairing": "next",
        "mixing": False,
        "spectrum_norm": False,
        "time_bias": False,
        "fft_norm": "backward",
    },
    "author": {
        "skip": "input",
        "expand": "author",
        "pairing": "previous",
        "mixing": True,
        "spectrum_norm": True,
        "time_bias": True,
        "fft_norm": "ortho",
    },
}


@dataclass(frozen=True)
class DTFOptions:
    """Options of the DTF block. Those that are None are chosen by the preset.

    Attributes:
        preset: `paper`, the equations of the text, or `author`, the choices of the released code.
        kernel_size: k, the odd side of the neighbourhood that frames are correlated over.
        share: G, the number of channels that share a filter.
        aggregation: whether the next frame is aggregated into F' (Eq. 7 and 8, Table 1b); without, F' is F.
        correlation: whether the filter is predicted from the correlation too (Table 1b).
        correlation_norm: `softmax`: Eq. 6 is the mean over channels and its softmax over the neighbourhood gives the
            weights of Eq. 7. `none`: both are the plain products of the text, which grow with the channels.
        alpha_init: initial weight of the filtered feature, which is trained, one per channel.
        skip: what the filtered feature is added to: F' (`enhanced`, the paper) or the block's `input` (the author).
        expand: how predicted filters are shared. `channel` (the paper): C/G filters, each for G neighbouring channels.
            `author`: every predicted number fills G neighbours in (channel, frequency, re/im) order, so that real and
            imaginary parts are mostly equal.
        pairing: the frame that a correlation is stored at: that of the query (`next`, the paper), or that of the keys
            (`previous`, the author), where the first frame is correlated with itself.
        mixing: a complex C x C matrix after the modulation (the author).
        spectrum_norm: batch normalisation without weights of the modulated spectrum (the author).
        time_bias: a trainable offset per channel of the output (the author).
        fft_norm: of both transforms: `backward` (the paper) or `ortho` (the author). Without `spectrum_norm` it makes
            no difference.
    """

    preset: Preset = "paper"
    kernel_size: int = 3
    share: int = 16
    aggregation: bool = True
    correlation: bool = True
    correlation_norm: Literal["softmax", "none"] = "softmax"
    alpha_init: float = 0.0
    skip: Literal["enhanced", "input"] | None = None
    expand: Literal["channel", "author"] | None = None
    pairing: Literal["next", "previous"] | None = None
    mixing: bool | None = None
    spectrum_norm: bool | None = None
    time_bias: bool | None = None
    fft_norm: Literal["backward", "ortho"] | None = None

    def resolved(self) -> DTFOptions:
        """The same with the choices of the preset in place of None."""
        if self.preset not in PRESETS:
            raise ValueError(f"preset {self.preset!r} is not known; choose one of {', '.join(PRESETS)}")
        choices = PRESETS[self.preset]
        return replace(self, **{name: choices[name] for name in choices if getattr(self, name) is None})


class DTFBlock(nn.Module):
    """Dynamic temporal filter with frame-wise aggregation (Figure 4), (B,C,T,H,W) -> (B,C,T,H,W), any H and W.

    F' is F plus what the next frame holds around each position (Eq. 6-8; the last frame stays as it is). A 1x1
    convolution over all channels of all frames of F' and of the correlation predicts a filter of M = T // 2 + 1 complex
    values for every position; F' is filtered with it over time (Eq. 4, 5) and the result added:
    F' + alpha * IFFT(FFT(F') x filter).

    With alpha 0, where it starts, the filtered feature has no effect: the output is exactly F', and exactly the input
    with the author's preset or without aggregation.

    Args:
        channels: C.
        frames: T; the predictor's weights are for this length, see `resampled`.
        options: of the block.
        dynamic: False: one trainable filter per channel for all positions and clips (DTF_F, Table 1a).
        changes: options to change, by name.

    Raises:
        ValueError: an option is out of range, or the input has other channels or frames.
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        options: DTFOptions = DTFOptions(),
        dynamic: bool = True,
        **changes: Any,
    ) -> None:
        super().__init__()
        self.options = options = changed(options, changes).resolved()
        self.channels, self.frames, self.frequencies, self.dynamic = channels, frames, frames // 2 + 1, dynamic
        k, share = options.kernel_size, options.share
        if frames < 1 or k < 1 or k % 2 == 0:
            raise ValueError(f"a DTF block takes frames >= 1 and an odd kernel_size, not {frames} and {k}")
        assert options.fft_norm is not None
        self.dft = RealDFT(frames, options.fft_norm)
        self.uses_correlation = options.correlation and dynamic
        if dynamic:
            values = channels if options.expand == "channel" else 2 * self.frequencies * channels
            if values % share:
                raise ValueError(
                    f"share={share} channels per filter does not divide the {channels} channels of the block"
                    + ("" if values == channels else f" times {2 * self.frequencies} values")
                )
            inputs = frames * (channels + (k * k if self.uses_correlation else 0))
            self.predict = nn.Conv2d(inputs, 2 * self.frequencies * channels // share, 1, bias=False)
            nn.init.kaiming_normal_(self.predict.weight, mode="fan_out", nonlinearity="relu")
        else:
            self.filter = nn.Parameter(torch.randn(self.frequencies, 2, channels) * 0.5**0.5)
        self.mix = nn.Parameter(torch.randn(2, channels, channels) * 0.02) if options.mixing else None
        self.norm = nn.BatchNorm2d(channels, affine=False) if options.spectrum_norm else None
        self.alpha = nn.Parameter(torch.full((channels, 1, 1), options.alpha_init))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1)) if options.time_bias else None

    def extra_repr(self) -> str:
        standard = vars(DTFOptions().resolved())
        changed = [f"{k}={getattr(self.options, k)!r}" for k, v in standard.items() if getattr(self.options, k) != v]
        return ", ".join([f"{self.channels}, {self.frames} frames", f"dynamic={self.dynamic}", *changed])

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device.type):
            enhanced, correlation = self.aggregate(x)  # F' (B,T,C,H,W) and F_cor (B,T,k*k,H,W)
        spectral_filter = self.predict_filter(enhanced, correlation)  # S_c (B,M,2,K,H,W), K filters for C channels
        with without_autocast(x.device.type):
            spectral_filter = spectral_filter.to(enhanced.dtype)
            if self.convolves(enhanced):
                kernel = self.dft.inverse(spectral_filter)  # (B,T,K,H,W)
                filtered = circular_convolution(enhanced, kernel)  # f' (B,T,C,H,W) by Eq. 3
            else:
                spectrum = self.dft(enhanced)  # S (B,M,2,C,H,W)
                modulated = self.modulate(spectrum, spectral_filter)  # Eq. 4: S' (B,M,2,C,H,W)
                filtered = self.dft.inverse(modulated)  # Eq. 5: f' (B,T,C,H,W)
            residual = enhanced if self.options.skip == "enhanced" else x.transpose(1, 2).to(enhanced.dtype)
            out = torch.addcmul(residual, filtered, self.alpha.to(enhanced.dtype))  # f_o (B,T,C,H,W)
            if self.bias is not None:
                out = out + self.bias
        return out.to(x.dtype).transpose(1, 2)

    def aggregate(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Eq. 6 to 8: F' as (B,T,C,H,W), float32 at least, and the correlation as (B,T,k*k,H,W) if the filter is
        predicted from it."""
        if x.dim() != 5 or x.shape[1:3] != (self.channels, self.frames):
            raise ValueError(
                f"this DTF block takes (batch, {self.channels}, {self.frames} frames, height, width), not "
                f"{tuple(x.shape)}; for clips of another length use `resampled`"
            )
        options, k = self.options, self.options.kernel_size
        frames = x.transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32)).contiguous()  # F (B,T,C,H,W)
        if not options.aggregation and not self.uses_correlation:
            return frames, None
        softmax = options.correlation_norm == "softmax"
        scale = 1 / self.channels if softmax else 1.0
        scores = frame_correlation(frames, k) * scale  # Eq. 6: (B,T-1,k*k,H,W)
        weights = scores.softmax(2) if softmax else scores
        enhanced = frame_aggregation(frames, weights, k) if options.aggregation else frames  # Eq. 7, 8: (B,T,C,H,W)
        if not self.uses_correlation:
            return enhanced, None
        if options.pairing == "next":
            return enhanced, F.pad(scores, (0, 0, 0, 0, 0, 0, 0, 1))  # the last frame has no next one
        first = correlate(frames[:, :1], frames[:, :1], k) * scale
        return enhanced, torch.cat([first, scores], dim=1)

    def predict_filter(self, enhanced: Tensor, correlation: Tensor | None) -> Tensor:
        """S_c as (B,M,2,K,H,W) for K channels or groups of channels; a static filter is (1,M,2,C,1,1)."""
        if not self.dynamic:
            return self.filter[None, ..., None, None]
        features = enhanced if correlation is None else torch.cat([enhanced, correlation], dim=2)
        predicted = self.predict(features.flatten(1, 2).to(self.predict.weight.dtype))
        if self.options.expand == "author":
            index = self._sharing().permute(1, 2, 0).flatten().to(predicted.device)
            predicted = predicted.index_select(1, index)
        return predicted.unflatten(1, (self.frequencies, 2, -1))

    def convolves(self, frames: Tensor) -> bool:
        """Whether the filters run as the circular convolution that they are: nothing stands between the transforms, and
        the clip is short. It takes many small steps, which are cheap on a CPU alone."""
        plain = self.mix is None and self.norm is None
        return plain and self.frames <= 8 and frames.device.type == "cpu" and kernels_apply()

    def modulate(self, spectrum: Tensor, spectral_filter: Tensor) -> Tensor:
        """Eq. 4 and what the released code does after it: (B,M,2,C,H,W) -> (B,M,2,C,H,W)."""
        groups = spectral_filter.shape[3]
        grouped = spectrum.unflatten(3, (groups, -1))  # (B,M,2,K,C/K,H,W)
        product = _complex_product(grouped, spectral_filter.unsqueeze(4)).flatten(3, 4)
        if self.mix is not None:
            product = self._mixed(product)
        if self.norm is not None:
            flat = product.flatten(0, 2).to(self.alpha.dtype)
            product = self.norm(flat).to(product.dtype).view(product.shape)
        return product

    def _mixed(self, spectrum: Tensor) -> Tensor:
        assert self.mix is not None
        if counts_operations():
            y = _complex(self.mix, 0) @ _complex(spectrum, 2).flatten(3)
            return torch.view_as_real(y).movedim(-1, 2).view(spectrum.shape)
        re, im = self.mix.to(spectrum.dtype).unbind(0)
        weight = torch.cat([torch.cat([re, -im], 1), torch.cat([im, re], 1)])  # (2C,2C)
        return F.conv2d(spectrum.flatten(2, 3).flatten(0, 1), weight[:, :, None, None]).view(spectrum.shape)

    def filter_spectrum(self, x: Tensor) -> Tensor:
        """The filter at every position, complex (B,K,M,H,W), for `x`, an input of the block.

        K is C/G groups of channels, or all C channels where they do not share whole filters (preset `author`, DTF_F).
        """
        with torch.no_grad():
            enhanced, correlation = self.aggregate(x)
            real, imaginary = self.predict_filter(enhanced, correlation).to(enhanced.dtype).unbind(2)
            return torch.complex(real, imaginary).transpose(1, 2).expand(x.shape[0], -1, -1, *x.shape[3:])

    def kernel(self, x: Tensor) -> Tensor:
        """The circular temporal kernel that the filter is, (B,K,T,H,W): its inverse transform (Figure 7)."""
        return torch.fft.irfft(self.filter_spectrum(x), n=self.frames, dim=2)

    def resampled(self, frames: int) -> DTFBlock:
        """A block for clips of another length with the same filters.

        Filters are interpolated between frequencies of equal cycles per frame; the predictor's weights over the
        frames of the clip are stretched so that a clip without motion is given the same filter.
        """
        block = DTFBlock(self.channels, frames, self.options, self.dynamic).to(self.alpha)
        state = self.state_dict()
        across = _frequency_resampling(self.frames, frames, zero_ends=self.mix is None).to(self.alpha)
        if self.dynamic:
            # How numbers of the old predictor make up new ones: spread out, interpolate, average what is shared.
            old, new = (b._sharing() for b in (self, block))  # (C,M,2)
            weights = across.permute(0, 2, 1)[None].expand(self.channels, -1, -1, -1)  # (C,M',2,M)
            to = new[..., None].expand(weights.shape)
            source = old.transpose(1, 2)[:, None].expand(weights.shape)
            matrix = self.alpha.new_zeros(block.predict.out_channels, self.predict.out_channels)
            matrix.index_put_((to, source), weights / self.options.share, accumulate=True)
            stretch = _time_stretch(self.frames, frames).to(self.alpha)
            weight = state["predict.weight"].flatten(1).unflatten(1, (self.frames, -1))
            weight = torch.einsum("po,st,otc->psc", matrix, stretch, weight)
            state["predict.weight"] = weight.flatten(1)[:, :, None, None]
        else:
            state["filter"] = torch.einsum("pmr,mrc->prc", across, state["filter"])
        block.load_state_dict(state)
        return block.train(self.training)

    def _sharing(self) -> Tensor:
        """Which number of the predictor each value (C,M,2) of the filters is."""
        shape = (self.channels, self.frequencies, 2)
        if self.options.expand == "author":
            return (torch.arange(math.prod(shape)) // self.options.share).view(shape)
        groups = torch.arange(self.channels) // self.options.share
        values = torch.arange(2 * self.frequencies).view(1, self.frequencies, 2)
        return groups[:, None, None] + values * (self.channels // self.options.share)


def _complex(x: Tensor, dim: int) -> Tensor:
    return torch.view_as_complex(x.movedim(dim, -1).contiguous())


def _complex_product(x: Tensor, y: Tensor) -> Tensor:
    """Of complex numbers whose real and imaginary parts lie along dimension 2."""
    if counts_operations():
        return torch.view_as_real(_complex(x, 2) * _complex(y, 2)).movedim(-1, 2)
    (a, b), (c, d) = x.unbind(2), y.unbind(2)
    return torch.stack([a * c - b * d, a * d + b * c], dim=2)


def _interpolation(old: Tensor, new: Tensor) -> Tensor:
    """Matrix (new, old) of linear interpolation from positions `old`, ascending, to `new`; constant beyond the ends."""
    columns = [np.interp(new, old, basis) for basis in np.eye(len(old))]
    return torch.from_numpy(np.stack(columns, axis=1))


def _frequency_resampling(old: int, new: int, zero_ends: bool) -> Tensor:
    """(M',M,2): frequencies of a clip of `new` frames from those of one of `old`, for real and imaginary parts.

    `zero_ends`: the imaginary parts at 0 and at the highest of an even number have no effect; they count as zero.
    """
    before, after = (torch.arange(n // 2 + 1, dtype=torch.float64) / n for n in (old, new))
    matrix = _interpolation(before, after)[..., None].repeat(1, 1, 2)
    if zero_ends:
        matrix[:, 0, 1] = 0
        if old % 2 == 0:
            matrix[:, -1, 1] = 0
    return matrix


def _time_stretch(old: int, new: int) -> Tensor:
    """(T',T): weights over the frames of a clip of `new` frames from those for `old`; their sum is kept."""
    before, after = ((torch.arange(n, dtype=torch.float64) + 0.5) / n for n in (old, new))
    # The frames of the new clip that look at each old frame share its weight; a shorter clip leaves none out.
    matrix = _interpolation(before, after) if new >= old else _interpolation(after, before).T
    return matrix / matrix.sum(0)


# What the paper compares with (Tables 1a and 1d).


class TemporalConv(nn.Conv3d):
    """DTF_1d and Temporal Conv: the convolution that it replaces, over three frames; (B,C,T,H,W) -> (B,out,T,H',W')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        height, width = conv.kernel_size
        padding = (height // 2, width // 2)
        size, stride = (3, height, width), (1, *conv.stride)
        super().__init__(conv.in_channels, conv.out_channels, size, stride, (1, *padding), bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class DynamicTemporalConv(nn.Module):
    """DTF_1d+: dynamic convolution over time at every position; (B,C,T,H,W) -> (B,out,T,H',W').

    `kernels` kernels over three frames are mixed with the weights that two linear layers and a softmax give for the
    mean over the frames of the position, as dynamic convolution does for the mean over an image.

    Args:
        conv: the convolution that it replaces.
        kernels: the number of kernels.
        temperature: of the softmax, constant. The original lowers it from 30 to 1 in the first 10 epochs.
    """

    def __init__(self, conv: nn.Conv2d, kernels: int = 4, temperature: float = 30.0) -> None:
        super().__init__()
        size, self.stride = conv.kernel_size, conv.stride
        self.temperature = temperature
        self.weight = nn.Parameter(torch.empty(kernels, conv.out_channels, conv.in_channels, 3, *size))
        inner = max(conv.in_channels // 4, 1)
        self.router = nn.Sequential(
            nn.Conv2d(conv.in_channels, inner, 1, conv.stride),  # type: ignore[arg-type]
            nn.ReLU(),
            nn.Conv2d(inner, kernels, 1),
        )
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")

    def inflate(self, weight: Tensor) -> Tensor:
        """All kernels start as the image kernel at the middle frame."""
        inflated = torch.zeros_like(self.weight)
        inflated[:, :, :, 1] = weight
        return inflated

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        mixture = (self.router(x.mean(2)) / self.temperature).softmax(1)  # (B,K,H',W')
        kernels, out, _, _, *size = self.weight.shape
        if counts_operations() and size == [1, 1]:
            # As defined: every position has a kernel of its own.
            kernel = torch.einsum("bkhw,koif->bhwoif", mixture, self.weight.flatten(3))
            x = F.pad(x, (0, 0, 0, 0, 1, 1)).unfold(2, 3, 1)
            return torch.einsum("bhwoif,bithwf->bothw", kernel, x[:, :, :, :: self.stride[0], :: self.stride[1]])
        padding = (1, size[0] // 2, size[1] // 2)
        y = F.conv3d(x, self.weight.flatten(0, 1), None, (1, *self.stride), padding)
        return (y.unflatten(1, (kernels, out)) * mixture[:, :, None, None]).sum(1)


class ShiftedConv(nn.Conv2d):
    """Temporal Shift: an eighth of the channels come from the next frame and an eighth from the previous one, then the
    convolution that it replaces follows, with its weights; (B,C,T,H,W) -> (B,out,T,H',W')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        size, stride, padding = conv.kernel_size, conv.stride, conv.padding
        super().__init__(conv.in_channels, conv.out_channels, size, stride, padding, bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        n = self.in_channels // 8
        later = F.pad(x[:, :n, 1:], (0, 0, 0, 0, 0, 1))
        earlier = F.pad(x[:, n : 2 * n, :-1], (0, 0, 0, 0, 1, 0))
        y = super().forward(fold_frames(torch.cat([later, earlier, x[:, 2 * n :]], dim=1)))
        return unfold_frames(y, x.shape[2])


class CorrelationBlock(nn.Module):
    """Correlation: scalar products of every position with the k x k around it in the next frame, each with trainable
    weights over the channels, go through a 1x1 convolution and are added; (B,C,T,H,W) -> (B,C,T,H,W).

    The correlation operator of correlation networks: weights for every channel, frame and offset, results at the later
    frame, and the first frame correlated with itself. Their block reduces the channels before and has 7 x 7 offsets in
    32 groups; without, it costs the 23 GFLOPs of Table 1d. It changes nothing at first.
    """

    def __init__(self, channels: int, frames: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.full((frames, channels, kernel_size**2), 1 / channels))
        self.project = nn.Conv2d(kernel_size**2, channels, 1, bias=False)
        nn.init.zeros_(self.project.weight)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        before = torch.cat([frames[:, :1], frames[:, :-1]], dim=1)
        scores = correlate(before, frames, self.kernel_size, self.weight)  # (B,T,k*k,H,W)
        return (frames + self.project(scores.flatten(0, 1)).view(frames.shape)).transpose(1, 2)


class TemporalDifferenceBlock(nn.Module):
    """Temporal Difference: differences of a frame to its neighbours scale every channel at every position, then a
    depthwise convolution over three frames follows, a temporal shift at first; (B,C,T,H,W) -> (B,C,T,H,W).

    The long-term module of temporal difference networks. Their short-term one needs five frames for each of ours.
    """

    def __init__(self, channels: int, reduction: int = 16) -> None:
        super().__init__()
        inner = max(channels // reduction, 1)
        self.reduce = nn.Sequential(nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner))
        self.align = nn.Conv2d(inner, inner, 3, padding=1, groups=inner, bias=False)
        self.fine, self.coarse = (
            nn.Sequential(nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)) for _ in range(2)
        )
        self.expand = nn.Sequential(nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels))
        self.shift = nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False)
        with torch.no_grad():
            nn.init.zeros_(self.shift.weight)
            n = channels // 8
            for part, tap in ((slice(n), 2), (slice(n, 2 * n), 0), (slice(2 * n, None), 1)):
                self.shift.weight[part, :, tap] = 1

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[2]
        reduced = self.reduce(fold_frames(x))
        plain, aligned = unfold_frames(reduced, time), unfold_frames(self.align(reduced), time)
        ahead = F.pad(aligned[:, :, 1:] - plain[:, :, :-1], (0, 0, 0, 0, 0, 1))
        back = F.pad(aligned[:, :, :-1] - plain[:, :, 1:], (0, 0, 0, 0, 1, 0))
        gate = (self._gate(fold_frames(ahead)) + self._gate(fold_frames(back))) / 2
        return self.shift(x + x * unfold_frames(gate - 0.5, time))

    def _gate(self, difference: Tensor) -> Tensor:
        height, width = difference.shape[-2:]
        one_line = height < 2 or width < 2
        small = F.avg_pool2d(difference, 2, ceil_mode=True) if one_line else F.avg_pool2d(difference, 2)
        coarse = F.interpolate(self.coarse(small), size=(height, width), mode="nearest")
        return torch.sigmoid(self.expand((difference + self.fine(difference) + coarse) / 3))
