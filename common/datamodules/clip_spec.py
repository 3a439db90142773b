"""Everything needed to turn a video into the views that a network is tested on, as plain values."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from common.datamodules.readers import open_video
from common.datamodules.sampling import SAMPLINGS, multi_view_indices
from common.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise, square_crops


class Spec:
    """A frozen dataclass of plain values with colours ``mean`` and ``std``; it is stored in checkpoints."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def _check_colours(self) -> None:
        for name in ("mean", "std"):
            value = tuple(float(number) for number in getattr(self, name))
            if len(value) != 3 or (name == "std" and min(value) <= 0):
                raise ValueError(f"{name} is {value}; it must be three numbers{' above 0' if name == 'std' else ''}.")
            object.__setattr__(self, name, value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, the inverse of :meth:`from_dict`."""
        values = asdict(self)  # type: ignore[call-overload]
        return {key: list(value) if isinstance(value, tuple) else value for key, value in values.items()}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Self:
        """Rebuild from plain values; a key that is not a field is an error."""
        if unknown := sorted(set(values) - {field.name for field in fields(cls)}):  # type: ignore[arg-type]
            raise ValueError(f"unknown keys in {cls.__name__}: {', '.join(unknown)}.")
        return cls(**values)


@dataclass(frozen=True)
class ClipSpec(Spec):
    """How the test views of a video are made. It is stored in a checkpoint, so that the checkpoint can predict.

    Attributes:
        num_frames: T, frames of a view.
        sampling: ``segments`` (one frame from each of T parts of the video) or ``dense`` (T frames, ``stride`` apart).
        stride: distance in frames, of dense sampling.
        num_clips: views in time.
        num_crops: views in space, 1 or 3.
        crop_size: side of a view in pixels.
        resize: None: the square of the short side is resized to ``crop_size`` (STFT paper, section 5.2); otherwise the
            short side is resized to this and the square has side ``crop_size``.
        mean, std: per colour, on the scale 0..1.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    num_frames: int = 16
    sampling: str = "segments"
    stride: int = 1
    num_clips: int = 1
    num_crops: int = 1
    crop_size: int = 112
    resize: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for name in ("num_frames", "stride", "num_clips", "crop_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        if self.sampling not in SAMPLINGS:
            raise ValueError(f"sampling is {self.sampling!r}; it must be one of {', '.join(SAMPLINGS)}.")
        if self.num_crops not in (1, 3):
            raise ValueError(f"num_crops is {self.num_crops}; it must be 1 (centre) or 3 (along the long side).")
        if self.resize is not None and self.resize < self.crop_size:
            raise ValueError(f"resize ({self.resize}) is smaller than crop_size ({self.crop_size}).")
        self._check_colours()

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one clip with its batch axis."""
        return 1, 3, self.num_frames, self.crop_size, self.crop_size

    @property
    def num_views(self) -> int:
        """Views of one video."""
        return self.num_clips * self.num_crops


def load_views(path: str | Path, spec: ClipSpec) -> Tensor:
    """All test views of one video.

    Returns:
        float32 (V, 3, T, S, S) with V = num_clips * num_crops, the crops of a clip next to each other.

    Raises:
        VideoReadError: the video cannot be read.
    """
    with open_video(path) as video:
        return make_views(video.num_frames, video.get_frames, spec)


def make_views(num_frames: int, get_frames: Callable[[list[int]], Tensor], spec: ClipSpec) -> Tensor:
    """The views of a video given its length and a function from indices to uint8 frames (T, H, W, 3)."""
    indices = multi_view_indices(num_frames, spec.num_frames, spec.sampling, spec.stride, spec.num_clips)
    clips = get_frames(indices.flatten().tolist()).unflatten(0, indices.shape)
    views = [
        normalise(crop, spec.mean, spec.std)
        for clip in clips
        for crop in square_crops(clip, spec.crop_size, spec.num_crops, spec.resize)
    ]
    return torch.stack(views)
