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
import hashlib
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor, nn

from common.backbones.options import changed
from common.evaluation.complexity import count
from common.spectral.transforms import dct_matrix
from common.training.checkpoints import AtomicCheckpointIO, read_checkpoint
from papers.fdc3d.layers import MaskedConv3d, replace_module
from papers.fdc3d.learning import ChannelWeights, learn_transform, row_norms, sample_contributions, temporal_products
from papers.fdc3d.methods import METHODS, CompressionError, Examples, Loss, Method, classification_loss, inputs_of
from papers.fdc3d.rates import CompressionOptions, ConvLayer, find_layers, kept_sizes
from papers.fdc3d.report import CompressionReport, LayerReport

_SAMPLED = 1 << 22  # sampled values of one batch: channels x positions x filters


@dataclass
class Decision:
    """The result of steps 2 to 12 for a layer: S (t,t), the kept rows (t,) bool, beta (c,) with 0 for what goes."""

    transform: Tensor
    rows: Tensor
    scale: Tensor
    loss_start: float = math.nan
    loss: float = math.nan
    error: float = 0.0


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
    options = changed(options, changes)
    options.check()
    if iter(batches) is batches:
        batches = list(batches)
    network = copy.deepcopy(network).eval()
    first = next(iter(batches), None)
    if first is None:
        raise CompressionError("there are no batches")
    x = inputs_of(first, network)
    layers, dense = find_layers(network, x), count(network, (1, *x.shape[1:]))
    rates = options.rates(layers, dense.macs_paper)
    kept = kept_sizes(layers, *rates, options.keep_temporal)
    memory = State(state, network, (options, kept))
    examples = Examples(batches, options.steps, loss, options.learning_rate)
    scores = _channel_scores(network, layers, kept, examples, METHODS[options.method], memory)
    for layer in _with_progress(layers, options.method, progress):  # step 1
        if kept[layer.name] != layer.whole and layer.name not in memory.decisions:
            decision = decide(network, layer, kept[layer.name], examples, options, scores.get(layer.name))
            memory.decisions[layer.name] = decision
            memory.save()
    with_masks = masked(network, memory.decisions)
    result = compact(with_masks)
    report = CompressionReport(options.method, options.importance, *rates, input_shape=dense.input_shapes[0])
    report.macs, report.params = dense.macs_paper, dense.params
    report.layers = [_layer_report(p, kept[p.name], memory.decisions.get(p.name)) for p in layers]
    report.recount(result)
    return Compressed(result, with_masks, memory.decisions, report)


def _channel_scores(
    network: nn.Module,
    layers: list[ConvLayer],
    kept: Mapping[str, tuple[int, int]],
    examples: Examples,
    method: Method,
    memory: State,
) -> dict[str, Tensor]:
    """Scores of input channels by layer, where the method has them; one that trains changes the network."""
    dropped = {p.name: n for p in layers if (n := p.conv.in_channels - kept[p.name][0])}
    if method.trains and dropped and memory.weights is None:
        method.train(network, dropped, examples)
        memory.weights = network.state_dict()
        memory.save()
    elif memory.weights is not None:
        network.load_state_dict(memory.weights)
    undecided = any(name not in memory.decisions for name in dropped)
    return method.channel_scores(network, dropped, examples) if undecided else {}


def _with_progress(layers: list[ConvLayer], method: str, progress: bool | None) -> Iterable[ConvLayer]:
    console = Console(stderr=True)
    shown = console.is_terminal if progress is None else progress
    return track(layers, method, console=console, disable=not shown)


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

    with torch.no_grad(), suppress(_StopForwardError), conv.register_forward_hook(hook):
        network(x)
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


class State:
    """The file of an unfinished compression: the decisions so far, and the weights of a method that trains.

    Raises:
        CompressionError: the file belongs to another network or other options.
    """

    def __init__(self, path: str | Path | None, network: nn.Module, settings: Any) -> None:
        self.path = path
        self.decisions: dict[str, Decision] = {}
        self.weights: dict[str, Tensor] | None = None
        if path is None:
            return
        digest = hashlib.sha256(repr(settings).encode())
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        if not Path(path).exists():
            return
        stored = read_checkpoint(path)
        if stored.get("fingerprint") != self.fingerprint:
            raise CompressionError(
                f"{path} belongs to the compression of another network, or with other options; "
                "name another state file, or delete this one to start afresh"
            )
        self.decisions = {name: Decision(**values) for name, values in stored["decisions"].items()}
        self.weights = stored["weights"]

    def save(self) -> None:
        """Write the file, if there is one."""
        if self.path is not None:
            decisions = {name: vars(decision) for name, decision in self.decisions.items()}
            stored = {"fingerprint": self.fingerprint, "decisions": decisions, "weights": self.weights}
            AtomicCheckpointIO().save_checkpoint(stored, self.path)
