"""Patches of ten real images, to be told apart by their texture: RGB images of 32 x 32 pixels as PNG files.

The ten classes are images that the scikit-image wheel carries. Training patches come from the left 55 % of an image,
validation patches from the next 10 %, test patches from the right 35 %, so that no pixel is in two splits. A patch has
a random place, scale, rotation by quarter turns and reflection. Its mean, contrast and tint are random too, so that
colour and brightness tell nothing.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from data._commands import with_progress
from data.demo._clips import stock_image
from data.demo._folder import check_minimum, make_folder

SOURCES = {
    "brick": "brick.png",
    "cat": "chelsea.png",
    "cells": "ihc.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "motorcycle": "motorcycle_left.png",
    "page": "page.png",
    "stars": "hubble_deep_field.jpg",
}
"""Class -> file of scikit-image; labels follow this order (`classes.txt`)."""

SPLITS = {"train": (0.0, 0.55), "val": (0.55, 0.65), "test": (0.65, 1.0)}
"""The part of an image's width that each split is cut from."""

VERSION = 1  # of what is drawn; increase it when the same parameters give different files


def generate_patches(
    out: str | Path,
    *,
    seed: int = 0,
    size: int = 32,
    train: int = 200,
    val: int = 30,
    test: int = 60,
) -> Path:
    """Write ``<split>/<class>/<number>.png`` and ``classes.txt`` to the folder ``out``.

    A patch depends only on the seed, its split, class and number, so a larger dataset starts with a smaller one's.

    Args:
        size: side of the patches in pixels, at least 8
        train: training patches per class
        val: validation patches per class
        test: test patches per class
    """
    check_minimum(size=(size, 8), seed=(seed, 0), train=(train, 1), val=(val, 1), test=(test, 1))
    counts = {"train": train, "val": val, "test": test}

    def fill(folder: Path) -> None:
        for label, name in enumerate(with_progress(tuple(SOURCES), "patches")):
            for part, (split, count) in enumerate(counts.items()):
                place = folder / split / name
                place.mkdir(parents=True)
                for number in range(count):
                    rng = np.random.default_rng((seed, part, label, number))
                    draw_patch(name, SPLITS[split], size, rng).save(place / f"{number:04d}.png")
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in SOURCES), encoding="utf-8")

    parameters = {"demo": "patches", "version": VERSION, "seed": seed, "size": size}
    return make_folder(out, parameters | counts, fill)


def draw_patch(name: str, part: tuple[float, float], size: int, rng: np.random.Generator) -> Image.Image:
    """A patch of a class from a part of the image's width."""
    image = stock_image(SOURCES[name])
    left, right = part[0] * image.width, part[1] * image.width
    # the same range of scales in all splits, though the part for validation is narrow
    edge = min(rng.uniform(1.0, 2.0) * size * min(image.size) / 300, 0.1 * image.width)
    x, y = rng.uniform(left, right - edge), rng.uniform(0, image.height - edge)
    pixels = np.asarray(image.resize((size, size), Image.Resampling.BICUBIC, (x, y, x + edge, y + edge)), dtype=float)
    pixels = np.rot90(pixels, int(rng.integers(4)))[:, :: rng.choice((-1, 1))]
    pixels = (pixels - pixels.mean((0, 1))) / max(float(pixels.std()), 4.0)  # an even patch stays nearly even
    tint = rng.uniform(0.7, 1.3, 3)
    pixels = rng.uniform(90, 160) + rng.uniform(25, 45) * tint * pixels
    return Image.fromarray(np.clip(pixels.round(), 0, 255).astype(np.uint8))
