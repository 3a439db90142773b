"""From a video file to the views that a network is tested on: which frames, which squares of them.

Frame indices lie in 0 .. num_frames - 1. Every frame of a clip gets the same crop.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

from common.datamodules.spec import IMAGENET_MEAN, IMAGENET_STD, MAX_VALUES, ColourSpec, check_choice, check_range
from common.datamodules.video_reader import open_video
from common.limits import HINT

SAMPLINGS = ("segments", "dense")
CropPlaces = Literal["anywhere", "corners"]
# The scales printed in section 5.2 of the STFT paper.
SCALES = (1.0, 2**-0.25, 2**-0.75, 0.5)


@dataclass(frozen=True)
class ClipSpec(ColourSpec):
    """How the test views of a video are made; see `VideoDataModule`, where ``stride`` is ``frame_stride``.

    Attributes:
        resize: None: the square with the side of the short side is resized to ``crop_size`` (STFT paper, section 5.2);
            otherwise the short side is resized to this and the square has side ``crop_size``.
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
            frames = f"{self.num_frames} frames"
            raise ValueError(f"resize is {self.resize}, too large for {frames}; make it smaller; {HINT}.")
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


# -- frames ----------------------------------------------------------------------------------------------------------


def segment_indices(
    num_frames: int, num_segments: int, generator: Generator | None = None, position: float = 0.5
) -> Tensor:
    """One frame from each of ``num_segments`` equal parts of the video (STFT paper, section 5.2).

    Segment i holds the frames floor(i n / T) to floor((i + 1) n / T) - 1. With a generator the frame is uniform in its
    segment; without one it lies at ``position`` (0 start, 0.5 centre) of the segment, so the frames are equidistant.
    A video with fewer frames than segments is repeated from its start (loop padding).

    Returns:
        int64 (num_segments,), non-decreasing unless the video was repeated.
    """
    steps = torch.arange(num_segments + 1)
    if num_frames < num_segments:
        return steps[:-1] % num_frames
    if generator is None:
        return ((steps[:-1] + position) * num_frames / num_segments).long().clamp_(max=num_frames - 1)
    edges = steps * num_frames // num_segments
    shift = torch.rand(num_segments, generator=generator, dtype=torch.float64) * (edges[1:] - edges[:-1])
    return torch.minimum(edges[:-1] + shift.long(), edges[1:] - 1)


def dense_indices(
    num_frames: int, length: int, stride: int = 1, generator: Generator | None = None, position: float = 0.5
) -> Tensor:
    """``length`` frames, ``stride`` apart, starting anywhere (generator) or at ``position`` of the possible starts.

    A video too short for the clip is repeated from its start (loop padding).

    Returns:
        int64 (length,).
    """
    offsets = torch.arange(length) * stride
    room = num_frames - int(offsets[-1])
    if room < 1:
        return offsets % num_frames
    if generator is None:
        return offsets + int((room - 1) * position)
    return offsets + int(torch.randint(room, (), generator=generator))


def clip_indices(
    num_frames: int,
    length: int,
    sampling: str,
    stride: int = 1,
    generator: Generator | None = None,
    position: float = 0.5,
) -> Tensor:
    """The frames of one clip: :func:`segment_indices` or :func:`dense_indices`, as ``sampling`` says."""
    if sampling == "segments":
        return segment_indices(num_frames, length, generator, position)
    return dense_indices(num_frames, length, stride, generator, position)


# -- squares ---------------------------------------------------------------------------------------------------------


def random_multi_scale_crop(
    clip: Tensor,
    size: int,
    generator: Generator,
    scales: Sequence[float] = SCALES,
    resize_range: tuple[int, int] | None = None,
    places: CropPlaces = "anywhere",
) -> Tensor:
    """A square crop at a random position, its side a random scale times the short side, resized to ``size``.

    With ``resize_range`` it is a crop of side ``size`` from frames whose short side is resized to a random whole number
    of pixels in this range (the protocol of the residual networks for video). The crop is cut out before resizing,
    which gives the same up to the rounding of its position and side, and resizes no pixels that are thrown away.

    Args:
        clip: uint8 (T, H, W, 3).
        size: side of the result in pixels; small crops are enlarged.
        generator: source of scale and position.
        scales: fractions of the short side, each in (0, 1].
        resize_range: smallest and largest short side in pixels, at least ``size``; replaces ``scales``.
        places: ``anywhere``, or one of the four ``corners`` or the centre.

    Returns:
        uint8 (T, 3, size, size).
    """
    height, width = clip.shape[1:3]
    if resize_range is None:
        scale = scales[int(torch.randint(len(scales), (), generator=generator))]
    else:
        scale = size / int(torch.randint(resize_range[0], resize_range[1] + 1, (), generator=generator))
    side = min(height, width, max(1, round(scale * min(height, width))))
    top = int(torch.randint(height - side + 1, (), generator=generator))
    left = int(torch.randint(width - side + 1, (), generator=generator))
    if places == "corners":
        top, left = _corners_and_centre(height - side, width - side)[int(torch.randint(5, (), generator=generator))]
    return _resize(clip[:, top : top + side, left : left + side], (size, size))


def _corners_and_centre(bottom: int, right: int) -> list[tuple[int, int]]:
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]


def square_crops(clip: Tensor, size: int, num_crops: int = 1, resize: int | None = None) -> Tensor:
    """The central square of each frame, or three squares along the long side.

    Args:
        clip: uint8 (T, H, W, 3).
        size: side of the result in pixels.
        num_crops: 1 (centre) or 3 (start, centre and end of the long side).
        resize: None: the squares have the side of the short side and are resized to ``size`` (STFT paper, section
            5.2). Otherwise the short side is first resized to this many pixels and the squares have side ``size``.

    Returns:
        uint8 (num_crops, T, 3, size, size).
    """
    height, width = clip.shape[1:3]
    if resize is None:
        side, images = min(height, width), clip
    else:
        # Integer arithmetic: the short side is exactly `resize`, the long one is never below it.
        short = min(height, width)
        images = _resize(clip, (resize * height // short, resize * width // short)).permute(0, 2, 3, 1)
        side = size
        height, width = images.shape[1:3]
    positions = (0.5,) if num_crops == 1 else (0.0, 0.5, 1.0)
    crops = []
    for position in positions:
        # The crop moves along the long side and is centred along the short one.
        top = int((height - side) * (position if height > width else 0.5))
        left = int((width - side) * (position if width >= height else 0.5))
        crops.append(_resize(images[:, top : top + side, left : left + side], (size, size)))
    return torch.stack(crops)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (T, H, W, 3) to (T, 3, *size), bilinear with antialiasing; unchanged pixels if the size is right."""
    images = images.permute(0, 3, 1, 2)
    if tuple(images.shape[-2:]) == size:
        return images
    return F.resize(images, list(size), antialias=True)
