"""Video readers that decode only the frames asked for.

Two readers behind pytorchvideo's ``Video`` interface: :class:`EncodedVideoReader` for files (through PyAV) and
:class:`FrameFolderReader` for folders of jpg or png frames. :func:`open_video` picks one. The frames are bit-identical
to those of decoding the whole file in order; frame ``i`` is the i-th in presentation order.
"""

from __future__ import annotations

import math
import os
import re
from bisect import bisect_left, bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import Any, Self

import av
import numpy as np
import torch
from av.sidedata.sidedata import Type as SideData
from av.video.reformatter import VideoReformatter
from PIL import Image
from pytorchvideo.data.video import Video
from torch import Tensor

from common.datamodules.errors import DatasetError, VideoReadError
from common.datamodules.folders import IMAGE_EXTENSIONS
from common.datamodules.tar_members import find_span
from common.limits import HINT, limit

# Containers that store presentation times; in others (AVI) FFmpeg makes them up, in decoding order.
_TIMED_CONTAINERS = {"mp4", "matroska", "mpegts"}
DEFAULT_FPS = 30.0  # of frame folders, which carry no time
MAX_PIXELS = limit(2**27)  # of a frame; 16K has 133 million
KEEP_BYTES = 256 * 2**20  # packets, or decoded frames, that a reader holds at most

# Network abstraction layer types of the pictures at which decoding can start without earlier ones (IDR): H.264, table
# 7-1, and H.265, table 7-1.
_IDR_TYPES = {"h264": {5}, "hevc": {19, 20}}
_SLICE_TYPES = {"h264": range(1, 6), "hevc": range(32)}


def open_video(path: str | Path, fps: float | None = None) -> EncodedVideoReader | FrameFolderReader:
    """Open a video file or a folder of frames.

    Args:
        path: the file or folder; a file may lie in a tar archive, ``videos.tar/walk/a.mp4``.
        fps: frames per second of a frame folder (default 30); a file has its own.

    Raises:
        VideoReadError: nothing exists at the path, or it is not a readable video.
    """
    path = Path(path)
    if path.is_dir():
        return FrameFolderReader(path, fps=fps or DEFAULT_FPS)
    return EncodedVideoReader(path)


class _Reader(Video):
    """The base of the two readers."""

    path: Path

    @property
    def num_frames(self) -> int:
        """Number of frames that can be asked for."""
        raise NotImplementedError

    @property
    def fps(self) -> float:
        """Average frames per second."""
        raise NotImplementedError

    def get_frames(self, indices: Sequence[int]) -> Tensor:
        """Decode frames by index, in any order and with repetitions.

        Args:
            indices: whole numbers in 0 .. num_frames - 1.

        Returns:
            uint8 RGB tensor (len(indices), H, W, 3), 0 to 255.

        Raises:
            IndexError: an index is outside the video.
            VideoReadError: a frame cannot be decoded.
        """
        wanted = [int(index) for index in indices]
        if not wanted:
            raise IndexError(f"{self.path}: no frame indices given.")
        if min(wanted) < 0 or max(wanted) >= self.num_frames:
            bad = min(wanted) if min(wanted) < 0 else max(wanted)
            raise IndexError(f"{self.path}: frame {bad} is outside 0..{self.num_frames - 1}.")
        unique = sorted(set(wanted))
        images = self._read(unique)
        for index in unique:
            self._check_size(images[unique[0]], unique[0], images[index], index)
        return torch.from_numpy(np.stack([images[index] for index in wanted]))

    def iterate(self) -> Iterator[np.ndarray]:
        """Decode every frame in order, holding one at a time: uint8 RGB images (H, W, 3), as `get_frames` gives them.

        Raises:
            VideoReadError: a frame cannot be decoded, or the frame size changes.
        """
        first = None
        for index, image in enumerate(self._images()):
            first = image if first is None else first
            self._check_size(first, 0, image, index)
            yield image

    @property
    def times(self) -> Sequence[float]:
        """Time of each frame in seconds, from 0, increasing."""
        raise NotImplementedError

    @property
    def duration(self) -> float:
        """Seconds from the first frame to the end of the last one, which is taken to last 1 / fps."""
        return self.times[-1] + 1 / self.fps

    def get_clip(self, start_sec: float, end_sec: float) -> dict[str, Tensor | None]:
        """The frames with a time in [start_sec, end_sec), the video starting at 0 (interface of pytorchvideo).

        Returns:
            ``video``: float32 (C, T, H, W), 0 to 255, or None if no frame lies in the interval; ``audio``: None.
        """
        times = self.times
        indices = range(bisect_left(times, start_sec), bisect_left(times, end_sec))
        video = self.get_frames(indices).permute(3, 0, 1, 2).float() if len(indices) else None
        return {"video": video, "audio": None}

    def _read(self, indices: list[int]) -> dict[int, np.ndarray]:
        """Images (H, W, 3) of the given indices (sorted, unique, in range)."""
        raise NotImplementedError

    def _images(self) -> Iterator[np.ndarray]:
        """Images (H, W, 3) of all frames in order."""
        raise NotImplementedError

    def _check_size(self, old: np.ndarray, old_index: int, new: np.ndarray, index: int) -> None:
        if new.shape != old.shape:
            raise VideoReadError(
                self.path,
                f"the frame size changes from {old.shape[1]}x{old.shape[0]} (frame {old_index}) to "
                f"{new.shape[1]}x{new.shape[0]} (frame {index}); all frames of a video must have the same size.",
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Packet:
    pts: int | None
    duration: int
    key: bool
    discard: bool


class EncodedVideoReader(_Reader):
    """Frames of a video file.

    The packets are demultiplexed once, which gives the exact number of frames without decoding. For H.264, HEVC and
    VP9 in mp4, Matroska, WebM or MPEG-TS only the groups of pictures that contain a wanted frame are decoded, each from
    its keyframe to the last packet wanted, skipping the H.264 pictures that no other refers to. A frame is identified
    by its time stamp. If a wanted one is not decoded, and for every other codec and container, the file is decoded in
    order.

    Attributes:
        selective: whether only the groups of pictures that are needed are decoded.

    Raises:
        VideoReadError: no such file, not a video, no video stream, or a truncated file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            span = find_span(self.path)
        except DatasetError as error:
            raise VideoReadError(self.path, str(error)) from error
        if span is None:
            raise VideoReadError(self.path, "no such file.")
        if span.size == 0:
            raise VideoReadError(self.path, "the file is empty (0 bytes).")
        self._span = span
        self._reformatter = VideoReformatter()
        self._packets: list[Any] | None = None
        self._sequential_frames: list[av.VideoFrame] | None = None
        self._sequential_times: list[float] | None = None
        self._container, self._stream = self._open()
        try:
            self._demux()
        except av.FFmpegError as error:
            self.close()
            raise VideoReadError(self.path, f"cannot be read: {reason_of(error)}.") from error
        except BaseException:
            self.close()
            raise

    # -- properties -------------------------------------------------------------------------------------------------

    @property
    def num_frames(self) -> int:
        if self.selective and self._sequential_times is None:
            return len(self._order)
        return len(self._decode_all())

    @property
    def fps(self) -> float:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else DEFAULT_FPS

    @property
    def time_base(self) -> Fraction:
        """Unit, in seconds, of the time stamps in the file."""
        return self._stream.time_base

    def close(self) -> None:
        self._container.close()
        self._packets = None
        self._sequential_frames = None

    # -- opening ----------------------------------------------------------------------------------------------------

    def _open(self) -> tuple[Any, Any]:
        """A container and its video stream. The file may refer to other local files, but not to the network."""
        # Absolute, because FFmpeg takes a name such as "http:/a.mp4" or "concat:a.mp4" for a protocol.
        name, protocols = os.path.abspath(self._span.path), "file"
        if self._span.path != str(self.path):  # in an archive
            start, size = self._span.start, self._span.size
            name, protocols = f"subfile,,start,{start},end,{start + size},,:{name}", "file,subfile"
        container, stream = open_container(self.path, name, options={"protocol_whitelist": protocols})
        stream.thread_type = "SLICE"
        stream.codec_context.thread_count = 1  # more rarely pay in a loader with several workers
        return container, stream

    def _demux(self) -> None:
        """Read all packets, check that the file is complete and find the order of presentation."""
        codec = self._stream.codec_context
        name = codec.name
        keep = self._span.size <= KEEP_BYTES
        packets: list[_Packet] = []
        kept: list[Any] = []
        plain = True  # nothing seen that selective decoding cannot handle
        length_size = _length_size(codec.extradata, name)
        for packet in self._container.demux(self._stream):
            if packet.size == 0:  # the demuxer's end marker
                continue
            key = bool(packet.is_keyframe)
            plain &= not packet.is_corrupt and not (key and packet.has_sidedata("new_extradata"))
            if key and name in _IDR_TYPES:
                key = _slice_type(memoryview(packet), name, length_size) in _IDR_TYPES[name]
            packets.append(_Packet(packet.pts, packet.duration or 0, key, bool(packet.is_discard)))
            if keep:
                kept.append(packet)
        if not packets:
            raise VideoReadError(self.path, "its video stream has no frames.")
        if reason := self._truncation(packets):
            raise VideoReadError(self.path, f"truncated: {reason}.")
        self._packets = kept if keep else None
        timed = not _TIMED_CONTAINERS.isdisjoint(self._container.format.name.split(","))
        self.selective = plain and timed and name in ("h264", "hevc", "vp9") and self._find_order(packets)

    def _truncation(self, packets: Sequence[_Packet]) -> str:
        """How the file is shorter than its header says; empty if it is complete, or the container does not tell."""
        formats = self._container.format.name.split(",")
        if "mp4" in formats or "avi" in formats:
            # The index of an mp4 file, after its edit list, is the packets; frames outside the edit list are not in it.
            # AVI stores a repeated frame as an empty chunk, which is not a packet, so its count is only approximate.
            listed = len(self._stream.index_entries) if "mp4" in formats else self._stream.frames
            if len(packets) < (listed if "mp4" in formats else 0.9 * listed):
                return f"the header lists {listed} frames, the file has {len(packets)}"
        elif "matroska" in formats or "flv" in formats:
            listed = _listed_seconds(self._container, self._stream)
            ends = [packet.pts + packet.duration for packet in packets if packet.pts is not None and packet.duration]
            if listed and ends and (end := float(max(ends) * self._stream.time_base)) < 0.99 * listed - 1.5 / self.fps:
                return f"the header says {listed:g} seconds, the frames end after {end:g}"
        elif "gif" in formats and not self._span.read(1024).rstrip(b"\0\r\n").endswith(b";"):
            return "the end of the GIF image is missing"
        elif "mpegts" in formats and all(self._span.size % size for size in (188, 192, 204)):
            return "its last transport packet is incomplete"
        return ""

    def _find_order(self, packets: Sequence[_Packet]) -> bool:
        """Find the packet of each frame and where decoding may start; False if the time stamps do not tell."""
        shown = [position for position, packet in enumerate(packets) if not packet.discard]
        stamps = [packets[position].pts for position in shown]
        if not shown or None in stamps or len(set(stamps)) < len(stamps) or not packets[0].key:
            return False
        # _order[i] is the packet of frame i; _starts are the packets where decoding may start: keyframes that come, in
        # time, after everything before them in the file and before everything after them (a closed group).
        self._order = sorted(shown, key=lambda position: packets[position].pts)  # type: ignore[arg-type,return-value]
        self._pts: list[int] = [packets[position].pts for position in self._order]  # type: ignore[misc]
        times = [packet.pts if packet.pts is not None else -(2**63) for packet in packets]
        latest_before = np.maximum.accumulate([-(2**63), *times[:-1]])
        earliest_after = np.minimum.accumulate([*times, 2**63 - 1][::-1])[::-1][1:]
        self._starts = [
            position
            for position, packet in enumerate(packets)
            if packet.key and latest_before[position] < times[position] < earliest_after[position]
        ]
        return bool(self._starts) and self._starts[0] == 0

    # -- decoding ---------------------------------------------------------------------------------------------------

    def _read(self, indices: list[int]) -> dict[int, np.ndarray]:
        if self.selective and self._sequential_times is None:
            images = self._read_selective(indices)
            if images is not None:
                return images
            self.selective = False
            if indices[-1] >= self.num_frames:
                raise VideoReadError(self.path, f"only {self.num_frames} of {len(self._order)} frames can be decoded.")
        self._decode_all()
        frames = self._sequential_frames if self._sequential_frames is not None else self._frames_in_order()
        wanted = set(indices)
        images = {}
        for index, frame in enumerate(frames):
            if index in wanted:
                images[index] = self._whole_image(frame, index)
                if len(images) == len(wanted):
                    break
        return images

    def _images(self) -> Iterator[np.ndarray]:
        for index, frame in enumerate(self._frames_in_order()):
            yield self._whole_image(frame, index)

    def _whole_image(self, frame: Any, index: int) -> np.ndarray:
        if frame.is_corrupt:
            raise VideoReadError(self.path, f"frame {index} is damaged.")
        return rgb_image(self.path, frame, self._reformatter)

    def _read_selective(self, indices: list[int]) -> dict[int, np.ndarray] | None:
        """Images by index, or None if the decoder did not give each wanted frame exactly once."""
        packets = self._packet_list()
        codec = self._stream.codec_context
        index_of = {self._pts[index]: index for index in indices}
        wanted = {self._order[index] for index in indices}
        last_of: dict[int, int] = {}  # first packet of a group -> last packet wanted
        for position in sorted(wanted):
            last_of[self._starts[bisect_right(self._starts, position) - 1]] = position
        images: dict[int, np.ndarray] = {}
        # Only H.264 marks the pictures that no other picture refers to.
        unwanted = "NONREF" if codec.name == "h264" else "DEFAULT"
        position, packet = next(packets)
        try:
            for start, last in last_of.items():
                codec.flush_buffers()
                latest = -(2**63)
                while position < start:
                    position, packet = next(packets)
                while True:
                    codec.skip_frame = "DEFAULT" if position in wanted else unwanted
                    frames = codec.decode(packet)
                    if position == last:
                        frames += codec.decode(None)
                    for frame in frames:
                        if frame.pts is None or frame.pts <= latest or frame.is_corrupt:
                            return None
                        latest = frame.pts
                        if latest in index_of:
                            images[index_of[latest]] = rgb_image(self.path, frame, self._reformatter)
                    if position == last:
                        break
                    position, packet = next(packets)
        except (av.FFmpegError, StopIteration):
            return None  # decoding in order will tell what is wrong, if anything is
        return images if len(images) == len(indices) else None

    def _packet_list(self) -> Iterator[tuple[int, Any]]:
        """The packets with their positions: those in memory, or read again from a file too large to keep."""
        if self._packets is not None:
            return enumerate(self._packets)
        self._container.close()
        self._container, self._stream = self._open()
        return enumerate(packet for packet in self._container.demux(self._stream) if packet.size)

    def _frames_in_order(self) -> Iterator[Any]:
        """Decode the whole file from its start."""
        self._container.close()
        self._container, self._stream = self._open()
        count = 0
        try:
            for frame in self._container.decode(self._stream):
                yield frame
                count += 1
        except av.FFmpegError as error:
            raise VideoReadError(self.path, f"decoding fails after frame {count - 1}: {reason_of(error)}.") from error

    def _decode_all(self) -> list[float]:
        """Decode the file once to count its frames; returns their times in seconds from the first one.

        The decoded frames are kept, up to a limit, because they are usually requested next.
        """
        if self._sequential_times is None:
            times: list[float] = []
            frames: list[Any] | None = []
            size = 0
            for index, frame in enumerate(self._frames_in_order()):
                times.append(index / self.fps if frame.time is None else float(frame.time))
                size += sum(plane.buffer_size for plane in frame.planes)
                if frames is not None:
                    frames.append(frame)
                    if size > KEEP_BYTES:
                        frames = None
            if not times:
                raise VideoReadError(self.path, "no frame of its video stream can be decoded.")
            if any(later <= earlier for earlier, later in pairwise(times)):
                times = [index / self.fps for index in range(len(times))]
            self._sequential_frames = frames
            self._sequential_times = [time - times[0] for time in times]
        return self._sequential_times

    @property
    def times(self) -> Sequence[float]:
        if self.selective and self._sequential_times is None:
            base = float(self._stream.time_base)
            return [(pts - self._pts[0]) * base for pts in self._pts]
        return self._decode_all()


class FrameFolderReader(_Reader):
    """Frames of a folder of jpg or png files.

    Numbered files (``img_00001.jpg``) may start at any number and be zero-padded or not; a hole in the numbers is an
    error. Files without numbers are taken in natural order. Other files are ignored.

    Args:
        path: the folder.
        fps: frames per second, which the files do not tell.

    Raises:
        VideoReadError: no frames, a missing or repeated frame number, or several numbered series in the folder.
    """

    def __init__(self, path: str | Path, fps: float = DEFAULT_FPS) -> None:
        self.path = Path(path)
        self._fps = float(fps)
        if not self.path.is_dir():
            raise VideoReadError(self.path, "no such folder.")
        names = [
            name
            for name in os.listdir(self.path)
            if os.path.splitext(name)[1].lower() in IMAGE_EXTENSIONS and not name.startswith(".")
        ]
        if not names:
            raise VideoReadError(self.path, "the folder holds no jpg or png frames.")
        self.names = self._in_order(names)

    @property
    def num_frames(self) -> int:
        return len(self.names)

    @property
    def fps(self) -> float:
        return self._fps

    def _in_order(self, names: list[str]) -> list[str]:
        matches = [re.fullmatch(r"(.*?)(\d+)", os.path.splitext(name)[0]) for name in names]
        if None in matches:
            return sorted(names, key=_natural)
        by_number: dict[int, str] = {}
        prefixes = sorted({match[1] for match in matches if match})
        if len(prefixes) > 1:
            shown = ", ".join(repr(prefix) for prefix in prefixes[:5])
            raise VideoReadError(self.path, f"the folder holds several series of frames, with the prefixes {shown}.")
        for name, match in zip(names, matches, strict=True):
            assert match is not None
            other = by_number.setdefault(int(match[2]), name)
            if other != name:
                raise VideoReadError(self.path, f"frame {int(match[2])} exists twice: {min(other, name)}, {name}.")
        first, last = min(by_number), max(by_number)
        if len(by_number) != last - first + 1:
            number = next(number for number in range(first, last) if number not in by_number)
            before = by_number[number - 1]
            stem, extension = os.path.splitext(before)
            digits = stem[len(prefixes[0]) :]
            expected = f"{prefixes[0]}{number:0{len(digits)}d}{extension}"
            count = last - first + 1 - len(by_number)
            raise VideoReadError(
                self.path, f"frame {expected} is missing ({count} missing between {before} and {by_number[last]})."
            )
        return [by_number[number] for number in range(first, last + 1)]

    def _read(self, indices: list[int]) -> dict[int, np.ndarray]:
        return {index: self._image(self.names[index]) for index in indices}

    def _images(self) -> Iterator[np.ndarray]:
        return map(self._image, self.names)

    def _image(self, name: str) -> np.ndarray:
        try:
            with Image.open(self.path / name) as image:
                return np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise VideoReadError(self.path, f"frame {name} cannot be read: {error}.") from error

    @property
    def times(self) -> Sequence[float]:
        return [index / self._fps for index in range(self.num_frames)]


# -- helpers --------------------------------------------------------------------------------------------------------


def open_container(path: Path | str, source: str, **arguments: Any) -> tuple[Any, Any]:
    """Open a source, with arguments of ``av.open``, and choose its video stream.

    Raises:
        VideoReadError: of ``path``: it is not a readable video, or has no video stream that can be decoded.
    """
    try:
        container: Any = av.open(source, metadata_errors="replace", **arguments)
    except (av.FFmpegError, ValueError) as error:
        raise VideoReadError(path, f"not a readable video: {reason_of(error)}.") from error
    cover = av.stream.Disposition.attached_pic  # the cover of a song is not a video
    streams = [stream for stream in container.streams.video if not stream.disposition & cover]
    reason = ""
    if not streams:
        kinds = ", ".join(sorted({stream.type for stream in container.streams})) or "none"
        reason = f"no video stream (streams: {kinds})."
    elif streams[0].codec_context is None:
        reason = "no decoder for its video stream."
    elif (pixels := streams[0].width * streams[0].height) > MAX_PIXELS:
        reason = f"its frames have {pixels} pixels; at most {MAX_PIXELS} are read; {HINT}."
    if reason:
        container.close()
        raise VideoReadError(path, reason)
    return container, streams[0]


def rgb_image(path: Path | str, frame: Any, reformatter: VideoReformatter) -> np.ndarray:
    """RGB image (H, W, 3) of a decoded frame, oriented as the display matrix says. Raises VideoReadError."""
    if frame.width * frame.height > MAX_PIXELS:
        size = f"{frame.width}x{frame.height}"
        raise VideoReadError(path, f"a frame of {size}; at most {MAX_PIXELS} pixels are read; {HINT}.")
    # One thread: starting several, PyAV's default, takes many times longer than converting a small frame.
    image = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
    if (matrix := frame.side_data.get(SideData.DISPLAYMATRIX)) is None:
        return image
    try:
        return orient(image, np.frombuffer(matrix, np.int32).tolist())
    except ValueError as error:
        raise VideoReadError(path, f"{error}.") from error


def orient(image: np.ndarray, matrix: Sequence[int]) -> np.ndarray:
    """Apply a display matrix to an image (H, W, 3), as FFmpeg's autorotation does.

    Args:
        image: as decoded.
        matrix: FFmpeg's nine fixed-point numbers (a, b, u, c, d, v, x, y, w): x' = a x + c y, y' = b x + d y, y down.

    Raises:
        ValueError: the matrix is none of the eight orientations, within one degree.
    """
    a, b, c, d = (matrix[k] for k in (0, 1, 3, 4))
    swapped = max(abs(b), abs(c)) > max(abs(a), abs(d))
    large, small = ((b, c), (a, d)) if swapped else ((a, d), (b, c))
    if max(map(abs, small)) > math.tan(math.radians(1)) * max(map(abs, large)):
        angle = round(math.degrees(math.atan2(-b, a)))
        raise ValueError(f"its display matrix rotates it by {angle} degrees, not by a multiple of 90")
    if swapped:
        image = image.swapaxes(0, 1)
    flip_x, flip_y = (c < 0, b < 0) if swapped else (a < 0, d < 0)
    return image[:: -1 if flip_y else 1, :: -1 if flip_x else 1]


def _listed_seconds(container: Any, stream: Any) -> float | None:
    """Duration of a stream in the header of a Matroska or FLV file; None if only another stream may have it."""
    if match := re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", stream.metadata.get("DURATION", "")):
        return 3600 * int(match[1]) + 60 * int(match[2]) + float(match[3])
    return container.duration / av.time_base if container.duration and len(container.streams) == 1 else None


def reason_of(error: Exception) -> str:
    """FFmpeg's words without the error number and the file name."""
    return (getattr(error, "strerror", None) or str(error)).rstrip(".")


def _natural(name: str) -> list[tuple[int, int, str]]:
    """Sort key: runs of digits compare as numbers."""
    parts = re.findall(r"\d+|\D+", name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts]


def _length_size(extradata: bytes | None, codec: str) -> int:
    """Bytes of the length before each unit (avcC, hvcC boxes), 0 where start codes separate the units."""
    offset = {"h264": 4, "hevc": 21}.get(codec)
    if offset is None or not extradata or len(extradata) <= offset or extradata[0] != 1:
        return 0
    return (extradata[offset] & 3) + 1


def _slice_type(data: memoryview, codec: str, length_size: int) -> int | None:
    """Type of the first unit of a packet that contains a slice of a picture."""
    position, end = 0, len(data)
    raw = b"" if length_size else bytes(data)
    while True:
        if length_size:
            size = int.from_bytes(data[position : position + length_size], "big")
            start = position + length_size
            position = start + size
        else:
            code = raw.find(b"\0\0\1", position)
            start = position = end if code < 0 else code + 3
        if start >= end:
            return None
        kind = data[start] & 31 if codec == "h264" else (data[start] >> 1) & 63
        if kind in _SLICE_TYPES[codec]:
            return kind
