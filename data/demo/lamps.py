"""Two lamps in opposite corners blink together or apart: only comparing distant positions tells which.

A clip has four beats. Each lamp is lit in one of them ("rare") or in three ("often"), in front of a still, dark cut
of a real image. The lamps are lit in the same beats ("together") or not ("apart"). They lie in opposite corners, at
least 0.6 of the frame's side apart along both axes.

The two clips of a scene that are together and apart differ in nothing but the beats of the second lamp, and equally
many of these are lit. A model that looks at neighbourhoods smaller than that distance, in single frames or within a
beat, and averages over all positions and frames, gives the same answer for both and is right for one: it can tell rare
from often, but scores exactly 50 % within the pairs. (Every frame is coded on its own and without loss, so that a lamp
leaves no trace elsewhere.)

A model over single frames that joins all positions of all beats alike, as a non-local block does, is no better: for it
a lamp is the same at whichever beats it is lit. `data.demo.lamp_colours` asks a question that such a model can answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.demo._clips import IMAGES, Frames, check_size, cut, make_clips

CLASSES = ("rare_together", "rare_apart", "often_together", "often_apart")
"""The classes, in the order of their labels."""

BEATS = 4
FRAMES_PER_BEAT = 2
GAP = 0.6
"""Smallest distance between the two lamps, edge to edge and along both axes, as a fraction of the frame's side."""

VERSION = 1  # of what the generator draws; increase it when the same parameters give different clips
_OVERSAMPLING = 3


@dataclass(frozen=True)
class Lamp:
    """A round lamp; lengths in units of the frame's side."""

    centre: tuple[float, float]
    """x and y, y down."""
    radius: float
    lit: NDArray[np.float64]
    """(3,) colour in 0..1 when lit; a dark lamp has a tenth of it."""


@dataclass(frozen=True)
class LampScene:
    """What the clips of a scene have in common, and when its lamps are lit."""

    background_image: str
    lamps: tuple[Lamp, Lamp]
    beats: dict[str, tuple[tuple[bool, ...], tuple[bool, ...]]]
    """By class: when each of the two lamps is lit."""
    seed: tuple[int, ...]
    """Seed for the cut of the background."""


def draw_lamps(rng: np.random.Generator) -> tuple[Lamp, Lamp]:
    """Two lamps in opposite corners, at least `GAP` apart along both axes."""
    flip = rng.random() < 0.5  # which of the two diagonals
    lamps = []
    for far in (False, True):
        radius = rng.uniform(0.06, 0.08)
        x, y = rng.uniform(radius + 0.01, 0.5 - GAP / 2 - radius, size=2)
        centre = (1 - x, 1 - y) if far else (x, y)
        colour = rng.uniform(0.55, 1.0, size=3)
        lamps.append(Lamp((1 - centre[0], centre[1]) if flip else centre, radius, colour / colour.max()))
    return lamps[0], lamps[1]


def draw_scene(seed: int, split: str, number: int) -> LampScene:
    """Draw scene ``number`` of a split."""
    key = (seed, list(IMAGES).index(split), number)
    rng = np.random.default_rng(key)
    lamps = draw_lamps(rng)
    special = rng.permutation(BEATS)  # the beat that differs from the others, of the first lamp and of one "apart"
    beats = {}
    for name in CLASSES:
        seconds = special[0 if name.endswith("together") else 1]
        lit = [[(beat == one) == name.startswith("rare") for beat in range(BEATS)] for one in (special[0], seconds)]
        beats[name] = (tuple(lit[0]), tuple(lit[1]))
    order = rng.permutation(2)  # either lamp may be the one whose beats change
    image = str(rng.choice(IMAGES[split]))
    return LampScene(image, (lamps[order[0]], lamps[order[1]]), beats, (*key, 1))


def render(scene: LampScene, name: str, size: int) -> Frames:
    """Render the clip of class ``name``: (8, size, size, 3)."""
    rng = np.random.default_rng(scene.seed)
    backdrop = draw_backdrop(scene.background_image, size, rng)
    frames = []
    for beats in zip(*scene.beats[name], strict=True):
        light = [lamp.lit if lit else 0.1 * lamp.lit for lamp, lit in zip(scene.lamps, beats, strict=True)]
        frames += [render_frame(backdrop, scene.lamps, light)] * FRAMES_PER_BEAT
    return np.stack(frames)


def draw_backdrop(image: str, size: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """A dark cut of a real image for frames of ``size`` x ``size``, at the resolution that `render_frame` draws at."""
    return cut(image, size * _OVERSAMPLING, (0.4, 0.9), rng.uniform(0.15, 0.3), rng)


def render_frame(
    backdrop: NDArray[np.float64], lamps: Sequence[Lamp], light: Sequence[NDArray[np.float64]]
) -> NDArray[np.uint8]:
    """The lamps with their (3,) colours in front of the backdrop: (size, size, 3)."""
    frame = backdrop.copy()
    fine = frame.shape[-1]
    axis = (np.arange(fine) + 0.5) / fine
    for lamp, colour in zip(lamps, light, strict=True):
        distance = np.hypot(axis[None, :] - lamp.centre[0], axis[:, None] - lamp.centre[1])
        frame[:, distance < lamp.radius] = 0.05  # the rim
        frame[:, distance < 0.8 * lamp.radius] = colour[:, None]
    size = fine // _OVERSAMPLING
    small = frame.reshape(3, size, _OVERSAMPLING, size, _OVERSAMPLING).mean((2, 4))
    return (255 * small).round().astype(np.uint8).transpose(1, 2, 0)


def generate_lamps(
    out: str | Path,
    *,
    seed: int = 0,
    size: int = 112,
    fps: int = 4,
    train: int = 80,
    val: int = 10,
    test: int = 40,
) -> Path:
    """Write the clips ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt`` to the folder ``out``.

    The same arguments give byte-identical files on one machine with one set of library versions.

    Args:
        size: side of the square frames in pixels; even, at least 32
        fps: frames per second; a beat lasts two frames
        train: training scenes, each in all four classes
        val: validation scenes
        test: test scenes
    """
    check_size(size, smallest=32)

    def draw(split: str, number: int) -> Iterator[tuple[str, Frames]]:
        scene = draw_scene(seed, split, number)
        yield from ((name, render(scene, name, size)) for name in CLASSES)

    parameters = {"demo": "lamps", "version": VERSION, "seed": seed, "size": size, "fps": fps}
    counts, frames = {"train": train, "val": val, "test": test}, BEATS * FRAMES_PER_BEAT
    return make_clips(out, parameters, counts, CLASSES, draw, frames=frames, fps=fps, quantiser=0)
