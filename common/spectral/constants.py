"""Buffers that are constants: fixed filters and transform matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Self

import torch
from torch import Tensor, nn


class ConstantBuffers(nn.Module):
    """Base of modules whose buffers follow from their options: nothing is learned, and nothing is saved.

    A subclass defines `constants` and ends its constructor with `register_constants()`. The buffers are computed anew
    from float64 whenever the module is converted, so `.double()` is exact to float64, and `to_empty` leaves no
    uninitialised values. They never stay on the meta device: a module that was made there works as soon as its
    network's state dict is loaded with `assign=True`.
    """

    #: whether conversion to float16 or bfloat16 applies to the constants; float32 otherwise
    constants_in_half = False

    def constants(self) -> dict[str, Tensor]:
        """The buffers by name, in float64."""
        raise NotImplementedError

    def register_constants(self) -> None:
        """Register the buffers, on the default device and in the default dtype."""
        computed = self._computed(torch.empty(0))
        self._constant_names = tuple(computed)
        for name, value in computed.items():
            self.register_buffer(name, value, persistent=False)

    def constant(self, name: str, x: Tensor) -> Tensor:
        """The buffer `name` on the device of `x`."""
        value = getattr(self, name)
        return value if value.device == x.device else value.to(x.device)

    def _computed(self, like: Tensor) -> dict[str, Tensor]:
        device = "cpu" if like.is_meta else like.device
        keeps = like.dtype == torch.float64 or (self.constants_in_half and like.is_floating_point())
        with torch.device("cpu"):
            exact = self.constants()
        return {name: value.to(device, like.dtype if keeps else torch.float32) for name, value in exact.items()}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)
        for name, value in self._computed(getattr(self, self._constant_names[0])).items():
            setattr(self, name, value)
        return self
