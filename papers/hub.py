"""The networks of all papers as models of the Hugging Face Hub; needs `huggingface_hub` and `safetensors`."""

from __future__ import annotations

import json
from typing import Any

from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

import papers


class HubNetwork(nn.Module, PyTorchModelHubMixin, library_name="spectral-video", license="apache-2.0"):
    """A network with `save_pretrained`, `from_pretrained` and `push_to_hub`.

        HubNetwork("t_stft", num_classes=27).save_pretrained("folder")
        HubNetwork.from_pretrained("folder")

    Files hold the weights as safetensors and the arguments as JSON. To save trained weights, load them into `network`.

    Args:
        name: one of `papers.networks()`.
        arguments: of that function: numbers, strings, and lists of them. Options are given by name.

    Attributes:
        network: what the function returns.

    Raises:
        ValueError: an unknown name.
        TypeError: an argument that JSON cannot hold, or that the network does not take.
    """

    def __init__(self, name: str, **arguments: Any) -> None:
        super().__init__()
        functions = papers.networks()
        if name not in functions:
            raise ValueError(f"there is no network {name!r}; choose one of {', '.join(sorted(functions))}")
        json.dumps(arguments)  # the mixin would leave out what JSON cannot hold
        self.network = functions[name](**arguments)

    def forward(self, x: Tensor) -> Tensor:
        return self.network(x)

    @classmethod
    def _from_pretrained(cls, *, strict: bool = True, **options: Any) -> HubNetwork:  # the mixin's default is False
        return super()._from_pretrained(strict=strict, **options)
