"""Compact networks in one file, which is read without the original and without running code in it."""

from __future__ import annotations

import copy
import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn

from common.training.checkpoints import AtomicCheckpointIO, CheckpointError, compare_state_dicts, read_checkpoint
from papers.fdc3d.compression import SOURCE, CompressionError
from papers.fdc3d.layers import CompactConv3d

#: entry of the file that tells it from other checkpoints
FORMAT = "fdc3d_compact"
#: below these a file may name a class of networks or of Lightning modules
TRUSTED = ("papers", "common", "torchvision.models", "pytorchvideo.models")
#: and in these a function
FUNCTIONS = re.compile(
    r"(papers\.\w+\.networks|common\.backbones\.\w+|common\.training\.library_network"
    r"|(torchvision|pytorchvideo)\.models\.[\w.]+)"
)


_ROOTS = {package.split(".")[0] for package in TRUSTED}


def set_source(network: nn.Module, builder: str, arguments: Mapping[str, Any] | None = None) -> nn.Module:
    """Tell a network how it was built, so that its compact form can be saved. `compress` hands it on.

    Args:
        network: any network.
        builder: dotted name of a function or class below one of TRUSTED that gives a network of this architecture (or
            an object with such a `network`, as the Lightning modules here are), e.g.
            `common.backbones.resnet3d.ResNet3d`.
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
        here, there = (shapes.get(name, "not there") for shapes in (ours, theirs))
        raise CompressionError(f"{builder} builds another network: {name} is {there}, here {here}")
    setattr(network, SOURCE, source)
    return network


def describe(network: nn.Module) -> dict[str, Any]:
    """What a compact network consists of, in plain values: its builder, and the modules that it does not build so.

    Raises:
        CompressionError: it is not known how the network was built, see `set_source`.
    """
    source = getattr(network, SOURCE, None)
    if source is None:
        raise CompressionError(
            f"it is not known how this {type(network).__name__} was built; say it with set_source() before compress()"
        )
    fresh = dict(_build(source).named_modules())
    modules: dict[str, dict[str, Any]] = {}
    for name, module in network.named_modules():
        if isinstance(module, CompactConv3d):
            modules[name] = {"type": "CompactConv3d", **module.spec()}
        elif isinstance(module, nn.BatchNorm3d) and module.num_features != fresh[name].num_features:
            modules[name] = {"type": "BatchNorm3d", "num_features": module.num_features}
        elif isinstance(module, nn.Conv3d) and module.out_channels != fresh[name].out_channels:
            modules[name] = {"type": "Conv3d", "out_channels": module.out_channels}
    return {**source, "modules": modules}


def rebuild(description: Mapping[str, Any]) -> nn.Module:
    """The network of a description, with fresh weights, in evaluation mode on the CPU.

    Raises:
        CheckpointError: the description is damaged, or names something outside of TRUSTED or that does not exist.
    """
    network = _build(description)
    try:
        for name, values in description["modules"].items():
            arguments = dict(values)
            kind = arguments.pop("type")
            old: Any = network.get_submodule(name)
            if kind == "CompactConv3d":
                new: nn.Module = CompactConv3d(**arguments)
            elif kind == "BatchNorm3d":
                new = resized_norm(old, torch.arange(arguments["num_features"]))
            elif kind == "Conv3d":
                new = resized_conv(old, torch.arange(arguments["out_channels"]))
            else:
                raise CheckpointError(f"module {name} is of a kind that is not known, {kind!r}")
            network.set_submodule(name, new)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise CheckpointError(f"the description of the compact network is damaged: {error}") from error
    setattr(network, SOURCE, {"builder": description["builder"], "arguments": dict(description["arguments"])})
    return network.eval()


def save_compact(network: nn.Module, path: str | Path, *, facts: Mapping[str, Any] | None = None) -> Path:
    """Write a compact network to one file.

    Args:
        network: the `network` of a `Compressed`, fine-tuned or not.
        path: of the file; written whole or not at all.
        facts: more plain values to keep with it, such as the report and the names of the classes.

    Raises:
        CompressionError: it is not known how the network was built, see `set_source`.
        CheckpointError: the file cannot be written.
    """
    stored = {FORMAT: 1, **describe(network), "facts": dict(facts or {}), "state_dict": network.state_dict()}
    AtomicCheckpointIO().save_checkpoint(stored, path)
    return Path(path)


def load_compact(path: str | Path) -> nn.Module:
    """Read a compact network, on the CPU in evaluation mode. The original is not needed.

    Raises:
        CheckpointError: the file cannot be read safely, is none of `save_compact`, or names untrusted code.
    """
    stored = _read(path)
    try:
        network = rebuild(stored)
        weights: dict[str, Tensor] = stored["state_dict"]
    except (CheckpointError, KeyError) as error:
        raise CheckpointError(f"{path}: {error}") from error
    differences = compare_state_dicts(network.state_dict(), weights)
    if differences:
        raise CheckpointError(f"{path}: the weights do not fit the described network:\n{differences}")
    network.load_state_dict(weights)
    return network


def load_facts(path: str | Path) -> dict[str, Any]:
    """The `facts` that were saved with a compact network.

    Raises:
        CheckpointError: as of `load_compact`.
    """
    return dict(_read(path).get("facts", {}))


def resized_conv(conv: nn.Conv3d, outputs: Tensor) -> nn.Conv3d:
    """A convolution of one group with only these output channels."""
    new = copy.deepcopy(conv)
    new.out_channels = len(outputs)
    new.weight = nn.Parameter(conv.weight.detach()[outputs], conv.weight.requires_grad)
    if conv.bias is not None:
        new.bias = nn.Parameter(conv.bias.detach()[outputs], conv.bias.requires_grad)
    return new


def resized_norm(norm: nn.BatchNorm3d, channels: Tensor) -> nn.BatchNorm3d:
    """A batch normalisation of only these channels."""
    new = copy.deepcopy(norm)
    new.num_features = len(channels)
    for name, value in norm.named_parameters(recurse=False):
        setattr(new, name, nn.Parameter(value.detach()[channels], value.requires_grad))
    for name, buffer in norm.named_buffers(recurse=False):
        new.register_buffer(name, buffer[channels] if buffer.dim() else buffer.clone())
    return new


def _read(path: str | Path) -> dict[str, Any]:
    stored = read_checkpoint(path)
    if stored.get(FORMAT) != 1:
        raise CheckpointError(f"{path}: not a compact network (python -m papers.fdc3d.compress writes them)")
    return stored


def _build(source: Mapping[str, Any]) -> nn.Module:
    try:
        builder, arguments = source["builder"], dict(source["arguments"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(f"it does not say how the network is built ({error})") from error
    if not isinstance(builder, str) or not any(builder.startswith(f"{package}.") for package in TRUSTED):
        raise CheckpointError(f"names {builder!r}, which lies outside of {', '.join(TRUSTED)}")
    module_name, _, name = builder.rpartition(".")
    try:
        function = getattr(importlib.import_module(module_name), name)
        home = str(getattr(function, "__module__", ""))  # where it is defined, not where the file says it is
        known = isinstance(function, type) and issubclass(function, nn.Module) and home.split(".")[0] in _ROOTS
        if not known and not (isinstance(function, FunctionType) and FUNCTIONS.fullmatch(home)):
            raise CheckpointError(f"{builder} is not a network, nor a function that builds one")
        with torch.random.fork_rng(devices=[]):
            built = function(**arguments)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{builder} does not exist here ({error})") from error
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{builder} does not take these arguments now ({error})") from error
    network = built.network if hasattr(built, "training_step") else built
    if not isinstance(network, nn.Module):
        raise CheckpointError(f"{builder} gives a {type(network).__name__}, not a network")
    return network
