"""Eight motions in four time-reversed pairs: short H.264 clips in which only the order of the frames tells the class.

A piece cut out of a real picture moves, turns or grows in front of another real picture, under camera shake, changing
light and lossy compression. The pictures are those inside the scikit-image wheel.

The two classes of a pair differ in nothing but the order of the frames, exactly:

- clip `n` of one class is clip `n` of the other class of the pair played backwards;
- a codec that predicts frames from earlier ones would mark the direction (a sharp first frame, then a quality that
  depends on the place in the file). Every frame is therefore coded alone (intra only) with one fixed quantiser, so
  that a clip and its twin decode to the same frames, bit for bit, in opposite order.

So a model that looks at the frames of whole clips as an unordered set answers the same for both twins and scores
exactly 50 % within the pairs, on any split.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from data.demo._clips import MANIFEST, PICTURES, check_counts, cut, outline, warp, write_clips
from data.demo._folder import DemoError, make_folder

MOTION_PAIRS = (
    ("move_left", "move_right"),
    ("move_up", "move_down"),
    ("turn_clockwise", "turn_counterclockwise"),
    ("grow", "shrink"),
)
"""The classes, in the order of their labels; the second of a pair is the first played backwards."""

VERSION = 1  # of what the generator draws; raise it when the same parameters give other clips
_OVERSAMPLING = 2
_MARGIN = 0.1  # of the side; background beyond the frame that camera shake may show


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
    progress: bool = False,
) -> Path:
    """Write the clips ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt`` into the folder `out`.

    The same arguments give the same files, byte for byte, on one machine and set of library versions. A clip depends
    only on the seed, its split, class and number, so that a larger data set starts with the clips of a smaller one.

    Args:
        out: folder to make. An existing one made with the same arguments is reused as it is.
        seed: any non-negative integer.
        size: side of the square frames in pixels; even, at least 16.
        frames: frames of a clip, at least 2.
        fps: frames per second.
        train, val, test: clips of each class in the split.
        classes: some of the names in `MOTION_PAIRS`; all of them by default.
        progress: show a progress bar.

    Returns:
        The path of ``manifest.csv``; its paths are relative to `out`.

    Raises:
        DemoError: an argument is out of range, or `out` holds something else.
    """
    everything = list(itertools.chain(*MOTION_PAIRS))
    classes = everything if classes is None else list(classes)
    counts = {"train": train, "val": val, "test": test}
    unknown = sorted(set(classes) - set(everything))
    if unknown or not classes or len(set(classes)) != len(classes):
        raise DemoError(f"classes must be different names out of {', '.join(everything)}; got {', '.join(classes)}")
    if size < 16 or size % 2:
        raise DemoError(f"size must be even (4:2:0 colour) and at least 16, got {size}")
    if frames < 2 or fps < 1 or seed < 0:
        raise DemoError(f"needs frames >= 2, fps >= 1 and seed >= 0, got {frames}, {fps} and {seed}")
    check_counts(counts)

    def draw(split: str, number: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        for pair, names in enumerate(MOTION_PAIRS):
            if set(names) & set(classes):
                clip = render(draw_scene(seed, split, pair, number, frames), size)
                ordered = zip(names, (clip, clip[::-1]), strict=True)
                yield from ((name, clip) for name, clip in ordered if name in classes)

    def fill(folder: Path) -> None:
        write_clips(folder, counts, classes, draw, frames, fps, progress)

    parameters = {"demo": "motion", "version": VERSION, "seed": seed, "size": size, "frames": frames, "fps": fps}
    return make_folder(Path(out), {**parameters, **counts, "classes": classes}, fill) / MANIFEST


@dataclass(frozen=True)
class Scene:
    """One clip before it is rendered. Lengths are in units of the frame's side; every curve has one row per frame."""

    object_picture: str
    background_picture: str
    centre: NDArray[np.float64]
    """(T, 2) x and y of the object in the frame, y down, without camera shake."""
    angle: NDArray[np.float64]
    """(T,) radians, clockwise as seen."""
    diameter: NDArray[np.float64]
    """(T,) largest extent of the object."""
    shake: NDArray[np.float64]
    """(T, 2) shift of the whole picture."""
    gain: NDArray[np.float64]
    """(T,) factor on the light."""
    seed: tuple[int, ...]
    """Seed for the cuts, the outline and the colours."""


def draw_scene(seed: int, split: str, pair: int, number: int, frames: int) -> Scene:
    """Draw clip `number` of the first class of a pair; its frames in reverse order are that of the second class.

    What is not the motion of the class (shake, light, easing) is as likely backwards as forwards. The places, angles
    and sizes are drawn alike for all classes as far as the object stays in the frame.
    """
    key = (seed, list(PICTURES).index(split), pair, number)
    rng = np.random.default_rng(key)
    names = rng.choice(PICTURES[split], size=2, replace=False)
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

    phases = rng.uniform(0, 2 * np.pi, size=3)
    waves = np.sin(2 * np.pi * rng.uniform(0.3, 1.0, size=3) * time[:, None] + phases)  # (T, 3), stationary
    return Scene(
        object_picture=str(names[0]),
        background_picture=str(names[1]),
        centre=centre,
        angle=angle,
        diameter=diameter,
        shake=np.clip(0.012 * waves[:, :2] + 0.006 * rng.standard_normal((frames, 2)), -_MARGIN / 2, _MARGIN / 2),
        gain=1 + rng.uniform(0.05, 0.2) * waves[:, 2],
        seed=(*key, 1),
    )


def render(scene: Scene, size: int) -> NDArray[np.uint8]:
    """Render a scene: (T, size, size, 3) uint8, RGB."""
    rng = np.random.default_rng(scene.seed)
    fine = _OVERSAMPLING * size
    frames = len(scene.gain)
    level = rng.uniform(0.3, 0.7)
    # The object is always clearly lighter or darker than what is behind it.
    contrast = rng.uniform(0.25, 0.4) * (1 if level < 0.5 else -1)
    backdrop = cut(scene.background_picture, math.ceil(fine * (1 + 2 * _MARGIN)), (0.4, 0.9), level, rng)
    piece = cut(scene.object_picture, math.ceil(fine * scene.diameter.max()), (0.2, 0.5), level + contrast, rng)
    alpha = outline(piece.shape[-1], rng)
    sprite = torch.from_numpy(np.concatenate([piece * alpha, alpha]).astype(np.float32))  # alpha premultiplied

    centre = 2 * (scene.centre + scene.shake) - 1  # frame coordinates of grid_sample: -1 to 1
    cos, sin = np.cos(scene.angle), np.sin(scene.angle)
    # y points down, so that this rotation is clockwise as seen; a picture is sampled through the inverse motion.
    inverse = np.stack([np.stack([cos, sin], -1), np.stack([-sin, cos], -1)], -2) / scene.diameter[:, None, None]
    shift = -np.einsum("tij,tj->ti", inverse, centre)
    objects = warp(sprite, np.concatenate([inverse, shift[..., None]], -1), fine)
    visible = 1 / (1 + 2 * _MARGIN)
    still = np.tile(np.eye(2) * visible, (frames, 1, 1))
    camera = np.concatenate([still, -2 * visible * scene.shake[..., None]], -1)
    video = warp(torch.from_numpy(backdrop.astype(np.float32)), camera, fine)

    video = objects[:, :3] + (1 - objects[:, 3:]) * video
    video = F.avg_pool2d(video, _OVERSAMPLING) * torch.from_numpy(scene.gain.astype(np.float32))[:, None, None, None]
    return (255 * video.clamp(0, 1)).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous().numpy()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``python -m data.demo motion``."""
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default %(default)s)")
    parser.add_argument("--size", type=int, default=64, help="side of the frames in pixels (default %(default)s)")
    parser.add_argument("--frames", type=int, default=16, help="frames of a clip (default %(default)s)")
    parser.add_argument("--fps", type=int, default=12, help="frames per second (default %(default)s)")
    parser.add_argument("--train", type=int, default=60, help="training clips per class (default %(default)s)")
    parser.add_argument("--val", type=int, default=20, help="validation clips per class (default %(default)s)")
    parser.add_argument("--test", type=int, default=20, help="test clips per class (default %(default)s)")
    parser.add_argument("--classes", nargs="+", metavar="CLASS", help="only these classes (default: all eight)")


def run(args: argparse.Namespace) -> Path:
    """Make the data set asked for on the command line; returns the path of its manifest."""
    options = {key: getattr(args, key) for key in ("seed", "size", "frames", "fps", "train", "val", "test", "classes")}
    return generate_motion(args.out, progress=True, **options)
