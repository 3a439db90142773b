"""Two lamps in opposite corners blink together, in turn, or overlapping: only comparing far-apart places tells the class.

A clip has four beats. Each lamp is lit in two of them, in front of a still cut of a real picture. The classes differ
in how many beats the lamps agree in: all four, none, or two. The lamps lie in opposite corners, at least 0.6 of the
frame's side apart in both directions.

The three clips of one scene are the same but for the order in which the second lamp is lit. So a model that averages
over all places and frames what it sees in some neighbourhood smaller than that distance, and in single frames or
within a beat, answers the same for the three of them, and scores exactly one third. (Every frame is coded alone with
one fixed quantiser, so the code tells nothing either.)
"""

from __future__ import annotations

import argparse
import itertools
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import track

from common.datamodules.manifest import Entry, Manifest
from data.demo._folder import DemoError, make_folder
from data.demo.motion import MANIFEST, PICTURES, cut, relative_path, write_clip

AGREEMENT = {"together": 4, "in_turn": 0, "overlapping": 2}
"""The classes, in the order of their labels, with the number of the four beats in which both lamps do the same."""

FRAMES_PER_BEAT = 2
GAP = 0.6
"""Smallest distance between the two lamps, edge to edge and along both axes, as a share of the frame's side."""

VERSION = 1  # of what the generator draws; raise it when the same parameters give other clips
_OVERSAMPLING = 3
_SEQUENCES = [tuple(p) for p in itertools.product((0, 1), repeat=4) if sum(p) == 2]


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
    """What the three clips of a scene share: picture, lamps, and the beats of the first lamp."""

    background_picture: str
    lamps: tuple[Lamp, Lamp]
    first_beats: tuple[int, ...]
    second_beats: dict[str, tuple[int, ...]]
    """By class."""
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
    first = _SEQUENCES[rng.integers(len(_SEQUENCES))]
    second = {}
    for name, agreement in AGREEMENT.items():
        fitting = [s for s in _SEQUENCES if sum(a == b for a, b in zip(first, s, strict=True)) == agreement]
        second[name] = fitting[rng.integers(len(fitting))]
    order = rng.permutation(2)  # either lamp may be the one whose beats change
    picture = str(rng.choice(PICTURES[split]))
    return Scene(picture, (lamps[order[0]], lamps[order[1]]), first, second, (*key, 1))


def render(scene: Scene, name: str, size: int) -> NDArray[np.uint8]:
    """Render the clip of class `name`: (8, size, size, 3) uint8, RGB."""
    rng = np.random.default_rng(scene.seed)
    fine = size * _OVERSAMPLING
    picture = cut(scene.background_picture, fine, (0.4, 0.9), rng.uniform(0.35, 0.55), rng)
    axis = (np.arange(fine) + 0.5) / fine
    frames = []
    for beats in zip(scene.first_beats, scene.second_beats[name], strict=True):
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
        train, val, test: scenes of the split, each in all three classes.
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
    if min(counts.values()) < 0 or not any(counts.values()):
        raise DemoError(f"train, val and test must not be negative nor all be 0, got {train}, {val} and {test}")
    frames = 4 * FRAMES_PER_BEAT

    def fill(folder: Path) -> None:
        jobs = [(split, number) for split, count in counts.items() for number in range(count)]
        console = Console(stderr=True)
        for split, number in track(jobs, "lamp clips", console=console, disable=not progress, transient=True):
            scene = draw_scene(seed, split, number)
            for name in AGREEMENT:
                path = folder / relative_path(split, name, number)
                path.parent.mkdir(parents=True, exist_ok=True)
                write_clip(path, render(scene, name, size), fps)
        entries = tuple(
            Entry(relative_path(split, name, number), label, name, split, frames, float(fps), round(frames / fps, 6))
            for split, count in counts.items()
            for label, name in enumerate(AGREEMENT)
            for number in range(count)
        )
        table = folder / MANIFEST
        Manifest(folder, entries, tuple(AGREEMENT), table, len(entries)).write(table)

    parameters = {"demo": "lamps", "version": VERSION, "seed": seed, "size": size, "fps": fps}
    return make_folder(Path(out), {**parameters, **counts}, fill) / MANIFEST


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``python -m data.demo lamps``."""
    parser.add_argument("--seed", type=int, default=0, help="seed of everything that is drawn (default %(default)s)")
    parser.add_argument("--size", type=int, default=112, help="side of the frames in pixels (default %(default)s)")
    parser.add_argument("--fps", type=int, default=4, help="frames per second (default %(default)s)")
    parser.add_argument("--train", type=int, default=80, help="training scenes, 3 clips each (default %(default)s)")
    parser.add_argument("--val", type=int, default=10, help="validation scenes (default %(default)s)")
    parser.add_argument("--test", type=int, default=40, help="test scenes (default %(default)s)")


def run(args: argparse.Namespace) -> Path:
    """Make the data set asked for on the command line; returns the path of its manifest."""
    options = {key: getattr(args, key) for key in ("seed", "size", "fps", "train", "val", "test")}
    return generate_lamps(args.out, progress=True, **options)
