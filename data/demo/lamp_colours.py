"""Two lamps in opposite corners have the same colour or different ones: only comparing distant positions tells which.

The lamps lie as in `data.demo.lamps`, but they do not blink: the answer is in every frame, so a model needs no order
of frames. The two clips of a scene differ in the colour of one lamp, which is that of the other lamp ("same") or has
the opposite hue ("different"). A model that adds up what it sees around each position can be right for three of the
four pairs of colours that two hues make, so for 75 % of the clips.
"""

from __future__ import annotations

import colorsys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.demo._clips import IMAGES, Frames, check_size, make_clips
from data.demo.lamps import draw_backdrop, draw_lamps, render_frame

CLASSES = ("same", "different")
"""The classes, in the order of their labels."""

FRAMES = 2
VERSION = 1  # of what the generator draws; increase it when the same parameters give different clips


def draw_clips(seed: int, split: str, number: int, size: int) -> Iterator[tuple[str, Frames]]:
    """The clips of scene ``number`` of a split, each (2, size, size, 3), with their classes."""
    rng = np.random.default_rng((seed, list(IMAGES).index(split), number))
    lamps = draw_lamps(rng)
    hue = rng.random()
    colours = [np.array(colorsys.hsv_to_rgb((hue + shift) % 1, 0.8, 1.0)) for shift in (0.0, 0.5)]
    changed = int(rng.integers(2))  # which lamp has another colour in "different"
    backdrop = draw_backdrop(str(rng.choice(IMAGES[split])), size, rng)
    for name in CLASSES:
        light = [colours[name == "different" and index == changed] for index in range(2)]
        yield name, np.stack([render_frame(backdrop, lamps, light)] * FRAMES)


def generate_lamp_colours(
    out: str | Path,
    *,
    seed: int = 0,
    size: int = 112,
    fps: int = 4,
    train: int = 160,
    val: int = 20,
    test: int = 80,
) -> Path:
    """Write the clips ``<split>/<class>/<number>.mp4``, ``manifest.csv`` and ``classes.txt`` to the folder ``out``.

    The same arguments give byte-identical files on one machine with one set of library versions.

    Args:
        size: side of the square frames in pixels; even, at least 32
        fps: frames per second
        train: training scenes, each in both classes
        val: validation scenes
        test: test scenes
    """
    check_size(size, smallest=32)
    parameters = {"demo": "lamp_colours", "version": VERSION, "seed": seed, "size": size, "fps": fps}
    counts = {"train": train, "val": val, "test": test}
    return make_clips(
        out,
        parameters,
        counts,
        CLASSES,
        lambda split, number: draw_clips(seed, split, number, size),
        frames=FRAMES,
        fps=fps,
        quantiser=0,
    )
