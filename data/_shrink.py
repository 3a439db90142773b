"""Write a smaller copy of one video: short side, frame times and orientation kept, quick to seek in."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import av
from av.video.reformatter import Interpolation
from PIL import Image

from common.datamodules.errors import VideoReadError
from common.datamodules.tar_members import find_span
from common.datamodules.video_reader import EncodedVideoReader, FrameFolderReader, open_video
from common.datamodules.video_writer import MPEG_CLOCK, rgb_frame, write_mp4
from data._commands import Probe
from data.check import count_problem
from data.prepare import probe_video

# A keyframe every 12 frames: a reader decodes at most 12 frames to get one.
ENCODER = {"crf": "18", "preset": "fast", "g": "12", "bf": "2", "threads": "1"}
JPEG_QUALITY = 95


class CopyJob(NamedTuple):
    """A video, its smaller copy, the short side of the copy, and the frame rate of a folder of frames if known."""

    source: str
    target: str
    short_side: int
    fps: float | None = None


class CopyResult(NamedTuple):
    """What the copy says about itself, or the problem of the video; whether it was made now."""

    probe: Probe
    made: bool


def shrink_video(job: CopyJob) -> CopyResult:
    """Make the copy unless there is a good one that is not older than the video."""
    source, target = Path(job.source), Path(job.target)
    span = None if source.is_dir() else find_span(source)  # the file may lie in an archive
    original = source if span is None else Path(span.path)
    if target.exists() and original.exists() and target.stat().st_mtime >= original.stat().st_mtime:
        probe = probe_video((job.target, job.fps))
        if not probe.problem:
            return CopyResult(probe, False)
    try:
        with open_video(source) as video:
            target.parent.mkdir(parents=True, exist_ok=True)
            return CopyResult(_write_whole(video, target, job), True)
    except VideoReadError as error:
        return CopyResult(Probe(problem=error.reason or str(error)), False)


def shrunk_size(height: int, width: int, short_side: int, multiple: int = 1) -> tuple[int, int]:
    """The size with the short side given, or that of the video if it is smaller; both sides multiples of a number."""
    short = min(short_side, height, width)
    new = [multiple * max(1, side * short // min(height, width) // multiple) for side in (height, width)]
    return new[0], new[1]


def _write_whole(video: EncodedVideoReader | FrameFolderReader, target: Path, job: CopyJob) -> Probe:
    """Write to a hidden name next to the target, look at what was written, then rename."""
    partial = target.with_name(f".{target.name}.part")
    _remove(partial)  # of a run that was killed
    try:
        if isinstance(video, EncodedVideoReader):
            # The frames as a network would get them, so that orientation and colours stay.
            write_mp4(partial, _small_frames(video, job.short_side), video.fps, ENCODER)
        else:
            _write_images(video, partial, job.short_side)
        probe = probe_video((str(partial), job.fps))
        if problem := probe.problem or count_problem(probe.num_frames or 0, video.num_frames, "the video has"):
            raise VideoReadError(video.path, f"its smaller copy is wrong: {problem}")
        if partial.is_dir():  # a folder cannot replace another
            _remove(target)
        os.replace(partial, target)
    except BaseException:  # including KeyboardInterrupt
        _remove(partial)
        raise
    return probe


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _small_frames(video: EncodedVideoReader, short_side: int) -> Iterator[av.VideoFrame]:
    """Frames with their times, as multiples of a unit: that of the file if it tells all frames apart."""
    unit, times = video.time_base, video.times
    if len({round(time / unit) for time in times}) < len(times):
        unit = MPEG_CLOCK
    for time, image in zip(times, video.iterate(), strict=False):  # counted afterwards
        height, width = shrunk_size(image.shape[0], image.shape[1], short_side, multiple=2)
        frame = rgb_frame(image, round(time / unit), unit)
        small = frame.reformat(width, height, "yuv420p", interpolation=Interpolation.BICUBIC, threads=1)
        small.pts, small.time_base = frame.pts, frame.time_base
        yield small


def _write_images(video: FrameFolderReader, path: Path, short_side: int) -> None:
    """Frames of the same names; files that are small enough are copied as they are."""
    path.mkdir()
    for name, image in zip(video.names, video.iterate(), strict=True):
        height, width = shrunk_size(image.shape[0], image.shape[1], short_side)
        if (height, width) == image.shape[:2]:
            shutil.copyfile(video.path / name, path / name)
        else:
            small = Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC)
            small.save(path / name, quality=JPEG_QUALITY)
