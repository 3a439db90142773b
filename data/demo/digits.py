"""Handwritten digits: the 1797 real images that the scikit-learn wheel carries, as PNG files in class folders.

They are the test part of the Optical Recognition of Handwritten Digits data (E. Alpaydin and C. Kaynak, 1998), scans
of 32 x 32 black and white pixels of which each block of 4 x 4 was counted: 8 x 8 numbers from 0 to 16. Here such an
image is enlarged by cubic interpolation, and 0 to 16 becomes black to white.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.demo._folder import DemoError, make_folder

NAMES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
"""The classes, in the order of their labels (`classes.txt`)."""

SPLITS = {"train": 0.6, "val": 0.1, "test": 0.3}
"""Share of each class in each split; what rounding leaves over is in `train`."""

VERSION = 1  # of what is written; raise it when the same parameters give other files


def generate_digits(out: str | Path, *, seed: int = 0, size: int = 16) -> Path:
    """Write ``<split>/<class>/<number>.png`` and ``classes.txt`` into the folder `out`.

    The number is the image's place in scikit-learn's list. The same arguments give the same files.

    Args:
        out: folder to make. An existing one made with the same arguments is reused as it is.
        seed: of the choice of the splits; any non-negative integer.
        size: side of the images in pixels, at least 8, the side of the originals.

    Returns:
        The folder, the `root` of an `ImageDataModule` with ``dataset="folder"``.

    Raises:
        DemoError: an argument is out of range, scikit-learn's file is missing, or `out` holds something else.
    """
    if size < 8 or seed < 0:
        raise DemoError(f"needs size >= 8 and seed >= 0, got {size} and {seed}")

    def fill(folder: Path) -> None:
        images, labels = _digits()
        rng = np.random.default_rng(seed)
        for label, name in enumerate(NAMES):
            members = rng.permutation(np.flatnonzero(labels == label))
            counts = {split: int(share * len(members)) for split, share in SPLITS.items() if split != "train"}
            counts["train"] = len(members) - sum(counts.values())
            for split, chosen in zip(counts, np.split(members, np.cumsum(list(counts.values()))[:-1]), strict=True):
                place = folder / split / name
                place.mkdir(parents=True)
                for number in chosen.tolist():
                    enlarge(images[number], size).save(place / f"{number:04d}.png")
        (folder / "classes.txt").write_text("".join(f"{name}\n" for name in NAMES), encoding="utf-8")

    return make_folder(Path(out), {"demo": "digits", "version": VERSION, "seed": seed, "size": size}, fill)


def enlarge(image: NDArray[np.float64], size: int) -> Image.Image:
    """An 8 x 8 image with values from 0 to 16 as a grey picture of `size` x `size`, by cubic interpolation."""
    values = np.clip(np.round(image * (255 / 16)), 0, 255).astype(np.uint8)
    return Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)


def _digits() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """The images (1797, 8, 8) and their labels; read from the installed package, so that nothing is downloaded."""
    try:
        from sklearn.datasets import load_digits

        found = load_digits()
    except (ImportError, OSError) as error:
        raise DemoError(f"scikit-learn carries no readable digits ({error}): reinstall scikit-learn") from None
    return found.images, found.target


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of ``python -m data.demo digits``."""
    parser.add_argument("--seed", type=int, default=0, help="seed of the choice of the splits (default %(default)s)")
    parser.add_argument("--size", type=int, default=16, help="side of the images in pixels (default %(default)s)")


def run(args: argparse.Namespace) -> Path:
    """Make the data set asked for on the command line; returns its folder."""
    return generate_digits(args.out, seed=args.seed, size=args.size)
