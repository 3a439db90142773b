"""3D convolutions in the frequency domain of time (Section 3), masked for learning and compact for running.

A kernel of t taps is written in an orthogonal basis S of the time axis, `S f` (Eq. 4). `MaskedConv3d` holds the whole
kernel, S and the masks of Eq. 5; it is an ordinary convolution with the masked kernel. `CompactConv3d` holds nothing
but what the masks keep: t' rows of S, c' input channels, and the kernels (N, t', c', d, d) of these rows and channels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.spectral.stft import autocast_dtype, uses_reference_implementation, without_autocast

#: how a `CompactConv3d` is computed; the result is the same
Execution = Literal["transform", "depthwise", "mix", "taps", "dense"]
EXECUTIONS: tuple[Execution, ...] = get_args(Execution)
#: memory order of what a `CompactConv3d` reads and writes
Layout = Literal["contiguous", "channels_last"]
LAYOUTS: tuple[Layout, ...] = get_args(Layout)

_MEMORY_FORMAT_2D = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last}
_MEMORY_FORMAT_3D = {"contiguous": torch.contiguous_format, "channels_last": torch.channels_last_3d}

Triple = tuple[int, int, int]
_PREPARED = 8  # matrices and kernels kept by a layer


def _triple(value: int | Sequence[int], name: str) -> Triple:
    values = (value,) * 3 if isinstance(value, int) else tuple(int(v) for v in value)
    if len(values) != 3:
        raise ValueError(f"{name} must be a number or three, but is {value}")
    return values


def numeric_padding(conv: nn.Conv3d) -> Triple | None:
    """The padding of a convolution as numbers on both sides; None where it is not zeros or not symmetric."""
    if conv.padding_mode != "zeros":
        return None
    if conv.padding == "valid":
        return (0, 0, 0)
    if conv.padding == "same":
        total = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
        return None if any(n % 2 for n in total) else _triple([n // 2 for n in total], "padding")
    assert not isinstance(conv.padding, str)
    return _triple(conv.padding, "padding")


@contextmanager
def _in_single(device_type: str) -> Iterator[bool]:
    """Switches autocasting off; whether it was on, so that the transform must be taken in single precision."""
    if autocast_dtype(device_type) is None:
        yield False
    else:
        with without_autocast(device_type):
            yield True


class MaskedConv3d(nn.Module):
    """A 3D convolution, masked in the frequency domain of time (Eq. 5) and in its input channels (Eq. 8).

    (B,C,T,H,W) -> (B,N,T',H',W') with the kernel `beta_i (M S)^T (M S) f_i`. With nothing masked and beta = 1 the
    kernel is the original one, to the last bit. The weight is the original kernel, so it trains like one; gradients of
    what is masked are zero.

    Args:
        conv: the convolution; its weight and bias become this layer's.
        transform: S, orthogonal, (t,t). By default the identity.

    Attributes:
        weight: F, (N,C/groups,t,d,d).
        transform: S, (t,t); rows: which rows of it M keeps, (t,) bool; scale: beta, (C,), 0 where a channel is
            discarded. All three are buffers.

    Raises:
        ValueError: the padding is not zeros of equal number on both sides, or S is not (t,t).
    """

    transform: Tensor
    rows: Tensor
    scale: Tensor

    def __init__(self, conv: nn.Conv3d, transform: Tensor | None = None) -> None:
        super().__init__()
        padding = numeric_padding(conv)
        if padding is None:
            raise ValueError(f"only zero padding of equal size on both sides can be masked, not {conv}")
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
        """The kernel that acts, (N,C/groups,t,d,d)."""
        weight = self.weight
        if not bool(self.rows.all()):
            kept = self.transform[self.rows]
            weight = torch.einsum("tu,ncuhw->ncthw", kept.T @ kept, weight)
        if self.groups == 1 and not bool((self.scale == 1).all()):
            weight = weight * self.scale.view(-1, 1, 1, 1)
        return weight

    def forward(self, x: Tensor) -> Tensor:
        weight = self.masked_weight()
        return F.conv3d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)

    @torch.no_grad()
    def compact(self) -> CompactConv3d:
        """The layer that holds only what is kept."""
        kept = self.scale.nonzero().flatten()
        dropped_rows = not bool(self.rows.all())
        transform = self.transform[self.rows] if dropped_rows else torch.eye(len(self.rows)).to(self.transform)
        layer = CompactConv3d(
            self.in_channels,
            self.out_channels,
            self.kernel_size,
            self.stride,
            self.padding,
            self.dilation,
            self.groups,
            bias=self.bias is not None,
            kept_channels=len(kept),
            kept_rows=len(transform),
        )
        weight = self.weight
        if self.groups == 1:
            weight = (weight * self.scale.view(-1, 1, 1, 1))[:, kept]
        weight = torch.einsum("kt,ncthw->nkchw", transform, weight).flatten(1, 2)
        layer = layer.to(weight)
        layer.weight.copy_(weight)
        layer.kept.copy_(kept)
        layer.transform.copy_(transform)
        if layer.bias is not None and self.bias is not None:
            layer.bias.copy_(self.bias)
        return layer.train(self.training)

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"kept_channels={int((self.scale != 0).sum())}, kept_rows={int(self.rows.sum())}"
        )


class CompactConv3d(nn.Module):
    """A 3D convolution of c' kept channels and t' kept rows of the temporal transform (Section 4).

    (B,C,T,H,W) -> (B,N,T',H',W'), the convolution with the kernel `S'^T W` on the kept channels. A new layer keeps the
    first channels, and rows of the identity; `MaskedConv3d.compact` fills in the learned ones.

    It can be computed in five ways, equal up to rounding; which is fastest depends on the layer and the machine, and
    `papers.fdc3d.compression.choose_executions` measures it:

    ``transform``: S' along time, as one product with a banded matrix of all frames, then one 2D convolution over
        t' c' channels of every frame. `N c' t' d^2 H'W'T' + c' t t' H W T'` multiply-adds.
    ``depthwise``: the same with the transform as a depthwise (t,1,1) convolution and a (1,d,d) convolution. It is the
        one that is counted and exported, since it consists of convolutions alone.
    ``mix``: 2D convolutions of every frame to t' N channels, then S' along time.
    ``taps``: the t-tap kernels of the kept channels are put together again. Taps that only ever meet padding, in clips
        shorter than the kernel, are left out.
    ``dense``: the same with zeros for the discarded channels, which saves the gathering of the kept ones.

    The kernels of `mix`, `taps` and `dense` are put together once while gradients are switched off.

    Args:
        in_channels, out_channels, kernel_size, stride, padding, dilation, groups, bias: as of `torch.nn.Conv3d`;
            padding in numbers.
        kept_channels: c', by default all. Must be all of them with more than one group.
        kept_rows: t', by default all.
        execution: one of the above.
        layout: memory order of the result. Convolutions and pools of CPUs are faster in ``channels_last`` by far.

    Attributes:
        weight: (N, t' c'/groups, d, d), the rows of the transform before the channels.
        kept: (c',) int64, the input channels that are read. A buffer.
        transform: S', (t',t). A buffer.

    Raises:
        ValueError: an argument is out of its range, or the input has another number of channels or too few frames.
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
            raise ValueError(f"{channels} kept channels of {in_channels} in {groups} groups")
        if in_channels % groups or out_channels % groups:
            raise ValueError(f"{groups} groups do not divide {in_channels} and {out_channels} channels")
        if not 1 <= rows <= taps:
            raise ValueError(f"{rows} kept rows of {taps}")
        if execution not in EXECUTIONS:
            raise ValueError(f"execution {execution!r} is not known; choose one of {', '.join(EXECUTIONS)}")
        if layout not in LAYOUTS:
            raise ValueError(f"layout {layout!r} is not known; choose one of {', '.join(LAYOUTS)}")
        self.execution: Execution = execution
        self.layout: Layout = layout
        self.weight = nn.Parameter(torch.empty(out_channels, rows * channels // groups, *self.kernel_size[1:]))
        self.bias = nn.Parameter(torch.zeros(out_channels)) if bias else None
        self.register_buffer("kept", torch.arange(channels))
        self.register_buffer("transform", torch.eye(taps)[:rows].clone())
        self._prepared: dict[Any, tuple[Any, Tensor]] = {}
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
        """The arguments that build a layer of this shape, plain values."""
        return {
            "in_channels": self.in_channels,
            "out_channels": self.out_channels,
            "kernel_size": list(self.kernel_size),
            "stride": list(self.stride),
            "padding": list(self.padding),
            "dilation": list(self.dilation),
            "groups": self.groups,
            "bias": self.bias is not None,
            "kept_channels": self.kept_channels,
            "kept_rows": self.kept_rows,
            "execution": self.execution,
            "layout": self.layout,
        }

    def set_layout(self, layout: Layout) -> None:
        """Change the memory order, also that of the weight, and forget the kernels put together so far."""
        self.layout = layout
        self._prepared = {}
        self.weight.data = self.weight.data.contiguous(memory_format=_MEMORY_FORMAT_2D[layout])

    def executions(self) -> tuple[Execution, ...]:
        """Those that differ for this layer: without a dropped row there is no transform, and so on."""
        names: list[Execution] = ["taps"]
        if self.kept_rows < self.kernel_size[0]:
            names = ["transform", "depthwise", "mix", "taps"]
        return (*names, "dense") if self.kept_channels < self.in_channels else tuple(names)

    def size_after(self, size: Sequence[int]) -> Triple:
        """(T,H,W) -> (T',H',W')."""
        settings = zip(size, self.kernel_size, self.stride, self.padding, self.dilation, strict=True)
        return _triple([(n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in settings], "size")

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 5 or x.shape[1] != self.in_channels:
            raise ValueError(
                f"CompactConv3d takes (batch, {self.in_channels}, frames, height, width), got {tuple(x.shape)}"
            )
        size = self.size_after(x.shape[2:])
        if min(size) < 1:
            raise ValueError(f"CompactConv3d: a kernel of {self.kernel_size} does not fit into {tuple(x.shape)}")
        if uses_reference_implementation():
            whole = self.kept_rows == self.kernel_size[0]
            return self._taps(self._gathered(x), self._kernel()) if whole else self._depthwise(self._gathered(x))
        if self.execution == "dense":
            return self._taps(x, self._reuse("dense", self._dense_kernel))
        if self.execution == "taps":
            return self._taps(self._gathered(x), self._reuse("taps", self._kernel))
        run = {"transform": self._transform, "depthwise": self._depthwise, "mix": self._mix}[self.execution]
        return run(self._gathered(x))

    # -- the executions; x has the kept channels ------------------------------------------------------------------

    def _transform(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        g, rows = self.groups, self.kept_rows
        with _in_single(x.device.type) as single:
            x = x.float() if single else x
            band = self._band(t).to(x.dtype)
            after = band.shape[1]
            if x.is_contiguous(memory_format=torch.channels_last_3d) and not x.is_contiguous():
                frames = x.permute(0, 2, 3, 4, 1).reshape(b, t, h * w * c)
                parts = [torch.matmul(m, frames).view(b * after, h, w, g, 1, c // g) for m in band]
                z = torch.cat(parts, dim=4).view(b * after, h, w, rows * c).permute(0, 3, 1, 2)
            else:
                z = torch.matmul(band.flatten(0, 1), x.reshape(b, c, t, h * w))
                z = z.view(b, g, c // g, rows, after, h, w).permute(0, 4, 1, 3, 2, 5, 6).reshape(b * after, -1, h, w)
            z = z.contiguous(memory_format=_MEMORY_FORMAT_2D[self.layout])
        y = F.conv2d(z, self.weight, self.bias, self.stride[1:], self.padding[1:], self.dilation[1:], g)
        return y.view(b, after, *y.shape[1:]).transpose(1, 2)

    def _depthwise(self, x: Tensor) -> Tensor:
        c, g, rows, taps = x.shape[1], self.groups, self.kept_rows, self.kernel_size[0]
        with _in_single(x.device.type) as single:
            x = x.float() if single else x
            transform = self.transform.to(x.dtype).repeat(c, 1).view(c * rows, 1, taps, 1, 1)
            z = F.conv3d(
                x, transform, None, (self.stride[0], 1, 1), (self.padding[0], 0, 0), (self.dilation[0], 1, 1), c
            )
        # Channels before rows here, since a depthwise convolution keeps the results of one channel together.
        weight = self.weight.view(self.out_channels, rows, c // g, *self.kernel_size[1:]).transpose(1, 2).flatten(1, 2)
        stride, dilation = (1, *self.stride[1:]), (1, *self.dilation[1:])
        return F.conv3d(z, weight.unsqueeze(2), self.bias, stride, (0, *self.padding[1:]), dilation, g)

    def _mix(self, x: Tensor) -> Tensor:
        b, c, t, h, w = x.shape
        g, rows, n = self.groups, self.kept_rows, self.out_channels
        weight = self._reuse("mix", lambda: self._by_row(c // g))
        frames = x.transpose(1, 2).reshape(b * t, c, h, w).contiguous(memory_format=_MEMORY_FORMAT_2D[self.layout])
        u = F.conv2d(frames, weight, None, self.stride[1:], self.padding[1:], self.dilation[1:], g)
        h, w = u.shape[2:]
        with _in_single(x.device.type) as single:
            u = u.float() if single else u
            u = u.view(b, t, g, rows, n // g, h, w)
            y = torch.einsum("koi,bigknhw->bgnohw", self._band(t).to(u.dtype), u).reshape(b, n, -1, h, w)
            y = y if self.bias is None else y + self.bias.to(y.dtype).view(-1, 1, 1, 1)
        return y.contiguous(memory_format=_MEMORY_FORMAT_3D[self.layout])

    def _taps(self, x: Tensor, kernel: Tensor) -> Tensor:
        """A convolution with the taps of the kernel that meet a frame of x at any time."""
        t, after = x.shape[2], self.size_after(x.shape[2:])[0]
        stride, before, spacing = self.stride[0], self.padding[0], self.dilation[0]
        meets = [
            k for k in range(kernel.shape[2]) if any(0 <= stride * o + spacing * k - before < t for o in range(after))
        ]
        # Where every frame of the result sees padding alone, there is nothing to leave out.
        first, last = (meets[0], meets[-1]) if meets else (0, kernel.shape[2] - 1)
        start = spacing * first - before  # frame that the first of these taps meets for the first result
        stop = stride * (after - 1) + spacing * last - before  # and the last tap for the last one
        x = x.contiguous(memory_format=_MEMORY_FORMAT_3D[self.layout])
        if (first, last) != (0, kernel.shape[2] - 1):
            kernel = kernel[:, :, first : last + 1]
            x = x[:, :, max(start, 0) : stop + 1]
            pad = (max(-start, 0), max(stop + 1 - t, 0))
            x, side = (x, pad[0]) if pad[0] == pad[1] else (F.pad(x, (0, 0, 0, 0, *pad)), 0)
        else:
            side = before
        padding = (side, *self.padding[1:])
        kernel = kernel.contiguous(memory_format=_MEMORY_FORMAT_3D[self.layout])
        return F.conv3d(x, kernel, self.bias, self.stride, padding, self.dilation, self.groups)

    # -- what they are made of --------------------------------------------------------------------------------------

    def _gathered(self, x: Tensor) -> Tensor:
        if self.kept_channels < self.in_channels:
            if self.layout == "channels_last":
                x = x.permute(0, 2, 3, 4, 1).index_select(-1, self.kept).permute(0, 4, 1, 2, 3)
            else:
                x = x.index_select(1, self.kept)
        return x

    def _band(self, frames: int) -> Tensor:
        """S' as matrices from all frames to all positions of the kernel, zero where it overlaps padding: (t',T',T)."""
        return self._reuse(f"band {frames}", lambda: self._make_band(frames))

    def _make_band(self, frames: int) -> Tensor:
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

    def _by_row(self, channels: int) -> Tensor:
        """The weight as that of a 2D convolution to t' N channels."""
        g, rows = self.groups, self.kept_rows
        weight = self.weight.view(g, self.out_channels // g, rows, channels, *self.kernel_size[1:]).transpose(1, 2)
        return weight.reshape(rows * self.out_channels, channels, *self.kernel_size[1:])

    def _reuse(self, name: str, make: Callable[[], Tensor]) -> Tensor:
        """What `make` gives, kept as long as gradients are off and the values it is made of stay the same."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            if self._prepared:
                self._prepared.clear()
            return make()
        sources = (self.weight, self.transform, self.kept)
        now = (*((s.data_ptr(), s.dtype, 0 if s.is_inference() else s._version) for s in sources), self.layout)
        if name not in self._prepared or self._prepared[name][0] != now:
            if len(self._prepared) > _PREPARED:  # clips of many lengths
                self._prepared.clear()
            value = make()
            if value.dim() > 3:
                kind = _MEMORY_FORMAT_3D if value.dim() == 5 else _MEMORY_FORMAT_2D
                value = value.contiguous(memory_format=kind[self.layout])
            self._prepared[name] = (now, value)
        return self._prepared[name][1]

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_prepared": {}}

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, kernel_size={self.kernel_size}, stride={self.stride}, "
            f"padding={self.padding}, kept_channels={self.kept_channels}, kept_rows={self.kept_rows}, "
            f"execution={self.execution}, layout={self.layout}"
        )
