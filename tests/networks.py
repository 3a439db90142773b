"""The networks of the papers' ledgers, found by listing, at sizes for tests."""

from __future__ import annotations

import copy
import importlib
import inspect
import json
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from common.reporting.ledger import Ledger, Network, RowNetwork
from common.spectral.folding import CHANNELS_LAST

LIBRARIES = ("torch", "torchvision", "pytorchvideo", "monai")
#: options that change a network's size or an element-wise function, but not the kinds of its layers
SIZES = ("depth", "num_frames", "input_size", "head", "b", "f", "num_classes", "activation")


SRL_SIZE: dict[str, Any] = {"num_frames": 16, "input_size": [112, 112]}
#: networks whose speed is measured: name, function, arguments; clips of 16 frames, 112 x 112
SPEED: dict[str, tuple[str, dict[str, Any]]] = {
    "torchvision R3D-18": ("torchvision.models.video.r3d_18", {}),
    "torchvision R(2+1)D-18": ("torchvision.models.video.r2plus1d_18", {}),
    "torchvision MC3-18": ("torchvision.models.video.mc3_18", {}),
    "pytorchvideo Slow-R50": ("pytorchvideo.models.resnet.create_resnet", {"head_pool_kernel_size": (16, 4, 4)}),
    "pytorchvideo X3D-S": (
        "pytorchvideo.models.x3d.create_x3d",
        {"input_clip_length": 16, "input_crop_size": 112},
    ),
    "stft3d ST-STFT": ("papers.stft3d.networks.st_stft", {}),
    "stft3d T-STFT": ("papers.stft3d.networks.t_stft", {}),
    "stft3d S-STFT": ("papers.stft3d.networks.s_stft", {}),
    "stft3d I3D": ("papers.stft3d.networks.i3d", {}),
    "stft3d S3D": ("papers.stft3d.networks.s3d", {}),
    "dtf DTF-Net R50": ("papers.dtf.networks.dtf_net", {"num_frames": 16}),
    "dtf without blocks": ("papers.dtf.networks.dtf_net", {"num_frames": 16, "block": "2d"}),
    "srl C2D-18 + SRL-FFT": ("papers.srl.networks.srl_c2d", SRL_SIZE | {"block": "srl-fft"}),
    "srl C2D-18": ("papers.srl.networks.srl_c2d", SRL_SIZE | {"block": "none"}),
    "fdc3d 3D-ResNet-18": ("papers.fdc3d.networks.resnet", {"depth": 18}),
    "fdc3d 3D-ResNet-18, 2x": ("papers.fdc3d.networks.resnet", {"depth": 18, "rate": 2}),
    "fdc3d 3D-ResNet-18, 4x": ("papers.fdc3d.networks.resnet", {"depth": 18, "rate": 4}),
}


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

    With `narrow` it has a quarter or an eighth of its width, if it can, and at most 50 layers; a Swin is the tiny one.
    """
    module, _, name = network.function.rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    arguments = dict(network.arguments)
    if narrow:
        arguments |= {"depth": min(arguments["depth"], 50)} if "depth" in arguments else {}
        options = parameters["options"].default if "options" in parameters else None
        arguments |= {"width": 0.25} if hasattr(options, "width") or "width" in parameters else {}
        arguments |= {"size": "t"} if hasattr(options, "size") else {}  # of a Swin
        arguments |= {name: arguments[name] // 8 for name in ("b", "f") if name in arguments}
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


def small(network: Network, shape: list[int], narrow: bool = False) -> tuple[nn.Module, torch.Tensor]:
    """`resized`, with random numbers wherever the network starts from zeros, and an input."""
    network, shape = resized(network, shape, narrow)
    torch.manual_seed(0)
    built = network.build()
    for parameter in built.parameters():
        if parameter.requires_grad and not parameter.any():
            nn.init.normal_(parameter, std=0.02)  # small: blocks that multiply maps blow up otherwise
    return built, torch.randn(*shape)


def channels_last(network: nn.Module) -> nn.Module:
    """The network with the weights of its 2D and 3D convolutions in channels-last memory."""
    for parameter in network.parameters():
        if parameter.ndim in CHANNELS_LAST:
            parameter.data = parameter.data.contiguous(memory_format=CHANNELS_LAST[parameter.ndim])
    return network


class ChannelsLast(nn.Module):
    """A copy of a network in channels-last memory, on its input in that order."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = channels_last(copy.deepcopy(network))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.network(x.contiguous(memory_format=CHANNELS_LAST[x.dim()]))


def assert_orthogonal(network: nn.Module) -> None:
    """The weights of all convolutions and linear layers have orthonormal rows, or columns where these are fewer."""
    for name, module in network.named_modules():
        if isinstance(module, nn.Conv2d | nn.Conv3d | nn.Linear):
            matrix = module.weight.flatten(1)
            matrix = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
            error = (matrix @ matrix.T - torch.eye(len(matrix))).abs().max()
            assert error < 1e-4, f"{name}: {error}"
