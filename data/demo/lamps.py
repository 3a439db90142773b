"""Two lamps in opposite corners that blink together or apart: only comparing far-apart places tells which.

A clip has four beats. Both lamps are lit in one of them ("rare") or in three ("often"), in front of a still, dark cut
of a real picture. The lamps are lit in the same beats ("together") or not ("apart"). They lie in opposite corners, at
least 0.6 of the frame's side apart in both directions.

The two clips of a scene that differ in together and apart differ in nothing but the beats of the second lamp, of which
equally many are lit. So a model that averages over all places and frames what it sees in some neighbourhood smaller
than that distance, and in single frames or within a beat, answers the same for both, and is right for one: it can
tell rare from often, but scores exactly 50 % within the pairs. (Every frame is coded alone and without loss, so that
a lamp leaves no trace elsewhere.)
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.demo._clips import MANIFEST, PICTURES, check_counts, cut, write_clips
from data.demo._folder import DemoError, make_folder

CLASSES = ("rare_together", "rare_apart", "often_together", "often_apart")
"""The classes, in the order of their labels."""

BEATS = 4
FRAMES_PER_BEAT = 2
GAP = 0.6
"""Smallest distance between the two lamps, edge to edge and along both axes, as a share of the frame's side."""

VERSION = 1  # of what the generator draws; raise it when the same parameters give other clips
_OVERSAMPLING = 3


@dataclass(frozen=True)
class Lamp:
    """A round lamp; lengths in units of the frame's side, colour in 0..1."""

    centre: tuple[float, float]
    """x and y, y down."""
    radius: float
    lit: NDArray[np.float64]
    """(3,) colour when lit; dark, it is a tenth of it."""


@dataclass(frozen=True)
class Scene:
    """What the clips of a scene share, and when its lamps are lit."""

    background_picture: str
    lamps: tuple[Lamp, Lamp]
    beats: dict[str, tuple[tuple[bool, ...], tuple[bool, ...]]]
    """By class: when each of the two lamps is lit."""
    seed: tuple[int, ...]
    """Seed for the cut of the background."""


def draw_scene(seed: int, split: str, number: int) -> Scene:
    """Draw scene `number` of a split."""
    key = (seed, list(PICTURES).index(split), number)
    rng = np.random.default_rng(key)
    flip = rng.random() < 0.5  # which of the two diagonals
    lamps = []
    for far in (False, True):
        radius = rng.uniform(0.06, 0.08)
        x, y = rng.uniform(radius + 0.01, 0.5 - GAP / 2 - radius, size=2)
        centre = (1 - x, 1 - y) if far else (x, y)
        colour = rng.uniform(0.55, 1.0, size=3)
        lamps.append(Lamp((1 - centre[0], centre[1]) if flip else centre, radius, colour / colour.max()))
    special = rng.permutation(BEATS)  # the beat that differs from the others, of the first lamp and of one apart
    beats = {}
    for name in CLASSES:
        seconds = special[0 if name.endswith("together") else 1]
        lit = [[(beat == one) == name.startswith("rare") for beat in range(BEATS)] for one in (special[0], seconds)]
        beats[name] = (tuple(lit[0]), tuple(lit[1]))
    order = rng.permutation(2)  # either lamp may be the one whose beats change
    picture = str(rng.choice(PICTURES[split]))
    return Scene(picture, (lamps[order[0]], lamps[order[1]]), beats, (*key, 1))


def render(scene: Scene, name: str, size: int) -> NDArray[np.uint8]:
    """Render the clip of class `name`: (8, size, size, 3) uint8, RGB."""
    rng = np.random.default_rng(scene.seed)
    fine = size * _OVERSAMPLING
    picture = cut(scene.background_picture, fine, (0.4, 0.9), rng.uniform(0.15, 0.3), rng)
    axis = (np.arange(fine) + 0.5) / fine
    frames = []
    for beats in zip(*scene.beats[name], strict=True):
        frame = picture.copy()
        for lamp, lit in zip(scene.lamps, beats, strict=True):
            distance = np.hypot(axis[None, :] - lamp.centre[0], axis[:, None] - lamp.centre[1])
            frame[:, distance < lamp.radius] = 0.05  # the rim
            frame[:, distance < 0.8 * lamp.radius] = (lamp.lit if lit else 0.1 * lamp.lit)[:, None]
        small = frame.reshape(3, size, _OVERSAMPLING, size, _OVERSAMPLING).mean((2, 4))
        frames += [(255 * small).round().astype(np.uint8).transpose(1, 2, 0)] * FRAMES_PER_BEAT
    return np.stack(frames)


def generate_lamps(
    out: str | Path,
    *,
    seed: int = 0,
    size: int = 112,
    fps: int = 4,
    train: int = 80,
    val: int = 10,
    test: int = 40,
    progress: bool = False,
) -> Path:
    """Write the clips ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt`` into the folder `out`.

    The same arguments give the same files, byte for byte, on one machine and set of library versions.

    Args:
        out: folder to make. An existing one made with the same arguments is reused as it is.
        seed: any non-negative integer.
        size: side of the square frames in pixels; even, at least 32.
        fps: frames per second; a beat lasts two frames.
        train, val, test: scenes of the split, each in all four classes.
        progress: show a progress bar.

    Returns:
        The path of ``manifest.csv``; its paths are relative to `out`.

    Raises:
        DemoError: an argument is out of range, or `out` holds something else.
    """
    counts = {"train": train, "val": val, "test": test}
    if size < 32 or size % 2:
        raise DemoError(f"size must be even (4:2:0 colour) and at least 32, got {size}")
    if fps < 1 or seed < 0:
        raise DemoError(f"needs fps >= 1 and seed >= 0, got {fps} and {seed}")
    check_counts(counts)
    frames = BEATS * FRAMES_PER_BEAT

    def draw(split: str, number: int) -> Iterator[tuple[str, NDArray[np.uint8]]]:
        scene = draw_scene(seed, split, number)
        yield from ((name, render(scene, name, size)) for name in CLASSES)

    def fill(folder: Path) -> None:
        write_clips(folder, counts, CLASSES, draw, frames, fps, progress, quantiser=0)

    parameters = {"demo": "lamps", "version": VERSION, "seed": seed, "size": size, "fps": fps}
    return make_folder(Path(out), {**parameters, **counts}, fill) / MANIFEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``python -m data.demo lamps``."""
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default %(default)s)")
    parser.add_argument("--size", type=int, default=112, help="side of the frames in pixels (default %(default)s)")
    parser.add_argument("--fps", type=int, default=4, help="frames per second (default %(default)s)")
    parser.add_argument("--train", type=int, default=80, help="training scenes, 4 clips each (default %(default)s)")
    parser.add_argument("--val", type=int, default=10, help="validation scenes (default %(default)s)")
    parser.add_argument("--test", type=int, default=40, help="test scenes (default %(default)s)")


def run(args: argparse.Namespace) -> Path:
    """Make the data set asked for on the command line; returns the path of its manifest."""
    options = {key: getattr(args, key) for key in ("seed", "size", "fps", "train", "val", "test")}
    return generate_lamps(args.out, progress=True, **options)
