"""Tiny cases in the folders and files of BraTS 2018."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray

MODALITIES = ("flair", "t1", "t1ce", "t2")
# As in the official files: the first two axes of the array run against those of the world.
AFFINE = np.array([[-1.0, 0, 0, 0], [0, -1, 0, 239], [0, 0, 1, 0], [0, 0, 0, 1]])


def write(path: Path, values: NDArray, affine: NDArray = AFFINE) -> None:
    nib.save(nib.Nifti1Image(values, affine), path)


def draw(seed: int, shape: tuple[int, int, int]) -> tuple[NDArray[np.int16], NDArray[np.uint8]]:
    """Images (4, X, Y, Z), zero at the border, and a nested tumour."""
    rng = np.random.default_rng(seed)
    images = rng.integers(100, 900, (4, *shape)).astype(np.int16)
    border = np.ones(shape, bool)
    border[2:-2, 2:-2, 2:-2] = False
    images[:, border] = 0
    label = np.zeros(shape, np.uint8)
    for value, inner in ((2, 3), (4, 4), (1, 5)):
        label[inner:-inner, inner:-inner, inner:-inner] = value
    for index, value in enumerate((4, 2, 1)):
        images[index][label == value] += 1500
    return images, label


def write_case(root: Path, name: str, seed: int = 0, shape: tuple[int, int, int] = (14, 16, 12)) -> Path:
    """One case in `root/<name>`; returns its folder."""
    folder = root / name
    folder.mkdir(parents=True)
    images, label = draw(seed, shape)
    for modality, image in zip(MODALITIES, images, strict=True):
        write(folder / f"{name}_{modality}.nii.gz", image)
    write(folder / f"{name}_seg.nii.gz", label)
    return folder


def write_brats(root: Path, cases: int = 5) -> Path:
    """Cases under the official folders HGG and LGG."""
    for k in range(cases):
        grade = "HGG" if k % 3 else "LGG"
        write_case(root / grade, f"Brats18_TCIA{k:02d}_{100 + k}_1", seed=k)
    return root
