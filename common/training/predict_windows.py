"""``spectral predict --windows SECONDS``: the classes of a long video over time, from one pass over its frames.

A window is tested as if its frames were the whole video, with the clips and crops of the test. Of the frames only the
crops that an open window needs are held, so the memory does not depend on the length of the video.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.datamodules.errors import VideoReadError
from common.datamodules.video_clips import ClipSpec, make_views, square_crops, view_indices
from common.datamodules.video_reader import EncodedVideoReader, FrameFolderReader, open_video
from common.datamodules.video_stream import VideoStream, is_stream
from common.datamodules.video_writer import MPEG_CLOCK, rgb_frame, write_mp4
from common.evaluation.fonts import characters, find_fonts
from common.output_files import new_file
from common.training.predict import ClassPredictor

TICK = 1e-3  # seconds; some containers round the times of frames to it
Reader = EncodedVideoReader | FrameFolderReader


@dataclass(frozen=True)
class Window:
    """Part of a video: from ``start`` to ``end`` in seconds, the frames ``first`` to ``stop - 1``."""

    start: float
    end: float
    first: int
    stop: int


def list_windows(
    times: Sequence[float], duration: float, length: float, stride: float, count: int = 0
) -> Iterator[Window]:
    """Windows of ``length`` seconds, ``stride`` apart.

    The last one is moved back to end with the video; a video shorter than a window is one window. A window in which no
    frame begins has the frame that is on the screen.

    Args:
        times: time of each frame in seconds, from 0, increasing.
        duration: of the video in seconds.
        count: number of windows that have been listed already.
    """
    end = (count - 1) * stride + length if count else 0.0
    while max(count * stride, end) < duration - TICK:
        start, end = count * stride, count * stride + length
        if end > duration - TICK:
            start, end = max(0.0, duration - length), duration
        yield window_at(times, start, end)
        count += 1


def window_at(times: Sequence[float], start: float, end: float) -> Window:
    """The window from ``start`` to ``end``, given the time of each frame."""
    stop = max(1, bisect_left(times, end - TICK))
    return Window(start, end, min(bisect_left(times, start - TICK), stop - 1), stop)


def window_views(images: Iterable[np.ndarray], windows: Iterable[Window], spec: ClipSpec) -> Iterator[Tensor]:
    """The views (V, 3, T, S, S) of each window, from the frames (H, W, 3) of a video in order.

    They are those of :func:`common.datamodules.video_clips.make_views` for a video of the window's frames. If the
    frames end early, so do the windows.
    """
    upcoming = iter(windows)
    coming = next(upcoming, None)
    opened: deque[tuple[Window, Tensor]] = deque()  # with the frames of each clip
    held: dict[int, Tensor] = {}  # crops (num_crops, 3, S, S) by frame
    for index, image in enumerate(images):
        while coming is not None and coming.first <= index:
            opened.append((coming, coming.first + view_indices(coming.stop - coming.first, spec)))
            coming = next(upcoming, None)
        if any((frames == index).any() for _, frames in opened):
            held[index] = crops_of(image, spec)
        while opened and opened[0][0].stop <= index + 1:
            _, frames = opened.popleft()
            yield stack_views(held, frames, spec)
            keep = opened[0][0].first if opened else index + 1
            held = {i: crops for i, crops in held.items() if i >= keep}
        if coming is None and not opened:
            return


def stack_views(crops: Mapping[int, Tensor] | Sequence[Tensor], frames: Tensor, spec: ClipSpec) -> Tensor:
    """The views (V, 3, T, S, S) of a window from the crops of its frames and the frames (clips, T) of each clip."""
    clips = [torch.stack([crops[i] for i in clip], dim=1) for clip in frames.tolist()]
    return torch.stack([spec.normalise(crop) for clip in clips for crop in clip])


def crops_of(image: np.ndarray, spec: ClipSpec) -> Tensor:
    """uint8 (num_crops, 3, S, S) of a frame."""
    frame = torch.from_numpy(np.ascontiguousarray(image))[None]
    return square_crops(frame, spec.crop_size, spec.num_crops, spec.resize)[:, 0]


def smooth(probabilities: Iterable[Tensor], count: int) -> Iterator[Tensor]:
    """Mean (classes,) over ``count`` neighbouring windows around each, over fewer at the ends.

    It holds ``count`` windows, and gives each as soon as the last of its neighbours has come.
    """
    before, after, total = (count - 1) // 2, count // 2, 0
    held: deque[Tensor] = deque(maxlen=count)
    for total, item in enumerate(probabilities, 1):
        held.append(item)
        if total > after:
            yield torch.stack(list(held)).mean(dim=0)
    for left in range(min(after, total), 0, -1):
        yield torch.stack(list(held)[-(left + before) :]).mean(dim=0)


class VideoClassPredictor(ClassPredictor):
    """The most probable classes of every video or, with ``--windows``, of its parts."""

    def __init__(self, module: Any, options: argparse.Namespace) -> None:
        self.stream = self._find_stream(options)
        for name, default in (("stride", None), ("smooth", 1), ("video", None)):
            if options.windows is None and getattr(options, name) != default:
                raise ValueError(f"--{name} is for windows; add --windows SECONDS")
        if options.stride is None:
            options.stride = options.windows
        for name in ("windows", "stride", "seconds", "timeout"):
            seconds = getattr(options, name)
            if seconds is not None and not (math.isfinite(seconds) and seconds >= TICK):
                raise ValueError(f"--{name} is {seconds:g}; it must be at least {TICK:g} seconds")
        if options.smooth < 1:
            raise ValueError(f"--smooth is {options.smooth}; it must be at least 1")
        super().__init__(module, options)
        if options.windows is not None:
            self.columns = (self.columns[0], "start", "end", *self.columns[1:])
        files = sum(len(self.find_files(path)) for path in options.paths) if options.video else 1
        if files != 1:
            raise ValueError(f"--video is drawn on one video, and the paths are {files}; give one of them")
        if options.explain is not None:
            if options.windows is not None or options.features is not None:
                raise ValueError("--explain works with neither --windows nor --features; leave them out")
            if not any(True for _ in module.network.parameters()):
                raise ValueError("--explain needs gradients, which an exported network lacks; give its checkpoint")
            self.check_folder("--explain", options.explain)
        self.spec = ClipSpec.from_dict(module.spec or {})
        self.notes: list[str] = []
        self.short: list[tuple[Path, int]] = []  # files with fewer frames than a clip spans

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--windows",
            type=float,
            metavar="SECONDS",
            help="predict windows of this length, one row each, not files; rows of a stream are printed, and written "
            "to --csv, as they come, until it ends, Ctrl-C or --seconds",
        )
        parser.add_argument(
            "--stride", type=float, metavar="SECONDS", help="distance of the windows (default: their length)"
        )
        parser.add_argument(
            "--smooth", type=int, default=1, metavar="N", help="average the probabilities of N neighbouring windows"
        )
        parser.add_argument(
            "--seconds", type=float, metavar="N", help="end a stream after N seconds of it (default: when it ends)"
        )
        parser.add_argument(
            "--timeout",
            type=float,
            default=30,
            metavar="SECONDS",
            help="a stream without a frame for as long is an error (default %(default)s)",
        )
        parser.add_argument(
            "--format",
            metavar="NAME",
            help="open the path as a stream with this input format or device of FFmpeg, e.g. mpegts, x11grab, lavfi "
            "(default: v4l2 for a device, else what the data show)",
        )
        parser.add_argument(
            "--video",
            type=Path,
            metavar="OUT.mp4",
            help="write the video, without sound, with the classes of the window whose centre is nearest",
        )
        parser.add_argument(
            "--explain",
            type=Path,
            metavar="FOLDER",
            help="write a video for each file: its middle view, and beside it where the network looks for the class "
            "that it predicts (Grad-CAM)",
        )

    def outputs(self) -> list[tuple[str, Path]]:
        return [*super().outputs(), *([("--video", self.options.video)] if self.options.video else [])]

    def _find_stream(self, options: argparse.Namespace) -> VideoStream | None:
        """The stream among the paths, if there is one, which must be alone. Raises ValueError."""
        streams = [path for path in options.paths if options.format is not None or is_stream(path)]
        if not streams:
            if options.seconds is not None:
                raise ValueError("--seconds is for a stream, and the paths are files; leave it out")
            return None
        stream = VideoStream(streams[0], options.timeout, options.format)
        if len(options.paths) > 1:
            raise ValueError(f"{stream.name} is a stream, and the paths are {len(options.paths)}; give it alone")
        if options.windows is None:
            raise ValueError(f"{stream.name} is a stream; add --windows SECONDS")
        if options.video is not None:
            raise ValueError(f"--video reads the video twice, and {stream.name} is a stream; leave it out")
        return stream

    def run(self) -> int:
        if self.stream is None:
            return super().run()
        from common.training.predict_stream import predict_stream

        return predict_stream(self, self.stream)

    def load(self, path: Path) -> Any:
        if self.options.windows is not None:
            return open_video(path)
        with open_video(path) as video:
            if video.num_frames < self.spec.span:
                self.short.append((path, video.num_frames))
            return make_views(video.num_frames, video.get_frames, self.spec)

    def predict(self, path: Path, content: Tensor) -> Sequence[str]:
        probabilities = self.classify(path, content)
        if self.options.explain is not None:
            self._explain(path, content[len(content) // 2], int(probabilities.argmax()))
        return self.add_row(path, probabilities)

    def _explain(self, path: Path, view: Tensor, target: int) -> None:
        from common.training.explain import write_explanation

        frames = torch.stack([self.spec.denormalise(frame) for frame in view.unbind(1)])
        out = self.options.explain / f"{len(self.rows):04d}_{path.stem}.mp4"
        with new_file(out, self.options.force) as temporary:
            write_explanation(self.module.network, view.to(self.module.device), frames, target, temporary)
        self.notes.append(f"Written: {out}")

    def predict_rows(self, path: Path, content: Any) -> Iterable[Sequence[str]]:
        return super().predict_rows(path, content) if self.options.windows is None else self._predict(path, content)

    def _predict(self, path: Path, video: Reader) -> Iterator[Sequence[str]]:
        with video:
            windows = list(list_windows(video.times, video.duration, self.options.windows, self.options.stride))
            self.note_short(path, video.fps, windows[0])
            predicted: list[Tensor] = []
            damage = None
            try:
                for views in window_views(video.iterate(), windows, self.spec):
                    window = windows[len(predicted)]
                    predicted.append(self.classify(path, views, start=window.start, end=window.end))
            except VideoReadError as error:
                damage = error.reason
            if damage is None and len(predicted) < len(windows):
                damage = f"fewer than its {video.num_frames} frames can be decoded."
            smoothed = list(smooth(predicted, self.options.smooth))
            for window, probabilities in zip(windows, smoothed, strict=False):
                times = {"start": round(window.start, 3), "end": round(window.end, 3)}
                yield *(f"{time:.2f}" for time in times.values()), *self.add_row(path, probabilities, **times)
            if damage is not None:
                until = f"{len(predicted)} of {len(windows)} windows, those before the damage, are predicted"
                video_kept = "; --video is not written" if self.options.video else ""
                raise VideoReadError(path, f"{damage} {until}{video_kept}.")
            if self.options.video:
                captions = [self._caption(probabilities) for probabilities in smoothed]
                with new_file(self.options.video, self.options.force) as temporary:
                    write_captioned(temporary, video, windows, captions)
                self.notes.append(f"Written: {self.options.video}")

    def _caption(self, probabilities: Tensor) -> str:
        values, classes = probabilities.topk(min(self.options.top, len(probabilities)))
        names = [self.module.output_names[k] for k in classes.tolist()]
        return "\n".join(f"{value:4.0%} {name}" for value, name in zip(values.tolist(), names, strict=True))

    def note_short(self, path: Path | str, fps: float, window: Window) -> None:
        """Note for the end where the first window has less than it should."""
        frames, needed, seconds = window.stop - window.first, self.spec.span, window.end - window.start
        if seconds < self.options.windows - TICK:
            self.notes.append(
                f"note: {path} lasts {seconds:.2f} s, less than a window of {self.options.windows:g} s; "
                "it is one window"
            )
        elif frames < needed:
            self.notes.append(
                f"note: {path}: a window has {frames} frames, fewer than the {needed} that a clip spans, "
                f"so they are repeated; --windows {needed / fps:.2f} or more avoids it"
            )

    def finish(self) -> list[str]:
        notes = super().finish() + self.notes
        if self.short:
            path, frames = self.short[0]
            others = f"; the same holds for {len(self.short) - 1} more" if self.short[1:] else ""
            notes.append(
                f"note: {path} has {frames} frames, fewer than the {self.spec.span} that a clip spans, so they are "
                f"repeated{others}"
            )
        return notes


# -- the captioned video ----------------------------------------------------------------------------------------------


def write_captioned(path: Path, video: Reader, windows: Sequence[Window], captions: Sequence[str]) -> None:
    """Write a video with text on every frame, that of the window whose centre is nearest, as H.264 in mp4.

    Frames keep their times. A side with an odd number of pixels gets one more, a copy of the last.
    """
    write_mp4(path, _captioned(video, [(window.start + window.end) / 2 for window in windows], captions), video.fps)


def _captioned(video: Reader, centres: Sequence[float], captions: Sequence[str]) -> Iterator[av.VideoFrame]:
    current, ticks = 0, -1
    for time, image in zip(video.times, video.iterate(), strict=False):
        while current + 1 < len(centres) and abs(centres[current + 1] - time) < abs(centres[current] - time):
            current += 1
        ticks = max(ticks + 1, round(time / MPEG_CLOCK))
        yield rgb_frame(draw_caption(image, captions[current]), ticks)


def draw_caption(image: np.ndarray, text: str) -> np.ndarray:
    """A frame (H, W, 3), made even in size, with white text on a dark ground in its upper left corner."""
    height, width = image.shape[:2]
    picture = Image.fromarray(np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
    draw = ImageDraw.Draw(picture, "RGBA")
    files = find_fonts(text).values()
    widest = max(files, key=lambda file: len(characters(file) & set(map(ord, text))))  # Pillow takes one font a text
    font = ImageFont.truetype(widest, max(8, min(height, width) // 18))
    draw.rectangle(draw.multiline_textbbox((4, 4), text, font), fill=(0, 0, 0, 160))
    draw.multiline_text((4, 4), text, (255, 255, 255), font)
    return np.asarray(picture)
