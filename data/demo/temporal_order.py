"""Two cues far apart in time, between frames that carry no information: which of the two comes first?

A warm and a cold object flash up for a frame or two each, in front of an image with camera shake and changing light.
The classes are the two orders. As in the temporal order problem used to test recurrent networks, no short part of a
clip tells the class:

- the two classes are twins: clip `n` of one is clip `n` of the other played backwards, with bit-identical frames (see
  `data.demo.motion`), so a model of unordered frames is right on exactly half of the clips;
- the frames before and after a cue look alike, and both cues stay away from the ends of the clip. A model whose
  temporal receptive field is shorter than the gap between the cues sees the same short parts in both classes;
- the gap is never half of the clip, where the two orders would be the same for a circular convolution.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.demo._clips import (
    IMAGES,
    MARGIN,
    OVERSAMPLING,
    Camera,
    Frames,
    camera_waves,
    check_size,
    cut,
    make_clips,
    outline,
    paste,
)
from data.demo._folder import DemoError, check_minimum

CLASSES = ("warm_first", "cold_first")
"""The classes, in the order of their labels; the second is the first played backwards."""

TINTS = ((1.0, 0.45, 0.1), (0.1, 0.45, 1.0))
"""Colours (RGB) of the warm and the cold cue."""

VERSION = 1  # of what the generator draws; increase it when the same parameters give different clips


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
    gap: tuple[int, int] = (0, 0),
) -> Path:
    """Write the clips ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt`` to the folder ``out``.

    The same arguments give the same files; a clip depends only on the seed, its split and number.

    Args:
        size: side of the square frames in pixels; even, at least 16
        frames: frames of a clip, at least 16, so that there is a middle
        fps: frames per second
        train: training clips per class
        val: validation clips per class
        test: test clips per class
        gap: smallest and largest distance of the cues in frames, from begin to begin; 0 0 for 5/16 to 7/16 of the clip
    """
    check_size(size)
    check_minimum(frames=(frames, 16))
    distances = gaps(frames) if tuple(gap) == (0, 0) else range(gap[0], gap[1] + 1)
    longest = frames - 2 * (frames // 8) - max(1, frames // 16)
    if not distances or distances[0] < 1 or distances[-1] > longest or frames / 2 in distances:
        raise DemoError(
            f"gap is {gap[0]} {gap[1]}; with {frames} frames the smallest is 1, the largest {longest}, and half of the "
            "clip, which is the same in both orders, is left out"
        )

    def draw(split: str, number: int) -> Iterator[tuple[str, Frames]]:
        clip = render(draw_scene(seed, split, number, frames, distances), size)
        yield from zip(CLASSES, (clip, clip[::-1]), strict=True)

    parameters = {"demo": "temporal_order", "version": VERSION, "seed": seed, "size": size}
    parameters |= {"frames": frames, "fps": fps}
    parameters |= {} if tuple(gap) == (0, 0) else {"gap": list(gap)}
    counts = {"train": train, "val": val, "test": test}
    return make_clips(out, parameters, counts, CLASSES, draw, frames=frames, fps=fps)


@dataclass(frozen=True)
class OrderScene:
    """One clip of the class ``warm_first`` before it is rendered. Lengths are in units of the frame's side."""

    images: tuple[str, str, str]
    """Of the background, the warm and the cold cue."""
    begin: tuple[int, int]
    """First frame of the warm and of the cold cue."""
    duration: int
    """Number of frames in which a cue is visible."""
    centre: NDArray[np.float64]
    """(2, 2) x and y of the cues, y down, without camera shake."""
    diameter: NDArray[np.float64]
    """(2,) largest extent of the cues."""
    camera: Camera
    seed: tuple[int, ...]
    """Seed for the cuts and the outlines."""


def gaps(frames: int) -> range:
    """Distances in frames, from begin to begin, that the two cues of a clip with this number of frames may have."""
    return range(round(5 / 16 * frames), round(7 / 16 * frames) + 1)


def draw_scene(seed: int, split: str, number: int, frames: int, distances: range | None = None) -> OrderScene:
    """Draw clip ``number`` of a split; all but the colours of the cues is as likely backwards as forwards.

    ``distances`` are the gaps to draw from, those of `gaps` by default.
    """
    key = (seed, list(IMAGES).index(split), number)
    rng = np.random.default_rng(key)
    names = rng.choice(IMAGES[split], size=3, replace=False)
    duration = max(1, frames // 16)
    gap, margin = int(rng.choice(gaps(frames) if distances is None else distances)), frames // 8
    first = int(rng.integers(margin, frames - margin - duration - gap + 1))
    diameter = rng.uniform(0.45, 0.65, size=2)
    waves = camera_waves(rng, frames)
    return OrderScene(
        images=(str(names[0]), str(names[1]), str(names[2])),
        begin=(first, first + gap),
        duration=duration,
        centre=rng.uniform(0.5 * diameter, 1 - 0.5 * diameter, size=(2, 2)).T,
        diameter=diameter,
        camera=Camera.draw(rng, waves),
        seed=(*key, 1),
    )


def render(scene: OrderScene, size: int) -> Frames:
    """Render a scene: (T, size, size, 3)."""
    rng = np.random.default_rng(scene.seed)
    fine = OVERSAMPLING * size
    backdrop = cut(scene.images[0], math.ceil(fine * (1 + 2 * MARGIN)), (0.4, 0.9), rng.uniform(0.3, 0.5), rng)
    backdrop = np.repeat(backdrop.mean(axis=0, keepdims=True), 3, axis=0)  # grey: only the cues have a colour
    video = scene.camera.film(backdrop, fine)
    for cue, tint in enumerate(TINTS):
        diameter = scene.diameter[cue]
        piece = cut(scene.images[1 + cue], math.ceil(fine * diameter), (0.2, 0.5), 0.65, rng).mean(0, keepdims=True)
        alpha = outline(piece.shape[-1], rng)
        sprite = np.concatenate([piece * np.reshape(tint, (3, 1, 1)) * alpha, alpha])
        seen = slice(scene.begin[cue], scene.begin[cue] + scene.duration)
        shift = -(2 * (scene.centre[cue] + scene.camera.shake[seen]) - 1) / diameter
        inverse = np.tile(np.eye(2) / diameter, (len(shift), 1, 1))
        video[seen] = paste(video[seen], sprite, np.concatenate([inverse, shift[..., None]], -1))
    return scene.camera.expose(video)
