"""``spectral predict --windows SECONDS``: the classes of a long video over time, from one pass over its frames.

A window is tested as if its frames were the whole video, with the clips and crops of the test. Of the frames only the
crops that an open window needs are held, so the memory does not depend on the length of the video.
"""

from __future__ import annotations

import argparse
import math
from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av
import matplotlib
import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from common.datamodules.errors import VideoReadError
from common.datamodules.video_clips import ClipSpec, view_indices
from common.datamodules.video_crops import square_crops
from common.datamodules.video_reader import EncodedVideoReader, FrameFolderReader, open_video
from common.training.classification import ClassPredictor
from common.training.predict import new_file

if TYPE_CHECKING:
    from common.training.classification import ClassificationModule

TICK = 1e-3  # seconds; some containers round the times of frames to it
CLOCK = Fraction(1, 90_000)  # unit of the times in the video that is written
Reader = EncodedVideoReader | FrameFolderReader


@dataclass(frozen=True)
class Window:
    """Part of a video: from ``start`` to ``end`` in seconds, the frames ``first`` to ``stop - 1``."""

    start: float
    end: float
    first: int
    stop: int


def list_windows(times: Sequence[float], duration: float, length: float, stride: float) -> Iterator[Window]:
    """Windows of ``length`` seconds, ``stride`` apart.

    The last one is moved back to end with the video; a video shorter than a window is one window. A window in which no
    frame begins has the frame that is on the screen.

    Args:
        times: time of each frame in seconds, from 0, increasing.
        duration: of the video in seconds.
    """
    end, count = 0.0, 0
    while count * stride < duration - TICK and (count == 0 or end < duration - TICK):
        start, end = count * stride, count * stride + length
        if end > duration - TICK:
            start, end = max(0.0, duration - length), duration
        stop = max(1, bisect_left(times, end - TICK))
        yield Window(start, end, min(bisect_left(times, start - TICK), stop - 1), stop)
        count += 1


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
            held[index] = _crops(image, spec)
        while opened and opened[0][0].stop <= index + 1:
            _, frames = opened.popleft()
            clips = [torch.stack([held[i] for i in clip], dim=1) for clip in frames.tolist()]
            yield torch.stack([spec.normalise(crop) for clip in clips for crop in clip])
            keep = opened[0][0].first if opened else index + 1
            held = {i: crops for i, crops in held.items() if i >= keep}
        if coming is None and not opened:
            return


def _crops(image: np.ndarray, spec: ClipSpec) -> Tensor:
    """uint8 (num_crops, 3, S, S) of a frame."""
    frame = torch.from_numpy(np.ascontiguousarray(image))[None]
    return square_crops(frame, spec.crop_size, spec.num_crops, spec.resize)[:, 0]


def smooth(probabilities: Tensor, count: int) -> Tensor:
    """Mean over ``count`` neighbouring windows (W, classes) around each, over fewer at the ends."""
    before, after = (count - 1) // 2, count // 2 + 1
    return torch.stack([probabilities[max(0, i - before) : i + after].mean(dim=0) for i in range(len(probabilities))])


class VideoClassPredictor(ClassPredictor):
    """The most probable classes of every video or, with ``--windows``, of its parts."""

    def __init__(self, module: ClassificationModule, options: argparse.Namespace) -> None:
        for name, default in (("stride", None), ("smooth", 1), ("video", None)):
            if options.windows is None and getattr(options, name) != default:
                raise ValueError(f"--{name} is for windows; add --windows SECONDS")
        if options.stride is None:
            options.stride = options.windows
        for name in ("windows", "stride"):
            seconds = getattr(options, name)
            if seconds is not None and not (math.isfinite(seconds) and seconds >= TICK):
                raise ValueError(f"--{name} is {seconds:g}; it must be at least {TICK:g} seconds")
        if options.smooth < 1:
            raise ValueError(f"--smooth is {options.smooth}; it must be at least 1")
        super().__init__(module, options)
        if options.windows is not None:
            self.columns = (self.columns[0], "start", "end", *self.columns[1:])
        if options.video is not None:
            self._check_source()
        if options.explain is not None:
            if options.windows is not None or options.features is not None:
                raise ValueError("--explain works with neither --windows nor --features; leave them out")
            if not any(True for _ in module.network.parameters()):
                raise ValueError("--explain needs gradients, which an exported network lacks; give its checkpoint")
            self.check_folder("--explain", options.explain)
        self.spec = ClipSpec.from_dict(module.spec or {})
        self.notes: list[str] = []

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--windows", type=float, metavar="SECONDS", help="predict windows of this length, one row each, not files"
        )
        parser.add_argument(
            "--stride", type=float, metavar="SECONDS", help="distance of the windows (default: their length)"
        )
        parser.add_argument(
            "--smooth", type=int, default=1, metavar="N", help="average the probabilities of N neighbouring windows"
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

    def _check_source(self) -> None:
        """Raise ValueError unless there is one video, which is not the file to write."""
        files = [file for path in self.options.paths for file in self.find_files(path)]
        if len(files) != 1:
            raise ValueError(f"--video is drawn on one video, and the paths are {len(files)}; give one of them")
        if self.options.video.exists() and self.options.video.samefile(files[0]):
            raise ValueError(f"--video is {files[0]}, the video that is predicted; give another name")

    def load(self, path: Path) -> Any:
        return super().load(path) if self.options.windows is None else open_video(path)

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
            self._note_short(path, video, windows[0])
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
            smoothed = smooth(torch.stack(predicted), self.options.smooth) if predicted else torch.empty(0)
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

    def _note_short(self, path: Path, video: Reader, window: Window) -> None:
        """Say where a window has less than it should."""
        frames, needed = window.stop - window.first, self.spec.span
        if video.duration < self.options.windows - TICK:
            self.notes.append(
                f"note: {path} lasts {video.duration:.2f} s, less than a window of {self.options.windows:g} s; "
                "it is one window"
            )
        elif frames < needed:
            self.notes.append(
                f"note: {path}: a window has {frames} frames, fewer than the {needed} that a clip spans, "
                f"so they are repeated; --windows {needed / video.fps:.2f} or more avoids it"
            )

    def finish(self) -> None:
        super().finish()
        for note in self.notes:
            print(note)


# -- the captioned video ----------------------------------------------------------------------------------------------


def write_captioned(path: Path, video: Reader, windows: Sequence[Window], captions: Sequence[str]) -> None:
    """Write a video with text on every frame, that of the window whose centre is nearest, as H.264 in mp4.

    Frames keep their times. A side with an odd number of pixels gets one more, a copy of the last.
    """
    with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
        stream = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator(10_000))
        stream.pix_fmt, current, ticks = "yuv420p", 0, -1
        centres = [(window.start + window.end) / 2 for window in windows]
        for time, image in zip(video.times, video.iterate(), strict=False):
            while current + 1 < len(centres) and abs(centres[current + 1] - time) < abs(centres[current] - time):
                current += 1
            drawn = draw_caption(image, captions[current])
            if ticks < 0:
                stream.height, stream.width = drawn.shape[:2]
                stream.time_base = stream.codec_context.time_base = CLOCK
            frame = av.VideoFrame.from_ndarray(drawn, format="rgb24")
            ticks = max(ticks + 1, round(time / CLOCK))
            frame.pts, frame.time_base = ticks, CLOCK
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def draw_caption(image: np.ndarray, text: str) -> np.ndarray:
    """A frame (H, W, 3), made even in size, with white text on a dark ground in its upper left corner."""
    height, width = image.shape[:2]
    picture = Image.fromarray(np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge"))
    draw = ImageDraw.Draw(picture, "RGBA")
    font = _font(max(8, min(height, width) // 18))
    draw.rectangle(draw.multiline_textbbox((4, 4), text, font), fill=(0, 0, 0, 160))
    draw.multiline_text((4, 4), text, (255, 255, 255), font)
    return np.asarray(picture)


def _font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
