"""Real video files with known frames, written by the tests.

Every frame carries its number as ten black or white stripes in its upper half, which survives compression, above a
moving coloured pattern, which makes the encoder refer to other frames.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

BITS = 10


def picture(index: int, width: int = 64, height: int = 48) -> np.ndarray:
    """Frame ``index`` as uint8 (height, width, 3)."""
    y, x = np.mgrid[0:height, 0:width]
    colours = [128 + 80 * np.sin(x / 7 + index / 5), 128 + 80 * np.cos(y / 5 - index / 3), 128 + 90 * np.sin(index / 9)]
    frame = np.stack([np.broadcast_to(colour, (height, width)) for colour in colours], axis=-1)
    stripe = np.minimum(x * BITS // width, BITS - 1)
    code = ((index >> stripe) & 1) * 215 + 20
    frame = np.where((y < height // 2)[..., None], code[..., None], frame)
    return frame.astype(np.uint8)


def read_index(frame: np.ndarray) -> int:
    """The number that :func:`picture` wrote into a frame of uint8 (H, W, 3)."""
    height, width = frame.shape[:2]
    centres = ((np.arange(BITS) + 0.5) * width / BITS).astype(int)
    levels = np.asarray(frame)[height // 8 : height * 3 // 8, centres].mean(axis=(0, 2))
    return int(sum(1 << bit for bit, level in enumerate(levels) if level > 128))


def write_video(
    path: str | Path,
    num_frames: int = 30,
    width: int = 64,
    height: int = 48,
    fps: int = 25,
    codec: str = "libx264",
    gop: int = 12,
    b_frames: int = 0,
    options: dict[str, str] | None = None,
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    matrix: Sequence[int] | None = None,
    times: Sequence[int] | None = None,
    first: int = 0,
    audio: bool = False,
    container_options: dict[str, str] | None = None,
) -> Path:
    """Encode ``num_frames`` pictures; the extension of ``path`` gives the container.

    Args:
        times: time of each frame in milliseconds, for a variable frame rate.
        first: number of the first picture.
        rotation: display rotation in degrees, counterclockwise.
        matrix: display matrix (a, b, c, d): x' = a x + c y, y' = b x + d y.
        audio: add a silent audio stream.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w", options=container_options or {}) as container:
        stream = container.add_stream(codec, rate=fps, options={"threads": "1", **(options or {})})
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.gop_size = gop
        if codec in ("libx264", "libx265", "mpeg4"):
            stream.max_b_frames = b_frames
        if times is not None:
            stream.time_base = stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        if matrix is not None:
            a, b, c, d = (65536 * value for value in matrix)
            stream.set_display_matrix((a, b, 0, c, d, 0, 0, 0, 1 << 30))
        if audio:
            _add_audio(container, num_frames / fps)
        for index in range(num_frames):
            frame = av.VideoFrame.from_ndarray(picture(first + index, width, height), format="rgb24")
            if times is not None:
                frame.pts, frame.time_base = times[index], Fraction(1, 1000)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def set_edit_list(path: str | Path, start: float, seconds: float) -> Path:
    """Make an mp4 file of :func:`write_video` show only ``seconds`` from ``start`` on (by its edit list)."""
    path = Path(path)
    with av.open(str(path)) as container:
        ticks = container.streams.video[0].time_base.denominator
    data = bytearray(path.read_bytes())
    position = data.find(b"elst") + 12  # after the name, version and flags, number of entries
    offset = struct.unpack_from(">i", data, position + 4)[0]
    struct.pack_into(">Ii", data, position, round(seconds * 1000), offset + round(start * ticks))
    path.write_bytes(data)
    return path


def write_audio(path: str | Path, seconds: float = 1.0) -> Path:
    """A file with an audio stream only."""
    with av.open(str(path), "w") as container:
        _add_audio(container, seconds)
    return Path(path)


def _add_audio(container: av.container.OutputContainer, seconds: float) -> None:
    stream = container.add_stream("aac", rate=16000, layout="mono")
    for start in range(0, int(seconds * 16000), 1024):
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 16000, start
        container.mux(stream.encode(frame))
    container.mux(stream.encode())


def write_frames(
    folder: str | Path,
    num_frames: int = 10,
    pattern: str = "img_{:05d}.jpg",
    start: int = 1,
    width: int = 64,
    height: int = 48,
) -> Path:
    """A folder of frames, one image each."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for index in range(num_frames):
        Image.fromarray(picture(index, width, height)).save(folder / pattern.format(start + index))
    return folder


def truncate(path: str | Path, fraction: float) -> Path:
    """Cut a file off after a fraction of its bytes."""
    path = Path(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * fraction)])
    return path


def decode_all(path: str | Path) -> np.ndarray:
    """Every frame of a file, decoded in order by PyAV: uint8 (N, H, W, 3). The reference of the readers."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
