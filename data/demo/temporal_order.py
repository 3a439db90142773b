"""Two cues far apart in time, between frames that tell nothing: which of the two came first?

A warm and a cold object flash up for a frame or two each, in front of a picture under camera shake and changing light.
The classes are the two orders. As in the temporal order problem that recurrent networks are tested on, no short part
of a clip tells the class:

- the two classes are twins: clip `n` of one is clip `n` of the other played backwards, with the same bits in every
  frame (see `data.demo.motion`), so that a model of unordered frames is right on exactly half of the clips;
- around every cue the frames before and after are alike, and both cues stay away from the ends of the clip. A model
  whose temporal receptive field is shorter than the gap between the cues meets the same short parts in both classes;
- the gap is never half of the clip, where the two orders would be the same for a circular convolution.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data.demo._clips import MANIFEST, PICTURES, check_counts, cut, outline, warp, write_clips
from data.demo._folder import DemoError, make_folder

CLASSES = ("warm_first", "cold_first")
"""The classes, in the order of their labels; the second is the first played backwards."""

TINTS = ((1.0, 0.45, 0.1), (0.1, 0.45, 1.0))
"""Colours (RGB) of the warm and the cold cue."""

VERSION = 1  # of what the generator draws; raise it when the same parameters give other clips
_OVERSAMPLING = 2
_MARGIN = 0.1  # of the side; background beyond the frame that camera shake may show


def generate_temporal_order(
    out: str | Path,
    *,
    seed: int = 0,
    size: int = 64,
    frames: int = 16,
    fps: int = 12,
    train: int = 150,
    val: int = 20,
    test: int = 60,
    progress: bool = False,
) -> Path:
    """Write the clips ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt`` into the folder `out`.

    The same arguments give the same files; a clip depends only on the seed, its split and number.

    Args:
        out: folder to make. An existing one made with the same arguments is reused as it is.
        seed: any non-negative integer.
        size: side of the square frames in pixels; even, at least 16.
        frames: frames of a clip, at least 16, so that there is a middle.
        fps: frames per second.
        train, val, test: clips of each class in the split.
        progress: show a progress bar.

    Returns:
        The path of ``manifest.csv``; its paths are relative to `out`.

    Raises:
        DemoError: an argument is out of range, or `out` holds something else.
    """
    counts = {"train": train, "val": val, "test": test}
    if size < 16 or size % 2:
        raise DemoError(f"size must be even (4:2:0 colour) and at least 16, got {size}")
    if frames < 16 or fps < 1 or seed < 0:
        raise DemoError(f"needs frames >= 16, fps >= 1 and seed >= 0, got {frames}, {fps} and {seed}")
    check_counts(counts)

    def draw(split: str, number: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        clip = render(draw_scene(seed, split, number, frames), size)
        yield from zip(CLASSES, (clip, clip[::-1]), strict=True)

    def fill(folder: Path) -> None:
        write_clips(folder, counts, CLASSES, draw, frames, fps, progress)

    parameters = {"demo": "temporal_order", "version": VERSION, "seed": seed, "size": size, "frames": frames}
    return make_folder(Path(out), {**parameters, "fps": fps, **counts}, fill) / MANIFEST


@dataclass(frozen=True)
class Scene:
    """One clip of the class ``warm_first`` before it is rendered. Lengths are in units of the frame's side."""

    pictures: tuple[str, str, str]
    """Of the background, the warm and the cold cue."""
    begin: tuple[int, int]
    """First frame of the warm and of the cold cue."""
    duration: int
    """Frames that a cue is seen."""
    centre: NDArray[np.float64]
    """(2, 2) x and y of the cues, y down, without camera shake."""
    diameter: NDArray[np.float64]
    """(2,) largest extent of the cues."""
    shake: NDArray[np.float64]
    """(T, 2) shift of the whole picture."""
    gain: NDArray[np.float64]
    """(T,) factor on the light."""
    seed: tuple[int, ...]
    """Seed for the cuts and the outlines."""


def gaps(frames: int) -> range:
    """Distances in frames, from begin to begin, that the two cues of a clip of so many frames may have."""
    return range(round(5 / 16 * frames), round(7 / 16 * frames) + 1)


def draw_scene(seed: int, split: str, number: int, frames: int) -> Scene:
    """Draw clip `number` of a split; everything is as likely backwards as forwards, but for the colours of the cues."""
    key = (seed, list(PICTURES).index(split), number)
    rng = np.random.default_rng(key)
    names = rng.choice(PICTURES[split], size=3, replace=False)
    time = np.linspace(0.0, 1.0, frames)
    duration = max(1, frames // 16)
    gap, margin = int(rng.choice(gaps(frames))), frames // 8
    first = int(rng.integers(margin, frames - margin - duration - gap + 1))
    diameter = rng.uniform(0.45, 0.65, size=2)
    phases = rng.uniform(0, 2 * np.pi, size=3)
    waves = np.sin(2 * np.pi * rng.uniform(0.3, 1.0, size=3) * time[:, None] + phases)  # (T, 3), stationary
    return Scene(
        pictures=(str(names[0]), str(names[1]), str(names[2])),
        begin=(first, first + gap),
        duration=duration,
        centre=rng.uniform(0.5 * diameter, 1 - 0.5 * diameter, size=(2, 2)).T,
        diameter=diameter,
        shake=np.clip(0.012 * waves[:, :2] + 0.006 * rng.standard_normal((frames, 2)), -_MARGIN / 2, _MARGIN / 2),
        gain=1 + rng.uniform(0.05, 0.2) * waves[:, 2],
        seed=(*key, 1),
    )


def render(scene: Scene, size: int) -> NDArray[np.uint8]:
    """Render a scene: (T, size, size, 3) uint8, RGB."""
    rng = np.random.default_rng(scene.seed)
    fine, frames = _OVERSAMPLING * size, len(scene.gain)
    backdrop = cut(scene.pictures[0], math.ceil(fine * (1 + 2 * _MARGIN)), (0.4, 0.9), rng.uniform(0.3, 0.5), rng)
    backdrop = np.repeat(backdrop.mean(axis=0, keepdims=True), 3, axis=0)  # grey: the cues alone have a colour
    visible = 1 / (1 + 2 * _MARGIN)
    still = np.tile(np.eye(2) * visible, (frames, 1, 1))
    camera = np.concatenate([still, -2 * visible * scene.shake[..., None]], -1)
    video = warp(torch.from_numpy(backdrop.astype(np.float32)), camera, fine)
    for cue, tint in enumerate(TINTS):
        diameter = scene.diameter[cue]
        piece = cut(scene.pictures[1 + cue], math.ceil(fine * diameter), (0.2, 0.5), 0.65, rng).mean(0, keepdims=True)
        alpha = outline(piece.shape[-1], rng)
        sprite = np.concatenate([piece * np.reshape(tint, (3, 1, 1)) * alpha, alpha])  # alpha premultiplied
        seen = slice(scene.begin[cue], scene.begin[cue] + scene.duration)
        shift = -(2 * (scene.centre[cue] + scene.shake[seen]) - 1) / diameter
        inverse = np.tile(np.eye(2) / diameter, (len(shift), 1, 1))
        placed = warp(
            torch.from_numpy(sprite.astype(np.float32)), np.concatenate([inverse, shift[..., None]], -1), fine
        )
        video[seen] = placed[:, :3] + (1 - placed[:, 3:]) * video[seen]
    video = F.avg_pool2d(video, _OVERSAMPLING) * torch.from_numpy(scene.gain.astype(np.float32))[:, None, None, None]
    return (255 * video.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``python -m data.demo temporal_order``."""
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the frames in pixels (default %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip (default %(default)s)")
    parser.add_argument("--fps", type=int, default=12, help="frames per second (default %(default)s)")
    parser.add_argument("--train", type=int, default=150, help="training clips per class (default %(default)s)")
    parser.add_argument("--val", type=int, default=20, help="validation clips per class (default %(default)s)")
    parser.add_argument("--test", type=int, default=60, help="test clips per class (default %(default)s)")


def run(args: argparse.Namespace) -> Path:
    """Make the data set asked for on the command line; returns the path of its manifest."""
    options = {key: getattr(args, key) for key in ("seed", "size", "frames", "fps", "train", "val", "test")}
    return generate_temporal_order(args.out, progress=True, **options)
