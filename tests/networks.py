"""The networks of the papers' ledgers, found by listing, at sizes for tests."""

from __future__ import annotations

import importlib
import inspect
import json
from collections.abc import Iterator

import torch
from torch import nn

from common.reporting.ledger import Ledger, Network, RowNetwork

LIBRARIES = ("torch", "torchvision", "pytorchvideo", "monai")


def networks_of(ledger: Ledger) -> Iterator[tuple[str, RowNetwork]]:
    """Every network of the rows that differs from those before it in more than the number of classes.

    Networks of libraries, which are counted for comparison alone, are left out.
    """
    seen = set()
    for _, row in ledger.rows():
        for label, spec in row.networks.items():
            for name in [spec.network] + ([spec.baseline] if spec.baseline else []):
                own = RowNetwork(name, spec.input, spec.arguments)
                network = ledger.network(own)
                arguments = {k: v for k, v in network.arguments.items() if k not in ("num_classes", "input_size")}
                key = json.dumps([network.function, arguments, network.classes])
                if key not in seen and network.function.partition(".")[0] not in LIBRARIES:
                    seen.add(key)
                    yield f"{row.id} {label}", own


def small(network: Network, shape: list[int]) -> tuple[nn.Module, torch.Tensor]:
    """The network with random numbers wherever it starts from zeros, and a small input of odd size."""
    function = importlib.import_module(network.function.rpartition(".")[0])
    parameters = inspect.signature(getattr(function, network.function.rpartition(".")[2])).parameters
    sizes = {3: [(33, 37), (32, 32)], 2: [(65, 97), (64, 64)]}[3 if len(shape) == 5 else 2]
    errors = []
    for size in sizes:
        arguments = dict(network.arguments)
        if "input_size" in parameters:
            arguments["input_size"] = size
        if "size" in parameters and isinstance(arguments.get("size"), list | tuple):
            arguments["size"] = size
        torch.manual_seed(0)
        try:
            built = Network(network.function, arguments, network.classes).build()
        except ValueError as error:  # a transform that takes powers of two alone, say
            errors.append(error)
            continue
        for parameter in built.parameters():
            if parameter.requires_grad and not parameter.any():
                nn.init.normal_(parameter, std=0.02)  # small: blocks that multiply maps blow up otherwise
        frames = shape[2:-2] if "num_frames" in parameters else [min(n, 16) for n in shape[2:-2]]
        return built, torch.randn(2, shape[1], *frames, *size)
    raise errors[-1]
