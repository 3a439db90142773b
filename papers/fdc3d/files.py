"""Compact networks in one file, which is read without the original and without running code in it.

A file names the function or class that builds the dense network, and lists the modules that differ. Only builders of
networks that are known not to read files, download weights or run other code are called; see `BUILDERS`.
"""

from __future__ import annotations

import copy
import importlib
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from common.training.checkpoints import (
    AtomicCheckpointIO,
    CheckpointError,
    building_what_a_file_says,
    check_claims,
    compare_state_dicts,
    read_checkpoint,
)
from papers.fdc3d.deployment import resized
from papers.fdc3d.layers import CompactConv3d, numeric_padding, replace_module
from papers.fdc3d.methods import CompressionError

#: entry of the file that tells it from other checkpoints
FORMAT = "fdc3d_compact"
#: attribute of a network that says how to build it: {"builder": dotted name, "arguments": plain values}
SOURCE = "compression_source"
#: the modules whose public classes and functions may build a network
BUILDERS = re.compile(
    r"papers\.\w+\.(networks|layers|lightning_module)"
    r"|common\.backbones\.(?!imagenet$)\w+"
    r"|common\.training\.library_network"
    r"|torchvision\.models\.video(\.\w+)?"
    r"|pytorchvideo\.models\.(?!hub)\w+"
    r"|monai\.networks\.nets(\.\w+)?"
)
#: arguments that make a builder read or download weights
LOADING = ("weights", "weights_backbone", "pretrained", "imagenet", "checkpoint")


def set_source(network: nn.Module, builder: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Tell a network how it was built, so that its compact form loads without it. `compress` hands this on.

    Args:
        network: any network.
        builder: dotted name of a function or class in one of BUILDERS that gives a network of this architecture (or
            an object with such a `network`, as Lightning modules are), e.g. `common.backbones.resnet3d.ResNet3d`.
        arguments: of it, plain values. They must not make it load weights.

    Returns:
        The same network.

    Raises:
        CompressionError: the builder cannot be used, or it builds something with other modules.
    """
    source = {"builder": builder, "arguments": dict(arguments or {})}
    try:
        fresh = _build(source)
    except CheckpointError as error:
        raise CompressionError(str(error)) from error
    ours = {n: tuple(v.shape) for n, v in network.state_dict().items()}
    theirs = {n: tuple(v.shape) for n, v in fresh.state_dict().items()}
    if ours != theirs:
        name = next(n for n in {**ours, **theirs} if ours.get(n) != theirs.get(n))
        here, there = (shapes.get(name, "missing") for shapes in (ours, theirs))
        raise CompressionError(f"{builder} builds another network: {name} is {there}, here {here}")
    setattr(network, SOURCE, source)
    return network


def describe(network: nn.Module) -> dict[str, Any]:
    """What a compact network consists of, in plain values: its builder, if known, and what compression may change."""
    modules: dict[str, dict[str, Any]] = {}
    for name, module in network.named_modules():
        if isinstance(module, CompactConv3d):
            modules[name] = {"type": "CompactConv3d", **module.spec()}
        elif isinstance(module, nn.Conv3d):
            modules[name] = {"type": "Conv3d", "out_channels": module.out_channels, "bias": module.bias is not None}
        elif isinstance(module, nn.BatchNorm3d):
            modules[name] = {"type": "BatchNorm3d", "num_features": module.num_features}
        elif isinstance(module, nn.Identity):
            modules[name] = {"type": "Identity"}
    return {**getattr(network, SOURCE, {"builder": None, "arguments": {}}), "modules": modules}


def rebuild(description: Mapping[str, Any], network: nn.Module | None = None) -> nn.Module:
    """The network of a description, with fresh weights, in evaluation mode on the CPU.

    Args:
        description: as `describe` returns it.
        network: the dense network, where the description does not say how it is built. It is changed in place.

    Raises:
        CheckpointError: the description is damaged, does not fit the network, or names a builder that is not allowed or
            does not exist.
    """
    if network is None:
        network = _build(description)
        setattr(network, SOURCE, {key: description[key] for key in ("builder", "arguments")})
    try:
        for name, values in description["modules"].items():
            old = network.get_submodule(name)
            new = _changed(old, dict(values))
            if new is not old:
                replace_module(network, old, new)
    except Exception as error:  # what a damaged file asks for fails in many ways
        raise CheckpointError(f"the description of the compact network is damaged: {error}") from error
    return network.eval()


def _changed(old: Any, arguments: dict[str, Any]) -> nn.Module:
    """The module that a description lists, given that of the dense network."""
    kind = arguments.pop("type")
    if kind == "CompactConv3d":
        compact = CompactConv3d(**arguments)
        if isinstance(old, nn.Conv3d):
            for name in ("kernel_size", "stride", "dilation", "groups"):
                if getattr(compact, name) != getattr(old, name):
                    raise CheckpointError(
                        f"{name} is {getattr(compact, name)}, in the dense network {getattr(old, name)}"
                    )
            if compact.padding != numeric_padding(old):
                raise CheckpointError(f"padding is {compact.padding}, in the dense network {old.padding}")
        return compact
    if kind == "Identity":
        return old if isinstance(old, nn.Identity) else nn.Identity()
    if kind not in ("Conv3d", "BatchNorm3d"):
        raise CheckpointError(f"unknown kind of module {kind!r}")
    attribute = "num_features" if kind == "BatchNorm3d" else "out_channels"
    size = arguments[attribute]
    new = old if getattr(old, attribute) == size else resized(old, torch.arange(size))
    if arguments.get("bias", False) and new.bias is None:  # a batch norm was merged into it
        new.bias = nn.Parameter(torch.zeros(size))
    return new


def save_compact(
    network: nn.Module, path: str | Path, *, facts: Mapping[str, Any] | None = None, **entries: Any
) -> Path:
    """Write a compact network to one file.

    Args:
        network: the `network` of a `Compressed`, fine-tuned or not.
        path: of the file; written whole or not at all.
        facts: more plain values to keep with it, such as the report and the names of the classes.
        entries: further entries of the file, as those of `papers.fdc3d.compact_module`.

    Raises:
        CheckpointError: the file cannot be written.
    """
    stored = {FORMAT: 1, **describe(network), "facts": dict(facts or {}), "state_dict": network.state_dict()}
    AtomicCheckpointIO().save_checkpoint({**entries, **stored}, path)
    return Path(path)


def load_compact(path: str | Path, network: nn.Module | None = None) -> nn.Module:
    """Read a compact network, on the CPU in evaluation mode.

    Args:
        path: of a file of `save_compact`.
        network: the dense network, needed where the file does not say how it is built; it is changed in place.

    Raises:
        CheckpointError: the file cannot be read safely, was not written by `save_compact`, or names a builder that is
            not allowed.
    """
    stored = read_checkpoint(path)
    if stored.get(FORMAT) != 1:
        raise CheckpointError(f"{path}: not a compact network (`python -m papers.fdc3d` writes them)")
    weights: dict[str, Tensor] | None = stored.get("state_dict")
    if not isinstance(weights, dict):
        raise CheckpointError(f"{path}: holds no weights; it is damaged")
    try:
        with building_what_a_file_says():
            claimed = rebuild(stored, None if network is None else copy.deepcopy(network).to("meta"))
        if differences := compare_state_dicts(claimed.state_dict(), weights):
            raise CheckpointError(f"the weights do not fit the described network:\n{differences}")
        check_claims(claimed, weights)
        network = rebuild(stored, network)
        network.load_state_dict(weights)
    except (CheckpointError, RuntimeError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    return network


# -- building a network that a file names ---------------------------------------------------------------------------


def _build(source: Mapping[str, Any]) -> nn.Module:
    name, arguments = source.get("builder"), source.get("arguments")
    if name is None or not isinstance(arguments, Mapping):
        raise CheckpointError(
            "it does not say how the network is built; give the dense network to load_compact(), or say it with "
            "set_source() before compress()"
        )
    builder = _builder(name)
    try:
        given = inspect.signature(builder).bind(**arguments)
        given.apply_defaults()
        if loads := _loading(given.arguments):
            raise CheckpointError(f"{name} with {loads} would load weights")
        with torch.random.fork_rng(devices=[]):
            built = builder(**arguments)
    except CheckpointError:
        raise
    except Exception as error:  # what a damaged file asks for fails in many ways
        raise CheckpointError(f"{name} does not take these arguments now ({error})") from error
    network = built.network if hasattr(built, "training_step") else built
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{name} gives a {type(network).__name__}, not a network")
    return network


def _builder(dotted: Any) -> Callable[..., Any]:
    """The function or class of this name, if it lies, and is defined, in a module of BUILDERS."""
    module, _, name = str(dotted).rpartition(".")
    if not BUILDERS.fullmatch(module) or name.startswith("_"):
        raise CheckpointError(f"{dotted!r} is not among the builders of networks that a file may name")
    try:
        builder = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{dotted} does not exist here ({error})") from error
    builds = isinstance(builder, FunctionType) or (isinstance(builder, type) and issubclass(builder, nn.Module))
    if not builds or not BUILDERS.fullmatch(builder.__module__):
        raise CheckpointError(f"{dotted} is not a network, nor a function that builds one")
    return builder


def _loading(arguments: Any) -> str:
    """The first argument, at any depth, that would load weights; "" if there is none."""
    if isinstance(arguments, Mapping):
        for name, value in arguments.items():
            if name in LOADING and value not in (None, False):
                return f"{name}={value!r}"
            if inner := _loading(value):
                return inner
    elif isinstance(arguments, Sequence) and not isinstance(arguments, str):
        return next(filter(None, map(_loading, arguments)), "")
    return ""
