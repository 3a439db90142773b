"""The STFT segment of a network (STFT, batch normalisation, activation, 1x1 convolution) as one module.

An STFT layer with K = 13 makes 26 channels of each one, and the stock composition keeps three such tensors for the
backward pass (two with an in-place activation): 78 (52) times the input. `STFTPointwise` can keep the input only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from common.spectral import fused_kernel
from common.spectral.folding import (
    CHANNELS_LAST,
    apply_conv,
    can_fold,
    folded,
    hooked,
    is_affine_map,
    only_stock_operators,
    reshaped,
    scale_and_shift,
)
from common.spectral.stft import (
    _CONV,
    DepthwiseSTFT,
    autocast_dtype,
    uses_reference_implementation,
    without_autocast,
)
from common.spectral.symbolic import is_proxy

_NORM: dict[int, type[_BatchNorm]] = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
_POINTWISE: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
# Activations that act on every value alone, draw nothing at random and have no parameters: these can be recomputed
# for some of the channels at a time.
_ELEMENTWISE = (nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.SiLU, nn.GELU, nn.Identity)
# The memory-efficient training pass works through the channels in up to this many slices, of at least this many bytes
# each: smaller ones cost time and save little.
_CHANNEL_SLICES = 8
_SLICE_BYTES = 4 * 2**20


class _RunningStatisticsKept:
    """A context in which batch normalisation layers compute as before, but leave their running statistics alone.

    It may be entered again, as a second derivative does.
    """

    def __init__(self, module: nn.Module) -> None:
        self.norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.track_running_stats]

    def __enter__(self) -> None:
        names = ("running_mean", "running_var", "num_batches_tracked")
        self.kept = [(norm, name, getattr(norm, name)) for norm in self.norms for name in names]
        for norm, name, buffer in self.kept:
            setattr(norm, name, buffer.clone())

    def __exit__(self, *_: object) -> None:
        for norm, name, buffer in self.kept:
            setattr(norm, name, buffer)


def _recomputed(function: Callable[[Tensor], Tensor], module: nn.Module, x: Tensor) -> Tensor:
    """`function(x)`, which runs parts of `module`, recomputed in the backward pass."""
    return checkpoint(
        function, x, use_reentrant=False, context_fn=lambda: (nullcontext(), _RunningStatisticsKept(module))
    )


def checkpoint_once(module: nn.Module, x: Tensor) -> Tensor:
    """`module(x)` that keeps only `x` for the backward pass and recomputes the rest there.

    Unlike plain checkpointing, batch normalisation layers update their running statistics once, not twice, so that
    training gives the same module as without. Random layers draw the same values in both passes, autocast is
    restored, and it works under distributed training. Without gradients, in `reference_implementation()`, under
    `torch.func` and under `torch.compile` (whose compiler decides itself what to recompute) it is `module(x)`.

    Args:
        module: any module, for example an `nn.Sequential` of STFT, norm, activation and convolutions.
        x: its only input.

    Returns:
        The output of the module; gradients and updated running statistics equal those of `module(x)`.
    """
    if not torch.is_grad_enabled() or only_stock_operators():
        return module(x)
    return _recomputed(module, module, x)


class _SlicedTraining(torch.autograd.Function):
    """Training pass of `STFTPointwise` over slices of the channels; keeps the input and the parameters only.

    Batch normalisation works on every channel alone and the 1x1 convolution is a sum over channels, so a slice of
    the input channels gives its share of the output without the others.
    """

    @staticmethod
    def forward(x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor, block: STFTPointwise) -> Tensor:
        device = x.device.type
        dtype = autocast_dtype(device) or weight.dtype
        x = block.stft._checked(x)
        out: Tensor | None = None
        with without_autocast(device):
            momentum = block._count_batch()
            matrix = weight.flatten(1).to(dtype)
            for channels, rows in block._slices(x):
                y = block._normalised(x[:, channels], gamma[rows], beta[rows], rows, momentum)
                y = block._activated(y)
                part = torch.bmm(matrix[:, rows].expand(len(y), -1, -1), y.flatten(2).to(dtype))
                # The sum over slices is kept in the dtype of the parameters, also under autocast.
                out = part.to(weight.dtype) if out is None else out.add_(part)
        assert out is not None
        return out.to(dtype).unflatten(2, y.shape[2:])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        *tensors, ctx.block = inputs
        ctx.save_for_backward(*tensors)
        # The dtype of the 1x1 convolution; the rest is computed in that of the filters.
        ctx.dtype = output.dtype

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, gamma, beta, weight = ctx.saved_tensors
        with without_autocast(x.device.type):
            if torch.is_grad_enabled():  # a second derivative is wanted
                return _SlicedTraining._differentiable_gradients(ctx, grad)
            return _SlicedTraining._gradients(ctx.block, ctx.dtype, grad.flatten(2), x, gamma, beta, weight)

    @staticmethod
    def _gradients(
        block: STFTPointwise, dtype: torch.dtype, grad: Tensor, x: Tensor, gamma: Tensor, beta: Tensor, weight: Tensor
    ) -> tuple[Tensor | None, ...]:
        grad_x = torch.empty_like(x, memory_format=torch.contiguous_format)
        grad_gamma, grad_beta, grad_matrix = (torch.empty_like(t) for t in (gamma, beta, weight.flatten(1)))
        matrix = weight.flatten(1).t().to(dtype)
        for channels, rows in block._slices(x):
            leaves = [t.detach().requires_grad_() for t in (x[:, channels].to(gamma.dtype), gamma[rows], beta[rows])]
            with torch.enable_grad():
                y = block.activation(block._normalised(leaves[0], leaves[1], leaves[2], rows, None))
            values = y.detach().flatten(2).to(dtype)
            grad_matrix[:, rows] = torch.bmm(grad, values.transpose(1, 2)).sum(0)
            del values
            grad_y = torch.bmm(matrix[rows].expand(len(x), -1, -1), grad).to(y.dtype).view_as(y)
            grad_x[:, channels], grad_gamma[rows], grad_beta[rows] = torch.autograd.grad(y, leaves, grad_y)
        return grad_x, grad_gamma, grad_beta, grad_matrix.view_as(weight), None

    @staticmethod
    def _differentiable_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of all channels at once, as functions of the inputs."""
        x, gamma, beta, weight = ctx.saved_tensors
        y = ctx.block.activation(ctx.block._normalised(x.to(gamma.dtype), gamma, beta, slice(None), None))
        matrix = weight.flatten(1).to(ctx.dtype)
        out = torch.bmm(matrix.expand(len(x), -1, -1), y.flatten(2).to(ctx.dtype)).view_as(grad)
        needed = [i for i in range(4) if ctx.needs_input_grad[i]]
        inputs = [ctx.saved_tensors[i] for i in needed]
        gradients = dict(zip(needed, torch.autograd.grad(out, inputs, grad, create_graph=True), strict=True))
        return (*(gradients.get(i) for i in range(4)), None)


def folded_filters(stft: DepthwiseSTFT, norm: _BatchNorm, x: Tensor) -> tuple[Tensor, Tensor]:
    """Filters (2K C, 1, *kernel_size) and bias (2K C,) of the grouped convolution that does the work of `stft` and of
    `norm` in evaluation, on the device of `x`.
    """
    scale, shift = scale_and_shift(norm)
    ones = [1] * (len(stft.kernel_size) + 1)
    kernels = stft.constant("kernels", x)
    filters = kernels.repeat(stft.in_channels, *ones) * scale.view(-1, *ones)
    return filters.to(kernels.dtype), shift.to(kernels.dtype)


def stft_norm(stft: DepthwiseSTFT, norm: Any, x: Tensor) -> Tensor:
    """`norm(stft(x))`, as one grouped convolution where no derivatives are recorded; its output may be in
    channels-last order.
    """
    if torch.is_grad_enabled() or only_stock_operators() or not is_affine_map(norm) or hooked(stft):
        return norm(stft(x))
    x = stft._checked(x)
    with without_autocast(x.device.type):
        if x.device.type != "cpu" and stft._by_shift() is not None:
            scale, shift = (t.view(-1, *[1] * len(stft.kernel_size)) for t in scale_and_shift(norm))
            return stft._forward(x).mul_(scale.to(x.dtype)).add_(shift.to(x.dtype))
        weight, shift = folded_filters(stft, norm, x)
        if x.dim() in CHANNELS_LAST:
            x = x.contiguous(memory_format=CHANNELS_LAST[x.dim()])
        return _CONV[len(stft.kernel_size)](x, weight, shift, stft.stride, stft.padding, 1, stft.in_channels)


class STFTPointwise(nn.Module):
    """STFT -> batch normalisation -> activation -> 1x1 convolution, the second half of an ST-STFT block (Section 3).

    Shapes: input `(B, C, *S)`, output `(B, out_channels, *S')`, see `DepthwiseSTFT`. The parts are the submodules
    `stft`, `norm`, `activation` and `pointwise`; parameters, state dict and results do not depend on the mode:

    - training: the plain composition, which keeps three (two for in-place activations) tensors of 2K C channels;
    - training with `memory_efficient`: keeps the input and recomputes the rest in the backward pass, a slice of the
      channels at a time. This takes more time. Gradients are equal, and running statistics are updated once. Where
      `norm` is no plain batch normalisation in training (frozen, synchronised over processes, replaced) or the
      activation has parameters, is random or is unknown, the whole segment is recomputed at once with
      `checkpoint_once`. Under `torch.compile` it is the plain composition;
    - evaluation without gradients: the normalisation is folded into the filters (or applied in place), anew in every
      call, so changed parameters are seen. The output may be in channels-last order. With forward hooks on a submodule
      it is the plain composition. On a GPU it is one kernel inside `fused_kernel.fused_kernels()`.

    `forward(x, out_norm)` applies a further normalisation of the output, which evaluation folds too.

    Only the plain composition calls the submodules. Under autocast the STFT, normalisation
    and activation run in float32, the 1x1 convolution in the autocast dtype.

    Args:
        in_channels: C.
        out_channels: channels after the 1x1 convolution, which has no bias.
        kernel_size, frequencies, stride, padding, dims: see `DepthwiseSTFT`.
        activation: makes the activation module; LeakyReLU with slope 0.01 is the paper's.
        memory_efficient: see above; may be changed at any time.
    """

    norm: Any  # batch normalisation, or what the user put in its place
    pointwise: Any

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        *,
        frequencies: Sequence[Sequence[float]] | None = None,
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] | None = None,
        activation: Callable[[], nn.Module] = nn.LeakyReLU,
        memory_efficient: bool = False,
        dims: int | None = None,
    ) -> None:
        super().__init__()
        self.stft = DepthwiseSTFT(in_channels, kernel_size, frequencies, stride, padding, dims=dims)
        axes = len(self.stft.kernel_size)
        self.norm = _NORM[axes](self.stft.out_channels)
        self.activation = activation()
        self.pointwise = _POINTWISE[axes](self.stft.out_channels, out_channels, 1, bias=False)
        self.memory_efficient = memory_efficient

    def forward(self, x: Tensor, out_norm: nn.Module | None = None) -> Tensor:
        if not (is_proxy(x) or torch.is_grad_enabled()) and self._can_fold():
            if self._can_fuse(x):
                return self._fused(x, out_norm)
            if not only_stock_operators():
                return self._folded(x, out_norm)
        y = self._recorded(x)
        return y if out_norm is None else out_norm(y)

    def _recorded(self, x: Tensor) -> Tensor:
        if not self.memory_efficient or not torch.is_grad_enabled() or is_proxy(x) or only_stock_operators():
            return self._plain(x)
        if self._can_slice() and x.numel() > 0:
            return _SlicedTraining.apply(x, self.norm.weight, self.norm.bias, self.pointwise.weight, self)
        return _recomputed(self._plain, self, x)

    def _plain(self, x: Tensor) -> Tensor:
        return self.pointwise(self.activation(self.norm(self.stft(x))))

    def _slices(self, x: Tensor) -> Iterator[tuple[slice, slice]]:
        """Slices of the input channels, each with the slice of the channels of the transform that come from it."""
        channels, rows = self.stft.in_channels, self.stft.out_channels // self.stft.in_channels
        bytes_per_channel = x[:, 0].numel() * rows * self.stft.kernels.element_size()
        step = max(math.ceil(channels / _CHANNEL_SLICES), _SLICE_BYTES // bytes_per_channel)
        for start in range(0, channels, step):
            stop = min(start + step, channels)
            yield slice(start, stop), slice(start * rows, stop * rows)

    def _count_batch(self) -> float:
        """Counts a training batch as batch normalisation does; returns its weight in the running statistics."""
        norm = self.norm
        if norm.track_running_stats and norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
            if norm.momentum is None:
                return 1.0 / float(norm.num_batches_tracked)
        return norm.momentum or 0.0

    def _normalised(self, x: Tensor, gamma: Tensor, beta: Tensor, rows: slice, momentum: float | None) -> Tensor:
        """STFT of some channels, normalised by its batch statistics.

        Updates the running statistics of the channels `rows` of the transform unless `momentum` is None.
        """
        norm = self.norm
        mean, var = None, None
        if momentum is not None and norm.track_running_stats:
            mean, var = norm.running_mean[rows], norm.running_var[rows]
        return F.batch_norm(self.stft._forward(x), mean, var, gamma, beta, True, momentum or 0.0, norm.eps)

    def _activated(self, y: Tensor) -> Tensor:
        """The activation where no derivative is recorded: in place if it can be."""
        if type(self.activation) is nn.LeakyReLU:
            return F.leaky_relu_(y, self.activation.negative_slope)
        return F.relu_(y) if type(self.activation) is nn.ReLU else self.activation(y)

    def _folded(self, x: Tensor, out_norm: nn.Module | None) -> Tensor:
        """Evaluation: each normalisation is an affine map per channel, so it goes into the filters and a bias."""
        out_folds = out_norm is not None and can_fold(self.pointwise, out_norm)
        weight, bias = folded(self.pointwise, out_norm) if out_folds else (self.pointwise.weight, None)
        if self._by_rows(x):
            y = self._rows_and_products(self.stft._checked(x), weight.flatten(1), bias)
        else:
            y = stft_norm(self.stft, self.norm, x)
            with without_autocast(x.device.type):
                y = self._activated(y)
            y = apply_conv(self.pointwise, y, weight, bias)
        return y if out_norm is None or out_folds else out_norm(y)

    def _can_fuse(self, x: Tensor) -> bool:
        if uses_reference_implementation() or torch._C._are_functorch_transforms_active():
            return False
        return fused_kernel.usable(x, self.activation, self.pointwise.out_channels)

    def _fused(self, x: Tensor, out_norm: nn.Module | None) -> Tensor:
        """Evaluation as one kernel, which takes the input in its own dtype under autocast."""
        self.stft._checked(x[:0])  # raises for a wrong shape or dtype
        out_folds = out_norm is not None and can_fold(self.pointwise, out_norm)
        weight, bias = folded(self.pointwise, out_norm) if out_folds else (self.pointwise.weight, None)
        dtype = autocast_dtype(x.device.type) or weight.dtype
        y = fused_kernel.stft_pointwise(
            x,
            self.stft.constant("kernels", x).float(),
            *scale_and_shift(self.norm),
            fused_kernel.negative_slope(self.activation),
            weight.flatten(1).to(dtype),
            bias,
            self.stft.stride,
            self.stft.padding,
        )
        return y if out_norm is None or out_folds else out_norm(y)

    def _by_rows(self, x: Tensor) -> bool:
        """Whether to transform a window along time on the CPU frequency by frequency.

        Depthwise convolutions with one output a channel have a fast kernel there, those with several have not.
        """
        in_time = len(self.stft.kernel_size) == 3 and self.stft._by_shift() == 0 and self.stft._keeps_size
        return in_time and x.device.type == "cpu" and x.numel() > 0 and autocast_dtype("cpu") is None

    def _rows_and_products(self, x: Tensor, matrix: Tensor, bias: Tensor | None) -> Tensor:
        """The segment as a sum over the rows of the transform, with whole frames as the width of an image."""
        kernels, shift = folded_filters(self.stft, self.norm, x)
        channels, rows = self.stft.in_channels, self.stft.out_channels // self.stft.in_channels
        batch, _, time, height, width = x.shape
        lines = reshaped(x.contiguous(memory_format=torch.channels_last_3d), batch, time, height * width)
        out = lines  # of the first row
        for row in range(rows):
            weight = kernels[row::rows].squeeze(-1)
            y = F.conv2d(lines, weight, shift[row::rows], 1, (self.stft.padding[0], 0), 1, channels)
            y = self._activated(y)
            part = matrix[:, row::rows]
            if row == 0:
                out = F.conv2d(y, part[:, :, None, None], bias).movedim(1, -1).reshape(-1, len(part))
            else:
                out.addmm_(y.movedim(1, -1).reshape(-1, channels), part.t())
        return out.view(batch, time, height, width, -1).movedim(-1, 1)

    def _is_stock(self) -> bool:
        """Whether norm and 1x1 convolution are those made here, and not something the user put in their place."""
        stock = type(self.norm) in _NORM.values() and type(self.pointwise) in _POINTWISE.values()
        return stock and self.norm.affine and self.pointwise.bias is None

    def _can_slice(self) -> bool:
        return self._is_stock() and self.norm.training and type(self.activation) in _ELEMENTWISE

    def _can_fold(self) -> bool:
        parts = (self.stft, self.norm, self.activation, self.pointwise)
        return self._is_stock() and is_affine_map(self.norm) and not hooked(*parts)
