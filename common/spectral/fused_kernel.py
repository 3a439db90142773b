"""A fused kernel for NVIDIA GPUs: STFT, normalisation, activation and 1x1 convolution in evaluation.

The stock composition writes 2K channels for each one of the input, 26 for the paper's window of 3x3x3, and reads them
again in each of its four passes. The kernel keeps them in registers: a program loads the windows of some positions of
one or a few channels, multiplies them by the filters, normalises and activates the responses, and multiplies them by
the rows of the 1x1 convolution that they meet.

It runs inside `fused_kernels()`, or everywhere if the environment variable `SPECTRAL_TRITON` is 1, where
`reason_against` finds no reason against it. This is not the default, since its speed has not been measured yet;
`make gpu` measures it.
"""

from __future__ import annotations

import importlib.util
import logging
import math
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from common.spectral.folding import CHANNELS_LAST
from common.spectral.stft import _CONV, without_autocast

_log = logging.getLogger(__name__)
_enabled: ContextVar[bool] = ContextVar("spectral_triton", default=os.environ.get("SPECTRAL_TRITON") == "1")
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
#: `tl.dot` multiplies matrices of at least so many rows and columns.
_SMALLEST = 16
# With these, no register is spilled to memory on sm_80 and sm_90, as a test checks.
_BLOCK_POSITIONS = 64
_BLOCK_FEATURES = 64
_WARPS = 8
_STAGES = 2


@contextmanager
def fused_kernels(enabled: bool = True) -> Iterator[None]:
    """Inside this context, evaluation uses the fused kernel where it can, or never."""
    if enabled:
        _register_flops()
    token = _enabled.set(enabled)
    try:
        yield
    finally:
        _enabled.reset(token)


def negative_slope(activation: nn.Module) -> float | None:
    """The slope below zero of an activation that is linear on both sides; None for any other."""
    if type(activation) is nn.LeakyReLU:
        return activation.negative_slope
    return {nn.ReLU: 0.0, nn.Identity: 1.0}.get(type(activation))


def usable(x: Tensor, activation: nn.Module, features: int) -> bool:
    """Whether to use the kernel on an input (B,C,*S). The reason against it is logged as a debug message."""
    if not _enabled.get():
        return False
    reason = reason_against(x, activation, features)
    if reason is not None and not torch.compiler.is_compiling():
        _log.debug("the fused STFT kernel is not used: %s", reason)
    return reason is None


def reason_against(x: Tensor, activation: nn.Module, features: int) -> str | None:
    """Why the kernel cannot be used on an input (B,C,*S) and an activation; None if it can."""
    reason = None
    if x.device.type != "cuda":
        reason = f"the input is on {x.device.type}, not on a CUDA device"
    elif importlib.util.find_spec("triton") is None:  # it comes with the CUDA builds of PyTorch
        reason = "triton is not installed"
    elif torch.cuda.get_device_capability(x.device) < (8, 0):
        reason = "the GPU is older than compute capability 8.0"
    elif x.dtype not in _DTYPES:
        reason = f"it does not compute in {x.dtype}"
    elif negative_slope(activation) is None:
        reason = f"it does not know the activation {type(activation).__name__}"
    elif max(x.numel(), x.numel() // x.shape[1] * features) >= 2**31:
        reason = "a tensor has 2^31 elements or more"
    elif x.numel() == 0:
        reason = "the input is empty"
    return reason


@torch.library.custom_op("spectral_video::stft_pointwise", mutates_args=())
def stft_pointwise(
    x: Tensor,
    kernels: Tensor,
    scale: Tensor,
    shift: Tensor,
    slope: float,
    weight: Tensor,
    bias: Tensor | None,
    stride: Sequence[int],
    padding: Sequence[int],
) -> Tensor:
    """STFT, an affine map per channel, leaky ReLU and a 1x1 convolution. It has no derivative.

    On CUDA devices this is the fused kernel, on others the stock operators.

    Args:
        x: (B, C, *S) with one to three axes.
        kernels: (2K, 1, *kernel_size), see `stft_kernels`; float32, and rounded to TF32 if weight is in half precision.
        scale, shift: (2K C,) in float32.
        slope: of the activation below zero.
        weight: (out_channels, 2K C). The output has its dtype.
        bias: (out_channels,) or None.
        stride, padding: of the window, one number per axis.

    Returns:
        (B, out_channels, *S'), in the memory format of `x`.
    """
    conv = _CONV[x.dim() - 2]
    ones = [1] * (x.dim() - 2)
    filters = kernels.repeat(x.shape[1], 1, *ones)
    with without_autocast(x.device.type):
        y = conv(x.to(kernels.dtype), filters, None, list(stride), list(padding), 1, x.shape[1])
        y = F.leaky_relu(y * scale.view(-1, *ones) + shift.view(-1, *ones), slope).to(weight.dtype)
        out = conv(y, weight.view(*weight.shape, *ones), None if bias is None else bias.to(weight.dtype))
    return out.contiguous(memory_format=_memory_format(x))


@stft_pointwise.register_fake
def _(*arguments: Any) -> Tensor:
    x, kernels, _, _, _, weight, _, stride, padding = arguments
    return _empty_output(x, kernels.shape[2:], weight, stride, padding)


@stft_pointwise.register_kernel("cuda")
def _(x: Tensor, *arguments: Any) -> Tensor:
    from common.spectral.triton_kernel import stft_pointwise_kernel

    with torch.cuda.device(x.device):
        return launch(stft_pointwise_kernel, x, *arguments)


def _register_flops() -> None:
    """Make the operator known to PyTorch's FLOP counter, whose import takes most of a second."""
    from torch.utils.flop_counter import flop_registry, register_flop_formula

    if torch.ops.spectral_video.stft_pointwise not in flop_registry:
        register_flop_formula(torch.ops.spectral_video.stft_pointwise)(_flops)


def _flops(*shapes: Any, out_shape: Any, **_: Any) -> int:
    x, kernels, _, _, _, weight = shapes[:6]
    positions = out_shape[0] * math.prod(out_shape[2:])
    return 2 * positions * (x[1] * math.prod(kernels) + math.prod(weight))


if _enabled.get():
    _register_flops()


def _memory_format(x: Tensor) -> torch.memory_format:
    last = CHANNELS_LAST.get(x.dim(), torch.contiguous_format)
    return last if x.is_contiguous(memory_format=last) and not x.is_contiguous() else torch.contiguous_format


def _empty_output(
    x: Tensor, window: Sequence[int], weight: Tensor, stride: Sequence[int], padding: Sequence[int]
) -> Tensor:
    size = [(n + 2 * p - k) // s + 1 for n, k, s, p in zip(x.shape[2:], window, stride, padding, strict=True)]
    shape = (x.shape[0], weight.shape[0], *size)
    return torch.empty(shape, dtype=weight.dtype, device=x.device, memory_format=_memory_format(x))


def packing(taps: int, rows: int) -> tuple[int, int, int]:
    """How many channels a step takes so that small windows fill a matrix product, and its padded taps and rows."""
    pack = max(1, _SMALLEST // rows)
    return pack, _padded(pack * taps), _padded(pack * rows)


def _padded(size: int) -> int:
    return max(_SMALLEST, 1 << (size - 1).bit_length())


def launch(kernel: Any, x: Tensor, *arguments: Any) -> Tensor:
    """Run `stft_pointwise_kernel`, or the same in Triton's interpreter; the arguments are those of `stft_pointwise`."""
    kernels, scale, shift, slope, weight, bias, stride, padding = arguments
    out = _empty_output(x, kernels.shape[2:], weight, stride, padding)
    missing = 5 - x.dim()  # a window of one or two axes is one of three with sizes of 1 in front
    window, strides, pads = (
        (fill,) * missing + tuple(values) for fill, values in ((1, kernels.shape[2:]), (1, stride), (0, padding))
    )
    video, result = (t.reshape(*t.shape[:2], *[1] * missing, *t.shape[2:]) for t in (x, out.view(out.shape)))
    rows, taps = kernels.shape[0], math.prod(window)
    pack, padded_taps, padded_rows = packing(taps, rows)
    filters = torch.block_diag(*[kernels.flatten(1).t().float()] * pack)  # every channel has the same ones
    filters = F.pad(filters, (0, padded_rows - pack * rows, 0, padded_taps - pack * taps))
    features = weight.shape[0]
    block_features = min(_BLOCK_FEATURES, _padded(features))
    positions = result.shape[0] * math.prod(result.shape[2:])
    exact = weight.dtype == torch.float32 and not torch.backends.cudnn.allow_tf32
    grid = (-(-positions // _BLOCK_POSITIONS), -(-features // block_features))
    kernel[grid](
        video,
        filters,
        scale.float(),
        shift.float(),
        weight.t().contiguous(),
        scale.float() if bias is None else bias.float(),
        result,
        positions,
        x.shape[1],
        features,
        *result.shape[2:],
        *video.shape[2:],
        *video.stride(),
        *result.stride(),
        *strides,
        *pads,
        slope,
        HAS_BIAS=bias is not None,
        KERNEL_T=window[0],
        KERNEL_H=window[1],
        KERNEL_W=window[2],
        ROWS=rows,
        PACK=pack,
        TAPS_PADDED=padded_taps,
        ROWS_PADDED=padded_rows,
        BLOCK_POSITIONS=_BLOCK_POSITIONS,
        BLOCK_FEATURES=block_features,
        PRECISION="ieee" if exact else "tf32",
        num_warps=_WARPS,
        num_stages=_STAGES,
    )
    return out
