"""Depthwise short-term Fourier transform (STFT) layers with fixed filters, in one, two or three dimensions.

The layer follows Kumawat et al., "Depthwise Spatio-Temporal STFT Convolutional Neural Networks for Human Action
Recognition" (Section 3.1) and serves the two-dimensional layer of "Depthwise-STFT based separable Convolutional
Neural Networks" as well. For every position `x` and frequency variable `v` it computes

    F(v, x) = sum over y in N_x of f(y) exp(-j 2 pi v^T (x - y))                                       (Eq. 2)

over the window `N_x` of odd size `n_1 x ... x n_d` centred at `x` (Eq. 1). Samples outside the feature map are zero.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import product
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Implementation = Literal["auto", "separable", "convolution"]

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
    plain composition of its parts, whatever they were asked for.

    Counting operations, `torch.jit.trace` and ONNX export see only stock operators then.
    """
    token = _reference.set(True)
    try:
        yield
    finally:
        _reference.reset(token)


def uses_reference_implementation() -> bool:
    """Whether the layers run as stock operators now: inside `reference_implementation()` or under `torch.jit.trace`."""
    return _reference.get() or torch.jit.is_tracing()


def _check_kernel_size(kernel_size: Sequence[int]) -> tuple[int, ...]:
    sizes = tuple(int(n) for n in kernel_size)
    if not 1 <= len(sizes) <= 3:
        raise ValueError(f"kernel_size must have 1, 2 or 3 entries, one per axis, but is {sizes}")
    if any(n < 1 or n % 2 == 0 for n in sizes):
        raise ValueError(f"kernel_size must be odd and positive on every axis (n = 2r + 1, Eq. 1), but is {sizes}")
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
    if not active:
        raise ValueError(f"kernel_size {sizes} has no axis larger than 1, so there is no non-zero frequency")
    # T and S list their frequencies for the axis t and the axes h, w; drop the unused leading zeros.
    table = {1: [(1,)], 2: [v[1:] for v in S_FREQUENCIES], 3: list(ST_FREQUENCIES)}[len(active)]
    result = []
    for v in table:
        full = [0] * len(sizes)
        for axis, m in zip(active, v, strict=True):
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
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """The transform matrix W of Eq. 8 as a convolution weight.

    PyTorch's convolution is a cross-correlation, `out(x) = sum_d w(d) f(x + d)`. With `y = x + d` Eq. 2 gives
    `w(d) = exp(+j 2 pi v^T d)` for `d` in `-r..r`: the real rows are cosines and the imaginary rows plus sines.

    Args:
        kernel_size: odd window size per axis, 1 to 3 axes.
        frequencies: K frequencies in units of 1/n per axis (they need not be whole), or None for `lowest_frequencies`.
        dtype: of the result; computed in float64.

    Returns:
        Tensor `(2K, *kernel_size)`: for each frequency the real row, then the imaginary row (Eq. 7).

    Raises:
        ValueError: for an even size, an empty set, a frequency that does not fit the axes, or one given twice.
    """
    sizes = _check_kernel_size(kernel_size)
    chosen = _check_frequencies(sizes, lowest_frequencies(sizes) if frequencies is None else frequencies)
    offsets = [range(-(n // 2), n // 2 + 1) for n in sizes]
    rows: list[float] = []
    for v in chosen:
        turns = [sum(m * d / n for m, d, n in zip(v, delta, sizes, strict=True)) for delta in product(*offsets)]
        rows += [math.cos(2 * math.pi * turn) for turn in turns]
        rows += [math.sin(2 * math.pi * turn) for turn in turns]
    return torch.tensor(rows, dtype=torch.float64).reshape(2 * len(chosen), *sizes).to(dtype)


_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


class DepthwiseSTFT(nn.Module):
    """Non-trainable depthwise STFT layer (Section 3.1): each channel becomes 2K channels.

    Input `(B, C, *S)`, output `(B, C * 2K, *S')`; channel `c * 2K + 2k` holds the real part and `c * 2K + 2k + 1` the
    imaginary part of channel `c` at frequency `k` (Eq. 7). `S'` follows the usual convolution rule.
    """

    def __init__(
        self,
        in_channels: int,
        kernel_size: int | Sequence[int],
        frequencies: Sequence[Sequence[float]] | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        implementation: Implementation = "auto",
        dims: int | None = None,
    ) -> None:
        super().__init__()
        if isinstance(kernel_size, int):
            if dims is None:
                raise ValueError(f"kernel_size={kernel_size} is one number: say dims=1, 2 or 3, or give a tuple")
            kernel_size = (kernel_size,) * dims
        self.kernel_size = _check_kernel_size(kernel_size)
        axes = len(self.kernel_size)
        chosen = lowest_frequencies(self.kernel_size) if frequencies is None else frequencies
        self.frequencies = _check_frequencies(self.kernel_size, chosen)
        self.in_channels = in_channels
        self.out_channels = in_channels * 2 * len(self.frequencies)
        self.stride = (stride,) * axes if isinstance(stride, int) else tuple(stride)
        if padding is None:
            padding = tuple(n // 2 for n in self.kernel_size)
        self.padding = (padding,) * axes if isinstance(padding, int) else tuple(padding)
        self.implementation = implementation
        kernels = stft_kernels(self.kernel_size, self.frequencies).unsqueeze(1)
        self.register_buffer("kernels", kernels.to(torch.get_default_dtype()), persistent=False)

    kernels: Tensor

    def forward(self, x: Tensor) -> Tensor:
        kernels = self.kernels.to(x.dtype)
        weight = kernels.repeat(self.in_channels, 1, *[1] * len(self.kernel_size))
        conv = _CONV[len(self.kernel_size)]
        return conv(x, weight, None, self.stride, self.padding, 1, self.in_channels)
