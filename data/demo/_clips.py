"""Building blocks of the generated clips: cuts of the scikit-image images, a shaking camera, intra-coded video."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common.datamodules.manifest import Entry, Manifest
from common.datamodules.video_writer import rgb_frame, write_mp4
from data._commands import with_progress
from data.demo._folder import DemoError, check_minimum, make_folder

IMAGES = {
    "train": (
        *("astronaut.png", "brick.png", "camera.png", "coffee.png", "coins.png", "grass.png"),
        *("hubble_deep_field.jpg", "motorcycle_left.png", "page.png", "retina.jpg"),
    ),
    "val": ("cell.png", "chelsea.png", "clock_motion.png", "gravel.png"),
    "test": ("ihc.png", "moon.png", "rocket.jpg", "text.png"),
}
"""Files of scikit-image's data folder that each split is made from; no image is used in two splits."""

MANIFEST = "manifest.csv"
QUANTISER = 26  # the same for every frame: compression is visible, motion stays clear
OVERSAMPLING = 2  # clips are rendered at this multiple of their size
MARGIN = 0.1  # of the side: background beyond the frame that camera shake may reveal

Frames = NDArray[np.uint8]
"""(T, H, W, 3) RGB."""


# -- images -----------------------------------------------------------------------------------------------------------


@cache
def stock_image(name: str) -> Image.Image:
    """An image of the installed scikit-image, read as a file so that nothing is ever downloaded."""
    try:
        with importlib.resources.files("skimage").joinpath("data", name).open("rb") as file:
            return Image.open(file).convert("RGB")
    except OSError as error:
        raise DemoError(f"scikit-image carries no readable {name} ({error}): reinstall scikit-image") from None


def cut(
    name: str, side: int, extent: tuple[float, float], level: float, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Cut a square out of an image: (3, side, side) in 0..1 with mean ``level``, a fixed contrast and a random tint.

    ``extent`` is the range of the square's side as a fraction of the image's shorter side. Of four random squares the
    one with the highest contrast is taken, which avoids empty sky.
    """
    image = stock_image(name)
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
    """An irregular elongated shape without symmetry, so that rotation shows: (1, side, side), 1 inside, 0 outside."""
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


# -- rendering --------------------------------------------------------------------------------------------------------


def warp(image: NDArray[np.float64], affine: NDArray[np.float64], side: int) -> Tensor:
    """Sample an image (C, H, W) through (T, 2, 3) maps from frame to image coordinates: (T, C, side, side), 0 outside.

    Coordinates run from -1 to 1 along each axis.
    """
    pixels, maps = (torch.from_numpy(values.astype(np.float32)) for values in (image, affine))
    grid = F.affine_grid(maps, [len(maps), len(pixels), side, side], False)
    return F.grid_sample(pixels.expand(len(maps), -1, -1, -1), grid, align_corners=False)


def paste(video: Tensor, sprite: NDArray[np.float64], affine: NDArray[np.float64]) -> Tensor:
    """Frames (T, 3, side, side) under a sprite (4, H, W), its colours premultiplied by alpha, warped by the maps."""
    layer = warp(sprite, affine, video.shape[-1])
    return layer[:, :3] + (1 - layer[:, 3:]) * video


def camera_waves(rng: np.random.Generator, frames: int) -> NDArray[np.float64]:
    """Three slow stationary oscillations (T, 3), which read the same forwards and backwards in distribution."""
    time = np.linspace(0.0, 1.0, frames)
    phases = rng.uniform(0, 2 * np.pi, size=3)
    return np.sin(2 * np.pi * rng.uniform(0.3, 1.0, size=3) * time[:, None] + phases)


@dataclass(frozen=True)
class Camera:
    """A shaking camera in changing light."""

    shake: NDArray[np.float64]
    """(T, 2) shift of each frame, x before y, in units of the frame's side."""
    gain: NDArray[np.float64]
    """(T,) factor on the brightness of each frame."""

    @classmethod
    def draw(cls, rng: np.random.Generator, waves: NDArray[np.float64]) -> Self:
        """Draw a camera that follows the oscillations of :func:`camera_waves`."""
        shake = 0.012 * waves[:, :2] + 0.006 * rng.standard_normal((len(waves), 2))
        return cls(np.clip(shake, -MARGIN / 2, MARGIN / 2), 1 + rng.uniform(0.05, 0.2) * waves[:, 2])

    def film(self, backdrop: NDArray[np.float64], side: int) -> Tensor:
        """Frames (T, 3, side, side) of a backdrop (3, H, W) extending beyond the frame by ``MARGIN``."""
        visible = 1 / (1 + 2 * MARGIN)
        still = np.tile(np.eye(2) * visible, (len(self.gain), 1, 1))
        return warp(backdrop, np.concatenate([still, -2 * visible * self.shake[..., None]], -1), side)

    def expose(self, video: Tensor) -> Frames:
        """Rendered frames (T, 3, side, side) in 0..1, reduced by ``OVERSAMPLING`` and lit: uint8 frames."""
        light = torch.from_numpy(self.gain.astype(np.float32))[:, None, None, None]
        small = F.avg_pool2d(video, OVERSAMPLING) * light
        return (255 * small.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


# -- files ------------------------------------------------------------------------------------------------------------


def write_clip(path: Path, frames: Sequence[NDArray[np.uint8]] | Frames, fps: int, quantiser: int = QUANTISER) -> None:
    """Write frames as H.264, each coded on its own with the same quantiser.

    With quantiser 0 nothing is lost except colour resolution, which is halved.
    """
    # One thread and no look-ahead: how a frame looks after coding depends on that frame alone.
    options = {"qp": str(quantiser), "preset": "veryfast", "threads": "1", "x264-params": "keyint=1:scenecut=0"}
    write_mp4(path, (rgb_frame(image, k, Fraction(1, fps)) for k, image in enumerate(frames)), fps, options)


def check_size(size: int, smallest: int = 16) -> None:
    """Raise DemoError unless the side of the frames is even and at least ``smallest``."""
    if size < smallest or size % 2:
        raise DemoError(f"size must be even (4:2:0 colour) and at least {smallest}, got {size}")


def make_clips(
    out: str | Path,
    parameters: Mapping[str, Any],
    counts: Mapping[str, int],
    classes: Sequence[str],
    draw: Callable[[str, int], Iterable[tuple[str, Frames]]],
    *,
    frames: int,
    fps: int,
    quantiser: int = QUANTISER,
) -> Path:
    """Create the folder ``out`` with ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt``.

    Args:
        out: see `make_folder`.
        parameters: of `make_folder`, with ``seed``.
        counts: clips of each class, by split.
        classes: in the order of their labels.
        draw: maps a split and a number to the classes and their clips.
        frames: frames of a clip.
        fps: frames per second.
        quantiser: see `write_clip`.

    Returns:
        The path of the manifest.
    """
    check_minimum(seed=(parameters["seed"], 0), fps=(fps, 1))
    if min(counts.values()) < 0 or not any(counts.values()):
        raise DemoError(f"train, val and test must not be negative nor all be 0, got {dict(counts)}")

    def fill(folder: Path) -> None:
        jobs = [(split, number) for split, count in counts.items() for number in range(count)]
        for split, number in with_progress(jobs, "clips"):
            for name, clip in draw(split, number):
                path = folder / _clip_path(split, name, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(path, clip, fps, quantiser)
        entries = tuple(
            Entry(_clip_path(split, name, number), label, name, frames, float(fps), round(frames / fps, 6), split)
            for split, count in counts.items()
            for label, name in enumerate(classes)
            for number in range(count)
        )
        Manifest(folder, entries, tuple(classes), folder / MANIFEST, len(entries)).write(folder / MANIFEST)

    return make_folder(out, {**parameters, **counts}, fill) / MANIFEST


def _clip_path(split: str, name: str, number: int) -> str:
    return f"{split}/{name}/{number:04d}.mp4"
