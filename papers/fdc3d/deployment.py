"""Making a compact network cheaper without changing what it computes; both steps go beyond the paper.

A compact layer reads only its kept channels. Where its input comes from one convolution through operations of single
channels alone, `trim_producers` removes the filters that make the other channels. `fold_batch_norms` merges batch
norms into the convolutions before them.
"""

from __future__ import annotations

import copy
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights
from torch.utils._pytree import tree_leaves

from papers.fdc3d.layers import CompactConv3d, replace_module

#: modules between two convolutions that treat every channel by itself and have nothing to resize
_SINGLE_CHANNEL = (nn.Identity, nn.MaxPool3d, nn.AvgPool3d)
_SINGLE_CHANNEL_MODULES = ("torch.nn.modules.activation", "torch.nn.modules.dropout")
_PER_OUTPUT = ("weight", "bias", "running_mean", "running_var")


@dataclass
class TrimReport:
    """`trimmed`: producer to (filters before, after); `kept`: reading layer to why its producer stays whole."""

    trimmed: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"  {name}: {before} > {after} filters" for name, (before, after) in self.trimmed.items()]
        lines += [f"  the filters read by {name} stay: {reason}" for name, reason in self.kept.items()]
        return "\n".join([f"{len(self.trimmed)} convolutions lose unread filters", *lines])


@torch.no_grad()
def trim_producers(network: nn.Module, x: Tensor) -> TrimReport:
    """Remove the filters that no layer reads, in place.

    The flow of data is followed through one forward pass. Every removal is tried, and undone if the network no longer
    runs or its output changes, as it does when something else reads these filters too, such as a residual sum.

    Args:
        network: a compact network.
        x: an input of it.
    """
    report = TrimReport()
    was_training = network.training
    network.eval()
    expected, calls = network(x), _follow(network, x)
    for name, reader in list(network.named_modules()):
        if not isinstance(reader, CompactConv3d) or reader.kept_channels == reader.in_channels:
            continue
        chain, reason = _chain(name, calls)
        if chain:
            parts = [network.get_submodule(part) for part in chain]
            changes = {part: resized(part, reader.kept) for part in parts} | {reader: _reading_all(reader)}
            if _keeps_output(network, changes, x, expected):
                report.trimmed[chain[-1]] = (reader.in_channels, reader.kept_channels)
                continue
            reason = f"more than this layer reads {chain[-1]}"
        report.kept[name] = reason
    network.train(was_training)
    return report


@torch.no_grad()
def fold_batch_norms(network: nn.Module, x: Tensor) -> list[str]:
    """Merge the batch norms that directly follow a convolution into it, in place and for evaluation only.

    Args:
        network: any network with 3D convolutions, compact or not; it is set to evaluation mode.
        x: an input of it. Norms whose merging would change the output for this input stay as they are.

    Returns:
        The names of the merged norms, which become `torch.nn.Identity`.
    """
    network.eval()
    expected, pairs = network(x), _normalised(_follow(network, x))

    def fold(some: list[tuple[str, str]]) -> bool:
        changes: dict[nn.Module, nn.Module] = {}
        for names in some:
            conv, norm = map(network.get_submodule, names)
            changes |= {conv: _folded(conv, norm), norm: nn.Identity()}
        return _keeps_output(network, changes, x, expected)

    folded = pairs if fold(pairs) else [pair for pair in pairs if fold([pair])]
    return [norm for _, norm in folded]


def resized(module: nn.Module, outputs: Tensor) -> nn.Module:
    """A copy of a convolution of one group, or of a batch norm, with only these of its output channels."""
    new: Any = copy.deepcopy(module)
    for name in _PER_OUTPUT:
        value = getattr(new, name, None)
        if value is not None:
            kept = value.detach()[outputs]
            setattr(new, name, nn.Parameter(kept, value.requires_grad) if isinstance(value, nn.Parameter) else kept)
    if isinstance(new, nn.BatchNorm3d):
        new.num_features = len(outputs)
    elif isinstance(new, nn.Conv3d | CompactConv3d):
        new.out_channels = len(outputs)
    return new


def _reading_all(layer: CompactConv3d) -> CompactConv3d:
    new = copy.deepcopy(layer)
    new.in_channels = layer.kept_channels
    new.kept = torch.arange(layer.kept_channels, device=layer.kept.device)
    return new


def _folded(conv: nn.Module, norm: nn.Module) -> nn.Module:
    new, bn = copy.deepcopy(conv), norm
    assert isinstance(new, nn.Conv3d | CompactConv3d)
    assert isinstance(bn, nn.BatchNorm3d)
    assert bn.running_mean is not None
    assert bn.running_var is not None
    new.weight, new.bias = fuse_conv_bn_weights(
        new.weight, new.bias, bn.running_mean, bn.running_var, bn.eps, bn.weight, bn.bias
    )
    return new


# -- the flow of data ------------------------------------------------------------------------------------------------


@dataclass
class _Call:
    name: str
    module: nn.Module
    given: Any
    result: Any


def _follow(network: nn.Module, x: Tensor) -> list[_Call]:
    """The calls of all modules without children, in order."""
    calls: list[_Call] = []
    names = {m: name for name, m in network.named_modules() if next(m.children(), None) is None}

    def note(module: nn.Module, args: tuple[Any, ...], result: Any) -> None:
        calls.append(_Call(names[module], module, args[0] if args else None, result))

    with ExitStack() as hooks:
        for module in names:
            hooks.enter_context(module.register_forward_hook(note))
        network(x)
    return calls


def _chain(reader: str, calls: list[_Call]) -> tuple[list[str], str]:
    """The modules to resize, back to the convolution that makes the reader's input, or why there is no such chain."""
    times = Counter(call.name for call in calls)
    if times[reader] != 1:
        return [], f"it is called {times[reader]} times"
    at = next(i for i, call in enumerate(calls) if call.name == reader)
    chain, wanted = [], calls[at].given
    for call in reversed(calls[:at]):
        if call.result is not wanted:
            continue
        is_conv = isinstance(call.module, CompactConv3d | nn.Conv3d)
        if is_conv or isinstance(call.module, nn.BatchNorm3d):
            if times[call.name] != 1:
                return [], f"{call.name} is called {times[call.name]} times"
            chain.append(call.name)
        elif not (isinstance(call.module, _SINGLE_CHANNEL) or type(call.module).__module__ in _SINGLE_CHANNEL_MODULES):
            return [], f"{call.name} ({type(call.module).__name__}) lies between"
        if is_conv:
            return (chain, "") if call.module.groups == 1 else ([], f"{call.name} has groups")
        wanted = call.given
    return [], "its input is a sum, or not made by modules alone"


def _normalised(calls: list[_Call]) -> list[tuple[str, str]]:
    """Convolutions with the batch norm that directly follows them, where both are called once."""
    times = Counter(call.name for call in calls)
    pairs = []
    for i, call in enumerate(calls):
        before = next((c for c in reversed(calls[:i]) if c.result is call.given), None)
        if (
            isinstance(call.module, nn.BatchNorm3d)
            and call.module.running_mean is not None
            and before is not None
            and isinstance(before.module, CompactConv3d | nn.Conv3d)
            and times[call.name] == times[before.name] == 1
        ):
            pairs.append((before.name, call.name))
    return pairs


def _keeps_output(network: nn.Module, changes: dict[nn.Module, nn.Module], x: Tensor, expected: Any) -> bool:
    """Replace modules in place; if the network then fails, or computes something else, put the old ones back."""
    for old, new in changes.items():
        replace_module(network, old, new)
    try:
        pairs = zip(tree_leaves(network(x)), tree_leaves(expected), strict=True)
        same = all(a.shape == b.shape and torch.allclose(a, b, rtol=1e-4, atol=1e-5) for a, b in pairs)
    except (RuntimeError, ValueError, IndexError):  # other readers find too few channels
        same = False
    if not same:
        for old, new in changes.items():
            replace_module(network, new, old)
    return same
