"""Choosing how each compact layer is computed, and measuring what a compression gains, on the machine that runs it."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn

from common.evaluation.latency import measure_latency, synchronize, timed
from papers.fdc3d.layers import LAYOUTS, CompactConv3d, Execution, Layout
from papers.fdc3d.report import CompressionReport


@torch.no_grad()
def choose_executions(network: nn.Module, *inputs: Tensor, repeats: int = 5) -> nn.Module:
    """Measure every execution of every `CompactConv3d` on the inputs that it meets, and set the fastest, in place.

    Memory order concerns the whole network, so each is tried throughout, and the network timed with both; convolutions
    that are not compact follow. The choice holds for this machine, number of threads and input size.

    Args:
        network: a compact network, on the device that matters.
        inputs: of the network.
        repeats: timed calls of each; the fastest counts.

    Returns:
        The same network, in evaluation mode.
    """
    network.eval()
    plans = [(layout, _fastest_executions(network, inputs, layout, repeats)) for layout in LAYOUTS]
    times = [math.inf] * len(plans)
    for _ in range(repeats):
        for i, plan in enumerate(plans):
            _apply(network, *plan)
            network(*inputs)
            times[i] = min(times[i], timed(lambda: network(*inputs), inputs[0].device))
    _apply(network, *plans[times.index(min(times))])
    return network


def _fastest_executions(
    network: nn.Module, inputs: tuple[Tensor, ...], layout: Layout, repeats: int
) -> dict[CompactConv3d, Execution]:
    _apply(network, layout, {})
    chosen: dict[CompactConv3d, Execution] = {}

    def choose(module: nn.Module, args: tuple[Tensor, ...]) -> None:
        assert isinstance(module, CompactConv3d)
        if module not in chosen:
            chosen[module] = _fastest(module, args[0], repeats)
        module.execution = chosen[module]

    with ExitStack() as hooks:
        for module in network.modules():
            if isinstance(module, CompactConv3d):
                hooks.enter_context(module.register_forward_pre_hook(choose))
        network(*inputs)
    return chosen


def _fastest(module: CompactConv3d, x: Tensor, repeats: int) -> Execution:
    best: dict[Execution, float] = {}
    for name in module.executions():
        module.execution = name
        module.forward(x)  # not called, because a call would run the hook that measures
        best[name] = timed(lambda: module.forward(x), x.device)
    for _ in range(repeats):  # in turns, without those that are far behind
        for name in [n for n in best if best[n] < 2 * min(best.values())]:
            module.execution = name
            module.forward(x)  # prepares its kernel
            best[name] = min(best[name], *(timed(lambda: module.forward(x), x.device) for _ in range(2)))
    return min(best, key=best.__getitem__)


def _apply(network: nn.Module, layout: Layout, executions: Mapping[CompactConv3d, Execution]) -> None:
    memory_format = torch.channels_last_3d if layout == "channels_last" else torch.contiguous_format
    for module in network.modules():
        if isinstance(module, CompactConv3d):
            module.set_layout(layout)
        elif isinstance(module, nn.Conv3d | nn.ConvTranspose3d):
            module.weight.data = module.weight.data.contiguous(memory_format=memory_format)
    for module, name in executions.items():
        module.execution = name


@torch.no_grad()
def measure(
    report: CompressionReport, dense: nn.Module, network: nn.Module, x: Tensor, repeats: int = 10
) -> CompressionReport:
    """Time both networks and their convolutions, taking turns, and note the speed-ups in the report.

    Args:
        report: of `compress`; dense: the network before; network: the compact one; x: an input.
        repeats: timed calls of each; the median of a network and the fastest call of a layer count.

    Returns:
        The same report.
    """
    networks = {"dense": copy.deepcopy(dense).eval(), "compact": network.eval()}
    report.measured = 1 / measure_latency(networks, x, repeats)["compact"].ratio
    times: dict[tuple[str, str], list[float]] = {}
    starts: dict[tuple[str, str], float] = {}

    def watch(key: tuple[str, str], module: nn.Module, hooks: ExitStack) -> None:
        def began(*_: Any) -> None:
            synchronize(x.device)
            starts[key] = time.perf_counter()

        def ended(*_: Any) -> None:
            synchronize(x.device)
            times.setdefault(key, []).append(time.perf_counter() - starts[key])

        hooks.enter_context(module.register_forward_pre_hook(began))
        hooks.enter_context(module.register_forward_hook(ended))

    with ExitStack() as hooks:
        for name, one in networks.items():
            for layer in report.layers:
                watch((name, layer.name), one.get_submodule(layer.name), hooks)
        for _ in range(repeats):
            for one in networks.values():
                one(x)
    for layer in report.layers:
        if ("dense", layer.name) in times:
            layer.seconds, layer.seconds_compact = (min(times[name, layer.name]) for name in networks)
        module = network.get_submodule(layer.name)
        layer.execution = module.execution if isinstance(module, CompactConv3d) else "plain"
    return report
