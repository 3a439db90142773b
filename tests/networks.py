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
#: options that change a network's size or an element-wise function, but not the kinds of its layers
SIZES = ("depth", "num_frames", "input_size", "head", "b", "f", "num_classes", "activation")


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


def kinds_of(ledger: Ledger) -> Iterator[tuple[str, RowNetwork]]:
    """The networks of `networks_of` that differ in more than `SIZES`."""
    seen = set()
    for where, own in networks_of(ledger):
        network = ledger.network(own)
        key = json.dumps([network.function, {k: v for k, v in network.arguments.items() if k not in SIZES}])
        if key not in seen:
            seen.add(key)
            yield where, own


def resized(network: Network, shape: list[int], narrow: bool = False) -> tuple[Network, list[int]]:
    """The network made for a small input, of odd size if it takes that, and the shape of a batch of two such inputs.

    With `narrow` it has a quarter of its width, if it has that option, and at most 50 layers.
    """
    module, _, name = network.function.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    arguments = dict(network.arguments)
    if narrow:
        arguments |= {"depth": min(arguments["depth"], 50)} if "depth" in arguments else {}
        has_width = "options" in parameters and hasattr(parameters["options"].default, "width")
        arguments |= {"width": 0.25} if has_width or "width" in parameters else {}
    frames = shape[2:-2] if "num_frames" in parameters else [min(n, 16) for n in shape[2:-2]]
    errors = []
    for size in {3: [(33, 37), (32, 32)], 2: [(65, 97), (64, 64)]}[3 if len(shape) == 5 else 2]:
        if "input_size" in parameters:
            arguments["input_size"] = size
        if "size" in parameters and isinstance(arguments.get("size"), list | tuple):
            arguments["size"] = size
        made = Network(network.function, dict(arguments), network.classes)
        try:
            with torch.device("meta"):
                made.build()
            return made, [2, shape[1], *frames, *size]
        except ValueError as error:  # a transform that takes powers of two alone, say
            errors.append(error)
    raise errors[-1]


def small(network: Network, shape: list[int]) -> tuple[nn.Module, torch.Tensor]:
    """The network with random numbers wherever it starts from zeros, and a small input of odd size."""
    network, shape = resized(network, shape)
    torch.manual_seed(0)
    built = network.build()
    for parameter in built.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)  # small: blocks that multiply maps blow up otherwise
    return built, torch.randn(*shape)
