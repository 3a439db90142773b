"""Frames of a source that is read once, in order, while it lasts: a URL, a camera or a named pipe.

A URL is opened only here, and only the command line makes a :class:`VideoStream`. Paths in manifests, lists and
checkpoints go through :func:`common.datamodules.video_reader.open_video`, to which they are names of files.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import suppress
from errno import EIO
from pathlib import Path
from queue import Empty, Queue
from threading import Event, Thread
from typing import Any, Self

import av
import numpy as np
from av.video.reformatter import VideoReformatter

from common.datamodules.errors import VideoReadError
from common.datamodules.video_reader import DEFAULT_FPS, open_container, reason_of, rgb_image

SCHEMES = ("http", "https", "rtmp", "rtmps", "rtp", "rtsp", "rtsps", "srt", "tcp", "udp")
AHEAD = 4  # frames decoded before they are asked for


def is_url(source: str) -> bool:
    """Whether a source is the URL of a stream."""
    scheme, separator, _ = source.partition("://")
    return bool(separator) and scheme.lower() in SCHEMES


def is_stream(source: str) -> bool:
    """Whether a source can be read only once: a URL, a device such as a camera, or a named pipe."""
    path = Path(source)
    return is_url(source) or path.is_char_device() or path.is_fifo()


class VideoStream:
    """Iterates over the frames: time in seconds from the first one, increasing, and RGB image, uint8 (H, W, 3).

    A thread decodes a few frames ahead, so that a read that FFmpeg cannot interrupt, such as that of a pipe, can time
    out too. Frames are never left out because they come too fast: where the sender cannot wait, FFmpeg's buffers
    decide. Damaged frames are, as a stream is often joined between two keyframes. Where the clock of the source goes
    back, or forward by more than ``timeout``, the next frame follows after 1 / fps.

    Attributes:
        name: the source without user name and password.
        fps: average frames per second, as far as the source tells, once there is a frame.
        damaged: number of damaged packets and frames.

    Args:
        source: what FFmpeg opens.
        timeout: seconds to wait for a frame.
        format: FFmpeg's name of the format or input device; by default v4l2 for a device, else what the data show.

    Raises:
        VideoReadError: while iterating: the source cannot be opened or decoded, breaks off or stalls.
    """

    def __init__(self, source: str, timeout: float, format: str | None = None) -> None:
        self.source, self.timeout = source, timeout
        self.format = format or ("v4l2" if Path(source).is_char_device() else None)
        self.name = re.sub(r"(?<=://)[^/@]*@", "", source) if is_url(source) else source
        self.fps, self.damaged = DEFAULT_FPS, 0
        self._frames: Queue[Any] = Queue(AHEAD)
        self._closed = Event()
        self._interrupted = self._waiting = False
        self._thread = Thread(target=self._fill, daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Stop reading. A read that hangs ends with the process, if not before."""
        self._closed.set()
        with suppress(Empty):
            while True:
                self._frames.get_nowait()
        self._thread.join(timeout=1)

    def __iter__(self) -> Iterator[tuple[float, np.ndarray]]:
        clock, offset = 0.0, None  # time of the frame before, and what it is in the source when the clock is 0
        for time, image in self._wait():
            if offset is None:
                offset = time
            elif not 0 < time - offset - clock <= self.timeout:
                offset = time - clock - 1 / self.fps
            clock = time - offset
            yield clock, image
        if offset is None:
            raise VideoReadError(self.name, "no frame of its video stream can be decoded.")

    def interrupt(self) -> None:
        """Raise KeyboardInterrupt where a frame is waited for, now or next; for a signal handler."""
        self._interrupted = True
        if self._waiting:
            raise KeyboardInterrupt

    def _wait(self) -> Iterator[tuple[float, np.ndarray]]:
        while True:
            self._waiting = True
            try:
                if self._interrupted:
                    raise KeyboardInterrupt
                item = self._frames.get(timeout=self.timeout)
            except Empty:
                raise VideoReadError(self.name, self._stalled()) from None
            finally:
                self._waiting = False
            if isinstance(item, Exception):
                raise item
            if item is None:
                return
            yield item

    def _fill(self) -> None:
        """Put the frames into the queue and, at the end, None or the error."""
        end: Exception | None = None
        try:
            for item in self._decode():
                self._frames.put(item)
                if self._closed.is_set():
                    return
        except av.error.ExitError:  # PyAV's time-out
            end = VideoReadError(self.name, self._stalled())
        except av.FFmpegError as error:
            end = VideoReadError(self.name, f"breaks off: {reason_of(error)}.")
        except Exception as error:
            end = error
        self._frames.put(end)

    def _decode(self) -> Iterator[tuple[float, np.ndarray]]:
        protocols = (*SCHEMES, "tls", "crypto", "data", "httpproxy") if is_url(self.source) else ("file",)
        options = {"protocol_whitelist": ",".join(protocols), "rtsp_flags": "prefer_tcp"}
        # PyAV's time-out ends the thread; while the source is opened, that of the queue comes first.
        container, stream = open_container(
            self.name, self.source, format=self.format, options=options, timeout=self.timeout + 1
        )
        reformatter, time = VideoReformatter(), 0.0
        with container:
            self.fps = float(stream.average_rate or stream.guessed_rate or DEFAULT_FPS)
            stream.thread_type = "SLICE"
            for packet in self._packets(container, stream):
                try:
                    frames = stream.codec_context.decode(packet)
                except av.error.InvalidDataError:
                    self.damaged += 1
                    continue
                for frame in frames:
                    time = time + 1 / self.fps if frame.time is None else float(frame.time)
                    if frame.is_corrupt:
                        self.damaged += 1
                    else:
                        yield time, rgb_image(self.name, frame, reformatter)

    def _packets(self, container: Any, stream: Any) -> Iterator[Any]:
        """The packets and, at the end, None, for which the decoder gives the frames that it holds back."""
        try:
            yield from (packet for packet in container.demux(stream) if packet.size)
        except av.FFmpegError as error:
            # So FFmpeg calls the end of a source of unknown length as well.
            if error.errno != EIO or not self.source.lower().startswith("http") or container.size >= 0:
                raise
        yield None

    def _stalled(self) -> str:
        return f"no frame for {self.timeout:g} seconds; --timeout SECONDS waits longer."
