"""Batch normalisation in evaluation, folded into the convolution before it: the same function in fewer passes.

Modules that are computed together are not called, so all of this is for modules as they were made: without hooks,
nothing put in their place, and no derivative, compiler, trace or count that wants to see them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.spectral.stft import uses_reference_implementation
from common.spectral.symbolic import is_proxy

_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
_FORWARD = (nn.Conv1d.forward, nn.Conv2d.forward, nn.Conv3d.forward)
CHANNELS_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


def only_stock_operators() -> bool:
    """Whether something looks at the operators: a compiler, a trace, a count or a transform of `torch.func`."""
    if torch.compiler.is_compiling() or uses_reference_implementation():
        return True
    return torch._C._are_functorch_transforms_active()


def hooked(*modules: nn.Module) -> bool:
    """Whether a call of one of these modules runs forward hooks, as those of a feature extractor."""
    return any(m._forward_hooks or m._forward_pre_hooks for m in modules)


def evaluates(x: Tensor) -> bool:
    """Whether a CPU evaluates: no derivatives are recorded, and nothing looks at the operators."""
    if is_proxy(x) or torch.is_grad_enabled() or only_stock_operators():
        return False
    return x.device.type == "cpu" and x.numel() > 0


def is_affine_map(norm: nn.Module) -> bool:
    """Whether `norm` is an ordinary batch normalisation in evaluation, `scale * x + shift` for every channel."""
    if not isinstance(norm, _BatchNorm) or type(norm) not in _NORMS or norm.training or hooked(norm):
        return False
    return norm.affine and norm.running_mean is not None


def scale_and_shift(norm: _BatchNorm) -> tuple[Tensor, Tensor]:
    """The affine map of a normalisation in evaluation, each of shape (C,), at least in float32."""
    assert norm.running_mean is not None
    assert norm.running_var is not None
    dtype = torch.promote_types(norm.running_var.dtype, torch.float32)  # in half precision eps would be lost
    scale = norm.weight.to(dtype) * torch.rsqrt(norm.running_var.to(dtype) + norm.eps)
    return scale, norm.bias.to(dtype) - norm.running_mean.to(dtype) * scale


def can_fold(conv: Any, norm: nn.Module) -> bool:
    """Whether `norm` is an affine map behind an ordinary convolution."""
    if not isinstance(conv, nn.modules.conv._ConvNd) or type(conv).forward not in _FORWARD or hooked(conv):
        return False
    return conv.padding_mode == "zeros" and is_affine_map(norm)


def folded(conv: Any, norm: Any) -> tuple[Tensor, Tensor]:
    """Weight and bias of the convolution that does the work of `conv` and `norm`, of the shapes of its own."""
    scale, shift = scale_and_shift(norm)
    weight = conv.weight * scale.view(-1, *[1] * (conv.weight.dim() - 1))
    bias = shift if conv.bias is None else shift + conv.bias * scale
    return weight.to(conv.weight.dtype), bias.to(conv.weight.dtype)


def conv_norm(conv: Any, norm: nn.Module, x: Tensor) -> Tensor:
    """`norm(conv(x))`, as one convolution where a CPU evaluates and that takes less time: folding passes over the
    weights as the normalisation does over the map.
    """
    if not evaluates(x) or not can_fold(conv, norm) or conv.weight.numel() > x.numel():
        return norm(conv(x))
    return apply_conv(conv, x, *folded(conv, norm))


def apply_conv(conv: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """`conv(x)` with another weight and bias.

    A 1x1x1 convolution of channels-last values runs as one over images, whose kernel takes all sizes: that over videos
    takes small inputs, and on one thread all, to a kernel for contiguous values.
    """
    pointwise = conv.kernel_size == (1, 1, 1) == conv.stride and conv.padding == (0, 0, 0) and conv.groups == 1
    if not pointwise or x.device.type != "cpu" or not is_channels_last(x):
        return conv._conv_forward(x, weight, bias)
    batch, _, time, height, width = x.shape
    y = F.conv2d(reshaped(x, batch, time * height, width), weight.squeeze(2), bias)
    return reshaped(y, batch, time, height, width)


def is_channels_last(x: Tensor) -> bool:
    """Whether a video (B,C,T,H,W) is in channels-last order and not also contiguous; False inside `torch.func`."""
    if torch._C._are_functorch_transforms_active():
        return False
    return x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous()


def reshaped(x: Tensor, batch: int, *sizes: int) -> Tensor:
    """A channels-last tensor (B,C,...) with other axes but C, a view. `flatten` gives an axis of size 1 a stride from
    which torch does not recognise the order.
    """
    return x.movedim(1, -1).reshape(batch, *sizes, x.shape[1]).movedim(-1, 1)
