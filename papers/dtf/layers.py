"""Dynamic temporal filtering (Section 3) and the temporal modules it is compared with (Tables 1a and 1d).

Every module maps (B,C,T,H,W) to (B,C,T,H,W). Inside, tensors have frames before channels, (B,T,C,H,W): this is how the
C2D backbones hold them, and a transform over time is then one matrix product.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common.backbones.c2d_resnet import fold_frames, unfold_frames
from common.spectral import RealDFT
from common.spectral.stft import uses_reference_implementation, without_autocast

Preset = Literal["paper", "author"]


def _counting() -> bool:
    """Whether multiply-adds are counted: then every step runs as the operator that defines it."""
    return uses_reference_implementation() and not torch.compiler.is_exporting()


# Frame-wise aggregation (Eq. 6-8). A neighbourhood of k x k positions is visited one offset after the other, never
# copied out. Clips are padded by k // 2 on every side, and one row more below. Flattened, an offset is then a shift by
# a number of positions, and every step runs over whole maps; the columns in which rows meet are dropped at the end.


def _padded(frames: Tensor, k: int) -> Tensor:
    r = k // 2
    return F.pad(frames, (r, r, r, r + 1))


class _Maps:
    """Flat views of a padded clip (B,T,C,H+k,W+k-1): its frames, and as seen at every offset."""

    def __init__(self, padded: Tensor, k: int) -> None:
        self.k, self.row = k, padded.shape[-1]
        self.height, self.width = padded.shape[-2] - k, self.row - k + 1
        self.size = self.height * self.row
        self.flat = padded.flatten(3)

    def at(self, offset: int, flat: Tensor) -> Tensor:
        start = offset // self.k * self.row + offset % self.k
        return flat[..., start : start + self.size]

    def centre(self, flat: Tensor) -> Tensor:
        return self.at(self.k**2 // 2, flat)

    def rows(self, maps: Tensor) -> Tensor:
        """(...,H,W) as flat maps with rows as long as those of the padded clip."""
        return F.pad(maps, (0, self.k - 1)).flatten(-2)

    def cut(self, flat: Tensor) -> Tensor:
        return flat.unflatten(-1, (self.height, self.row))[..., : self.width].contiguous()

    def correlate(self, queries: Tensor, keys: Tensor) -> Tensor:
        products = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
        out = queries.new_empty(*queries.shape[:2], self.k**2, self.size)
        for i in range(self.k**2):
            torch.mul(queries, self.at(i, keys), out=products)
            torch.sum(products, dim=2, out=out[:, :, i])
        return self.cut(out)


class _Correlation(torch.autograd.Function):
    """Keeps the padded clip alone for its gradient, as does the aggregation, which is given the same one."""

    @staticmethod
    def forward(ctx: Any, padded: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(padded)
        ctx.k = k
        maps = _Maps(padded, k)
        return maps.correlate(maps.centre(maps.flat[:, :-1]), maps.flat[:, 1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (padded,) = ctx.saved_tensors
        maps = _Maps(padded, ctx.k)
        queries, keys, rows = maps.centre(maps.flat[:, :-1]), maps.flat[:, 1:], maps.rows(grad)
        out = torch.zeros_like(maps.flat)
        of_queries, of_keys = maps.centre(out[:, :-1]), out[:, 1:]
        for i in range(ctx.k**2):
            of_queries.addcmul_(rows[:, :, i : i + 1], maps.at(i, keys))
            maps.at(i, of_keys).addcmul_(rows[:, :, i : i + 1], queries)
        return out.view_as(padded), None


class _Aggregation(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, padded: Tensor, weights: Tensor, k: int) -> Tensor:
        ctx.save_for_backward(padded, weights)
        ctx.k = k
        maps = _Maps(padded, k)
        keys, rows = maps.flat[:, 1:], maps.rows(weights)
        out = maps.centre(maps.flat).clone(memory_format=torch.contiguous_format)
        for i in range(k**2):
            out[:, :-1].addcmul_(rows[:, :, i : i + 1], maps.at(i, keys))
        return maps.cut(out)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        padded, weights = ctx.saved_tensors
        maps = _Maps(padded, ctx.k)
        grad, rows = maps.rows(grad), maps.rows(weights)
        out = torch.zeros_like(maps.flat)
        maps.centre(out).copy_(grad)
        of_keys = out[:, 1:]
        for i in range(ctx.k**2):
            maps.at(i, of_keys).addcmul_(rows[:, :, i : i + 1], grad[:, :-1])
        return out.view_as(padded), maps.correlate(grad[:, :-1], maps.flat[:, 1:]), None


def frame_correlation(frames: Tensor, k: int = 3) -> Tensor:
    """Eq. 6: scalar products of every position with the k x k around it in the next frame, zero beyond the border.

    Args:
        frames: (B,T,C,H,W).
        k: odd side of the neighbourhood.

    Returns:
        (B,T-1,k*k,H,W); offset i is (i // k - k // 2, i % k - k // 2) in (y, x).
    """
    if _counting() or torch.compiler.is_compiling():
        return _correlation_of(frames[:, :-1], frames[:, 1:], k)
    return _Correlation.apply(_padded(frames, k), k)


def frame_aggregation(frames: Tensor, weights: Tensor, k: int = 3) -> Tensor:
    """Eq. 7 and 8: every frame but the last plus the weighted sum of the k x k around each position in the next one.

    Args:
        frames: (B,T,C,H,W).
        weights: (B,T-1,k*k,H,W), offsets as in `frame_correlation`.
        k: odd side of the neighbourhood.

    Returns:
        (B,T,C,H,W).
    """
    if _counting():
        sums = torch.einsum("btkhw,btckhw->btchw", weights, _unfolded(frames[:, 1:], k))
    elif torch.compiler.is_compiling():
        sums = torch.zeros_like(frames[:, 1:])
        for i, key in enumerate(_neighbours(frames[:, 1:], k)):
            sums = sums + weights[:, :, i : i + 1] * key
    else:
        return _Aggregation.apply(_padded(frames, k), weights, k)
    return frames + F.pad(sums, (0, 0, 0, 0, 0, 0, 0, 1))


def _neighbours(keys: Tensor, k: int) -> list[Tensor]:
    height, width = keys.shape[-2:]
    padded = F.pad(keys, (k // 2,) * 4)
    return [padded[..., i // k : i // k + height, i % k : i % k + width] for i in range(k * k)]


def _correlation_of(queries: Tensor, keys: Tensor, k: int) -> Tensor:
    """The correlation in stock operators."""
    if _counting():
        return torch.einsum("btchw,btckhw->btkhw", queries, _unfolded(keys, k))
    return torch.stack([(queries * key).sum(2) for key in _neighbours(keys, k)], dim=2)


def _unfolded(keys: Tensor, k: int) -> Tensor:
    """(B,T,C,H,W) -> (B,T,C,k*k,H,W): what the definitions are about, and all that a count needs."""
    return F.unfold(keys.flatten(0, 1), k, padding=k // 2).view(*keys.shape[:3], k * k, *keys.shape[3:])


class _CircularConvolution(torch.autograd.Function):
    """Sum over lags d of kernel[d] * frames[t - d], indices modulo T.

    Frames are (B,T,K,G,S) for S positions, the kernel is (B or 1,T,K,1,S or 1).
    """

    @staticmethod
    def forward(ctx: Any, frames: Tensor, kernel: Tensor) -> Tensor:
        ctx.save_for_backward(frames, kernel)
        return _circular(frames, kernel, 1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        frames, kernel = ctx.saved_tensors
        time = frames.shape[1]
        of_frames = _circular(grad, kernel, -1) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return of_frames, None
        of_kernel = torch.empty_like(kernel)
        dims = [i for i in range(5) if kernel.shape[i] == 1]
        for lag in range(time):
            # Frame by frame into one small map: the products of all frames are never held.
            products = grad[:, :1] * frames[:, -lag % time].unsqueeze(1)
            for t in range(1, time):
                products.addcmul_(grad[:, t : t + 1], frames[:, (t - lag) % time].unsqueeze(1))
            torch.sum(products, dim=dims, keepdim=True, out=of_kernel[:, lag : lag + 1])
        return of_frames, of_kernel


def _circular(frames: Tensor, kernel: Tensor, direction: int) -> Tensor:
    """The convolution (`direction` 1) or its transpose (-1)."""
    time = frames.shape[1]
    out = kernel[:, :1] * frames
    for lag in range(1, time):
        tap, n = kernel[:, lag : lag + 1], lag if direction == 1 else time - lag
        out[:, n:].addcmul_(tap, frames[:, : time - n])
        out[:, :n].addcmul_(tap, frames[:, time - n :])
    return out


#: longest clip whose filters run as a circular convolution on the spot, by measurement (`bench_dtf`)
_LONGEST_CONVOLUTION = 16


@dataclass(frozen=True)
class DTFOptions:
    """Where the paper's equations and the released code differ; the defaults are the equations.

    Attributes:
        skip: what the filtered feature is added to: the `enhanced` feature F' (Section 3.2) or the block's `input`.
        expand: how predicted filters are shared. `channel`: C/G filters, each for G neighbouring channels (Section
            3.2). `author`: every predicted number fills G neighbours in (channel, frequency, re/im) order, so that
            real and imaginary part are mostly equal.
        pairing: the frame that a correlation is stored at: that of the query, `next` being looked at (Eq. 6), or that
            of the keys, `previous` being compared, where the first frame is compared with itself.
        correlation_norm: `softmax`: the mean over channels, and its softmax over the neighbourhood as the weights of
            Eq. 7; `none`: the plain products as they stand in Eq. 6 and 7, which grow with the channels.
        mixing: a complex C x C matrix after the modulation.
        spectrum_norm: batch normalisation without weights of the filtered spectrum.
        time_bias: a trainable offset per channel of the output.
        fft_norm: of both transforms; without `spectrum_norm` it makes no difference.
        alpha_init: first value of the weight of the filtered feature, one per channel.
    """

    skip: Literal["enhanced", "input"] = "enhanced"
    expand: Literal["channel", "author"] = "channel"
    pairing: Literal["next", "previous"] = "next"
    correlation_norm: Literal["softmax", "none"] = "softmax"
    mixing: bool = False
    spectrum_norm: bool = False
    time_bias: bool = False
    fft_norm: Literal["backward", "ortho"] = "backward"
    alpha_init: float = 0.0


PRESETS: dict[str, DTFOptions] = {
    "paper": DTFOptions(),
    "author": DTFOptions(
        skip="input",
        expand="author",
        pairing="previous",
        mixing=True,
        spectrum_norm=True,
        time_bias=True,
        fft_norm="ortho",
    ),
}


class DTFBlock(nn.Module):
    """Dynamic temporal filter with frame-wise aggregation (Figure 4), (B,C,T,H,W) -> (B,C,T,H,W), any H and W.

    F' is F plus what the next frame holds around each position (Eq. 6-8; the last frame stays). A 1x1 convolution over
    all channels of all frames of F' and of the correlation predicts for every position a filter of M = T // 2 + 1
    complex values; F' is filtered with it over time (Eq. 4, 5) and added: F' + alpha * IFFT(FFT(F') x filter).

    With alpha 0, where it starts, the filtered feature counts nothing: the block gives F', with the author's preset
    or without aggregation its input, exactly.

    Args:
        channels: C.
        frames: T; the predictor belongs to this length, see `resampled`.
        kernel_size: odd side k of the neighbourhood.
        share: G, channels that share a filter.
        aggregation: False: F' is F (Table 1b).
        correlation: False: the filter is predicted from F' alone (Table 1b).
        dynamic: False: one trainable filter per channel for all positions and clips (DTF_F, Table 1a).
        preset: `paper`, `author` (the released code) or options of your own.

    Raises:
        ValueError: the number of channels cannot be shared out, or the input has other channels or frames.
    """

    def __init__(
        self,
        channels: int,
        frames: int,
        kernel_size: int = 3,
        share: int = 16,
        aggregation: bool = True,
        correlation: bool = True,
        dynamic: bool = True,
        preset: Preset | DTFOptions = "paper",
    ) -> None:
        super().__init__()
        self.options = _options(preset)
        self.channels, self.frames, self.kernel_size, self.share = channels, frames, kernel_size, share
        self.aggregation, self.correlation, self.dynamic = aggregation, correlation and dynamic, dynamic
        self.frequencies = frames // 2 + 1
        if frames < 1 or kernel_size < 1 or kernel_size % 2 == 0:
            raise ValueError(f"a DTF block takes frames >= 1 and an odd kernel_size, not {frames} and {kernel_size}")
        self.dft = RealDFT(frames, self.options.fft_norm)
        if dynamic:
            unit = channels if self.options.expand == "channel" else 2 * self.frequencies * channels
            if unit % share:
                raise ValueError(
                    f"share={share} channels per filter does not divide the {channels} channels of the block"
                    + ("" if unit == channels else f" times {2 * self.frequencies} values")
                )
            inputs = frames * (channels + (kernel_size**2 if self.correlation else 0))
            self.predict = nn.Conv2d(inputs, 2 * self.frequencies * channels // share, 1, bias=False)
            nn.init.kaiming_normal_(self.predict.weight, mode="fan_out", nonlinearity="relu")
        else:
            self.filter = nn.Parameter(torch.randn(self.frequencies, 2, channels) * 0.5**0.5)
        self.mix = nn.Parameter(torch.randn(2, channels, channels) * 0.02) if self.options.mixing else None
        self.norm = nn.BatchNorm2d(channels, affine=False) if self.options.spectrum_norm else None
        self.alpha = nn.Parameter(torch.full((channels, 1, 1), self.options.alpha_init))
        self.bias = nn.Parameter(torch.zeros(channels, 1, 1)) if self.options.time_bias else None

    def extra_repr(self) -> str:
        parts = f"channels={self.channels}, frames={self.frames}, kernel_size={self.kernel_size}, share={self.share}"
        off = [name for name in ("aggregation", "correlation", "dynamic") if not getattr(self, name)]
        return parts + "".join(f", {name}=False" for name in off)

    def forward(self, x: Tensor) -> Tensor:
        with without_autocast(x.device.type):
            enhanced, correlation = self._enhanced(x)
        predicted = self._filter(enhanced, correlation)
        with without_autocast(x.device.type):
            filtered = self._filtered(enhanced, predicted)
            skipped = enhanced if self.options.skip == "enhanced" else x.transpose(1, 2)
            out = torch.addcmul(skipped.to(filtered.dtype), filtered, self.alpha.to(filtered.dtype))
            if self.bias is not None:
                out = out + self.bias
        return out.to(x.dtype).transpose(1, 2)

    def filter_spectrum(self, x: Tensor) -> Tensor:
        """The filter at every position, complex (B,K,M,H,W), for `x`, an input of the block.

        K is C/G groups of channels, or all C channels where they do not share whole filters (preset `author`, DTF_F).
        """
        with torch.no_grad():
            enhanced, correlation = self._enhanced(x)
            real, imaginary = self._filter(enhanced, correlation).to(enhanced.dtype).unbind(2)
            return torch.complex(real, imaginary).transpose(1, 2).expand(len(x), -1, -1, *x.shape[3:])

    def kernel(self, x: Tensor) -> Tensor:
        """The circular temporal kernel that the filter is, (B,K,T,H,W): its inverse transform (Figure 7)."""
        return torch.fft.irfft(self.filter_spectrum(x), n=self.frames, dim=2)

    def resampled(self, frames: int) -> DTFBlock:
        """A block for clips of another length with the same filters.

        Filters are interpolated between frequencies of equal cycles per frame; the predictor's weights over the
        frames of the clip are stretched so that a clip without motion is given the same filter.
        """
        block = DTFBlock(
            self.channels,
            frames,
            self.kernel_size,
            self.share,
            self.aggregation,
            self.correlation,
            self.dynamic,
            self.options,
        ).to(self.alpha)
        state = self.state_dict()
        across = _frequency_resampling(self.frames, frames, zero_ends=self.mix is None).to(self.alpha)
        if self.dynamic:
            # How numbers of the old predictor make up new ones: spread out, interpolate, average what is shared.
            old, new = (b._sharing() for b in (self, block))  # (C,M,2)
            weights = across.permute(0, 2, 1)[None].expand(self.channels, -1, -1, -1)  # (C,M',2,M)
            to = new[..., None].expand(weights.shape)
            source = old.transpose(1, 2)[:, None].expand(weights.shape)
            matrix = self.alpha.new_zeros(block.predict.out_channels, self.predict.out_channels)
            matrix.index_put_((to, source), weights / self.share, accumulate=True)
            stretch = _time_stretch(self.frames, frames).to(self.alpha)
            weight = state["predict.weight"].flatten(1).unflatten(1, (self.frames, -1))
            weight = torch.einsum("po,st,otc->psc", matrix, stretch, weight)
            state["predict.weight"] = weight.flatten(1)[:, :, None, None]
        else:
            state["filter"] = torch.einsum("pmr,mrc->prc", across, state["filter"])
        block.load_state_dict(state)
        return block.train(self.training)

    def _enhanced(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """F' as (B,T,C,H,W) and the correlation as (B,T,k*k,H,W), None where the block does without; both float32."""
        if x.dim() != 5 or x.shape[1:3] != (self.channels, self.frames):
            raise ValueError(
                f"this DTF block takes (batch, {self.channels}, {self.frames} frames, height, width), not "
                f"{tuple(x.shape)}; for clips of another length use `resampled`"
            )
        frames = x.transpose(1, 2).to(torch.promote_types(x.dtype, torch.float32)).contiguous()
        if not self.aggregation and not self.correlation:
            return frames, None
        k = self.kernel_size
        softmax = self.options.correlation_norm == "softmax"
        scores = frame_correlation(frames, k) / (self.channels if softmax else 1)
        enhanced = (
            frame_aggregation(frames, scores.softmax(2) if softmax else scores, k) if self.aggregation else frames
        )
        if not self.correlation:
            return enhanced, None
        if self.options.pairing == "next":
            return enhanced, F.pad(scores, (0, 0, 0, 0, 0, 0, 0, 1))
        first = frame_correlation(frames[:, :1].expand(-1, 2, -1, -1, -1), k) / (self.channels if softmax else 1)
        return enhanced, torch.cat([first, scores], dim=1)

    def _filter(self, enhanced: Tensor, correlation: Tensor | None) -> Tensor:
        """(B,M,2,K,H,W), K channels or groups of channels; a static filter is (1,M,2,C,1,1)."""
        if not self.dynamic:
            return self.filter[None, ..., None, None]
        features = enhanced if correlation is None else torch.cat([enhanced, correlation], dim=2)
        predicted = self.predict(features.flatten(1, 2).to(self.predict.weight.dtype))
        if self.options.expand == "author":
            index = self._sharing().permute(1, 2, 0).flatten().to(predicted.device)
            predicted = predicted.index_select(1, index)
        return predicted.unflatten(1, (self.frequencies, 2, -1))

    def _sharing(self) -> Tensor:
        """Which number of the predictor each value (C,M,2) of the filters is."""
        shape = (self.channels, self.frequencies, 2)
        if self.options.expand == "author":
            return (torch.arange(math.prod(shape)) // self.share).view(shape)
        groups = torch.arange(self.channels) // self.share
        values = torch.arange(2 * self.frequencies).view(1, self.frequencies, 2)
        return groups[:, None, None] + values * (self.channels // self.share)

    def _filtered(self, enhanced: Tensor, spectrum_filter: Tensor) -> Tensor:
        """IFFT(FFT(F') x filter) with what the preset puts between, (B,T,C,H,W)."""
        f = spectrum_filter.to(enhanced.dtype)
        plain = self.mix is None and self.norm is None and not _counting() and not torch.compiler.is_compiling()
        if plain and self.frames <= _LONGEST_CONVOLUTION and enhanced.device.type == "cpu":
            # Eq. 3 the other way round: for short clips the convolution is less work than two transforms. It takes many
            # small steps, which cost little on a CPU alone.
            kernel = self.dft.inverse(f).flatten(3).unsqueeze(3)
            y = _CircularConvolution.apply(enhanced.unflatten(2, (kernel.shape[2], -1)).flatten(4), kernel)
            return y.view(enhanced.shape)
        shared = self.channels // f.shape[3]
        spectrum = self.dft(enhanced).unflatten(3, (f.shape[3], shared))
        f = f.unsqueeze(4)
        if _counting():
            product = _complex(spectrum) * _complex(f)
            product = product.flatten(2, 3)
            if self.mix is not None:
                product = (_complex(self.mix, 0) @ product.flatten(3)).view(product.shape)
            y = torch.view_as_real(product).movedim(-1, 2)
        else:
            (a, b), (c, d) = spectrum.unbind(2), f.unbind(2)
            y = torch.stack([a * c - b * d, a * d + b * c], dim=2).flatten(3, 4)
            if self.mix is not None:
                re, im = self.mix.to(y.dtype).unbind(0)
                weight = torch.cat([torch.cat([re, -im], 1), torch.cat([im, re], 1)])
                y = F.conv2d(y.flatten(2, 3).flatten(0, 1), weight[:, :, None, None]).view(y.shape)
        if self.norm is not None:
            y = self.norm(y.flatten(0, 2).to(self.alpha.dtype)).to(y.dtype).view(y.shape)
        return self.dft.inverse(y)


def _options(preset: Preset | DTFOptions) -> DTFOptions:
    if isinstance(preset, DTFOptions):
        return preset
    if preset not in PRESETS:
        raise ValueError(f"preset {preset!r} is not known; choose one of {', '.join(PRESETS)}, or give DTFOptions")
    return PRESETS[preset]


def _complex(x: Tensor, dim: int = 2) -> Tensor:
    return torch.view_as_complex(x.movedim(dim, -1).contiguous())


def _interpolation(old: Tensor, new: Tensor) -> Tensor:
    """Matrix (new, old) of linear interpolation from positions `old`, ascending, to `new`; constant beyond the ends."""
    right = torch.searchsorted(old, new).clamp(1, max(len(old) - 1, 1))
    if len(old) == 1:
        return torch.ones(len(new), 1, dtype=old.dtype)
    low, high = old[right - 1], old[right]
    share = ((new - low) / (high - low)).clamp(0, 1)
    matrix = torch.zeros(len(new), len(old), dtype=old.dtype)
    rows = torch.arange(len(new))
    matrix[rows, right - 1] = 1 - share
    matrix[rows, right] = share
    return matrix


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
    """A 2D convolution that looks at three frames: DTF_1d and Temporal Conv, (B,C,T,H,W) -> (B,out,T,H',W')."""

    def __init__(self, conv: nn.Conv2d) -> None:
        height, width = conv.kernel_size
        padding = (height // 2, width // 2)
        size, stride = (3, height, width), (1, *conv.stride)
        super().__init__(conv.in_channels, conv.out_channels, size, stride, (1, *padding), bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")


class DynamicTemporalConv(nn.Module):
    """DTF_1d+: `kernels` temporal convolutions, mixed at every position by a softmax over what its frames hold on
    average; (B,C,T,H,W) -> (B,out,T,H',W'). The 1D variant of dynamic convolution, with its temperature."""

    def __init__(self, conv: nn.Conv2d, kernels: int = 4, temperature: float = 30.0) -> None:
        super().__init__()
        size, self.stride = conv.kernel_size, conv.stride
        self.temperature = temperature
        self.weight = nn.Parameter(torch.empty(kernels, conv.out_channels, conv.in_channels, 3, *size))
        self.router = nn.Conv2d(conv.in_channels, kernels, 1, conv.stride)  # type: ignore[arg-type]
        for kernel in self.weight:
            nn.init.kaiming_normal_(kernel, mode="fan_out", nonlinearity="relu")

    def inflate(self, weight: Tensor) -> Tensor:
        """All kernels start as the image kernel at the middle frame."""
        inflated = torch.zeros_like(self.weight)
        inflated[:, :, :, 1] = weight
        return inflated

    def forward(self, x: Tensor) -> Tensor:
        mixture = (self.router(x.mean(2)) / self.temperature).softmax(1)  # (B,K,H',W')
        kernels, out, _, _, *size = self.weight.shape
        if uses_reference_implementation() and size == [1, 1]:
            # As defined: every position has a kernel of its own.
            kernel = torch.einsum("bkhw,koif->bhwoif", mixture, self.weight.flatten(3))
            x = F.pad(x, (0, 0, 0, 0, 1, 1)).unfold(2, 3, 1)
            return torch.einsum("bhwoif,bithwf->bothw", kernel, x[:, :, :, :: self.stride[0], :: self.stride[1]])
        padding = (1, size[0] // 2, size[1] // 2)
        y = F.conv3d(x, self.weight.flatten(0, 1), None, (1, *self.stride), padding)
        return (y.unflatten(1, (kernels, out)) * mixture[:, :, None, None]).sum(1)


class ShiftedConv(nn.Conv2d):
    """Temporal Shift: an eighth of the channels come from the next frame and an eighth from the one before, then a 2D
    convolution; (B,C,T,H,W) -> (B,out,T,H',W'). The weight is that of the convolution it replaces."""

    def __init__(self, conv: nn.Conv2d) -> None:
        size, stride, padding = conv.kernel_size, conv.stride, conv.padding
        super().__init__(conv.in_channels, conv.out_channels, size, stride, padding, bias=False)  # type: ignore[arg-type]
        nn.init.kaiming_normal_(self.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        n = self.in_channels // 8
        later = F.pad(x[:, :n, 1:], (0, 0, 0, 0, 0, 1))
        earlier = F.pad(x[:, n : 2 * n, :-1], (0, 0, 0, 0, 1, 0))
        y = super().forward(fold_frames(torch.cat([later, earlier, x[:, 2 * n :]], dim=1)))
        return unfold_frames(y, x.shape[2])


class CorrelationBlock(nn.Module):
    """Correlation: scalar products, with trainable weights over the channels, of every position with the k x k around
    it in the next frame; a 1x1 convolution of them is added to the input. It is zero at first."""

    def __init__(self, channels: int, kernel_size: int = 3) -> None:
        super().__init__()
        self.kernel_size = kernel_size
        self.weight = nn.Parameter(torch.ones(channels, 1, 1))
        self.project = nn.Conv2d(kernel_size**2, channels, 1, bias=False)
        nn.init.zeros_(self.project.weight)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)
        queries = frames[:, :-1] * (self.weight / len(self.weight))
        scores = _correlation_of(queries, frames[:, 1:], self.kernel_size)
        scores = F.pad(scores, (0, 0, 0, 0, 0, 0, 0, 1))
        return (frames + self.project(scores.flatten(0, 1)).view_as(frames)).transpose(1, 2)


class TemporalDifferenceBlock(nn.Module):
    """Temporal Difference: differences to the next and the previous frame, of `channels / reduction` channels and at
    three scales, raise or lower every channel at every position. It changes nothing at first.

    The long-term module of temporal difference networks; their short-term one works on pictures of a higher frame rate.
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
        nn.init.zeros_(self.expand[1].weight)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        time = x.shape[2]
        frames = fold_frames(x)
        reduced = self.reduce(frames)
        plain, aligned = unfold_frames(reduced, time), unfold_frames(self.align(reduced), time)
        ahead = F.pad(aligned[:, :, 1:] - plain[:, :, :-1], (0, 0, 0, 0, 0, 1))
        back = F.pad(aligned[:, :, :-1] - plain[:, :, 1:], (0, 0, 0, 0, 1, 0))
        gate = sum(self._gate(fold_frames(difference)) for difference in (ahead, back)) / 2
        return unfold_frames(frames + frames * (gate - 0.5), time)

    def _gate(self, difference: Tensor) -> Tensor:
        small = F.avg_pool2d(difference, 2, ceil_mode=True)
        coarse = F.interpolate(self.coarse(small), size=difference.shape[-2:], mode="nearest")
        return torch.sigmoid(self.expand((difference + self.fine(difference) + coarse) / 3))
