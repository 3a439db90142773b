"""What generated clips are made of: cuts of the pictures in the scikit-image wheel, lone H.264 frames, a manifest."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import track
from torch.nn import functional as F

from common.datamodules.manifest import Entry, Manifest
from data.demo._folder import DemoError

PICTURES = {
    "train": (
        "astronaut.png",
        "brick.png",
        "camera.png",
        "coffee.png",
        "coins.png",
        "grass.png",
        "hubble_deep_field.jpg",
        "motorcycle_left.png",
        "page.png",
        "retina.jpg",
    ),
    "val": ("cell.png", "chelsea.png", "clock_motion.png", "gravel.png"),
    "test": ("ihc.png", "moon.png", "rocket.jpg", "text.png"),
}
"""Pictures of scikit-image's data folder that each split is made from; no picture is in two splits."""

MANIFEST = "manifest.csv"
QUANTISER = 26  # constant, for every frame: compression is visible, motion stays clear


def warp(picture: torch.Tensor, affine: NDArray[np.float64], side: int) -> torch.Tensor:
    """Sample (C, H, W) through (T, 2, 3) maps from frame to picture coordinates: (T, C, side, side), 0 outside."""
    count, channels = len(affine), picture.shape[0]
    grid = F.affine_grid(torch.from_numpy(affine.astype(np.float32)), [count, channels, side, side], False)
    return F.grid_sample(picture.expand(count, -1, -1, -1), grid, align_corners=False)


@cache
def picture(name: str) -> Image.Image:
    """A picture of the installed scikit-image; read as a file, so that nothing is ever downloaded."""
    try:
        with importlib.resources.files("skimage").joinpath("data", name).open("rb") as file:
            return Image.open(file).convert("RGB")
    except OSError as error:
        raise DemoError(f"scikit-image carries no readable {name} ({error}): reinstall scikit-image") from None


def cut(
    name: str, side: int, extent: tuple[float, float], level: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Cut a square out of a picture: (3, side, side) in 0..1 with mean `level`, equal contrast and a tint.

    `extent` is the range of the square's side as a share of the picture's shorter side. Of four random cuts the one
    with most contrast is taken, which keeps out empty sky.
    """
    image = picture(name)
    boxes = []
    for _ in range(4):
        edge = rng.uniform(*extent) * min(image.size)
        x, y = rng.uniform(0, image.width - edge), rng.uniform(0, image.height - edge)
        boxes.append((x, y, x + edge, y + edge))
    samples = [np.asarray(image.resize((16, 16), Image.Resampling.NEAREST, box)).mean(-1) for box in boxes]
    box = boxes[int(np.argmax([sample.std() for sample in samples]))]
    pixels = np.asarray(image.resize((side, side), Image.Resampling.BICUBIC, box), dtype=np.float64)
    best = pixels.transpose(2, 0, 1) / 255
    if rng.random() < 0.5:
        best = best[:, :, ::-1]
    best = level + (best - best.mean()) * 0.17 / max(float(best.mean(0).std()), 0.02)
    tint = rng.uniform(0.6, 1.0, size=3)
    return np.clip(best * (tint / tint.mean())[:, None, None], 0, 1)


def outline(side: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """Irregular longish shape without symmetry, so that a turn shows: (1, side, side), 1 inside, 0 outside."""
    axis = (np.arange(side) + 0.5) / side * 2 - 1
    y, x = np.meshgrid(axis, axis, indexing="ij")

    waves = np.arange(1, 5)[:, None]
    size, phase = rng.uniform(0.02, 0.12, size=(4, 1)), rng.uniform(0, 2 * np.pi, size=(4, 1))
    narrow = rng.uniform(0.5, 0.8)

    def radius(angle: NDArray[np.float64]) -> NDArray[np.float64]:
        ellipse = narrow / np.hypot(narrow * np.cos(angle), np.sin(angle))
        flat = angle.reshape(1, -1)
        return ellipse * (1 + (size * np.cos(waves * flat + phase)).sum(0).reshape(angle.shape))

    largest = radius(np.linspace(0, 2 * np.pi, 360)).max()
    inside = 0.97 * radius(np.arctan2(y, x)) / largest - np.hypot(x, y)
    return np.clip(0.5 + inside * side / 2, 0, 1)[None]


def write_clip(
    path: Path, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8], fps: int, quantiser: int = QUANTISER
) -> None:
    """Write (T, H, W, 3) uint8 RGB frames as H.264 in which every frame is coded alone with the same quantiser.

    With quantiser 0 nothing is lost, but for the colours at half resolution.
    """
    height, width = frames[0].shape[:2]
    with av.open(str(path), "w", options={"fflags": "+bitexact"}) as container:
        # One thread and no look-ahead: what a frame looks like after coding depends on that frame alone.
        options = {"qp": str(quantiser), "preset": "veryfast", "threads": "1", "x264-params": "keyint=1:scenecut=0"}
        stream = container.add_stream("libx264", rate=Fraction(fps), options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for packet in _packets(stream, frames):
            container.mux(packet)


def _packets(stream: av.VideoStream, frames: Sequence[NDArray[np.uint8]] | NDArray[np.uint8]) -> Iterator[av.Packet]:
    for frame in frames:
        yield from stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(frame), format="rgb24"))
    yield from stream.encode()


def check_counts(counts: Mapping[str, int]) -> None:
    """Raise DemoError for a negative number of clips, or none at all."""
    if min(counts.values()) < 0 or not any(counts.values()):
        *first, last = counts.values()
        given = f"{', '.join(map(str, first))} and {last}"
        raise DemoError(f"train, val and test must not be negative nor all be 0, got {given}")


def write_clips(
    folder: Path,
    counts: Mapping[str, int],
    classes: Sequence[str],
    draw: Callable[[str, int], Iterable[tuple[str, NDArray[np.uint8]]]],
    frames: int,
    fps: int,
    progress: bool,
    quantiser: int = QUANTISER,
) -> None:
    """Write ``<split>/<class>/<number>.mp4`` and the manifest of a data set.

    Args:
        folder: to write to.
        counts: clips of each class by split.
        classes: in the order of their labels.
        draw: from split and number to the classes and their clips (T, H, W, 3).
        frames, fps: of every clip.
        progress: show a progress bar.
        quantiser: see `write_clip`.
    """
    jobs = [(split, number) for split, count in counts.items() for number in range(count)]
    console = Console(stderr=True)
    for split, number in track(jobs, "clips", console=console, disable=not progress, transient=True):
        for name, clip in draw(split, number):
            path = folder / _relative_path(split, name, number)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_clip(path, clip, fps, quantiser)
    entries = tuple(
        Entry(_relative_path(split, name, number), label, name, split, frames, float(fps), round(frames / fps, 6))
        for split, count in counts.items()
        for label, name in enumerate(classes)
        for number in range(count)
    )
    table = folder / MANIFEST
    Manifest(folder, entries, tuple(classes), table, len(entries)).write(table)


def _relative_path(split: str, name: str, number: int) -> str:
    return f"{split}/{name}/{number:04d}.mp4"
