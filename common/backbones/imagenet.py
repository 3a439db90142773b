"""Weights of image networks as the start of video networks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.command_line import first_line

#: the last layer's name in the networks of torchvision and timm, and in pose networks
HEADS = ("fc", "head", "head.fc", "final_layer")


class ImageNetError(ValueError):
    """Image weights are not available, or do not belong to the network."""


def load_imagenet(network: nn.Module, source: str) -> str:
    """Start a video network from weights of the image network it is built on.

    Parameters are matched by name. A kernel that the network has over several frames gets the image kernel at its
    middle frame (index 2 of 4, 1 of 3) and zeros elsewhere, so that it first sees single frames; a module with a
    method `inflate(weight)` makes its own weight of the image's. The classifier stays as it is unless its shape is
    the same. Modules that the network puts in (below `mid` and `after`, and those that its `new_for_images` names)
    keep their initial values. A network whose names differ from the file's may have a method
    `rename_image_weights(state)`.

    Args:
        network: changed in place.
        source: a file (a state dict, or a checkpoint with a `state_dict` or `model`, .safetensors too),
            `torchvision/<network>[.<weights>]` such as `torchvision/resnet50.IMAGENET1K_V1`, or `timm/<network>` such
            as `timm/resnet50.a1_in1k`. The two latter download unless the weights are in the local cache.

    Returns:
        What was loaded, inflated and left, in a few lines.

    Raises:
        ImageNetError: no such source, it cannot be downloaded or read, or its weights do not fit; the network is as
            it was.
    """
    state = read_image_weights(source)
    if hasattr(network, "rename_image_weights"):
        state = network.rename_image_weights(state)  # type: ignore[operator]
    own = network.state_dict()
    match = _Match(own)
    for name, weight in state.items():
        _place(network, name, weight, match)
    rest = [name for name in own if name not in match.loaded]
    heads = [name for name in rest if name.rpartition(".")[0] in HEADS]
    # Older files do not count the batches that their running statistics have seen.
    new = [n for n in rest if n not in heads and (_is_new(network, n) or n.endswith(".num_batches_tracked"))]
    problems = match.problems + [f"{name} is missing in the file" for name in rest if name not in {*heads, *new}]
    if problems:
        more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ImageNetError(
            f"the weights of {source} are not those of {type(network).__name__}:\n  " + "\n  ".join(problems[:5]) + more
        )
    network.load_state_dict(match.loaded, strict=False)
    lines = [f"{source}: {len(match.loaded)} tensors loaded"]
    if inflated := match.inflated:
        lines.append(f"inflated over time: {', '.join(inflated[:3])}{' ...' if len(inflated) > 3 else ''}")
    if match.has_head or heads:
        lines.append("the classifier is new")
    if new:
        lines.append(f"{len(new)} tensors of modules that image networks lack are new")
    return "\n".join(lines)


@dataclass
class _Match:
    """Which image weights go where in a network."""

    own: dict[str, Tensor]
    loaded: dict[str, Tensor] = field(default_factory=dict)
    inflated: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    has_head: bool = False


def _place(network: nn.Module, name: str, weight: Tensor, match: _Match) -> None:
    """Find the place of one image weight in a network."""
    own = match.own.get(name)
    module, _, parameter = name.rpartition(".")
    if own is not None and own.shape == weight.shape:
        match.loaded[name] = weight
    elif module in HEADS:
        match.has_head = True
    elif own is None:
        match.problems.append(f"{name} {tuple(weight.shape)} is unknown to the network")
    elif parameter == "weight" and hasattr(network.get_submodule(module), "inflate"):
        match.loaded[name] = network.get_submodule(module).inflate(weight)  # type: ignore[operator]
        match.inflated.append(module)
    elif own.dim() == 5 and own[:, :, 0].shape == weight.shape:
        match.loaded[name] = torch.zeros_like(own)
        match.loaded[name][:, :, own.shape[2] // 2] = weight
        match.inflated.append(module)
    else:
        match.problems.append(f"{name} is {tuple(weight.shape)}, the network's is {tuple(own.shape)}")


def _is_new(network: nn.Module, name: str) -> bool:
    """Whether a parameter belongs to a module that was put in, or to one that makes its weight from the image's."""
    parts = name.split(".")[:-1]
    parents = [network.get_submodule(".".join(parts[:i])) for i in range(1, len(parts) + 1)]
    own = {"mid", "after", *getattr(network, "new_for_images", ())}
    return bool(own & set(parts)) or any(hasattr(module, "inflate") for module in parents)


def read_image_weights(source: str) -> dict[str, Tensor]:
    """The state dict of `source`, see `load_imagenet`, with the names that it has there.

    Raises:
        ImageNetError: no such source, or it cannot be downloaded or read.
    """
    library, _, name = source.partition("/")
    if library in ("torchvision", "timm") and name and not Path(source).exists():
        return _of_library(library, name)
    path = Path(source)
    if not path.is_file():
        raise ImageNetError(
            f"there is no file {source}; give a file, torchvision/<network>[.<weights>] or timm/<network>"
        )
    try:
        if path.suffix == ".safetensors":
            state: Any = importlib.import_module("safetensors.torch").load_file(path)
        else:
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged or foreign files
        raise ImageNetError(f"{path} cannot be read as weights ({first_line(error)})") from error
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not state or not all(isinstance(v, Tensor) for v in state.values()):
        raise ImageNetError(f"{path} holds no state dict: names with a tensor each")
    return {name.removeprefix("module."): weight for name, weight in state.items()}


def _of_library(library: str, name: str) -> dict[str, Tensor]:
    try:
        if library == "timm":
            return importlib.import_module("timm").create_model(name, pretrained=True).state_dict()
        models = importlib.import_module("torchvision.models")
        network, _, weights = name.partition(".")
        choices = models.get_model_weights(network)
        return (choices[weights] if weights else choices.DEFAULT).get_state_dict(progress=False, check_hash=True)
    except Exception as error:  # unknown names, missing libraries and failed downloads come as many types
        raise ImageNetError(
            f"the weights {library}/{name} are not available: {type(error).__name__}: {first_line(error)}. Without a "
            "connection, download them elsewhere and give the file: --model.imagenet FILE"
        ) from error
