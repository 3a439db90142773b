"""``spectral predict --windows SECONDS`` of a stream, whose length is not known: rows are printed as they come."""

from __future__ import annotations

import signal
from bisect import bisect_right
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, nullcontext
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from common.command_line import printable
from common.datamodules.errors import VideoReadError
from common.datamodules.video_clips import ClipSpec, view_indices
from common.datamodules.video_stream import VideoStream
from common.output_files import row_writer
from common.training.predict_windows import TICK, Window, crops_of, list_windows, smooth, stack_views, window_at

if TYPE_CHECKING:
    from common.training.predict_windows import VideoClassPredictor


def stream_windows(
    frames: Iterable[tuple[float, np.ndarray]], length: float, stride: float, spec: ClipSpec, video: VideoStream
) -> Iterator[tuple[Window, Tensor]]:
    """The windows of :func:`~common.training.predict_windows.list_windows` and their views (V, 3, T, S, S).

    A window comes when the first frame behind it does. The crops of the last ``length`` seconds are held.

    Args:
        frames: of ``video``, or its first ones; ``first`` and ``stop`` of a window count among those that are held.
    """
    times: list[float] = []
    crops: list[Tensor] = []
    count = 0

    def with_views(window: Window) -> tuple[Window, Tensor]:
        return window, stack_views(crops, window.first + view_indices(window.stop - window.first, spec), spec)

    for time, image in frames:
        while (end := count * stride + length) - TICK <= time:
            yield with_views(window_at(times, count * stride, end))
            count += 1
        behind = max(0, bisect_right(times, time - length - TICK) - 1)  # one is on the screen where a window begins
        del times[:behind], crops[:behind]
        times.append(time)
        crops.append(crops_of(image, spec))
    yield from map(with_views, list_windows(times, times[-1] + 1 / video.fps, length, stride, count))


def predict_stream(predictor: VideoClassPredictor, video: VideoStream) -> int:
    """Predict the windows of a stream until it ends; returns 1 if it breaks off, else 0.

    After KeyboardInterrupt, which is raised again, all windows so far are in the files too.
    """
    options = predictor.options
    ranks = range(1, 1 + min(options.top, len(predictor.module.output_names)))
    columns = ["path", "start", "end", *(name for k in ranks for name in (f"top{k}", f"p{k}")), "error"]
    writer: Any = row_writer(options.csv, columns, options.force) if options.csv else nullcontext(lambda row: None)
    windows: deque[Window] = deque()
    stopped: list[BaseException] = []
    predictor.csv_written = True
    with video, writer as write, _interrupted_between_frames(video):

        def write_last() -> None:
            write(predictor.rows[-1])
            if not options.json:
                predictor.rows.clear()

        try:
            for probabilities in smooth(_classify(predictor, video, windows, stopped), options.smooth):
                window = windows.popleft()
                times = {"start": round(window.start, 3), "end": round(window.end, 3)}
                cells = predictor.add_row(video.name, probabilities, **times)
                classes = ", ".join(" ".join(pair) for pair in zip(*(text.split("\n") for text in cells), strict=True))
                print(f"{window.start:8.2f} to {window.end:8.2f} s  {printable(classes)}", flush=True)
                write_last()
            if stopped and isinstance(stopped[0], VideoReadError):
                print(f"error: {stopped[0]}")
                predictor.fail(video.name, stopped[0].reason)
                write_last()
            elif stopped:
                raise stopped[0]
        finally:
            if video.damaged:
                predictor.notes.append(f"note: {video.name}: {video.damaged} damaged packets or frames are left out")
            for note in predictor.finish():
                print(note)
    return len(stopped)


@contextmanager
def _interrupted_between_frames(video: VideoStream) -> Iterator[None]:
    """Let Ctrl-C end the wait for a frame, not the work on a window, whose row would be lost."""
    before = signal.signal(signal.SIGINT, lambda *_: video.interrupt())
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _classify(
    predictor: VideoClassPredictor, video: VideoStream, windows: deque[Window], stopped: list[BaseException]
) -> Iterator[Tensor]:
    """Class probabilities of each window, which is appended to ``windows``, until the stream ends. What stops it
    earlier goes to ``stopped``, so that the windows before are still smoothed."""
    options = predictor.options
    limit = float("inf") if options.seconds is None else max(TICK, options.seconds - TICK)
    frames = takewhile(lambda frame: frame[0] < limit, video)
    try:
        for window, views in stream_windows(frames, options.windows, options.stride, predictor.spec, video):
            if not windows and window.start == 0:
                predictor.note_short(video.name, video.fps, window)
            windows.append(window)
            yield predictor.classify(video.name, views, start=window.start, end=window.end)
    except (VideoReadError, KeyboardInterrupt) as error:
        stopped.append(error)
