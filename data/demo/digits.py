"""Handwritten digits: the 1797 real images that the scikit-learn wheel carries, as PNG files in class folders.

They are the test part of the Optical Recognition of Handwritten Digits data (E. Alpaydin and C. Kaynak, 1998): scans
of 32 x 32 black and white pixels, in which the pixels of each 4 x 4 block were counted, giving 8 x 8 numbers from 0 to
16. Here such an image is enlarged by cubic interpolation, and 0 to 16 becomes black to white.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data._commands import with_progress
from data.demo._folder import DemoError, check_minimum, make_folder

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The classes, in the order of their labels (`classes.txt`)."""

SPLITS = {"train": 0.6, "val": 0.1, "test": 0.3}
"""Fraction of each class in each split; what rounding leaves over goes to `train`."""

VERSION = 1  # of what is written; increase it when the same parameters give different files


def generate_digits(out: str | Path, *, seed: int = 0, size: int = 16) -> Path:
    """Write ``<split>/<class>/<number>.png`` and ``classes.txt`` to the folder ``out``.

    The number is the image's position in scikit-learn's list. The same arguments give the same files.

    Args:
        seed: seed of the assignment to splits, at least 0
        size: side of the images in pixels, at least 8, the side of the originals
    """
    check_minimum(size=(size, 8), seed=(seed, 0))

    def fill(folder: Path) -> None:
        images, labels = _digits()
        rng = np.random.default_rng(seed)
        for label, name in enumerate(with_progress(NAMES, "digits")):
            members = rng.permutation(np.flatnonzero(labels == label))
            counts = {split: int(part * len(members)) for split, part in SPLITS.items() if split != "train"}
            counts["train"] = len(members) - sum(counts.values())
            for split, chosen in zip(counts, np.split(members, np.cumsum(list(counts.values()))[:-1]), strict=True):
                place = folder / split / name
                place.mkdir(parents=True)
                for number in chosen.tolist():
                    enlarge(images[number], size).save(place / f"{number:04d}.png")
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")

    return make_folder(out, {"demo": "digits", "version": VERSION, "seed": seed, "size": size}, fill)


def enlarge(image: NDArray[np.float64], size: int) -> Image.Image:
    """An 8 x 8 array with values from 0 to 16 as a grey image of ``size`` x ``size``, by cubic interpolation."""
    values = np.clip(np.round(image * (255 / 16)), 0, 255).astype(np.uint8)
    return Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The images (1797, 8, 8) and their labels; read from the installed package, so that nothing is downloaded."""
    try:
        from sklearn.datasets import load_digits

        digits = load_digits()
    except (ImportError, OSError) as error:
        raise DemoError(f"scikit-learn carries no readable digits ({error}): reinstall scikit-learn") from None
    return digits.images, digits.target
