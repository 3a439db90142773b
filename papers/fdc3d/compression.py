"""Algorithm 1: a trained 3D network in, a smaller and faster one out.

    result = compress(network, batches, rate=2)
    print(result.report)

`batches` are real inputs of the network. The returned network holds only the kept weights; fine-tune it (step 14) like
any other. `papers.fdc3d.deployment` and `papers.fdc3d.timing` make it faster, `papers.fdc3d.files` saves it.

X and Y of every layer come from the given network, as steps 4 to 6 say, so no layer depends on another. Every `Conv3d`
that the network calls is pruned, with these exceptions, which the report names: one with at most four input channels,
or with groups, keeps its channels; one whose kernel is one frame long keeps its only row; one with other than symmetric
zero padding is left alone. Residual sums need no exception: each layer gathers the channels that it reads.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, get_args

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch import Tensor, nn

from common.evaluation.complexity import count
from common.spectral.transforms import dct_matrix
from papers.fdc3d.channels import ChannelWeights, sample_contributions
from papers.fdc3d.examples import CompressionError, Examples, Loss, classification_loss, endless, inputs_of
from papers.fdc3d.layers import MaskedConv3d, replace_module
from papers.fdc3d.methods import METHODS, MethodName
from papers.fdc3d.rates import (
    ConvLayer,
    KeepTemporal,
    Rate,
    find_layers,
    kept_sizes,
    rates_for_speedup,
    rates_of,
)
from papers.fdc3d.report import CompressionReport, LayerReport
from papers.fdc3d.state import Decision, State
from papers.fdc3d.transforms import Importance, learn_transform, row_norms, temporal_products

_SAMPLED = 1 << 22  # sampled values of one batch: channels x positions x filters


@dataclass(frozen=True)
class CompressionOptions:
    """How a network is compressed. One of `rate`, `speedup`, and `channel_rate` with `temporal_rate` must be given.

    Attributes:
        rate: speed-up of 3x3x3 layers by the paper's formula: 2 or 4 as in its tables, or any other; see `rates_of`.
        speedup: speed-up of the whole network in multiply-adds, transforms included.
        channel_rate: p_c: a number, or one per layer by name (0 for the others).
        temporal_rate: p_t, likewise.
        method: one of `papers.fdc3d.methods.METHODS`.
        importance: of temporal rows: norms of the rows of the summed kernels (`paper`) or of all kernels (`energy`).
        keep_temporal: `figure3` drops ceil(p_t t) rows, `floor` floor(p_t t). They differ for t = 7: 4 or 5 are kept.
        gamma: weight of the l1 penalty on beta in Eq. 9, relative to the norm of Y.
        lambda_: weight of the l2,1 penalty in Eq. 9, relative to the norm of G.
        steps: batches per layer at most; training steps in all for `regularisation`.
        tolerance: a layer has converged when its loss changes by less than this fraction of it.
        learning_rate: of `regularisation`.
        seed: of the sampled positions.
    """

    rate: float | None = None
    speedup: float | None = None
    channel_rate: Rate | None = None
    temporal_rate: Rate | None = None
    method: MethodName = "fdc3d"
    importance: Importance = "paper"
    keep_temporal: KeepTemporal = "figure3"
    gamma: float = 0.2
    lambda_: float = 0.1
    steps: int = 10
    tolerance: float = 1e-4
    learning_rate: float = 1e-3
    seed: int = 0

    def check(self) -> None:
        """Raise CompressionError for a value out of its range, or where it is not clear how much to prune."""
        for name, choices in (
            ("method", tuple(METHODS)),
            ("importance", get_args(Importance)),
            ("keep_temporal", get_args(KeepTemporal)),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise CompressionError(f"unknown {name} {value!r}; choose one of {', '.join(choices)}")
        by_rates = self.channel_rate is not None or self.temporal_rate is not None
        if (self.rate is not None) + (self.speedup is not None) + by_rates != 1:
            raise CompressionError("give one of: rate, speedup, or channel_rate and temporal_rate")
        if self.steps < 1:
            raise CompressionError(f"steps must be at least 1, not {self.steps}")

    def rates(self, layers: list[ConvLayer], macs: int) -> tuple[Rate, Rate]:
        """p_c and p_t for the layers of a network of so many multiply-adds."""
        if self.rate is not None:
            return rates_of(self.rate, self.method)
        if self.speedup is not None:
            return rates_for_speedup(layers, macs, self.speedup, self.method, self.keep_temporal)
        temporal = self.temporal_rate or 0.0
        given = any(temporal.values()) if isinstance(temporal, Mapping) else temporal
        if given and not METHODS[self.method].prunes_rows:
            raise CompressionError(
                f"method {self.method} prunes channels only; its temporal rate must be 0, not {temporal}"
            )
        return self.channel_rate or 0.0, temporal


@dataclass
class Compressed:
    """The result of `compress`: the compact network, the equal one with masks, the decisions by layer, the report."""

    network: nn.Module
    masked: nn.Module
    decisions: dict[str, Decision]
    report: CompressionReport


def compress(
    network: nn.Module,
    batches: Iterable[Any],
    options: CompressionOptions = CompressionOptions(),
    *,
    loss: Loss = classification_loss,
    state: str | Path | None = None,
    progress: bool | None = None,
    **changes: Any,
) -> Compressed:
    """Compress a trained network (Algorithm 1 up to step 13). The given network is left as it is.

    Args:
        network: any module with 3D convolutions, in any mode.
        batches: real inputs, as `inputs_of` takes them; a list, or a loader that can be iterated again.
        options: see `CompressionOptions`; `changes` replaces some of them, as in `compress(..., rate=2)`.
        loss: for `taylor` and `regularisation`: of the network's output and a batch.
        state: file for the decisions so far, written after every layer; an interrupted call resumes from it.
        progress: show progress bars; by default on a terminal.

    Raises:
        CompressionError: an option is out of its range, a named layer does not exist, there is no batch, a loss is
            needed, or the state file belongs to another network or other options.
    """
    options = replace(options, **changes)
    options.check()
    if iter(batches) is batches:
        batches = list(batches)
    network = copy.deepcopy(network).eval()
    first = inputs_of(next(endless(batches)), network)
    layers, dense = find_layers(network, first), count(network, (1, *first.shape[1:]))
    rates = options.rates(layers, dense.macs_paper)
    kept = kept_sizes(layers, *rates, options.keep_temporal)
    memory = State(state, network, (options, kept))
    with _progress_bars(progress, options, len(layers)) as (begin, tick):
        _decide_layers(network, layers, kept, Examples(batches, options.steps, tick), options, loss, memory, begin)
    with_masks = masked(network, memory.decisions)
    result = compact(with_masks)
    report = CompressionReport(options.method, options.importance, *rates, input_shape=dense.input_shapes[0])
    report.macs, report.params = dense.macs_paper, dense.params
    report.layers = [_layer_report(p, kept[p.name], memory.decisions.get(p.name)) for p in layers]
    report.recount(result)
    return Compressed(result, with_masks, memory.decisions, report)


def _decide_layers(
    network: nn.Module,
    layers: list[ConvLayer],
    kept: Mapping[str, tuple[int, int]],
    examples: Examples,
    options: CompressionOptions,
    loss: Loss,
    memory: State,
    begin: Callable[[str], None],
) -> None:
    """Decide on every layer from which something goes; a method that trains changes the network."""
    method = METHODS[options.method]
    dropped = {p.name: n for p in layers if (n := p.conv.in_channels - kept[p.name][0])}
    if method.trains and dropped and not memory.restore(network):
        method.train(network, dropped, examples, loss, options.learning_rate)
        memory.keep(network)
    scores: dict[str, Tensor] = {}
    if any(name not in memory.decisions for name in dropped):
        scores = method.channel_scores(network, dropped, examples, loss)
    for layer in layers:  # step 1
        begin(layer.name)
        if kept[layer.name] != layer.whole and layer.name not in memory.decisions:
            decision = decide(network, layer, kept[layer.name], examples, options, scores.get(layer.name))
            memory.add(layer.name, decision)


def decide(
    network: nn.Module,
    layer: ConvLayer,
    kept: tuple[int, int],
    examples: Examples,
    options: CompressionOptions,
    scores: Tensor | None,
) -> Decision:
    """Steps 2 to 12 of Algorithm 1 for one layer.

    Args:
        kept: (c', t').
        scores: of the input channels (C,), the smallest of which go; None: they are chosen by beta.
    """
    conv, method = layer.conv, METHODS[options.method]
    (channels, rows), (c, t) = kept, layer.whole
    objective = Objective(conv, options, learns_channels=channels < c and scores is None)  # step 2
    transform = method.transform(t)
    previous = math.inf
    for batch in examples:  # steps 3 and 4
        x, y = _capture(network, conv, inputs_of(batch, network))  # steps 5 and 6
        if method.learns_transform and rows < t:  # steps 7 and 8
            transform, _ = learn_transform(objective.products, transform, sweeps=1)
        objective.learn_channels(x, y)
        value = objective.value(transform)
        if abs(previous - value) <= options.tolerance * abs(value):  # step 9
            break
        previous = value
    if scores is None:  # step 10
        scale = objective.beta.keep(channels)
    else:
        scale = torch.ones(c)
        scale[scores.argsort()[: c - channels]] = 0.0
    mask = torch.zeros(t, dtype=torch.bool)  # step 11
    mask[row_norms(transform, objective.products).argsort(descending=True)[:rows]] = True
    decision = Decision(transform.float().cpu(), mask, scale.float().cpu())  # step 12
    if method.prunes_rows or objective.learns_channels:
        decision.loss_start, decision.loss = objective.value(dct_matrix(t).double()), objective.value(transform)
    plain = y if conv.bias is None else y - conv.bias.view(-1, 1, 1, 1)
    with torch.no_grad():
        decision.error = float((_masked_layer(conv, decision)(x) - y).norm() / plain.norm().clamp_min(1e-30))
    return decision


class Objective:
    """Eq. 9 for one layer, without the part that depends on neither S nor beta.

    Attributes:
        products: G G^T, (t,t) float64, see `temporal_products`.
        beta: the channel weights, learned where `learns_channels`.
    """

    def __init__(self, conv: nn.Conv3d, options: CompressionOptions, learns_channels: bool) -> None:
        self.conv, self.learns_channels = conv, learns_channels
        self.products = temporal_products(conv.weight, options.importance).cpu()
        # Eq. 8, for methods that prune channels alone, has no term with S.
        weight = options.lambda_ if METHODS[options.method].prunes_rows else 0.0
        self._norm_weight = weight / float(self.products.trace().sqrt().clamp_min(1e-30))
        self.beta = ChannelWeights(conv.in_channels, options.gamma, conv.weight.device)
        self._generator = torch.Generator().manual_seed(options.seed)
        self._positions = max(16, min(512, _SAMPLED // (conv.in_channels * conv.out_channels)))

    def learn_channels(self, x: Tensor, y: Tensor) -> None:
        """Update beta by an input (B,C,T,H,W) and an output (B,N,T',H',W') of the layer."""
        if self.learns_channels:
            self.beta.add(*sample_contributions(self.conv, x, y, self._positions, self._generator))
            self.beta.step()

    def value(self, transform: Tensor) -> float:
        """The objective for S and the current beta."""
        fit = self.beta.loss() if self.learns_channels else 0.0
        return fit + self._norm_weight * float(row_norms(transform, self.products).sum())


class _StopForwardError(Exception):
    pass


def _capture(network: nn.Module, conv: nn.Conv3d, x: Tensor) -> tuple[Tensor, Tensor]:
    """X and Y of a layer; the network runs no further than that."""
    captured: list[Tensor] = []

    def hook(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        captured.extend((inputs[0].detach().clone(), output.detach().clone()))  # what follows may work in place
        raise _StopForwardError

    handle = conv.register_forward_hook(hook)
    try:
        with torch.no_grad():
            network(x)
    except _StopForwardError:
        pass
    finally:
        handle.remove()
    if not captured:
        raise CompressionError("a convolution that ran on the first batch does not run on every batch")
    return captured[0], captured[1]


# -- networks --------------------------------------------------------------------------------------------------------


def _masked_layer(conv: nn.Conv3d, decision: Decision) -> MaskedConv3d:
    layer = MaskedConv3d(conv, decision.transform)
    layer.rows.copy_(decision.rows)
    layer.scale.copy_(decision.scale)
    return layer.train(conv.training)


def masked(network: nn.Module, decisions: Mapping[str, Decision]) -> nn.Module:
    """A copy of the network with a `MaskedConv3d` in the place of every decided layer."""
    network = copy.deepcopy(network)
    for name, decision in decisions.items():
        conv = network.get_submodule(name)
        assert isinstance(conv, nn.Conv3d)
        replace_module(network, conv, _masked_layer(conv, decision))
    return network


def compact(network: nn.Module) -> nn.Module:
    """A copy of a masked network that holds only what its masks keep."""
    network = copy.deepcopy(network)
    for module in list(network.modules()):
        if isinstance(module, MaskedConv3d):
            replace_module(network, module, module.compact())
    return network


def _layer_report(layer: ConvLayer, kept: tuple[int, int], decision: Decision | None) -> LayerReport:
    t, height, width = layer.conv.kernel_size
    report = LayerReport(layer.name, (t, height, width), *layer.whole, *kept, note=layer.note)
    report.macs, report.macs_compact = layer.macs(*layer.whole), layer.macs(*kept)
    report.params = sum(p.numel() for p in layer.conv.parameters())
    if decision is not None:
        report.loss_start, report.loss, report.error = decision.loss_start, decision.loss, decision.error
    return report


@contextmanager
def _progress_bars(
    progress: bool | None, options: CompressionOptions, layers: int
) -> Iterator[tuple[Callable[[str], None], Callable[[], None]]]:
    """Bars of layers and batches: a function to call when a layer begins, and one to call after a batch."""
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, disable=not shown) as bars:
        overall = bars.add_task(options.method, total=layers)
        inner = bars.add_task("batches", total=options.steps)

        def begin(layer: str) -> None:
            bars.update(overall, description=f"{options.method} {layer}", advance=1)
            bars.reset(inner)

        yield begin, lambda: bars.advance(inner)
