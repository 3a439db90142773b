"""Removing filters whose output is never read: an option beyond the paper's method.

A compressed layer reads only its kept channels. Where its input comes from one convolution through nothing but
operations of single channels, the filters that make the other channels can go, and their multiply-adds with them.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from papers.fdc3d.files import resized_conv, resized_norm
from papers.fdc3d.layers import CompactConv3d

#: modules between the two convolutions that treat every channel by itself and have nothing to resize
_SINGLE_CHANNEL: tuple[type[nn.Module], ...] = (
    nn.Identity,
    nn.ReLU,
    nn.ReLU6,
    nn.LeakyReLU,
    nn.ELU,
    nn.SELU,
    nn.GELU,
    nn.SiLU,
    nn.Mish,
    nn.Hardswish,
    nn.Sigmoid,
    nn.Tanh,
    nn.MaxPool3d,
    nn.AvgPool3d,
    nn.modules.dropout._DropoutNd,
)


@dataclass
class TrimReport:
    """`trimmed`: producer to (filters before, after); `kept`: reading layer to why its producer stays whole."""

    trimmed: dict[str, tuple[int, int]] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        lines = [f"  {name}: {before} > {after} filters" for name, (before, after) in self.trimmed.items()]
        lines += [f"  the filters read by {name} stay: {reason}" for name, reason in self.kept.items()]
        return "\n".join([f"{len(self.trimmed)} convolutions lose unread filters", *lines])


@dataclass
class _Call:
    name: str
    module: nn.Module
    given: Any
    result: Any


def trim_producers(network: nn.Module, x: Tensor) -> TrimReport:
    """Remove the filters that no layer reads, in place. The network computes the same.

    The flow of data is followed through one forward pass; every removal is tried, and taken back where the network no
    longer runs or its output changes, as it does when something else reads these filters too, such as a residual sum.

    Args:
        network: a compact network.
        x: an input of it.
    """
    report = TrimReport()
    was_training = network.training
    network.eval()
    with torch.no_grad():
        expected = network(x)
        calls = _follow(network, x)
        for name, module in list(network.named_modules()):
            if isinstance(module, CompactConv3d) and module.kept_channels < module.in_channels:
                chain, reason = _chain(name, calls)
                if not reason:
                    reason = _try(network, name, chain, x, expected)
                if reason:
                    report.kept[name] = reason
                else:
                    report.trimmed[chain[-1]] = (module.in_channels, module.kept_channels)
    network.train(was_training)
    return report


def _follow(network: nn.Module, x: Tensor) -> list[_Call]:
    calls: list[_Call] = []
    hooks = []
    for name, module in network.named_modules():
        if next(module.children(), None) is None:

            def note(module: nn.Module, args: tuple[Any, ...], result: Any, name: str = name) -> None:
                calls.append(_Call(name, module, args[0] if args else None, result))

            hooks.append(module.register_forward_hook(note))
    try:
        network(x)
    finally:
        for hook in hooks:
            hook.remove()
    return calls


def _chain(name: str, calls: list[_Call]) -> tuple[list[str], str]:
    """Names from the reading layer back to the convolution that makes its input, or why there is no such chain."""
    times = {call.name: sum(c.name == call.name for c in calls) for call in calls}
    if times.get(name, 0) != 1:
        return [], f"it is called {times.get(name, 0)} times"
    at = next(i for i, call in enumerate(calls) if call.name == name)
    names, wanted = [name], calls[at].given
    for call in reversed(calls[:at]):
        if call.result is not wanted:
            continue
        conv = isinstance(call.module, CompactConv3d | nn.Conv3d)
        if (conv or isinstance(call.module, nn.BatchNorm3d)) and times[call.name] != 1:
            return [], f"{call.name} is called {times[call.name]} times"
        if conv:
            return ([*names, call.name], "") if call.module.groups == 1 else ([], f"{call.name} has groups")
        if isinstance(call.module, nn.BatchNorm3d):
            names.append(call.name)
        elif not isinstance(call.module, _SINGLE_CHANNEL):
            return [], f"{call.name} ({type(call.module).__name__}) lies between"
        wanted = call.given
    return [], "its input is a sum, or made by more than modules"


def _try(network: nn.Module, name: str, chain: list[str], x: Tensor, expected: Tensor) -> str:
    old = {n: network.get_submodule(n) for n in chain}
    reader = old[name]
    assert isinstance(reader, CompactConv3d)
    for n, module in old.items():
        new: nn.Module
        if n == name:
            new = _reading_all(reader)
        elif isinstance(module, nn.BatchNorm3d):
            new = resized_norm(module, reader.kept)
        elif isinstance(module, CompactConv3d):
            new = _with_outputs(module, reader.kept)
        else:
            assert isinstance(module, nn.Conv3d)
            new = resized_conv(module, reader.kept)
        network.set_submodule(n, new)
    try:
        result = network(x)
        same = result.shape == expected.shape and torch.allclose(result, expected, rtol=1e-4, atol=1e-5)
    except (RuntimeError, ValueError, IndexError):  # other readers find too few channels
        same = False
    if not same:
        for n, module in old.items():
            network.set_submodule(n, module)
    return "" if same else f"more than this layer reads {chain[-1]}"


def _copy(layer: CompactConv3d, **changes: Any) -> CompactConv3d:
    return CompactConv3d(**{**layer.spec(), **changes}).to(layer.weight).train(layer.training)


def _reading_all(layer: CompactConv3d) -> CompactConv3d:
    new = _copy(layer, in_channels=layer.kept_channels)
    state = layer.state_dict()
    state["kept"] = torch.arange(layer.kept_channels)
    new.load_state_dict(state)
    return new


def _with_outputs(layer: CompactConv3d, outputs: Tensor) -> CompactConv3d:
    new = _copy(layer, out_channels=len(outputs))
    state = layer.state_dict()
    for key in ("weight", "bias"):
        if key in state:
            state[key] = state[key][outputs]
    new.load_state_dict(state)
    return new
