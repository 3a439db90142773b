"""Algorithm 1: a trained 3D network in, a smaller and faster one out; and the methods the paper compares with.

    result = compress(network, batches, rate=2)
    print(result.report)
    fast = choose_executions(result.network, video)  # by measurement, on the machine that will run it

`batches` are real inputs of the network. The returned network holds only the kept weights; fine-tune it (step 14) like
any other. See `papers.fdc3d.files` for how it is saved and loaded.
"""

from __future__ import annotations

import copy
import hashlib
import itertools
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from statistics import median
from typing import Any, Literal, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn
from torch.nn import functional as F

from common.evaluation.complexity import count
from common.spectral.transforms import dct_matrix
from common.training.checkpoints import AtomicCheckpointIO, CheckpointError, read_checkpoint
from papers.fdc3d.layers import LAYOUTS, CompactConv3d, Execution, Layout, MaskedConv3d, numeric_padding

#: `fdc3d`: S and beta learned by Eq. 9; `dct`, `identity`: S fixed, beta learned; `channels`: beta alone (Eq. 8).
#: Rivals, on the same input channels of the same layers: `l1`: smallest weights (Li et al.), `taylor`: smallest change
#: of the loss (Molchanov et al.), `regularisation`: growing penalties while training (Wang et al., Zhang et al.).
Method = Literal["fdc3d", "dct", "identity", "channels", "l1", "taylor", "regularisation"]
METHODS: tuple[Method, ...] = get_args(Method)
TEMPORAL: tuple[Method, ...] = ("fdc3d", "dct", "identity")
#: `paper`: l2 norm of the rows of the sum of S f_j over j, as Section 3.1 writes it; `energy`: of the rows of all S f_j
Importance = Literal["paper", "energy"]
#: how many of t rows p_t drops: `figure3` ceil(p_t t), which keeps 4 of 7 as Figure 3 shows; `floor` keeps 5 of 7
KeepTemporal = Literal["figure3", "floor"]

Rate = float | Mapping[str, float]
#: takes the network's output and the batch, gives a scalar
Loss = Callable[[Any, Any], Tensor]

#: with so few input channels a layer reads a picture or its modalities, none of which can go
FEW_CHANNELS = 4
_POSITIONS = 1 << 22  # sampled values of one batch: channels x positions x filters


class CompressionError(ValueError):
    """The network, the batches or the rates do not fit."""


@dataclass
class LayerReport:
    """What happened to one convolution.

    Attributes:
        name: of the module.
        kernel: (t,d,d); channels, rows: before; kept_channels, kept_rows: after.
        note: why it is not pruned, or not in all ways; empty if it is.
        macs: multiply-adds of the dense layer for one input; macs_compact: after, with the temporal transform.
        params, params_compact: values of the weights, the transform included (Eq. 14).
        loss_start, loss: Eq. 9 (without the part that S and beta do not enter), with the DCT and with what was
            learned; NaN for methods that do not learn.
        error: norm of the change of the layer's output over that of the output, on the last batch.
        seconds, seconds_compact: of the layer, where it was measured; execution: what was chosen then.
    """

    name: str
    kernel: tuple[int, int, int]
    channels: int
    rows: int
    kept_channels: int
    kept_rows: int
    note: str = ""
    macs: int = 0
    macs_compact: int = 0
    params: int = 0
    params_compact: int = 0
    loss_start: float = math.nan
    loss: float = math.nan
    error: float = 0.0
    seconds: float = math.nan
    seconds_compact: float = math.nan
    execution: str = ""

    @property
    def formula(self) -> float:
        """Speed-up of the layer by Eq. 13, c t / c' t'; the transform is left out there."""
        return self.channels * self.rows / (self.kept_channels * self.kept_rows)


@dataclass
class Report:
    """One row per 3D convolution, and three speed-ups of the network that must not be confused.

    Attributes:
        method, importance, channel_rate, temporal_rate: the settings.
        formula: the paper's: multiply-adds of all 3D convolutions over those of Eq. 13, without the transform.
        multiply_adds: of the whole network, the transforms included.
        measured: seconds of the dense network over those of the compact one; NaN before `measure`.
        macs, macs_compact: multiply-adds of the network for one input; params, params_compact: its parameters.
        input_shape: of that input.
    """

    method: str
    importance: str
    channel_rate: Any
    temporal_rate: Any
    layers: list[LayerReport] = field(default_factory=list)
    formula: float = math.nan
    multiply_adds: float = math.nan
    measured: float = math.nan
    macs: int = 0
    macs_compact: int = 0
    params: int = 0
    params_compact: int = 0
    input_shape: tuple[int, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Report:
        """The inverse of `to_dict`."""
        layers = [LayerReport(**{**layer, "kernel": tuple(layer["kernel"])}) for layer in values["layers"]]
        return cls(**{**values, "layers": layers, "input_shape": tuple(values["input_shape"])})

    def __str__(self) -> str:
        from rich.table import Table

        table = Table(title=f"{self.method}: {len(self.layers)} convolutions")
        for name in ("layer", "kernel", "channels", "rows", "formula", "multiply-adds", "measured", "error", "note"):
            left = name in ("layer", "note")
            table.add_column(name, justify="left" if left else "right", overflow="fold")
        for layer in self.layers:
            speedup = layer.seconds / layer.seconds_compact
            table.add_row(
                layer.name,
                "x".join(map(str, layer.kernel)),
                f"{layer.channels} > {layer.kept_channels}",
                f"{layer.rows} > {layer.kept_rows}",
                f"{layer.formula:.2f}x",
                f"{layer.macs / max(layer.macs_compact, 1):.2f}x",
                "-" if math.isnan(speedup) else f"{speedup:.2f}x {layer.execution}",
                f"{layer.error:.3f}",
                layer.note,
            )
        console = Console(width=150, color_system=None)
        with console.capture() as capture:
            console.print(table)
        measured = "not measured" if math.isnan(self.measured) else f"{self.measured:.2f}x measured on this machine"
        return (
            f"{capture.get()}"
            f"speed-up: {self.formula:.2f}x by the paper's formula (convolutions alone, no transform), "
            f"{self.multiply_adds:.2f}x in multiply-adds of the network with the transform, {measured}\n"
            f"multiply-adds {self.macs:,} > {self.macs_compact:,}; parameters {self.params:,} > {self.params_compact:,}"
        )


@dataclass
class Decision:
    """What Algorithm 1 found for a layer: S (t,t), the rows kept (t,) bool, beta (c,) with 0 for what is discarded."""

    transform: Tensor
    rows: Tensor
    scale: Tensor
    loss_start: float = math.nan
    loss: float = math.nan
    error: float = 0.0


@dataclass
class Compressed:
    """The result of `compress`: the compact network, the masked one that is equal to it, what was found, the report."""

    network: nn.Module
    masked: nn.Module
    decisions: dict[str, Decision]
    report: Report


# -- layers and rates ------------------------------------------------------------------------------------------------


@dataclass
class Layer:
    """A convolution of a network as `find_layers` saw it run.

    Attributes:
        name, conv: of the module.
        size, out: (T,H,W) of its input and its output, empty if it is not called.
        fixed: why nothing of it can be pruned, or "".
    """

    name: str
    conv: nn.Conv3d
    size: tuple[int, ...]
    out: tuple[int, ...]
    fixed: str

    @property
    def channels_note(self) -> str:
        """Why its channels are kept, or ""."""
        if self.conv.groups > 1:
            return f"channels kept: {self.conv.groups} groups"
        return f"channels kept: reads {self.conv.in_channels}" if self.conv.in_channels <= FEW_CHANNELS else ""

    def kept(self, channel_rate: float, temporal_rate: float, keep_temporal: str) -> tuple[int, int]:
        """(c', t')."""
        c, t = self.conv.in_channels, self.conv.kernel_size[0]
        if self.fixed:
            return c, t
        product = round(t * temporal_rate, 9)
        dropped = math.ceil(product) if keep_temporal == "figure3" else math.floor(product)
        channels = c if self.channels_note else max(1, c - math.floor(round(c * channel_rate, 9)))
        return channels, max(1, t - dropped)

    def macs(self, channels: int, rows: int) -> int:
        """Multiply-adds for one input with the transform, as far as rows are dropped."""
        conv = self.conv
        t = conv.kernel_size[0]
        area = math.prod(conv.kernel_size[1:])
        products = conv.out_channels * channels // conv.groups * rows * area * math.prod(self.out)
        transform = channels * t * rows * self.out[0] * math.prod(self.size[1:]) if rows < t else 0
        return products + transform


def inputs_of(batch: Any, network: nn.Module) -> Tensor:
    """The network's input in a batch (a tensor, a sequence that begins with it, or a mapping with `video`, `volume` or
    `image`), on the device of the network.

    Raises:
        CompressionError: there is none.
    """
    found = batch
    if isinstance(batch, Mapping):
        found = next((batch[key] for key in ("video", "volume", "image") if key in batch), None)
    elif isinstance(batch, list | tuple) and batch:
        found = batch[0]
    if not isinstance(found, Tensor):
        what = f"a mapping with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise CompressionError(
            f"a batch must be a tensor, begin with one, or have it under video, volume or image, but is {what}"
        )
    parameter = next(network.parameters(), None)
    return found if parameter is None else found.to(parameter.device)


def find_layers(network: nn.Module, x: Tensor) -> list[Layer]:
    """Every Conv3d in the order in which it is first called; those not called come last."""
    names = {module: name for name, module in network.named_modules() if isinstance(module, nn.Conv3d)}
    seen: dict[str, tuple[tuple[int, ...], tuple[int, ...]]] = {}

    def note(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        name = names[module]  # type: ignore[index]
        seen.setdefault(name, (tuple(inputs[0].shape[2:]), tuple(output.shape[2:])))

    hooks = [module.register_forward_hook(note) for module in names]
    try:
        with torch.no_grad():
            network(x[:1])
    finally:
        for hook in hooks:
            hook.remove()
    modules = {name: module for module, name in names.items()}
    layers = []
    for name in (*seen, *(n for n in modules if n not in seen)):
        conv = modules[name]
        fixed = ""
        if name not in seen:
            fixed = "left alone: not called"
        elif numeric_padding(conv) is None:
            fixed = f"left alone: padding {conv.padding!r}, mode {conv.padding_mode!r}"
        layers.append(Layer(name, conv, *seen.get(name, ((), ())), fixed))
    if not layers:
        raise CompressionError(f"{type(network).__name__} has no torch.nn.Conv3d")
    return layers


def rates_of(rate: float, method: Method = "fdc3d") -> tuple[float, float]:
    """(p_c, p_t) for a speed-up of 3x3x3 layers by Eq. 13: 2 gives (1/4, 1/3), 4 gives (5/8, 1/3), as in Section 5.1.

    Methods without temporal pruning take it all from the channels.

    Raises:
        CompressionError: the rate is below 1.
    """
    if not rate >= 1:
        raise CompressionError(f"the rate is a speed-up of at least 1, not {rate}")
    temporal = 1 / 3 if method in TEMPORAL and rate >= 1.5 else 0.0
    return 1 - 1 / (rate * (1 - temporal)), temporal


def _rates_for_speedup(
    layers: list[Layer], total: int, speedup: float, method: Method, keep: str
) -> tuple[float, float]:
    """The smallest common p_c at which the multiply-adds of the network fall by `speedup`."""
    temporal = 1 / 3 if method in TEMPORAL else 0.0
    rest = total - sum(layer.macs(*layer.kept(0, 0, keep)) for layer in layers if layer.size)

    def reached(rate: float) -> float:
        return total / (rest + sum(layer.macs(*layer.kept(rate, temporal, keep)) for layer in layers if layer.size))

    low, high = 0.0, 0.99
    if reached(high) < speedup:
        raise CompressionError(
            f"a speed-up of {speedup}x cannot be reached: with almost all channels gone it is {reached(high):.2f}x in "
            "multiply-adds; the rest is in layers that cannot be pruned"
        )
    if reached(0.0) >= speedup:
        return 0.0, temporal
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if reached(middle) >= speedup else (middle, high)
    return high, temporal


def _rate_of(rate: Rate, name: str) -> float:
    return float(rate.get(name, 0.0)) if isinstance(rate, Mapping) else float(rate)


# -- Eq. 9 -----------------------------------------------------------------------------------------------------------


def temporal_products(weight: Tensor, importance: Importance) -> Tensor:
    """A = G G^T in float64, (t,t), so that row i of S G has the norm sqrt(s_i A s_i^T).

    `paper`: G (t,N) is the sum of f_j over j, as in V and the l2,1 term; contributions of the positions can cancel.
    `energy`: G (t, d^2 c N) holds every f_j side by side, so that no energy is lost from sight.
    """
    f = weight.detach().double().transpose(1, 2).flatten(2)  # (N,t,d^2 c)
    if importance == "paper":
        g = f.sum(dim=2).T
        return g @ g.T
    return torch.einsum("ntj,nuj->tu", f, f)


def row_norms(transform: Tensor, products: Tensor) -> Tensor:
    """V_i: the l2 norms of the rows of S G, (t,)."""
    return torch.einsum("it,tu,iu->i", transform, products, transform).clamp_min(0).sqrt()


def learn_transform(products: Tensor, start: Tensor, sweeps: int = 20) -> tuple[Tensor, list[float]]:
    """Minimise the l2,1 norm of S G over orthogonal S (Eq. 7) by rotations of two rows at a time.

    The norm of two rows is least where they are rotated so that their products with each other vanish; a sweep does
    this for every pair. S is orthogonal throughout, and the norm never rises, so it is never above that of `start`. It
    has no local minima but the global one, the sum of the singular values of G, to which the sweeps converge. Plain
    gradient steps stall on the way, where the norm of a row nears 0.

    Args:
        products: G G^T, (t,t), see `temporal_products`.
        start: S to begin with, (t,t) orthogonal.
        sweeps: at most.

    Returns:
        S in float64, and the norm at the start and after every sweep.
    """
    a, s = products.double(), start.detach().to(products.device, torch.float64).clone()
    values = [float(row_norms(s, a).sum())]
    for _ in range(sweeps):
        before = s.clone()
        for i, j in itertools.combinations(range(len(s)), 2):
            pair = s[[i, j]]
            b = pair @ a @ pair.T
            # At most 45 degrees, so that rows keep their places, low frequencies first.
            half = torch.atan2(2 * b[0, 1], (b[0, 0] - b[1, 1]).abs()) / 2 * (1 if b[0, 0] >= b[1, 1] else -1)
            cos, sin = half.cos(), half.sin()
            s[[i, j]] = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])]) @ pair
        u, _, v = torch.linalg.svd(s)
        s = u @ v  # the nearest orthogonal matrix: rounding would add up
        value = float(row_norms(s, a).sum())
        if value > values[-1]:  # nothing left but rounding
            return before, values
        values.append(value)
        if values[-2] - value <= 1e-12 * value:
            break
    return s, values


class ChannelWeights:
    """beta of Eq. 8: the least squares of Y by the channels' contributions X_i^T F_i, with an l1 penalty.

    Batches add to the sums of products; proximal gradient steps then move beta, which reach the exact zeros that plain
    gradient steps jump over. The error is relative to the norm of Y, and the penalty is `gamma` times the mean |beta|.
    """

    def __init__(self, channels: int, gamma: float, device: torch.device | str = "cpu") -> None:
        self.gamma = gamma
        self.products = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self.targets = torch.zeros(channels, dtype=torch.float64, device=device)
        self.energy = 0.0
        self.beta = torch.ones(channels, dtype=torch.float64, device=device)

    def add(self, contributions: Tensor, outputs: Tensor) -> None:
        """Take in samples: contributions (c, positions, N) and outputs without bias (positions, N)."""
        z = contributions.flatten(1)
        self.products += (z @ z.T).double()
        self.targets += (z @ outputs.flatten()).double()
        self.energy += float(outputs.double().square().sum())

    def loss(self) -> float:
        """Both terms of Eq. 8."""
        return self.error(self.beta) + self.gamma * float(self.beta.abs().mean())

    def error(self, beta: Tensor) -> float:
        """||Y - sum beta_i X_i^T F_i||^2 / ||Y||^2."""
        if self.energy == 0:
            return 0.0
        return max(0.0, float(self.energy - 2 * beta @ self.targets + beta @ self.products @ beta)) / self.energy

    def step(self, times: int = 50) -> None:
        """Proximal gradient steps of the largest safe length."""
        largest = float(torch.linalg.eigvalsh(self.products)[-1])
        if largest <= 0:
            return
        shrink = self.gamma / len(self.beta) * self.energy / (2 * largest)
        for _ in range(times):
            moved = self.beta - (self.products @ self.beta - self.targets) / largest
            self.beta = moved.sign() * (moved.abs() - shrink).clamp_min(0)

    def keep(self, channels: int) -> Tensor:
        """The channels of largest |beta|, with the weights that fit Y best without the penalty; 0 elsewhere.

        Among channels of equal beta (those at 0, above all) the larger contribution wins. All channels get 1.
        """
        if channels == len(self.beta):
            return torch.ones_like(self.beta)
        weight, size = self.beta.abs().tolist(), self.products.diagonal().tolist()
        order = sorted(range(len(size)), key=lambda i: (-weight[i], -size[i], i))
        chosen = torch.tensor(sorted(order[:channels]), device=self.beta.device)
        beta = torch.zeros_like(self.beta)
        beta[chosen] = 1.0
        if self.energy > 0:
            part = self.products[chosen][:, chosen]
            # A small pull to 1 settles what the samples leave open.
            ridge = 1e-4 * part.diagonal().mean() * torch.eye(channels, dtype=part.dtype, device=part.device)
            rest = self.targets[chosen] - part.sum(dim=1)
            fitted = 1 + torch.linalg.solve(part + ridge, rest)
            beta[chosen] = torch.where(fitted == 0, 1e-12, fitted)  # 0 would read as discarded
        return beta


def sample_contributions(
    conv: nn.Conv3d, x: Tensor, y: Tensor, positions: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each input channel's part of the output at random positions of a batch.

    Args:
        conv: of one group and zero padding; x: its input (B,C,T,H,W); y: its output (B,N,T',H',W').
        positions: how many.

    Returns:
        (C, positions, N), and the output without bias (positions, N). The first sums to the second over C.
    """
    padding = numeric_padding(conv)
    assert padding is not None
    sizes = (y.shape[0], *y.shape[2:])
    where = [torch.randint(n, (positions,), generator=generator).to(x.device) for n in sizes]
    padded = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    axes = []
    for axis in range(3):
        taps = torch.arange(conv.kernel_size[axis], device=x.device) * conv.dilation[axis]
        index = where[axis + 1].unsqueeze(1) * conv.stride[axis] + taps  # (positions, taps)
        shape = [positions, 1, 1, 1]
        shape[axis + 1] = -1
        axes.append(index.view(shape))
    patches = padded.permute(0, 2, 3, 4, 1)[where[0].view(-1, 1, 1, 1), axes[0], axes[1], axes[2]]  # (P,t,d,d,C)
    patches = patches.flatten(1, 3).permute(2, 0, 1)  # (C,P,t d d)
    kernels = conv.weight.detach().flatten(2).permute(1, 2, 0)  # (C,t d d,N)
    outputs = y[where[0], :, where[1], where[2], where[3]]
    return torch.bmm(patches, kernels), outputs if conv.bias is None else outputs - conv.bias.detach()


class _StopForwardError(Exception):
    pass


def _capture(network: nn.Module, conv: nn.Conv3d, x: Tensor) -> tuple[Tensor, Tensor]:
    """X and Y of a layer (steps 5 and 6); the network runs no further than that."""
    found: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        found.extend((inputs[0].detach().clone(), output.detach().clone()))  # what follows may work in place
        raise _StopForwardError

    handle = conv.register_forward_hook(hook)
    try:
        with torch.no_grad():
            network(x)
    except _StopForwardError:
        pass
    finally:
        handle.remove()
    if not found:
        raise CompressionError("a convolution that ran on the first batch does not run on every batch")
    return found[0], found[1]


# -- the methods -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Settings:
    method: Method
    importance: Importance
    keep_temporal: KeepTemporal
    gamma: float
    lambda_: float
    steps: int
    tolerance: float
    seed: int


def _decide(
    network: nn.Module,
    layer: Layer,
    kept: tuple[int, int],
    batches: Iterable[Any],
    settings: _Settings,
    scores: Tensor | None,
    tick: Callable[[], None],
) -> Decision:
    """Steps 2 to 12 for one layer."""
    conv = layer.conv
    channels, rows = kept
    c, t = conv.in_channels, conv.kernel_size[0]
    device = conv.weight.device
    products = temporal_products(conv.weight, settings.importance).cpu()
    dct = dct_matrix(t).double()
    transform = torch.eye(t, dtype=torch.float64) if settings.method not in ("fdc3d", "dct") or rows == t else dct
    # Eq. 8, for `channels`, has no term with S.
    weight_of_norm = settings.lambda_ if settings.method in TEMPORAL else 0.0
    scale_of_norm = weight_of_norm / float(products.trace().sqrt().clamp_min(1e-30))
    norm_start = norm = float(row_norms(dct, products).sum())
    learns_channels = channels < c and scores is None
    beta = ChannelWeights(c, settings.gamma, device)
    loss_start = loss = math.nan
    generator = torch.Generator().manual_seed(settings.seed)
    positions = max(16, min(512, _POSITIONS // (c * conv.out_channels)))
    x = y = None
    previous = math.inf
    for batch in itertools.islice(_endless(batches), settings.steps):
        x, y = _capture(network, conv, inputs_of(batch, network))
        if learns_channels:
            beta.add(*sample_contributions(conv, x, y, positions, generator))
            beta.step()
        if settings.method == "fdc3d" and rows < t:
            transform, norms = learn_transform(products, transform, sweeps=1)
            norm = norms[-1]
        tick()
        if settings.method not in TEMPORAL and not learns_channels:
            break  # nothing to learn: the batch only shows the error
        loss = (beta.loss() if learns_channels else 0.0) + scale_of_norm * norm
        if abs(previous - loss) <= settings.tolerance * abs(loss):
            break
        previous = loss
    if settings.method in TEMPORAL or learns_channels:
        fit = beta.loss() if learns_channels else 0.0
        uses_dct = settings.method != "identity"
        norm = norm if uses_dct else float(row_norms(transform, products).sum())
        loss_start, loss = fit + scale_of_norm * norm_start, fit + scale_of_norm * norm
    strongest = row_norms(transform, products).argsort(descending=True)[:rows]
    mask = torch.zeros(t, dtype=torch.bool)
    mask[strongest] = True
    if learns_channels:
        scale = beta.keep(channels)
    else:
        scale = torch.ones(c)
        if scores is not None and channels < c:
            scale[scores.argsort()[: c - channels]] = 0.0
    decision = Decision(transform.float().cpu(), mask, scale.float().cpu(), loss_start, loss)
    if x is not None and y is not None and (channels < c or rows < t):
        masked = _masked_layer(copy.deepcopy(conv), decision)
        with torch.no_grad():
            plain = y if conv.bias is None else y - conv.bias.view(-1, 1, 1, 1)
            decision.error = float((masked(x) - y).norm() / plain.norm().clamp_min(1e-30))
    return decision


def _endless(batches: Iterable[Any]) -> Iterator[Any]:
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise CompressionError("there are no batches")


def classification_loss(output: Any, batch: Any) -> Tensor:
    """Cross entropy of logits (B,classes) with the labels of a batch, under `label` or in second place.

    Raises:
        CompressionError: the batch has none.
    """
    labels = batch.get("label") if isinstance(batch, Mapping) else batch[1] if isinstance(batch, list | tuple) else None
    if not isinstance(labels, Tensor) or not isinstance(output, Tensor) or output.dim() != 2:
        raise CompressionError("this method needs a loss: batches with labels of classes, or `loss` for another task")
    return F.cross_entropy(output, labels.to(output.device))


def _taylor_scores(
    network: nn.Module, layers: list[Layer], batches: Iterable[Any], loss: Loss, steps: int, tick: Callable[[], None]
) -> dict[str, Tensor]:
    """Mean over examples of |mean over positions of x dL/dx| for every input channel (Molchanov et al., Eq. 8)."""
    scores = {layer.name: torch.zeros(layer.conv.in_channels) for layer in layers}
    inputs: dict[str, Tensor] = {}

    def hook(name: str) -> Callable[..., tuple[Tensor]]:
        def keep(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor]:
            x = args[0] if args[0].requires_grad else args[0].detach().requires_grad_()
            x = x.clone()  # what was given may be changed in place afterwards
            x.retain_grad()
            inputs[name] = x
            return (x,)

        return keep

    handles = [layer.conv.register_forward_pre_hook(hook(layer.name)) for layer in layers]
    try:
        for batch in itertools.islice(_endless(batches), steps):
            inputs.clear()
            with torch.enable_grad():
                loss(network(inputs_of(batch, network)), batch).backward()
            for name, x in inputs.items():
                if x.grad is not None:
                    scores[name] += (x.grad * x.detach()).mean(dim=(2, 3, 4)).abs().mean(dim=0).cpu()
            network.zero_grad(set_to_none=True)
            tick()
    finally:
        for handle in handles:
            handle.remove()
    return scores


def _regularise(
    network: nn.Module,
    plan: Mapping[str, tuple[nn.Conv3d, int]],
    batches: Iterable[Any],
    loss: Loss,
    steps: int,
    learning_rate: float,
    tick: Callable[[], None],
) -> None:
    """Train with a weight decay of its own for every input channel, which grows for the weakest (Wang et al.).

    In a layer that is to lose n of its channels, the decay of the channel of rank r (by l1 norm) grows by
    A (1 - r/n) in every step, and that of channels beyond rank n shrinks, not below 0. A is such that the weakest have
    vanished when the steps are over.
    """
    was_training = network.training
    network.train()
    optimizer = torch.optim.SGD(network.parameters(), lr=learning_rate, momentum=0.0)
    growth = 14 / (learning_rate * steps * steps)
    decay = {name: torch.zeros(conv.in_channels, device=conv.weight.device) for name, (conv, _) in plan.items()}
    for batch in itertools.islice(_endless(batches), steps):
        with torch.enable_grad():
            value = loss(network(inputs_of(batch, network)), batch)
            optimizer.zero_grad(set_to_none=True)
            value.backward()
        with torch.no_grad():
            for name, (conv, dropped) in plan.items():
                rank = conv.weight.abs().sum(dim=(0, 2, 3, 4)).argsort().argsort().float()
                weak = 1 - rank / dropped
                strong = -(rank - dropped) / max(conv.in_channels - dropped - 1, 1)
                decay[name] = (decay[name] + growth * torch.where(rank < dropped, weak, strong)).clamp_(min=0)
                keep = (1 - learning_rate * decay[name]).clamp_(min=0)
                conv.weight.mul_(keep.view(1, -1, 1, 1, 1))
        optimizer.step()
        tick()
    network.train(was_training)


# -- networks --------------------------------------------------------------------------------------------------------


def _masked_layer(conv: nn.Conv3d, decision: Decision) -> MaskedConv3d:
    layer = MaskedConv3d(conv, decision.transform)
    layer.rows.copy_(decision.rows)
    layer.scale.copy_(decision.scale)
    return layer


def masked(network: nn.Module, decisions: Mapping[str, Decision]) -> nn.Module:
    """A copy of the network with a `MaskedConv3d` in the place of every decided layer."""
    network = copy.deepcopy(network)
    for name, decision in decisions.items():
        conv = network.get_submodule(name)
        if not isinstance(conv, nn.Conv3d):
            raise CompressionError(f"{name} is {type(conv).__name__}, not a Conv3d")
        network.set_submodule(name, _masked_layer(conv, decision).train(conv.training))
    return network


def compact(network: nn.Module) -> nn.Module:
    """A copy of a masked network that holds only what its masks keep. Layers with nothing masked become plain again."""
    network = copy.deepcopy(network)
    for name, module in list(network.named_modules()):
        if isinstance(module, MaskedConv3d):
            network.set_submodule(name, module.compact())
    return network


def compress(
    network: nn.Module,
    batches: Iterable[Any],
    *,
    rate: float | None = None,
    channel_rate: Rate | None = None,
    temporal_rate: Rate | None = None,
    speedup: float | None = None,
    method: Method = "fdc3d",
    importance: Importance = "paper",
    keep_temporal: KeepTemporal = "figure3",
    gamma: float = 0.2,
    lambda_: float = 0.1,
    steps: int = 10,
    tolerance: float = 1e-4,
    loss: Loss | None = None,
    learning_rate: float = 1e-3,
    state: str | Path | None = None,
    progress: bool | None = None,
    seed: int = 0,
) -> Compressed:
    """Compress a trained network (Algorithm 1 up to step 13). The given network is left as it is.

    X and Y of every layer come from the given network, as steps 4 to 6 say, so no layer depends on another.
    Every `Conv3d` that the network calls is pruned, with these exceptions, which the report names: one with at most
    four input channels, or with groups, keeps its channels; one whose kernel is one frame long keeps its only row; one
    with other than zero padding is left alone. Residual joins need no exception: each layer gathers the channels that
    it reads.

    Args:
        network: any module with 3D convolutions, in any mode.
        batches: real inputs, as `inputs_of` takes them; a list, or a loader that can be iterated again.
        rate: speed-up of 3x3x3 layers by the paper's formula: 2 or 4 as in its tables, or any other; see `rates_of`.
        channel_rate, temporal_rate: p_c and p_t instead: one number each, or one per layer by name (others: 0).
        speedup: instead of them: the speed-up of the whole network in multiply-adds, transforms included.
        method: one of METHODS.
        importance: of rows, see `temporal_products`.
        keep_temporal: `figure3` drops ceil(p_t t) rows, `floor` floor(p_t t). They differ for t = 7: 4 or 5 are kept.
        gamma, lambda_: weights of the penalties of Eq. 9, see `ChannelWeights`; lambda is relative to the norm of G.
        steps: batches per layer at most; training steps in all for `regularisation`.
        tolerance: stop a layer when its loss changes by less than this part of it.
        loss: what `taylor` and `regularisation` need, by default cross entropy with the batches' labels.
        learning_rate: of `regularisation`.
        state: file that holds what is decided so far, written after every layer; a killed call goes on from there.
        progress: show progress bars; by default on a terminal.
        seed: of the sampled positions.

    Raises:
        CompressionError: a setting is out of its range, a named layer does not exist, there is no batch, a loss is
            needed, or the state file belongs to another network or other settings.
    """
    if method not in METHODS:
        raise CompressionError(f"method {method!r} is not known; choose one of {', '.join(METHODS)}")
    for name, value, choices in (
        ("importance", importance, get_args(Importance)),
        ("keep_temporal", keep_temporal, get_args(KeepTemporal)),
    ):
        if value not in choices:
            raise CompressionError(f"{name} {value!r} is not known; choose one of {', '.join(choices)}")
    given = sum(v is not None for v in (rate, speedup)) + (channel_rate is not None or temporal_rate is not None)
    if given != 1:
        raise CompressionError("give one of: rate, speedup, or channel_rate and temporal_rate")
    if steps < 1:
        raise CompressionError(f"steps must be at least 1, not {steps}")
    if iter(batches) is batches:
        batches = list(batches)
    source = getattr(network, SOURCE, None)
    network = copy.deepcopy(network).eval()
    first = inputs_of(next(_endless(batches)), network)
    layers = find_layers(network, first)
    shape = (1, *first.shape[1:])
    dense = count(network, shape)
    if rate is not None:
        channel_rate, temporal_rate = rates_of(rate, method)
    elif speedup is not None:
        channel_rate, temporal_rate = _rates_for_speedup(layers, dense.macs_paper, speedup, method, keep_temporal)
    channel_rate, temporal_rate = channel_rate or 0.0, temporal_rate or 0.0
    _check_rates(layers, channel_rate, temporal_rate)
    if method not in TEMPORAL and (
        temporal_rate if not isinstance(temporal_rate, Mapping) else any(temporal_rate.values())
    ):
        raise CompressionError(
            f"method {method} prunes channels only; its temporal rate must be 0, not {temporal_rate}"
        )
    kept = {
        layer.name: layer.kept(_rate_of(channel_rate, layer.name), _rate_of(temporal_rate, layer.name), keep_temporal)
        for layer in layers
    }
    settings = _Settings(method, importance, keep_temporal, gamma, lambda_, steps, tolerance, seed)
    memory = _State(state, network, (settings, kept, learning_rate))
    todo = [layer for layer in layers if not layer.fixed]
    pruned = [layer for layer in todo if kept[layer.name][0] < layer.conv.in_channels]
    with _bar(progress) as bar:
        overall = bar.add_task(method, total=len(todo))
        inner = bar.add_task("batches", total=steps)
        scores: dict[str, Tensor] = {}
        if method == "regularisation" and pruned and not memory.restore(network):
            plan = {p.name: (p.conv, p.conv.in_channels - kept[p.name][0]) for p in pruned}
            tick = lambda: bar.advance(inner)  # noqa: E731
            _regularise(network, plan, batches, loss or classification_loss, steps, learning_rate, tick)
            memory.keep_weights(network)
        if method in ("l1", "regularisation"):
            scores = {p.name: p.conv.weight.detach().abs().sum(dim=(0, 2, 3, 4)).cpu() for p in pruned}
        elif method == "taylor" and any(p.name not in memory.decisions for p in pruned):
            tick = lambda: bar.advance(inner)  # noqa: E731
            scores = _taylor_scores(network, pruned, batches, loss or classification_loss, steps, tick)
        for layer in todo:
            bar.update(overall, description=f"{method} {layer.name}")
            if layer.name not in memory.decisions:
                bar.reset(inner)
                memory.add(
                    layer.name,
                    _decide(
                        network, layer, kept[layer.name], batches, settings, scores.get(layer.name),
                        lambda: bar.advance(inner),
                    ),
                )  # fmt: skip
            bar.advance(overall)
    # Layers from which nothing goes stay plain convolutions.
    decisions = {
        layer.name: memory.decisions[layer.name]
        for layer in todo
        if kept[layer.name] != (layer.conv.in_channels, layer.conv.kernel_size[0])
    }
    with_masks = masked(network, decisions)
    result = compact(with_masks)
    for made in (with_masks, result):
        if source is not None:
            setattr(made, SOURCE, source)
    report = Report(method, importance, channel_rate, temporal_rate, input_shape=shape)
    report.macs, report.params = dense.macs_paper, dense.params
    for layer in layers:
        report.layers.append(_layer_report(layer, kept[layer.name], memory.decisions.get(layer.name)))
    conv_macs = [(r.macs, r.macs / r.formula) for r in report.layers]
    report.formula = sum(m for m, _ in conv_macs) / sum(m for _, m in conv_macs)
    update_report(report, result)
    return Compressed(result, with_masks, decisions, report)


#: attribute of a network that says how to build it: {"builder": dotted name, "arguments": plain values}
SOURCE = "compression_source"


def update_report(report: Report, network: nn.Module) -> None:
    """Count the compact network anew, for instance after its producers were trimmed."""
    complexity = count(network, report.input_shape)
    report.macs_compact, report.params_compact = complexity.macs_paper, complexity.params
    report.multiply_adds = report.macs / max(report.macs_compact, 1)
    for layer in report.layers:
        layer.macs_compact = complexity.by_module.get(layer.name, (layer.macs_compact, 0))[0]
        module = network.get_submodule(layer.name)
        layer.params_compact = sum(p.numel() for p in module.parameters())
        if isinstance(module, CompactConv3d) and layer.kept_rows < layer.rows:
            layer.params_compact += module.transform.numel()


def _layer_report(layer: Layer, kept: tuple[int, int], decision: Decision | None) -> LayerReport:
    conv = layer.conv
    notes = [layer.fixed] if layer.fixed else [layer.channels_note] if layer.channels_note else []
    if not layer.fixed and conv.kernel_size[0] == 1:
        notes.append("channels only: kernel of one frame")
    report = LayerReport(
        layer.name,
        (conv.kernel_size[0], conv.kernel_size[1], conv.kernel_size[2]),
        conv.in_channels,
        conv.kernel_size[0],
        *kept,
        note="; ".join(notes),
        macs=layer.macs(conv.in_channels, conv.kernel_size[0]) if layer.size else 0,
        macs_compact=layer.macs(*kept) if layer.size else 0,
        params=sum(p.numel() for p in conv.parameters()),
    )
    if decision is not None:
        report.loss_start, report.loss, report.error = decision.loss_start, decision.loss, decision.error
    return report


def _check_rates(layers: list[Layer], *rates: Rate) -> None:
    names = {layer.name for layer in layers}
    for rate in rates:
        values = rate if isinstance(rate, Mapping) else {"": rate}
        unknown = [name for name in values if name and name not in names]
        if unknown:
            raise CompressionError(f"there is no convolution {unknown[0]!r}; there are {', '.join(sorted(names))}")
        bad = [v for v in values.values() if not 0 <= v < 1]
        if bad:
            raise CompressionError(f"a pruning rate lies in [0, 1), not {bad[0]}")


def _bar(progress: bool | None) -> Progress:
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, disable=not shown)


class _State:
    """The file of a compression under way: decisions so far, and a fingerprint of network and settings."""

    def __init__(self, path: str | Path | None, network: nn.Module, settings: Any) -> None:
        self.path = None if path is None else Path(path)
        self.decisions: dict[str, Decision] = {}
        self.weights: dict[str, Tensor] | None = None
        digest = hashlib.sha256(repr(settings).encode())
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        if self.path is None or not self.path.exists():
            return
        stored = read_checkpoint(self.path)
        if stored.get("fingerprint") != self.fingerprint:
            raise CompressionError(
                f"{self.path} belongs to the compression of another network, or with other settings; "
                "name another state file, or delete this one to start afresh"
            )
        known = {f.name for f in fields(Decision)}
        try:
            for name, values in stored["decisions"].items():
                self.decisions[name] = Decision(**{k: v for k, v in values.items() if k in known})
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: not the state of a compression ({error})") from error
        self.weights = stored.get("weights")

    def add(self, name: str, decision: Decision) -> None:
        self.decisions[name] = decision
        self._save()

    def keep_weights(self, network: nn.Module) -> None:
        self.weights = network.state_dict()
        self._save()

    def restore(self, network: nn.Module) -> bool:
        """Give the network the weights that were kept, if there are any."""
        if self.weights is None:
            return False
        network.load_state_dict(self.weights)
        return True

    def _save(self) -> None:
        if self.path is not None:
            values = {name: vars(decision) for name, decision in self.decisions.items()}
            stored = {"fingerprint": self.fingerprint, "decisions": values, "weights": self.weights}
            AtomicCheckpointIO().save_checkpoint(stored, self.path)


# -- speed -----------------------------------------------------------------------------------------------------------


def choose_executions(
    network: nn.Module, *inputs: Tensor, layouts: Iterable[Layout] = LAYOUTS, repeats: int = 5
) -> nn.Module:
    """Measure every execution of every `CompactConv3d` on the inputs that it meets, and set the fastest, in place.

    Memory order is a matter of the whole network, so each is tried throughout, and the network timed with both; the
    convolutions that are not compact follow. The choice holds for this machine, thread count and size of the input.

    Args:
        network: a compact network, on the device that matters.
        inputs: of the network.
        layouts: the memory orders to try.
        repeats: timed calls of each; the fastest counts.

    Returns:
        The same network, in evaluation mode.
    """
    network.eval()
    compacted = [module for module in network.modules() if isinstance(module, CompactConv3d)]
    plans: list[tuple[Layout, dict[CompactConv3d, Execution]]] = []
    with torch.no_grad():
        for layout in layouts:
            _set_layout(network, layout)
            chosen: dict[CompactConv3d, Execution] = {}

            def choose(module: nn.Module, args: tuple[Tensor, ...], chosen: Any = chosen) -> None:
                assert isinstance(module, CompactConv3d)
                if module not in chosen:
                    chosen[module] = _fastest(module, args[0], repeats)
                module.execution = chosen[module]

            hooks = [module.register_forward_pre_hook(choose) for module in compacted]
            try:
                network(*inputs)
            finally:
                for hook in hooks:
                    hook.remove()
            plans.append((layout, chosen))
        times = [math.inf] * len(plans)
        for _ in range(repeats if len(plans) > 1 else 0):
            for i, plan in enumerate(plans):
                _apply(network, *plan)
                network(*inputs)
                times[i] = min(times[i], _timed(lambda: network(*inputs), inputs[0]))
        _apply(network, *plans[times.index(min(times))])
    return network


def _apply(network: nn.Module, layout: Layout, executions: Mapping[CompactConv3d, Execution]) -> None:
    _set_layout(network, layout)
    for module, name in executions.items():
        module.execution = name


def _set_layout(network: nn.Module, layout: Layout) -> None:
    kind = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
    for module in network.modules():
        if isinstance(module, CompactConv3d):
            module.set_layout(layout)
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.weight.data = module.weight.data.contiguous(memory_format=kind)


def _fastest(module: CompactConv3d, x: Tensor, repeats: int) -> Execution:
    best: dict[Execution, float] = {}
    for name in module.executions():
        module.execution = name
        module.forward(x)  # not called, since a call would run the hook that measures
        best[name] = _timed(lambda: module.forward(x), x)
    for _ in range(repeats):  # in turns, those that are far behind no more
        for name in [n for n in best if best[n] < 2 * min(best.values())]:
            module.execution = name
            module.forward(x)  # puts its kernel together
            best[name] = min(best[name], *(_timed(lambda: module.forward(x), x) for _ in range(2)))
    return min(best, key=best.__getitem__)


def _timed(run: Callable[[], Any], x: Tensor) -> float:
    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None
    wait()
    began = time.perf_counter()
    run()
    wait()
    return time.perf_counter() - began


def measure(report: Report, dense: nn.Module, network: nn.Module, x: Tensor, repeats: int = 10) -> Report:
    """Time both networks and their convolutions, taking turns, and note the speed-ups in the report.

    Args:
        report: of `compress`; dense: the network before; network: the compact one; x: an input.
        repeats: timed calls of each; the median of a network, and the fastest call of a layer, count.

    Returns:
        The same report.
    """
    times: dict[tuple[str, int], list[float]] = {}
    whole: tuple[list[float], list[float]] = ([], [])
    networks = (copy.deepcopy(dense).eval(), network.eval())
    starts: dict[tuple[str, int], float] = {}
    wait = torch.cuda.synchronize if x.device.type == "cuda" else lambda: None

    def began(key: tuple[str, int]) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            wait()
            starts[key] = time.perf_counter()

        return hook

    def ended(key: tuple[str, int]) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            wait()
            times.setdefault(key, []).append(time.perf_counter() - starts[key])

        return hook

    with torch.no_grad():
        for _ in range(2):
            for one in networks:
                one(x)
        for _ in range(repeats):  # the networks first, without hooks that would slow them down
            for i, one in enumerate(networks):
                whole[i].append(_timed(lambda one=one: one(x), x))  # type: ignore[misc]
        hooks = []
        for i, one in enumerate(networks):
            for layer in report.layers:
                module = one.get_submodule(layer.name)
                hooks.append(module.register_forward_pre_hook(began((layer.name, i))))
                hooks.append(module.register_forward_hook(ended((layer.name, i))))
        try:
            for _ in range(repeats):
                for one in networks:
                    one(x)
        finally:
            for hook in hooks:
                hook.remove()
    report.measured = median(whole[0]) / median(whole[1])
    for layer in report.layers:
        if (layer.name, 0) in times:
            layer.seconds, layer.seconds_compact = (min(times[layer.name, i]) for i in (0, 1))
        module = network.get_submodule(layer.name)
        layer.execution = module.execution if isinstance(module, CompactConv3d) else "plain"
    return report
