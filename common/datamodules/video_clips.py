"""From a video file to the views that a network is tested on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from common.datamodules.spec import IMAGENET_MEAN, IMAGENET_STD, MAX_VALUES, ColourSpec, check_choice, check_range
from common.datamodules.video_crops import square_crops
from common.datamodules.video_reader import open_video
from common.datamodules.video_sampling import SAMPLINGS, clip_indices


@dataclass(frozen=True)
class ClipSpec(ColourSpec):
    """How the test views of a video are made. It is stored in a checkpoint, so that the checkpoint can predict.

    Attributes:
        num_frames: T, frames of a view.
        sampling: ``segments`` (one frame from each of T parts of the video) or ``dense`` (T frames, ``stride`` apart).
        stride: distance of the frames in dense sampling.
        num_clips: views in time.
        num_crops: views in space, 1 or 3.
        crop_size: side of a view in pixels.
        resize: None: the square with the side of the short side is resized to ``crop_size`` (STFT paper, section 5.2);
            otherwise the short side is resized to this and the square has side ``crop_size``.
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
        check_range(
            1, None, num_frames=self.num_frames, stride=self.stride, num_clips=self.num_clips, crop_size=self.crop_size
        )
        check_choice(*SAMPLINGS, sampling=self.sampling)
        if self.num_crops not in (1, 3):
            raise ValueError(f"num_crops is {self.num_crops}; it must be 1 (centre) or 3 (along the long side).")
        if self.resize is not None and self.resize < self.crop_size:
            raise ValueError(f"resize ({self.resize}) is smaller than crop_size ({self.crop_size}).")
        if 3 * self.num_frames * (self.resize or 0) ** 2 > MAX_VALUES:
            raise ValueError(f"resize is {self.resize}, too large for {self.num_frames} frames; make it smaller.")
        self._check_colours()
        self._check_memory()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return 1, 3, self.num_frames, self.crop_size, self.crop_size

    @property
    def span(self) -> int:
        """Frames of a video that a view spans without repeating any."""
        return self.num_frames if self.sampling == "segments" else (self.num_frames - 1) * self.stride + 1

    @property
    def num_views(self) -> int:  # type: ignore[override]
        """Views of one video."""
        return self.num_clips * self.num_crops


def view_indices(num_frames: int, spec: ClipSpec) -> Tensor:
    """The frames of each test clip of a video with this number of frames: (clips, T); a single clip is centred.

    ``segments``: clip j takes position (j + 1/2) / num_clips of every segment. ``dense``: the starts are spread evenly
    from the first possible to the last.
    """
    count = spec.num_clips
    spread = spec.sampling == "dense" and count > 1
    positions = [k / (count - 1) if spread else (k + 0.5) / count for k in range(count)]
    return torch.stack(
        [clip_indices(num_frames, spec.num_frames, spec.sampling, spec.stride, None, p) for p in positions]
    )


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
    """The views of a video, given its length and a function from indices to uint8 frames (T, H, W, 3)."""
    indices = view_indices(num_frames, spec)
    clips = get_frames(indices.flatten().tolist()).unflatten(0, indices.shape)
    views = [
        spec.normalise(crop)
        for clip in clips
        for crop in square_crops(clip, spec.crop_size, spec.num_crops, spec.resize)
    ]
    return torch.stack(views)
