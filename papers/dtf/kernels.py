"""Frame-wise aggregation and circular convolution in time, with hand-written gradients.

Plain autograd keeps k*k products of whole clips for Eq. 6 and 7, and T*T for a circular convolution. The functions
below visit one offset (or lag) after the other, write into views and keep their inputs alone, which takes a third of
the time and a fraction of the memory. Clips are frames first: (B,T,C,H,W).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from common.spectral.stft import uses_reference_implementation


def counts_operations() -> bool:
    """Whether the network runs to be counted (or is traced): every step is then the operator of its definition."""
    return uses_reference_implementation() and not torch.compiler.is_exporting()


def kernels_apply() -> bool:
    """Whether the hand-written functions run in place of their definitions: in eager execution alone.

    `torch.compile` and `torch.export` take the definitions in stock operators, which they can see through and fuse;
    multiply-adds are counted on them as well.
    """
    return not (uses_reference_implementation() or torch.compiler.is_compiling())


class _Kernel(torch.autograd.Function):
    """A function with a first derivative by hand; further ones, forward mode and `vmap` are those of `definition`."""

    @staticmethod
    def definition(*inputs: Any) -> Tensor:
        """The same function in stock operators."""
        raise NotImplementedError

    @staticmethod
    def first_derivative(grad: Tensor, *inputs: Any) -> tuple[Tensor, ...]:
        """The gradients of the tensors among `inputs`."""
        raise NotImplementedError

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        tensors = [x for x in inputs if isinstance(x, Tensor)]
        ctx.constants = inputs[len(tensors) :]
        ctx.save_for_backward(*tensors)
        ctx.save_for_forward(*tensors)

    @classmethod
    def backward(cls, ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        tensors, constants = ctx.saved_tensors, ctx.constants
        if torch.is_grad_enabled():  # there is to be a second derivative
            pull: Any = torch.func.vjp(lambda *x: cls.definition(*x, *constants), *tensors)[1]
            grads = pull(grad)
        else:
            grads = cls.first_derivative(grad, *tensors, *constants)
        return (*grads, *(None for _ in constants))

    @classmethod
    def jvp(cls, ctx: Any, *tangents: Tensor | None) -> Tensor:
        # The derivative of `pull` along its argument is the transposed map of `pull`: forward mode by reverse mode.
        tensors, constants = ctx.saved_tensors, ctx.constants
        transposed: Any = torch.func.vjp(lambda *x: cls.definition(*x, *constants), *tensors)
        push: Any = torch.func.vjp(transposed[1], torch.zeros_like(transposed[0]))[1]
        given = zip(tangents[: len(tensors)], tensors, strict=True)
        return push(tuple(torch.zeros_like(x) if t is None else t for t, x in given))[0]

    @classmethod
    def vmap(cls, info: Any, in_dims: tuple[int | None, ...], *inputs: Any) -> tuple[Tensor, int]:
        return torch.vmap(cls.definition, in_dims)(*inputs), 0


# Eq. 6 to 8. In a padded clip whose rows are joined, the neighbour at an offset is a shift by a number of values, so
# every step runs over whole maps. What is computed in the padding between two rows is cut off at the end.


def _padded(frames: Tensor, k: int) -> Tensor:
    """(B,T,C,H,W) -> (B,T,C,(H+k)(W+k-1)): padded by k // 2 on every side and by one row more below."""
    r = k // 2
    return F.pad(frames, (r, r, r, r + 1)).flatten(3)


def _windows(padded: Tensor, k: int, width: int) -> list[Tensor]:
    """Views (B,T,C,H(W+k-1)): the neighbour of every position at each of the k*k offsets, row by row."""
    row = width + k - 1
    size = padded.shape[-1] - k * row
    return [padded[..., y * row + x : y * row + x + size] for y in range(k) for x in range(k)]


def _widened(maps: Tensor, k: int) -> Tensor:
    """(...,H,W) -> (...,H(W+k-1)), zeros between the rows."""
    return F.pad(maps, (0, k - 1)).flatten(-2)


def _cut(maps: Tensor, k: int, width: int) -> Tensor:
    """(...,H(W+k-1)) -> (...,H,W)."""
    return maps.unflatten(-1, (-1, width + k - 1))[..., :width].contiguous()


def _sums_over_channels(queries: Tensor, windows: list[Tensor], k: int, width: int) -> Tensor:
    """Products of `queries` with every window, summed over the channels: (B,T,k*k,H,W)."""
    products = torch.empty(queries.shape, dtype=queries.dtype, device=queries.device)
    sums = queries.new_empty(*queries.shape[:2], k * k, queries.shape[-1])
    for i, window in enumerate(windows):
        torch.mul(queries, window, out=products)
        torch.sum(products, dim=2, out=sums[:, :, i])
    return _cut(sums, k, width)


def _neighbours(frames: Tensor, k: int) -> list[Tensor]:
    """The neighbour of every position at each of the k*k offsets, in stock operators."""
    height, width = frames.shape[-2:]
    padded = F.pad(frames, (k // 2,) * 4)
    return [padded[..., y : y + height, x : x + width] for y in range(k) for x in range(k)]


def _unfolded(frames: Tensor, k: int) -> Tensor:
    """The same as one tensor (B,T,C,k*k,H,W)."""
    return F.unfold(frames.flatten(0, 1), k, padding=k // 2).view(*frames.shape[:3], k * k, *frames.shape[3:])


def correlate(queries: Tensor, keys: Tensor, k: int, weight: Tensor | None = None) -> Tensor:
    """Eq. 6 in stock operators, for queries and keys (B,T,C,H,W) of their own: (B,T,k*k,H,W).

    `weight` (T,C,k*k) multiplies the products of every frame, channel and offset.
    """
    if counts_operations():
        if weight is None:
            return torch.einsum("btchw,btckhw->btkhw", queries, _unfolded(keys, k))
        queries = queries.unsqueeze(3) * weight[..., None, None]
        return torch.einsum("btckhw,btckhw->btkhw", queries, _unfolded(keys, k))
    weights = [None] * (k * k) if weight is None else weight[..., None, None].unbind(2)
    products = zip(_neighbours(keys, k), weights, strict=True)
    return torch.stack([(queries * (key if w is None else key * w)).sum(2) for key, w in products], dim=2)


class _FrameCorrelation(_Kernel):
    @staticmethod
    def definition(frames: Tensor, k: int) -> Tensor:
        return correlate(frames[:, :-1], frames[:, 1:], k)

    @staticmethod
    def forward(frames: Tensor, k: int) -> Tensor:
        padded, width = _padded(frames, k), frames.shape[-1]
        queries = _windows(padded[:, :-1], k, width)[k * k // 2]
        return _sums_over_channels(queries, _windows(padded[:, 1:], k, width), k, width)

    @staticmethod
    def first_derivative(grad: Tensor, frames: Tensor, k: int) -> tuple[Tensor]:
        padded, width, centre = _padded(frames, k), frames.shape[-1], k * k // 2
        queries, keys = _windows(padded[:, :-1], k, width)[centre], _windows(padded[:, 1:], k, width)
        out = torch.zeros_like(padded)
        of_queries, of_keys = _windows(out[:, :-1], k, width)[centre], _windows(out[:, 1:], k, width)
        weights = _widened(grad, k)
        for i in range(k * k):
            of_queries.addcmul_(weights[:, :, i : i + 1], keys[i])
            of_keys[i].addcmul_(weights[:, :, i : i + 1], queries)
        return (_cut(_windows(out, k, width)[centre], k, width),)


class _FrameAggregation(_Kernel):
    @staticmethod
    def definition(frames: Tensor, weights: Tensor, k: int) -> Tensor:
        if counts_operations():
            sums = torch.einsum("btkhw,btckhw->btchw", weights, _unfolded(frames[:, 1:], k))
        else:
            sums = torch.zeros_like(frames[:, 1:])
            for i, key in enumerate(_neighbours(frames[:, 1:], k)):
                sums = sums + weights[:, :, i : i + 1] * key
        return frames + F.pad(sums, (0, 0, 0, 0, 0, 0, 0, 1))

    @staticmethod
    def forward(frames: Tensor, weights: Tensor, k: int) -> Tensor:
        padded, width = _padded(frames, k), frames.shape[-1]
        out = _windows(padded, k, width)[k * k // 2].clone(memory_format=torch.contiguous_format)
        rows = _widened(weights, k)
        for i, key in enumerate(_windows(padded[:, 1:], k, width)):
            out[:, :-1].addcmul_(rows[:, :, i : i + 1], key)
        return _cut(out, k, width)

    @staticmethod
    def first_derivative(grad: Tensor, frames: Tensor, weights: Tensor, k: int) -> tuple[Tensor, Tensor]:
        padded, width, centre = _padded(frames, k), frames.shape[-1], k * k // 2
        rows, of_sums = _widened(weights, k), _widened(grad, k)
        out = torch.zeros_like(padded)
        _windows(out, k, width)[centre].copy_(of_sums)
        for i, of_key in enumerate(_windows(out[:, 1:], k, width)):
            of_key.addcmul_(rows[:, :, i : i + 1], of_sums[:, :-1])
        of_weights = _sums_over_channels(of_sums[:, :-1], _windows(padded[:, 1:], k, width), k, width)
        return _cut(_windows(out, k, width)[centre], k, width), of_weights


def frame_correlation(frames: Tensor, k: int = 3) -> Tensor:
    """Eq. 6: scalar products of every position with the k x k around it in the next frame, zero beyond the border.

    Args:
        frames: (B,T,C,H,W).
        k: odd side of the neighbourhood.

    Returns:
        (B,T-1,k*k,H,W); offset i is (i // k - k // 2, i % k - k // 2) in (y, x).
    """
    return _FrameCorrelation.apply(frames, k) if kernels_apply() else _FrameCorrelation.definition(frames, k)


def frame_aggregation(frames: Tensor, weights: Tensor, k: int = 3) -> Tensor:
    """Eq. 7 and 8: every frame but the last plus the weighted sum of the k x k around each position in the next one.

    Args:
        frames: (B,T,C,H,W).
        weights: (B,T-1,k*k,H,W), offsets as in `frame_correlation`.
        k: odd side of the neighbourhood.

    Returns:
        (B,T,C,H,W).
    """
    function = _FrameAggregation.apply if kernels_apply() else _FrameAggregation.definition
    return function(frames, weights, k)


# Eq. 3: the product of two spectra is a circular convolution, the cheaper of the two for short clips.


class _CircularConvolution(_Kernel):
    @staticmethod
    def definition(frames: Tensor, kernel: Tensor) -> Tensor:
        return torch.stack([kernel[:, d : d + 1] * frames.roll(d, 1) for d in range(frames.shape[1])]).sum(0)

    @staticmethod
    def forward(frames: Tensor, kernel: Tensor) -> Tensor:
        return _convolved(frames, kernel, transpose=False)

    @staticmethod
    def first_derivative(grad: Tensor, frames: Tensor, kernel: Tensor) -> tuple[Tensor, Tensor]:
        time = frames.shape[1]
        of_kernel = torch.empty_like(kernel)
        dims = [i for i in range(5) if kernel.shape[i] == 1]
        for lag in range(time):
            # Frame by frame into one small map: the products of all frames are never held.
            products = grad[:, :1] * frames[:, -lag % time].unsqueeze(1)
            for t in range(1, time):
                products.addcmul_(grad[:, t : t + 1], frames[:, (t - lag) % time].unsqueeze(1))
            torch.sum(products, dim=dims, keepdim=True, out=of_kernel[:, lag : lag + 1])
        return _convolved(grad, kernel, transpose=True), of_kernel


def _convolved(frames: Tensor, kernel: Tensor, transpose: bool) -> Tensor:
    time = frames.shape[1]
    out = kernel[:, :1] * frames
    for lag in range(1, time):
        tap, n = kernel[:, lag : lag + 1], time - lag if transpose else lag
        out[:, n:].addcmul_(tap, frames[:, : time - n])
        out[:, :n].addcmul_(tap, frames[:, time - n :])
    return out


def circular_convolution(frames: Tensor, kernel: Tensor) -> Tensor:
    """Sum over lags d of kernel[d] * frames[t - d], indices modulo T: Eq. 3 to 5 without a transform.

    Args:
        frames: (B,T,C,H,W).
        kernel: (B,T,K,H,W), one for every position and each of K groups of neighbouring channels, or (1,T,C,1,1).

    Returns:
        (B,T,C,H,W).
    """
    groups = kernel.shape[2]
    grouped = frames.unflatten(2, (groups, -1)).flatten(4)  # (B,T,K,C/K,HW)
    return _CircularConvolution.apply(grouped, kernel.flatten(3).unsqueeze(3)).view(frames.shape)
