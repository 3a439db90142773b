"""3D convolutions in the frequency domain of time (Section 3): masked while learning, compact when running.

A kernel of t taps is written in an orthogonal basis S of the time axis, `S f` (Eq. 4). `MaskedConv3d` holds the whole
kernel, S and the masks of Eq. 5, and is an ordinary convolution with the masked kernel. `CompactConv3d` holds only what
the masks keep: t' rows of S, c' input channels, and the kernels (N, t', c', d, d) of these rows and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.spectral.stft import autocast_dtype, uses_reference_implementation, without_autocast
from common.spectral.symbolic import fx_leaf

#: how a `CompactConv3d` is computed; the result is the same
Execution = Literal["transform", "depthwise", "taps", "dense"]
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
#: memory order of the input and output of a `CompactConv3d`
Layout = Literal["contiguous", "channels_last"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_GEOMETRY = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
Triple = tuple[int, int, int]
_PREPARED = 8  # matrices and kernels that a layer keeps


def _triple(value: int | Sequence[int], name: str) -> Triple:
    values = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != 3:
        raise ValueError(f"{name} must be one number or three, got {value}")
    return values


def numeric_padding(conv: nn.Conv3d) -> Triple | None:
    """The zero padding of a convolution per axis, the same on both sides; None for any other padding."""
    if conv.padding_mode != "zeros":
        return None
    if conv.padding == "valid":
        return (0, 0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(n % 2 for n in total) else _triple([n // 2 for n in total], "padding")
    assert not isinstance(conv.padding, str)
    return _triple(conv.padding, "padding")


def geometry(layer: nn.Module) -> dict[str, Any]:
    """The arguments of a `CompactConv3d` of the same shape as this convolution."""
    return {name: getattr(layer, name) for name in _GEOMETRY} | {"bias": layer.bias is not None}


def _arranged(x: Tensor, layout: Layout) -> Tensor:
    """(B,C,...) in this memory order."""
    # `contiguous(memory_format=...)` does not exist inside `torch.vmap`.
    return x.contiguous() if layout == "contiguous" else x.movedim(1, -1).contiguous().movedim(-1, 1)


class MaskedConv3d(nn.Module):
    """A 3D convolution, masked in the frequency domain of time (Eq. 5) and in its input channels (Eq. 8).

    (B,C,T,H,W) -> (B,N,T',H',W') with the kernel `beta_i (M S)^T (M S) f_i`. With nothing masked and beta = 1 the
    kernel is bit-identical to the original one. The parameter is the original kernel, so it trains like one; the
    gradients of what is masked are zero.

    Args:
        conv: the convolution; its weight and bias become this layer's.
        transform: S, orthogonal, (t,t). The identity by default.

    Attributes:
        weight: F, (N,C/groups,t,d,d).
        transform: S, (t,t); rows: which rows of it M keeps, (t,) bool; scale: beta, (C,), 0 where a channel is
            discarded. All three are buffers.

    Raises:
        ValueError: the padding is not zeros, the same number on both sides, or S is not (t,t).
    """

    transform: Tensor
    rows: Tensor
    scale: Tensor

    def __init__(self, conv: nn.Conv3d, transform: Tensor | None = None) -> None:
        super().__init__()
        padding = numeric_padding(conv)
        if padding is None:
            raise ValueError(f"only symmetric zero padding can be masked, not {conv}")
        taps = conv.kernel_size[0]
        if transform is not None and transform.shape != (taps, taps):
            raise ValueError(f"a kernel of {taps} taps needs a transform of ({taps}, {taps}), not {transform.shape}")
        self.in_channels, self.out_channels = conv.in_channels, conv.out_channels
        self.kernel_size = _triple(conv.kernel_size, "kernel_size")
        self.stride, self.padding = _triple(conv.stride, "stride"), padding
        self.dilation, self.groups = _triple(conv.dilation, "dilation"), conv.groups
        self.weight, self.bias = conv.weight, conv.bias
        identity = torch.eye(taps, dtype=conv.weight.dtype, device=conv.weight.device)
        self.register_buffer("transform", identity if transform is None else transform.to(identity))
        self.register_buffer("rows", torch.ones(taps, dtype=torch.bool, device=conv.weight.device))
        self.register_buffer("scale", torch.ones(conv.in_channels, dtype=identity.dtype, device=identity.device))

    def masked_weight(self) -> Tensor:
        """The effective kernel, (N,C/groups,t,d,d)."""
        weight = self.weight
        if not bool(self.rows.all()):
            kept = self.transform[self.rows]
            weight = torch.einsum("tu,ncuhw->ncthw", kept.T @ kept, weight)
        if self.groups == 1 and not bool((self.scale == 1).all()):
            weight = weight * self.scale.view(-1, 1, 1, 1)
        return weight

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        weight = self.masked_weight()
        return F.conv3d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def compact(self) -> CompactConv3d:
        """The layer that holds only what the masks keep."""
        kept = self.scale.nonzero().flatten()
        all_rows = bool(self.rows.all())
        transform = torch.eye(len(self.rows)).to(self.transform) if all_rows else self.transform[self.rows]
        layer = CompactConv3d(**geometry(self), kept_channels=len(kept), kept_rows=len(transform)).to(self.weight)
        weight = self.weight
        if self.groups == 1:
            weight = (weight * self.scale.view(-1, 1, 1, 1))[:, kept]
        layer.weight.copy_(torch.einsum("kt,ncthw->nkchw", transform, weight).flatten(1, 2))
        layer.kept.copy_(kept)
        layer.transform.copy_(transform)
        if layer.bias is not None and self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer.train(self.training)


class CompactConv3d(nn.Module):
    """A 3D convolution of c' kept input channels and t' kept rows of the temporal transform (Section 4).

    (B,C,T,H,W) -> (B,N,T',H',W'), the convolution of the kept channels with the kernel `S'^T W`. A new layer keeps the
    first channels and the first rows of the identity; `MaskedConv3d.compact` fills in the learned ones.

    There are four ways to compute it, equal up to rounding. Which is fastest depends on the layer and the machine;
    `papers.fdc3d.timing.choose_executions` measures it.

    ``transform``: S' along time, as one product with a banded matrix of all frames, then one 2D convolution over the
        t' c' channels of every frame. `N c' t' d^2 H'W'T' + c' t t' H W T'` multiply-adds.
    ``depthwise``: the same, with the transform as a depthwise (t,1,1) convolution and a (1,d,d) convolution. This one
        is counted, because it consists of convolutions alone.
    ``taps``: an ordinary convolution with the t-tap kernels of the kept channels. Taps that only ever meet padding, in
        clips shorter than the kernel, are left out.
    ``dense``: the same with zeros for the discarded channels, which saves gathering the kept ones.

    While gradients are off, the kernels of `taps` and `dense` and the banded matrices are computed once.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as for `torch.nn.Conv3d`;
            padding in numbers.
        kept_channels: c', all by default. With more than one group it must be all of them.
        kept_rows: t', all by default.
        execution: one of the above.
        layout: memory order of the output. On CPUs `channels_last` is much faster for convolutions and pooling.

    Attributes:
        weight: (N, t' c'/groups, d, d), the rows of the transform before the channels.
        kept: (c',) int64, the input channels that are read. A buffer.
        transform: S', (t',t). A buffer.

    Raises:
        ValueError: an argument is out of its range, or the input has the wrong number of channels or too few frames.
    """

    kept: Tensor
    transform: Tensor

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | Sequence[int],
        stride: int | Sequence[int] = 1,
        padding: int | Sequence[int] = 0,
        dilation: int | Sequence[int] = 1,
        groups: int = 1,
        bias: bool = True,
        *,
        kept_channels: int | None = None,
        kept_rows: int | None = None,
        execution: Execution = "transform",
        layout: Layout = "contiguous",
    ) -> None:
        super().__init__()
        self.in_channels, self.out_channels, self.groups = in_channels, out_channels, groups
        self.kernel_size, self.stride = _triple(kernel_size, "kernel_size"), _triple(stride, "stride")
        self.padding, self.dilation = _triple(padding, "padding"), _triple(dilation, "dilation")
        taps = self.kernel_size[0]
        channels = in_channels if kept_channels is None else kept_channels
        rows = taps if kept_rows is None else kept_rows
        if not 1 <= channels <= in_channels or (groups > 1 and channels != in_channels):
            raise ValueError(f"cannot keep {channels} of {in_channels} channels in {groups} groups")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{groups} groups do not divide {in_channels} and {out_channels} channels")
        if not 1 <= rows <= taps:
            raise ValueError(f"cannot keep {rows} of {taps} rows")
        if min(self.stride) < 1 or min(self.dilation) < 1 or min(self.padding) < 0:
            raise ValueError("stride and dilation must be at least 1, and padding at least 0")
        if execution not in EXECUTIONS:
            raise ValueError(f"unknown execution {execution!r}; choose one of {', '.join(EXECUTIONS)}")
        if layout not in LAYOUTS:
            raise ValueError(f"unknown layout {layout!r}; choose one of {', '.join(LAYOUTS)}")
        self.execution: Execution = execution
        self.weight = nn.Parameter(torch.empty(out_channels, rows * channels // groups, *self.kernel_size[1:]))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("kept", torch.arange(channels))
        self.register_buffer("transform", torch.eye(taps)[:rows].clone())
        nn.init.kaiming_normal_(self.weight, nonlinearity="relu")
        self.set_layout(layout)

    @property
    def kept_channels(self) -> int:
        """c'."""
        return len(self.kept)

    @property
    def kept_rows(self) -> int:
        """t'."""
        return len(self.transform)

    def spec(self) -> dict[str, Any]:
        """The arguments that build a layer of this shape, as plain values."""
        values = {name: list(v) if isinstance(v, tuple) else v for name, v in geometry(self).items()}
        values |= {"kept_channels": self.kept_channels, "kept_rows": self.kept_rows}
        return values | {"execution": self.execution, "layout": self.layout}

    def set_layout(self, layout: Layout) -> None:
        """Change the memory order, that of the weight included."""
        self.layout: Layout = layout
        self._prepared: dict[str, tuple[Any, Tensor]] = {}
        self.weight.data = _arranged(self.weight.data, layout)

    def _load_from_state_dict(self, *args: Any) -> None:
        super()._load_from_state_dict(*args)
        if self.kept.is_meta or not len(self.kept):
            return
        if int(self.kept.min()) < 0 or int(self.kept.max()) >= self.in_channels:
            args[-1].append(f"{args[1]}kept names channels outside of 0..{self.in_channels - 1}")

    def executions(self) -> tuple[Execution, ...]:
        """The executions that differ for this layer: without a dropped row, for instance, there is no transform."""
        drops_rows, drops_channels = self.kept_rows < self.kernel_size[0], self.kept_channels < self.in_channels
        names: tuple[Execution, ...] = ("transform", "depthwise", "taps") if drops_rows else ("taps",)
        return (*names, "dense") if drops_channels else names

    def size_after(self, size: Sequence[int]) -> tuple[int, ...]:
        """(T,H,W) -> (T',H',W')."""
        settings = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return tuple((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings)

    @fx_leaf
    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"CompactConv3d takes (batch, {self.in_channels}, frames, height, width), got {tuple(x.shape)}"
            )
        if min(self.size_after(x.shape[2:])) < 1:
            raise ValueError(f"CompactConv3d: a kernel of {self.kernel_size} does not fit into {tuple(x.shape)}")
        execution = self.execution
        if uses_reference_implementation():
            execution = "depthwise" if self.kept_rows < self.kernel_size[0] else "taps"
        if execution == "dense":
            return self._taps(x, self._reuse("dense", self._dense_kernel))
        x = self._gathered(x)
        if execution == "taps":
            return self._taps(x, self._reuse("taps", self._kernel))
        return self._transform(x) if execution == "transform" else self._depthwise(x)

    # -- the executions; x has the kept channels ------------------------------------------------------------------

    def _transform(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        g, rows = self.groups, self.kept_rows
        x = self._precise(x)
        with without_autocast(x.device.type):
            band = self._reuse(f"band {t}", lambda: self._band(t))
            after = band.shape[1]
            if self.layout == "channels_last":
                frames = x.permute(0, 2, 3, 4, 1).reshape(b, t, h * w * c)
                parts = [torch.matmul(m, frames).view(b * after, h, w, g, 1, c // g) for m in band]
                z = torch.cat(parts, dim=4).view(b * after, h, w, rows * c).permute(0, 3, 1, 2)
            else:
                z = torch.matmul(band.flatten(0, 1), x.reshape(b, c, t, h * w))
                z = z.view(b, g, c // g, rows, after, h, w).permute(0, 4, 1, 3, 2, 5, 6)
                z = z.reshape(b * after, rows * c, h, w)
            z = _arranged(z, self.layout)
        y = F.conv2d(z, self.weight, self.bias, self.stride[1:], self.padding[1:], self.dilation[1:], g)
        return y.view(b, after, *y.shape[1:]).transpose(1, 2)

    def _precise(self, x: Tensor) -> Tensor:
        """Under autocast `x` in the dtype of the transform: float32, unless the layer was converted."""
        return x if autocast_dtype(x.device.type) is None else x.to(self.transform.dtype)

    def _depthwise(self, x: Tensor) -> Tensor:
        c, g, rows, taps = x.shape[1], self.groups, self.kept_rows, self.kernel_size[0]
        x = self._precise(x)
        with without_autocast(x.device.type):
            transform = self.transform.repeat(c, 1).view(c * rows, 1, taps, 1, 1)
            stride, padding, dilation = (self.stride[0], 1, 1), (self.padding[0], 0, 0), (self.dilation[0], 1, 1)
            z = F.conv3d(x, transform, None, stride, padding, dilation, c)
        # Channels before rows here, because a depthwise convolution keeps the results of one channel together.
        weight = self.weight.view(self.out_channels, rows, c // g, *self.kernel_size[1:]).transpose(1, 2).flatten(1, 2)
        stride, dilation = (1, *self.stride[1:]), (1, *self.dilation[1:])
        return F.conv3d(z, weight.unsqueeze(2), self.bias, stride, (0, *self.padding[1:]), dilation, g)

    def _taps(self, x: Tensor, kernel: Tensor) -> Tensor:
        """A convolution with those taps of the kernel that meet a frame of x at any time."""
        t, after = x.shape[2], self.size_after(x.shape[2:])[0]
        stride, before, spacing = self.stride[0], self.padding[0], self.dilation[0]
        meets = [
            k for k in range(kernel.shape[2]) if any(0 <= stride * o + spacing * k - before < t for o in range(after))
        ]
        # Where every frame of the result sees padding alone, there is nothing to leave out.
        first, last = (meets[0], meets[-1]) if meets else (0, kernel.shape[2] - 1)
        x = _arranged(x, self.layout)
        if (first, last) != (0, kernel.shape[2] - 1):
            start = spacing * first - before  # frame that the first of these taps meets for the first result
            stop = stride * (after - 1) + spacing * last - before  # and the last tap for the last one
            kernel = kernel[:, :, first : last + 1]
            x = x[:, :, max(start, 0) : stop + 1]
            pad = (max(-start, 0), max(stop + 1 - t, 0))
            x, before = (x, pad[0]) if pad[0] == pad[1] else (F.pad(x, (0, 0, 0, 0, *pad)), 0)
        kernel = _arranged(kernel, self.layout)
        padding = (before, *self.padding[1:])
        return F.conv3d(x, kernel, self.bias, self.stride, padding, self.dilation, self.groups)

    # -- what they are made of --------------------------------------------------------------------------------------

    def _gathered(self, x: Tensor) -> Tensor:
        if self.kept_channels == self.in_channels:
            return x
        if self.layout == "channels_last":
            return x.permute(0, 2, 3, 4, 1).index_select(-1, self.kept).permute(0, 4, 1, 2, 3)
        return x.index_select(1, self.kept)

    def _band(self, frames: int) -> Tensor:
        """S' as matrices from all frames to all positions of the kernel, zero where it overlaps padding: (t',T',T)."""
        after = self.size_after((frames, *self.kernel_size[1:]))[0]
        device = self.transform.device
        starts = torch.arange(after, device=device) * self.stride[0] - self.padding[0]
        meets = starts.view(-1, 1, 1) + torch.arange(self.kernel_size[0], device=device).view(-1, 1) * self.dilation[0]
        meets = (meets == torch.arange(frames, device=device)).to(self.transform.dtype)  # (T',t,T)
        return torch.einsum("kt,oti->koi", self.transform, meets)

    def _kernel(self) -> Tensor:
        """The kernel of all taps and the kept channels: (N,c'/groups,t,d,d)."""
        weight = self.weight.view(self.out_channels, self.kept_rows, -1, *self.kernel_size[1:])
        if self.kept_rows == self.kernel_size[0]:  # the transform is the identity then
            return weight.transpose(1, 2)
        return torch.einsum("kt,nkchw->ncthw", self.transform, weight)

    def _dense_kernel(self) -> Tensor:
        kernel = self._kernel()
        if self.kept_channels == self.in_channels:
            return kernel
        whole = kernel.new_zeros(self.out_channels, self.in_channels, *kernel.shape[2:])
        return whole.index_copy(1, self.kept, kernel)

    def _reuse(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """The result of `make`, kept while gradients are off and the tensors that it depends on are unchanged."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or torch.jit.is_tracing():
            return make()
        sources = (self.weight, self.transform, self.kept)
        now = (*((s.data_ptr(), s.dtype, 0 if s.is_inference() else s._version) for s in sources), self.layout)
        if name not in self._prepared or self._prepared[name][0] != now:
            if len(self._prepared) > _PREPARED:  # clips of many lengths
                self._prepared.clear()
            value = make()
            self._prepared[name] = (now, _arranged(value, self.layout) if value.dim() == 5 else value)
        return self._prepared[name][1]

    def _apply(self, *args: Any, **kwargs: Any) -> CompactConv3d:
        self._prepared = {}
        return super()._apply(*args, **kwargs)

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_prepared": {}}

    def extra_repr(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self.spec().items())


def replace_module(network: nn.Module, old: nn.Module, new: nn.Module) -> None:
    """Put `new` in the place of `old` wherever the network holds it; some networks hold a module by several names."""
    for parent in list(network.modules()):
        for name, child in list(parent._modules.items()):
            if child is old:
                parent.add_module(name, new)
