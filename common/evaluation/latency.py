"""Time and memory of networks, measured side by side.

Times of one machine, on one day, under one load: only the ratios of one call of `measure_latency` are worth quoting.
The networks take turns, so that whatever else the machine does meets all of them.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


@dataclass(frozen=True)
class Latency:
    """Times of one network.

    Attributes:
        seconds: median time of a call.
        fastest: time of the fastest call.
        ratio: `seconds` over those of the first network.
    """

    seconds: float
    fastest: float
    ratio: float


def measure_latency(
    networks: Mapping[str, nn.Module],
    x: Tensor,
    repeats: int = 20,
    warmup: int = 3,
    backward: bool = False,
) -> dict[str, Latency]:
    """Time `network(x)` of every network, taking turns.

    Args:
        networks: by name. They run in the mode (training or evaluation) that they are in, and on the device of `x`.
        x: the input.
        repeats: timed calls of each network.
        warmup: calls of each before that.
        backward: also the gradients of the sum of the output; without it, gradients are switched off.

    Returns:
        Latency by name, in the given order; `ratio` is against the first.

    Raises:
        ValueError: if there is no network, or `repeats` is not positive.
    """
    if not networks or repeats < 1:
        raise ValueError(f"there is nothing to measure: {len(networks)} networks, {repeats} repeats")

    def run(network: nn.Module) -> None:
        with torch.set_grad_enabled(backward):
            output = network(x)
            if backward:
                output.sum().backward()
                network.zero_grad(set_to_none=True)

    for network in networks.values():
        for _ in range(max(warmup, 1)):
            run(network)
    times: dict[str, list[float]] = {name: [] for name in networks}
    for _ in range(repeats):
        for name, network in networks.items():
            times[name].append(timed(lambda network=network: run(network), x.device))  # type: ignore[misc]
    first = median(next(iter(times.values())))
    return {name: Latency(median(own), min(own), median(own) / first) for name, own in times.items()}


def timed(run: Callable[[], Any], device: torch.device) -> float:
    """Seconds that a call takes, until its work on the device is done."""
    synchronize(device)
    began = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - began


def synchronize(device: torch.device) -> None:
    """Wait until the work on a device is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Inside this context PyTorch computes with one thread: where the machine is not idle, and for small networks,
    threads wait for one another for longer than they compute."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def peak_allocated(network: nn.Module, x: Tensor, backward: bool = False) -> int:
    """Most bytes of tensors that a call of `network` holds at once, beside its input and parameters.

    Every tensor that PyTorch makes is followed, so the number is the same in every run and on every machine; buffers
    inside an operator are not seen. Arguments as in `measure_latency`.
    """
    known = [x, *network.parameters(), *network.buffers()]
    with torch.set_grad_enabled(backward), _Allocations(known) as memory:
        output = network(x)
        if backward:
            output.sum().backward()
        del output
    network.zero_grad(set_to_none=True)
    return memory.peak


class _Allocations(TorchDispatchMode):
    """Follows the storages that are made and freed inside the context; `peak` is the largest sum of their bytes."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self.peak = 0
        self._known = {StorageWeakRef(tensor.untyped_storage()).cdata for tensor in known}
        self._live: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                reference = StorageWeakRef(storage)
                if reference.cdata not in self._known:
                    self._live[reference.cdata] = (reference, storage.nbytes())
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return result
