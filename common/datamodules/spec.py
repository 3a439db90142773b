"""How a file becomes the network's input, as plain values that a checkpoint stores; checks of options."""

from __future__ import annotations

import math
from dataclasses import asdict, fields
from typing import Any, Self

import torch
from torch import Tensor

from common.limits import HINT, limit

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MAX_VALUES = limit(2**30)  # numbers in all views of one file, 4 GiB; a checkpoint may ask for no more


def check_range(low: float, high: float | None, **options: float | None) -> None:
    """Raise ValueError for the first option that is not None and lies outside [low, high); ``high`` None: no limit."""
    for name, value in options.items():
        if value is not None and not (low <= value and (high is None or value < high)):
            limit = "" if high is None else f" and below {high}"
            raise ValueError(f"{name} is {value}; it must be at least {low}{limit}.")


def check_choice(*choices: str, **options: str) -> None:
    """Raise ValueError for the first option that is not one of the choices."""
    for name, value in options.items():
        if value not in choices:
            raise ValueError(f"{name} is {value!r}; it must be {' or '.join(choices)}.")


class InputSpec:
    """The base of the specs of videos, images, persons and volumes: frozen dataclasses of plain values.

    A checkpoint stores it, so that it can predict. ValueError: a value is out of its range; the message names it.
    """

    num_views = 1

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input with its batch axis."""
        raise NotImplementedError

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the inverse of :meth:`from_dict`."""
        values = asdict(self)  # type: ignore[call-overload]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild from plain values. Raises ValueError for an unknown key or a wrong value."""
        if not isinstance(values, dict):
            raise ValueError(f"{cls.__name__} is {values!r}, not keys with values.")
        kinds = {field.name: str(field.type) for field in fields(cls)}  # type: ignore[arg-type]
        if unknown := sorted(map(str, set(values) - set(kinds))):
            raise ValueError(f"unknown keys in {cls.__name__}: {', '.join(unknown)}.")
        for name, value in values.items():
            if (
                kinds[name] in ("int", "int | None")
                and type(value) is not int
                and (value, kinds[name]) != (None, "int | None")
            ):
                raise ValueError(f"{name} is {value!r}; it must be a whole number.")
        try:
            return cls(**values)
        except (TypeError, OverflowError) as error:
            raise ValueError(f"wrong values in {cls.__name__}: {error}.") from error

    def _check_memory(self) -> None:
        """Refuse inputs that would fill the memory, before any is made."""
        if math.prod(self.input_shape) * self.num_views > MAX_VALUES:
            shape = " x ".join(map(str, self.input_shape[1:]))
            views = f"{self.num_views} views of {shape}"
            raise ValueError(f"{views} are more than {MAX_VALUES} numbers; make them smaller; {HINT}.")


class ColourSpec(InputSpec):
    """The spec of colour images, with ``mean`` and ``std`` per colour on the scale 0..1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def _check_colours(self) -> None:
        for name in ("mean", "std"):
            value = tuple(float(number) for number in getattr(self, name))
            if len(value) != 3 or (name == "std" and min(value) <= 0):
                raise ValueError(f"{name} is {value}; it must be three numbers{' above 0' if name == 'std' else ''}.")
            object.__setattr__(self, name, value)

    def normalise(self, pixels: Tensor) -> Tensor:
        """Scale to 0..1, subtract ``mean`` and divide by ``std``: (3, H, W) or (T, 3, H, W) to (3, [T,] H, W) float32.

        Args:
            pixels: uint8, or floating on the scale 0..255.
        """
        if pixels.ndim == 3:
            return self.normalise(pixels[None])[:, 0]
        scale = torch.tensor([1 / (255 * s) for s in self.std], dtype=torch.float32).view(-1, 1, 1, 1)
        shift = torch.tensor([-m / s for m, s in zip(self.mean, self.std, strict=True)], dtype=torch.float32)
        out = torch.empty((pixels.shape[1], pixels.shape[0], *pixels.shape[2:]), dtype=torch.float32)
        return out.copy_(pixels.transpose(0, 1)).mul_(scale).add_(shift.view(-1, 1, 1, 1))

    def denormalise(self, image: Tensor) -> Tensor:
        """The inverse of :meth:`normalise` for an image (3, H, W): uint8."""
        mean, std = (torch.tensor(value, device=image.device).view(3, 1, 1) for value in (self.mean, self.std))
        return (255 * (image * std + mean)).clamp(0, 255).byte()
