"""Depthwise short-term Fourier transform (STFT) layers with fixed filters, in one, two or three dimensions.

The layer follows Kumawat et al., "Depthwise Spatio-Temporal STFT Convolutional Neural Networks for Human Action
Recognition" (Section 3.1) and serves the two-dimensional layer of "Depthwise-STFT based separable Convolutional
Neural Networks" as well. For every position `x` and frequency variable `v` it computes

    F(v, x) = sum over y in N_x of f(y) exp(-j 2 pi v^T (x - y))                                       (Eq. 2)

over the window `N_x` of odd size `n_1 x ... x n_d` centred at `x` (Eq. 1). Samples outside the feature map are zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from functools import lru_cache
from itertools import groupby, product
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from common.spectral.constants import ConstantBuffers
from common.spectral.symbolic import fx_leaf

# Frequency sets of the paper for the axes (frames, height, width), in units of 1/n per axis.
ST_FREQUENCIES: tuple[tuple[int, int, int], ...] = (  # Figure 3, K = 13
    (1, 0, 0),
    (1, 0, 1),
    (1, 0, -1),
    (0, 1, 0),
    (0, 1, 1),
    (0, 1, -1),
    (1, 1, 0),
    (1, 1, 1),
    (1, 1, -1),
    (1, -1, 0),
    (1, -1, 1),
    (1, -1, -1),
    (0, 0, 1),
)
S_FREQUENCIES: tuple[tuple[int, int, int], ...] = ((0, 1, 0), (0, 0, 1), (0, 1, 1), (0, 1, -1))  # Section 3.2, K = 4
T_FREQUENCIES: tuple[tuple[int, int, int], ...] = ((1, 0, 0),)  # Section 3.2, K = 1

_reference: ContextVar[bool] = ContextVar("spectral_reference_implementation", default=False)


@contextmanager
def reference_implementation() -> Iterator[None]:
    """Inside this context every `DepthwiseSTFT` runs as one plain grouped convolution and every `STFTPointwise` as the
    plain composition of its parts.

    Counting operations, `torch.jit.trace` and ONNX export see only stock operators then.
    """
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def uses_reference_implementation() -> bool:
    """Whether to use stock operators only: in `reference_implementation()`, `torch.jit.trace` and `torch.export`."""
    return _reference.get() or torch.jit.is_tracing() or torch.compiler.is_exporting()


def autocast_dtype(device_type: str) -> torch.dtype | None:
    """The dtype of autocast where it is on, else None; also for devices that have none."""
    if torch.amp.is_autocast_available(device_type) and torch.is_autocast_enabled(device_type):
        return torch.get_autocast_dtype(device_type)
    return None


def without_autocast(device_type: str) -> AbstractContextManager[Any]:
    """A context in which operations keep the dtype of their inputs."""
    if not torch.amp.is_autocast_available(device_type):
        return nullcontext()
    if torch.onnx.is_in_onnx_export() and not torch.is_autocast_enabled(device_type):
        return nullcontext()  # ONNX knows no autocasting, and its exporter would split the graph at every context
    return torch.autocast(device_type, enabled=False)


def _check_kernel_size(kernel_size: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in kernel_size)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"kernel_size must have 1, 2 or 3 entries, one per axis, but is {sizes}")
    if any(n < 1 or n % 2 == 0 for n in sizes):
        raise ValueError(f"kernel_size must be odd and positive on every axis (n = 2r + 1, Eq. 1), but is {sizes}")
    if max(sizes) == 1:
        raise ValueError(f"kernel_size {sizes} has no axis larger than 1, so there is nothing to transform")
    return sizes


def lowest_frequencies(kernel_size: Sequence[int]) -> tuple[tuple[int, ...], ...]:
    """The paper's frequency set for a window: the lowest non-zero frequencies, one of each conjugate pair.

    Args:
        kernel_size: odd window size per axis, 1 to 3 axes. An axis of size 1 is not transformed and gets frequency 0.

    Returns:
        One tuple per frequency, in units of 1/n per axis, in the order of the paper: `K = 13` frequencies for three
        transformed axes (Figure 3), 4 for two and 1 for one (Section 3.2).

    Raises:
        ValueError: for an even or non-positive size, more than 3 axes, or no axis larger than 1.
    """
    sizes = _check_kernel_size(kernel_size)
    active = [axis for axis, n in enumerate(sizes) if n > 1]
    # Only the last axis counts for one transformed axis, the last two for two: T and S list zeros for the others.
    table = {1: ((0, 0, 1),), 2: S_FREQUENCIES, 3: ST_FREQUENCIES}[len(active)]
    result = []
    for v in table:
        full = [0] * len(sizes)
        for axis, m in zip(active, v[3 - len(active) :], strict=True):
            full[axis] = m
        result.append(tuple(full))
    return tuple(result)


def _check_frequencies(
    kernel_size: tuple[int, ...], frequencies: Sequence[Sequence[float]]
) -> tuple[tuple[float, ...], ...]:
    result = tuple(tuple(v) for v in frequencies)
    if not result:
        raise ValueError("frequencies is empty; give at least one frequency or None for the paper's set")
    seen: dict[tuple[float, ...], tuple[float, ...]] = {}
    for v in result:
        if len(v) != len(kernel_size):
            raise ValueError(
                f"frequency {v} has {len(v)} entries, but kernel_size {kernel_size} has {len(kernel_size)}"
            )
        for m, n in zip(v, kernel_size, strict=True):
            if n == 1 and m != 0:
                raise ValueError(f"frequency {v} is non-zero on an axis of size 1 of kernel_size {kernel_size}")
        # Frequencies are in units of 1/n and positions are whole numbers, so m and m + n are one frequency.
        alias = tuple(m % n for m, n in zip(v, kernel_size, strict=True))
        if alias in seen:
            raise ValueError(f"frequencies {seen[alias]} and {v} are the same for kernel_size {kernel_size}")
        seen[alias] = v
    return result


def stft_kernels(
    kernel_size: Sequence[int],
    frequencies: Sequence[Sequence[float]] | None = None,
) -> Tensor:
    """The transform matrix W of Eq. 8 as a convolution weight.

    PyTorch's convolution is a cross-correlation, `out(x) = sum_d w(d) f(x + d)`. With `y = x + d` Eq. 2 gives
    `w(d) = exp(+j 2 pi v^T d)` for `d` in `-r..r`: the real rows are cosines and the imaginary rows plus sines.

    Args:
        kernel_size: odd window size per axis, 1 to 3 axes.
        frequencies: K frequencies in units of 1/n per axis (they need not be whole), or None for `lowest_frequencies`.

    Returns:
        Tensor `(2K, *kernel_size)` in float64: for each frequency the real row, then the imaginary row (Eq. 7).

    Raises:
        ValueError: for an even size, an empty set, a frequency that does not fit the axes, or one given twice.
    """
    sizes = _check_kernel_size(kernel_size)
    chosen = _check_frequencies(sizes, lowest_frequencies(sizes) if frequencies is None else frequencies)
    rows = [row for v in chosen for row in _waves(sizes, v)]
    return torch.tensor(rows, dtype=torch.float64).reshape(2 * len(chosen), *sizes)


def _waves(sizes: tuple[int, ...], frequency: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """cos and sin of 2 pi v^T d for every offset d of the window."""
    offsets = product(*(range(-(n // 2), n // 2 + 1) for n in sizes))
    turns = [sum(m * d / n for m, d, n in zip(frequency, delta, sizes, strict=True)) for delta in offsets]
    angles = [2 * math.pi * turn for turn in turns]
    return tuple(map(math.cos, angles)), tuple(map(math.sin, angles))


_CONV: dict[int, Callable[..., Tensor]] = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}

# Matrix products gather (or scatter) the taps of a window in a buffer. The transpose of a window of more taps than this
# is computed in several stages, one per group of axes, which takes fewer operations.
_TAPS_PER_STAGE = 9
# Up to this many shifted additions, a window along one axis is computed by them, without any buffer.
_ADDITIONS_BY_SHIFT = 16
# Bounds the buffer of taps of the transpose, which is worked through in slices: this is faster, and saves memory. The
# buffer of the forward pass is about as large as the output, so slices would only cost a copy of it.
_BUFFER_BYTES = 16 * 2**20


class _StagePart(NamedTuple):
    """Rows `target` of the result of a stage are a matrix times the windows of its rows `source`.

    The matrix is given by its first entry in `DepthwiseSTFT.factors` and its shape.
    """

    target: slice
    source: slice
    start: int
    shape: tuple[int, int]

    def matrix(self, factors: Tensor) -> Tensor:
        return factors[self.start : self.start + math.prod(self.shape)].view(self.shape)


class _Stage(NamedTuple):
    """One factor of the transform: `rows` fields to the fields of the next stage, by windows along `axes`."""

    axes: tuple[int, ...]
    rows: int
    parts: list[_StagePart]


def _axis_groups(kernel_size: tuple[int, ...]) -> list[tuple[int, ...]]:
    """The axes larger than 1, in order, grouped so that a group has few taps (or is a single axis)."""
    groups: list[tuple[int, ...]] = []
    for axis, n in enumerate(kernel_size):
        if n == 1:
            continue
        if groups and math.prod(kernel_size[a] for a in groups[-1]) * n <= _TAPS_PER_STAGE:
            groups[-1] += (axis,)
        else:
            groups.append((axis,))
    return groups


@lru_cache  # the layers of a network have the same few filters
def _factorized(
    kernel_size: tuple[int, ...], frequencies: tuple[tuple[float, ...], ...]
) -> tuple[list[_Stage], list[float]]:
    """Factors of the filter matrix, one per group of axes, and the entries of all their matrices, one after another.

    The basis functions separate: exp(j 2 pi v^T d) is the product over the axes. Between two stages there is one
    complex field per distinct frequency of the axes done so far (a real one where that frequency is zero).
    """
    groups = _axis_groups(kernel_size)
    stages = []
    entries: list[float] = []
    done: tuple[int, ...] = ()
    fields: dict[tuple[float, ...], slice] = {(): slice(0, 1)}  # frequency of the axes done so far -> rows
    for axes in groups:
        first, done = len(done), done + axes
        last = axes == groups[-1]
        # The last stage writes every frequency in the order asked for, and always both parts.
        keys = [tuple(v[a] for a in done) for v in frequencies]
        keys = keys if last else list(dict.fromkeys(keys))
        rows_in, rows_out = max(rows.stop for rows in fields.values()), 0
        after: dict[tuple[float, ...], slice] = {}
        parts = []
        for before, run in groupby(keys, key=lambda key: key[:first]):
            matrix: list[tuple[float, ...]] = []
            start, source = rows_out, fields[before]
            for key in run:
                cos, sin = _waves(tuple(kernel_size[a] for a in axes), key[first:])
                real_only = source.stop - source.start == 1
                # (re + j im)(cos + j sin), or re (cos + j sin)
                matrix.append(cos if real_only else cos + tuple(-value for value in sin))
                if last or any(key):
                    matrix.append(sin if real_only else sin + cos)
                after[key] = slice(rows_out, start + len(matrix))
                rows_out = start + len(matrix)
            parts.append(_StagePart(slice(start, rows_out), source, len(entries), (len(matrix), len(matrix[0]))))
            entries += [value for row in matrix for value in row]
        stages.append(_Stage(axes, rows_in, parts))
        fields = after
    return stages, entries


def _border(field: Tensor, spatial: Sequence[int], axis: int, shift: int) -> Tensor:
    """The samples of `field (..., N)` whose neighbour at distance `shift` along an axis is outside the feature map."""
    lines = field.unflatten(-1, (-1, spatial[axis], math.prod(spatial[axis + 1 :])))
    width = min(abs(shift), spatial[axis])
    return lines.narrow(-2, spatial[axis] - width if shift > 0 else 0, width)


def _gather_taps(field: Tensor, spatial: Sequence[int], axes: tuple[int, ...], window: Sequence[int]) -> Tensor:
    """The samples in the window around every position: `(M, R, N)` to `(M, R, *window, N)`, f(x + d) at offset d.

    The spatial axes are flattened into N, so that a shift along any axis is one copy of a long contiguous run.
    """
    taps = field.new_empty(*field.shape[:2], *window, field.shape[-1])
    views = [taps]  # views[i] holds the central tap of the first i axes of the window
    for n in window:
        views.append(views[-1].select(2, n // 2))
    views[-1].copy_(field)
    for axis, n, view in reversed(list(zip(axes, window, views[:-1], strict=True))):
        for shift in (d for d in range(-(n // 2), n // 2 + 1) if d):
            target, source = view.select(2, n // 2 + shift), view.select(2, n // 2)
            offset = shift * math.prod(spatial[axis + 1 :])
            size = max(field.shape[-1] - abs(offset), 0)
            if size:
                target.narrow(-1, max(-offset, 0), size).copy_(source.narrow(-1, max(offset, 0), size))
            _border(target, spatial, axis, shift).zero_()
    return taps


def _scatter_taps(taps: Tensor, spatial: Sequence[int], axes: tuple[int, ...]) -> Tensor:
    """Transpose of `_gather_taps`: adds the tap at offset d to position x + d.

    Overwrites `taps` and returns a view `(M, R, N)` of it.
    """
    for axis in axes:
        n = taps.shape[2]
        target = taps.select(2, n // 2)
        for shift in (d for d in range(-(n // 2), n // 2 + 1) if d):
            source = taps.select(2, n // 2 + shift)
            offset = shift * math.prod(spatial[axis + 1 :])
            size = max(taps.shape[-1] - abs(offset), 0)
            _border(source, spatial, axis, shift).zero_()
            if size:
                target.narrow(-1, max(offset, 0), size).add_(source.narrow(-1, max(-offset, 0), size))
        taps = target
    return taps


def _product(matrix: Tensor, fields: Tensor) -> Tensor:
    """`matrix (R, S)` times `fields (M, S, N)`."""
    return torch.bmm(matrix.expand(fields.shape[0], -1, -1), fields)


def _joined(parts: list[Tensor], dim: int) -> Tensor:
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


class _FixedTransform(torch.autograd.Function):
    """The STFT of a layer or its transpose; each is the derivative of the other, in both modes and to any order."""

    @staticmethod
    def forward(x: Tensor, layer: DepthwiseSTFT, transpose: bool) -> Tensor:
        out = layer._transpose(x) if transpose else layer._analyse(x)
        # A view made in here could not be changed in place later, as an activation behind the layer may do.
        if torch.compiler.is_compiling():
            return out
        return out.new_empty(0).set_(out.untyped_storage(), out.storage_offset(), out.shape, out.stride())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, DepthwiseSTFT, bool], output: Tensor) -> None:
        _, ctx.layer, ctx.transpose = inputs

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return _fixed_transform(grad, ctx.layer, not ctx.transpose), None, None

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[int, None, None], x: Tensor, layer: DepthwiseSTFT, transpose: bool
    ) -> tuple[Tensor, int]:
        x = x.movedim(in_dims[0], 0)
        out = _fixed_transform(x.flatten(0, 1), layer, transpose)
        return out.unflatten(0, x.shape[:2]), 0


class _FixedTransformWithJvp(_FixedTransform):
    """With the forward-mode derivative, which `torch.compile` does not take."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, *_: None) -> Tensor:
        return _fixed_transform(tangent, ctx.layer, ctx.transpose)


def _fixed_transform(x: Tensor, layer: DepthwiseSTFT, transpose: bool) -> Tensor:
    function = _FixedTransform if torch.compiler.is_compiling() else _FixedTransformWithJvp
    return function.apply(x, layer, transpose)


class DepthwiseSTFT(ConstantBuffers):
    """Non-trainable depthwise STFT layer (Section 3.1): every channel becomes 2K channels.

    Shapes: input `(B, C, *S)` with one to three spatial axes, for video `(B, C, T, H, W)`; output `(B, C * 2K, *S')`.
    Output channel `c * 2K + 2k` is the real and `c * 2K + 2k + 1` the imaginary part of channel `c` at frequency `k`
    (Eq. 7). `S'` follows the rule of convolutions; with the defaults it is `S`. Samples outside the feature map count
    as zero. The feature map may be smaller than the window. The output is contiguous, whatever the input's strides.

    The filters are a buffer that is not saved, so the layer has no parameters and an empty state dict.

    Phase: the origin is the centre of the window and the sign is that of Eq. 2, so in one dimension
    `F(m/n, x) = conj(S[m]) exp(-j 2 pi m r / n)` where `S` is `torch.stft` with a rectangular window of `n = 2r + 1`
    samples centred at `x`.

    Computed in the fastest way known: by shifted additions for a window along one axis, otherwise by a matrix product
    or a convolution with channels folded into the batch, and by matrix products in the backward pass; by one grouped
    convolution for other strides and paddings. All have the same derivatives, to any order.

    Precision: under autocast the layer computes in the dtype of its filters (float32 unless converted) and returns
    that dtype. A layer converted to float64 has filters exact to float64.

    Args:
        in_channels: C.
        kernel_size: odd window size per axis; a single number needs `dims`.
        frequencies: K frequencies in units of 1/n per axis, or None for `lowest_frequencies(kernel_size)`.
        stride: of the output positions, one number or one per axis.
        padding: zeros added on both sides, one number or one per axis; None keeps the size ("same") at stride 1.
        dims: number of spatial axes, where `kernel_size` is a single number.

    Raises:
        ValueError: for sizes, frequencies, strides or paddings that do not fit, and in `forward` for a wrong shape.
        TypeError: in `forward` outside autocast, for an input of another dtype than the filters.
    """

    kernels: Tensor
    constants_in_half = True

    def __init__(
        self,
        in_channels: int,
        kernel_size: int | Sequence[int],
        frequencies: Sequence[Sequence[float]] | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        dims: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(kernel_size, int):
            if dims is None:
                raise ValueError(f"kernel_size={kernel_size} is one number: give dims=1, 2 or 3, or one size per axis")
            kernel_size = (kernel_size,) * dims
        elif dims is not None and dims != len(kernel_size):
            raise ValueError(f"kernel_size {tuple(kernel_size)} has {len(kernel_size)} axes, but dims={dims}")
        if in_channels < 1:
            raise ValueError(f"in_channels must be at least 1, but is {in_channels}")
        self.kernel_size = _check_kernel_size(kernel_size)
        chosen = lowest_frequencies(self.kernel_size) if frequencies is None else frequencies
        self.frequencies = _check_frequencies(self.kernel_size, chosen)
        self.in_channels = in_channels
        self.out_channels = in_channels * 2 * len(self.frequencies)
        same = tuple(n // 2 for n in self.kernel_size)
        self.stride = self._per_axis("stride", stride, smallest=1)
        self.padding = same if padding is None else self._per_axis("padding", padding, smallest=0)
        self._keeps_size = self.padding == same and set(self.stride) == {1}
        self._stages, _ = _factorized(self.kernel_size, self.frequencies)
        self._buffer_rows = max(s.rows * math.prod(self.kernel_size[a] for a in s.axes) for s in self._stages)
        self.register_constants()

    def _per_axis(self, name: str, value: int | Sequence[int], smallest: int) -> tuple[int, ...]:
        values = (value,) * len(self.kernel_size) if isinstance(value, int) else tuple(value)
        if len(values) != len(self.kernel_size) or min(values) < smallest:
            raise ValueError(
                f"{name} must be one number or {len(self.kernel_size)} numbers, at least {smallest}, but is {value}"
            )
        return values

    def constants(self) -> dict[str, Tensor]:
        """The filters, and the matrices of the stages behind one another."""
        _, factors = _factorized(self.kernel_size, self.frequencies)
        kernels = stft_kernels(self.kernel_size, self.frequencies).unsqueeze(1)
        return {"kernels": kernels, "factors": torch.tensor(factors, dtype=torch.float64)}

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, K={len(self.frequencies)}, "
            f"stride={self.stride}, padding={self.padding}"
        )

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        x = self._checked(x)
        with without_autocast(x.device.type):
            return self._forward(x)

    def _checked(self, x: Tensor) -> Tensor:
        """The input in the dtype of the filters, or an error that says what does not fit."""
        axes = len(self.kernel_size)
        if x.dim() != axes + 2 or x.shape[1] != self.in_channels:
            names = {1: "T", 2: "H, W", 3: "T, H, W"}[axes]
            raise ValueError(f"DepthwiseSTFT takes (B, {self.in_channels}, {names}), but got {tuple(x.shape)}")
        if x.dtype != self.kernels.dtype and autocast_dtype(x.device.type) is None:
            raise TypeError(f"DepthwiseSTFT has filters of {self.kernels.dtype}, but the input is {x.dtype}")
        return x.to(self.kernels.dtype)

    def _forward(self, x: Tensor) -> Tensor:
        """The transform of any number of channels."""
        if uses_reference_implementation() or not self._keeps_size or x.numel() == 0:
            weight = self.constant("kernels", x).repeat(x.shape[1], *[1] * (len(self.kernel_size) + 1))
            conv = _CONV[len(self.kernel_size)]
            return conv(x, weight, None, self.stride, self.padding, 1, x.shape[1])
        return _fixed_transform(x, self, transpose=False)

    def _by_shift(self) -> int | None:
        """The only axis of the window if shifted additions along it are the fastest way."""
        axes = [axis for axis, n in enumerate(self.kernel_size) if n > 1]
        if len(axes) == 1 and len(self.frequencies) * (self.kernel_size[axes[0]] - 1) * 2 <= _ADDITIONS_BY_SHIFT:
            return axes[0]
        return None

    def _shifts(self, axis: int) -> Iterator[tuple[int, int, float, float]]:
        """For every frequency and every offset but 0: frequency number, offset, cosine, sine."""
        n = self.kernel_size[axis]
        for k, v in enumerate(self.frequencies):
            for d in (d for d in range(-(n // 2), n // 2 + 1) if d):
                turn = 2 * math.pi * v[axis] * d / n
                yield k, d, math.cos(turn), math.sin(turn)

    def _analyse(self, x: Tensor) -> Tensor:
        """`W f` for stride 1 and "same" padding (Eq. 9), without recording derivatives."""
        batch, channels, *spatial = x.shape
        if (axis := self._by_shift()) is not None:
            out = x.new_empty(batch, channels, len(self.frequencies), 2, *spatial)
            out[:, :, :, 0] = x.unsqueeze(2)
            out[:, :, :, 1] = 0
            dim, size = axis + 2, spatial[axis]
            for k, d, cos, sin in self._shifts(axis):
                if abs(d) < size:
                    source = x.narrow(dim, max(d, 0), size - abs(d))
                    for row, factor in ((0, cos), (1, sin)):
                        out[:, :, k, row].narrow(dim, max(-d, 0), size - abs(d)).add_(source, alpha=factor)
            return out.view(batch, -1, *spatial)
        if math.prod(self.kernel_size) > _TAPS_PER_STAGE:
            folded = x.reshape(batch * channels, 1, *spatial)
            out = _CONV[len(spatial)](folded, self.constant("kernels", x), None, 1, self.padding)
            return out.reshape(batch, -1, *spatial)
        (stage,) = self._stages  # so few taps make one
        window = [self.kernel_size[a] for a in stage.axes]
        taps = _gather_taps(x.reshape(batch * channels, 1, -1), spatial, stage.axes, window)
        matrix = stage.parts[0].matrix(self.constant("factors", x))
        return _product(matrix, taps.flatten(1, -2)).view(batch, -1, *spatial)

    def _transpose(self, grad: Tensor) -> Tensor:
        """The transpose of `_analyse`: `W^T F`, from `(B, C * 2K, *S)` to `(B, C, *S)`."""
        batch, outputs, *spatial = grad.shape
        rows = 2 * len(self.frequencies)
        channels = outputs // rows
        if (axis := self._by_shift()) is not None:
            parts = grad.reshape(batch, channels, len(self.frequencies), 2, *spatial)
            out = parts[:, :, :, 0].sum(2)
            dim, size = axis + 2, spatial[axis]
            for k, d, cos, sin in self._shifts(axis):
                if abs(d) < size:
                    target = out.narrow(dim, max(d, 0), size - abs(d))
                    for row, factor in ((0, cos), (1, sin)):
                        source = parts[:, :, k, row].narrow(dim, max(-d, 0), size - abs(d))
                        target.add_(source, alpha=factor)
            return out
        fields = grad.reshape(batch * channels, rows, -1)
        factors = self.constant("factors", grad)
        step = max(1, _BUFFER_BYTES // (self._buffer_rows * fields.shape[-1] * fields.element_size()))
        # The number of slices depends on the batch; a compiler would compile for each number anew.
        slices = (fields,) if torch.compiler.is_compiling() else fields.split(step)
        results = []
        for result in slices:
            for stage in reversed(self._stages):
                window = [self.kernel_size[a] for a in stage.axes]
                total: dict[int, Tensor] = {}
                for part in stage.parts:
                    taps = _product(part.matrix(factors).t(), result[:, part.target]).unflatten(1, (-1, *window))
                    added = _scatter_taps(taps, spatial, stage.axes)
                    start = part.source.start
                    total[start] = total[start].add_(added) if start in total else added
                result = _joined([total[start] for start in sorted(total)], 1)
            results.append(result)
        return _joined(results, 0).reshape(batch, channels, *spatial)
