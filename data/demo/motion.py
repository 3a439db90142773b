"""Eight motions in four time-reversed pairs: short H.264 clips in which only the order of the frames tells the class.

A piece cut out of one real image moves, turns or grows in front of another, with camera shake, changing light and
lossy compression. The images are those in the scikit-image wheel.

The two classes of a pair differ in nothing but the order of the frames:

- clip `n` of one class is clip `n` of the other class of the pair played backwards;
- a codec that predicts frames from earlier ones would mark the direction (a sharp first frame, then a quality that
  depends on the position in the file). Every frame is therefore coded on its own (intra only) with one fixed
  quantiser, so that a clip and its twin decode to bit-identical frames in opposite order.

A model that treats the frames of a clip as an unordered set therefore gives the same answer for both twins and scores
exactly 50 % within the pairs, on any split.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
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

MOTION_PAIRS = (
    ("move_left", "move_right"),
    ("move_up", "move_down"),
    ("turn_clockwise", "turn_counterclockwise"),
    ("grow", "shrink"),
)
"""The classes, in the order of their labels; the second of a pair is the first played backwards."""

VERSION = 1  # of what the generator draws; increase it when the same parameters give different clips


def generate_motion(
    out: str | Path,
    *,
    seed: int = 0,
    size: int = 64,
    frames: int = 16,
    fps: int = 12,
    train: int = 60,
    val: int = 20,
    test: int = 20,
    classes: Sequence[str] | None = None,
) -> Path:
    """Write the clips ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt`` to the folder ``out``.

    The same arguments give byte-identical files on one machine with one set of library versions. A clip depends only
    on the seed, its split, class and number, so a larger dataset starts with the clips of a smaller one.

    Args:
        size: side of the square frames in pixels; even, at least 16
        frames: frames of a clip, at least 2
        fps: frames per second
        train: training clips per class
        val: validation clips per class
        test: test clips per class
        classes: only these classes (default: all eight)
    """
    everything = list(itertools.chain(*MOTION_PAIRS))
    classes = everything if classes is None else list(classes)
    counts = {"train": train, "val": val, "test": test}
    unknown = sorted(set(classes) - set(everything))
    if unknown or not classes or len(set(classes)) != len(classes):
        raise DemoError(f"classes must be different names out of {', '.join(everything)}; got {', '.join(classes)}")
    check_size(size)
    check_minimum(frames=(frames, 2))

    def draw(split: str, number: int) -> Iterator[tuple[str, Frames]]:
        for pair, names in enumerate(MOTION_PAIRS):
            if set(names) & set(classes):
                clip = render(draw_scene(seed, split, pair, number, frames), size)
                ordered = zip(names, (clip, clip[::-1]), strict=True)
                yield from ((name, clip) for name, clip in ordered if name in classes)

    parameters = {"demo": "motion", "version": VERSION, "seed": seed, "size": size, "frames": frames, "fps": fps}
    parameters["classes"] = classes
    return make_clips(out, parameters, counts, classes, draw, frames=frames, fps=fps)


@dataclass(frozen=True)
class MotionScene:
    """One clip before it is rendered. Lengths are in units of the frame's side; every curve has one row per frame."""

    object_image: str
    background_image: str
    centre: NDArray[np.float64]
    """(T, 2) x and y of the object in the frame, y down, without camera shake."""
    angle: NDArray[np.float64]
    """(T,) radians, clockwise as seen."""
    diameter: NDArray[np.float64]
    """(T,) largest extent of the object."""
    camera: Camera
    seed: tuple[int, ...]
    """Seed for the cuts, the outline and the colours."""


def draw_scene(seed: int, split: str, pair: int, number: int, frames: int) -> MotionScene:
    """Draw clip ``number`` of the first class of a pair; its frames in reverse order are that of the second class.

    Everything but the motion of the class (shake, light, easing) is as likely backwards as forwards. Positions, angles
    and sizes have the same distribution in all classes, as far as the object stays in the frame.
    """
    key = (seed, list(IMAGES).index(split), pair, number)
    rng = np.random.default_rng(key)
    names = rng.choice(IMAGES[split], size=2, replace=False)
    time = np.linspace(0.0, 1.0, frames)
    progress = time + rng.uniform(-0.7, 0.7) * np.sin(2 * np.pi * time) / (2 * np.pi)

    diameter = np.full(frames, rng.uniform(0.38, 0.55))
    if MOTION_PAIRS[pair][0] == "grow":
        diameter = rng.uniform(0.27, 0.36) * rng.uniform(1.8, 2.2) ** progress
    angle = np.full(frames, rng.uniform(0, 2 * np.pi))
    if MOTION_PAIRS[pair][0] == "turn_clockwise":
        angle = angle + np.deg2rad(rng.uniform(100, 180)) * progress
    low, high = diameter.max() / 2, 1 - diameter.max() / 2
    centre = np.tile(rng.uniform(low, high, size=2), (frames, 1))
    if MOTION_PAIRS[pair][0] in ("move_left", "move_up"):
        axis = 0 if MOTION_PAIRS[pair][0] == "move_left" else 1
        distance = rng.uniform(0.7, 1.0) * (high - low)
        centre[:, axis] = rng.uniform(low + distance, high) - distance * progress

    camera = Camera.draw(rng, camera_waves(rng, frames))
    return MotionScene(str(names[0]), str(names[1]), centre, angle, diameter, camera, seed=(*key, 1))


def render(scene: MotionScene, size: int) -> Frames:
    """Render a scene: (T, size, size, 3)."""
    rng = np.random.default_rng(scene.seed)
    fine = OVERSAMPLING * size
    level = rng.uniform(0.3, 0.7)
    # The object is always clearly lighter or darker than what is behind it.
    contrast = rng.uniform(0.25, 0.4) * (1 if level < 0.5 else -1)
    backdrop = cut(scene.background_image, math.ceil(fine * (1 + 2 * MARGIN)), (0.4, 0.9), level, rng)
    piece = cut(scene.object_image, math.ceil(fine * scene.diameter.max()), (0.2, 0.5), level + contrast, rng)
    alpha = outline(piece.shape[-1], rng)

    centre = 2 * (scene.centre + scene.camera.shake) - 1  # in the coordinates of `warp`
    cos, sin = np.cos(scene.angle), np.sin(scene.angle)
    # y points down, so this rotation is clockwise as seen; an image is sampled through the inverse motion.
    inverse = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2) / scene.diameter[:, None, None]
    shift = -np.einsum("tij,tj->ti", inverse, centre)
    video = scene.camera.film(backdrop, fine)
    video = paste(video, np.concatenate([piece * alpha, alpha]), np.concatenate([inverse, shift[..., None]], -1))
    return scene.camera.expose(video)
