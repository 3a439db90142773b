"""Which frames of a video make a clip. All functions return frame indices in 0 .. num_frames - 1."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

SAMPLINGS = ("segments", "dense")


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
