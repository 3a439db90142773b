"""Writes frames as H.264 in mp4."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

MPEG_CLOCK = Fraction(1, 90_000)  # seconds


def write_mp4(
    path: Path, frames: Iterable[av.VideoFrame], fps: float, options: Mapping[str, str] | None = None
) -> None:
    """Write a video, whose index comes first, so that a browser can play it while it loads.

    Args:
        path: the file.
        frames: all with the same even size and unit of time, and a time stamp each.
        fps: average frames per second.
        options: of the encoder.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        rate = Fraction(fps).limit_denominator(10_000)
        stream: Any = container.add_stream("libx264", rate=rate, options=dict(options or {}))
        stream.pix_fmt = "yuv420p"
        for index, frame in enumerate(frames):
            if index == 0:
                stream.height, stream.width = frame.height, frame.width
                stream.time_base = stream.codec_context.time_base = frame.time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def rgb_frame(image: np.ndarray, ticks: int, unit: Fraction = MPEG_CLOCK) -> av.VideoFrame:
    """A frame from an RGB image, uint8 (H, W, 3), that is shown ``ticks * unit`` seconds after the first."""
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
    frame.pts, frame.time_base = ticks, unit
    return frame
