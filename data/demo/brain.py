"""Brain-like volumes with tumours: four modalities and labels, in the folders and files of BraTS 2018.

The anatomy is the average of 152 real brains (ICBM 152, Fonov et al., 2009) that the nilearn wheel carries as maps of
grey and white matter, deformed differently for every case. Tumours are drawn: an uneven ball of oedema around a core,
which in a high-grade case (HGG) is dead tissue within an enhancing rim and in a low-grade case (LGG) mostly does not
enhance. In each modality every tissue has roughly the brightness that it has in such scans, with noise, a slow drift
of brightness over the volume, and a scale of its own. No patient is shown, and no result on these volumes says
anything about patients.
"""

from __future__ import annotations

import importlib.resources
from functools import cache
from pathlib import Path

import nibabel as nib
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from data._commands import with_progress
from data.demo._folder import DemoError, check_minimum, make_folder

GRADES = ("HGG", "LGG")
NECROSIS, OEDEMA, ENHANCING = 1, 2, 4  # the labels of BraTS 2018

#: brightness of grey matter, white matter, fluid, and of the labels 1, 2 and 4
BRIGHTNESS = {
    "flair": (0.75, 0.60, 0.20, 0.45, 1.05, 0.90),
    "t1": (0.70, 1.00, 0.30, 0.40, 0.65, 0.60),
    "t1ce": (0.68, 0.95, 0.30, 0.40, 0.62, 1.35),
    "t2": (0.65, 0.45, 1.20, 1.05, 1.00, 0.80),
}
MODALITIES = tuple(BRIGHTNESS)
VERSION = 1  # of what is drawn; increase it when the same parameters give different volumes


def generate_brain(
    out: str | Path,
    *,
    seed: int = 0,
    cases: int = 40,
    size: tuple[int, int, int] = (40, 48, 36),
) -> Path:
    """Write ``<grade>/<case>/<case>_<flair|t1|t1ce|t2|seg>.nii.gz`` to the folder ``out``, two in three cases HGG.

    The same arguments give the same volumes. A case depends only on the seed, its number and the size. The real
    volumes have 240 x 240 x 155 voxels; these are coarser and tighter around the brain.

    Args:
        cases: number of cases
        size: voxels from right to left, back to front and bottom to top, each at least 16
    """
    check_minimum(size=(min(size), 16), seed=(seed, 0), cases=(cases, 1))

    def fill(folder: Path) -> None:
        for number in with_progress(range(cases), "brain volumes"):
            grade = GRADES[number % 3 == 2]
            images, label, affine = draw_case(seed, number, size)
            name = f"Demo18_{number:03d}_1"
            place = folder / grade / name
            place.mkdir(parents=True)
            for modality, image in zip(MODALITIES, images, strict=True):
                nib.save(nib.Nifti1Image(image, affine), place / f"{name}_{modality}.nii.gz")
            nib.save(nib.Nifti1Image(label, affine), place / f"{name}_seg.nii.gz")

    parameters = {"demo": "brain", "version": VERSION, "seed": seed, "cases": cases, "size": size}
    return make_folder(out, parameters, fill)


def draw_case(
    seed: int, number: int, size: tuple[int, int, int]
) -> tuple[NDArray[np.int16], NDArray[np.uint8], NDArray[np.float64]]:
    """One case: images (4, X, Y, Z) int16, zero outside the brain, labels (X, Y, Z) and the affine (4, 4)."""
    rng = np.random.default_rng([seed, number])
    maps, extent = _anatomy()
    grid = _deformed_grid(rng, size)
    tissue = F.grid_sample(maps[None], grid[None], align_corners=False)[0].clamp(0, 1)
    brain = tissue.sum(0) > 0.5
    label = _tumour(rng, brain, tissue[1], low_grade=number % 3 == 2)

    # Borders of tumours are soft: one voxel.
    layers = torch.stack([(label == value).float() for value in (NECROSIS, OEDEMA, ENHANCING)])
    layers = F.avg_pool3d(layers[None], 3, stride=1, padding=1)[0] * 0.5 + layers * 0.5
    parts = torch.cat([tissue * (1 - layers.sum(0)), layers])
    images = np.empty((len(MODALITIES), *size), np.int16)
    for index, modality in enumerate(MODALITIES):
        levels = torch.tensor(BRIGHTNESS[modality]) * torch.from_numpy(rng.normal(1, 0.07, 6)).float()
        image = (levels[:, None, None, None] * parts).sum(0)
        image = image * (1 + _smooth_noise(rng, 3, size, 0.12)) + _smooth_noise(rng, 14, size, 0.04)
        image = image + torch.from_numpy(rng.normal(0, 0.04, size)).float()
        scale = rng.uniform(200, 900)
        images[index] = (scale * image.clamp_min(0.02) * brain).round().numpy().astype(np.int16)
    spacing = np.array(extent) / np.array(size)
    # As in BraTS, the first two axes of the array run against those of the world.
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    affine[1, 3] = spacing[1] * (size[1] - 1)
    return images[:, ::-1, ::-1].copy(), label.numpy().astype(np.uint8)[::-1, ::-1].copy(), affine


@cache
def _anatomy() -> tuple[Tensor, tuple[float, ...]]:
    """Grey matter, white matter and fluid (3, X, Y, Z) in 0..1 at 2 mm, cropped to the brain; its sides in mm."""
    maps = []
    for kind in ("gm", "wm", "t1"):
        name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
        try:
            with importlib.resources.as_file(importlib.resources.files("nilearn") / "datasets" / "data" / name) as path:
                maps.append(np.asarray(nib.load(path).dataobj, dtype=np.float32) / 255)  # type: ignore[attr-defined]
        except (ImportError, OSError) as error:
            raise DemoError(f"nilearn carries no readable {name} ({error}): reinstall nilearn") from None
    grey, white, scan = maps
    brain = (scan > 0) | (grey + white > 0.5)
    fluid = np.clip(brain - grey - white, 0, 1)
    box = tuple(slice(int(indices.min()), int(indices.max()) + 1) for indices in np.nonzero(brain))
    volume = torch.from_numpy(np.stack([grey, white, fluid])[:, *box].copy())
    return F.avg_pool3d(volume, 2, ceil_mode=True), tuple(float(side) for side in volume.shape[1:])


def _deformed_grid(rng: np.random.Generator, size: tuple[int, int, int]) -> Tensor:
    """Position in the anatomy of every voxel: (X, Y, Z, 3), coordinates -1 to 1 in the order of `grid_sample`."""
    turns = rng.normal(0, np.deg2rad(5), 3)
    rotation = np.eye(3)
    for axis, angle in enumerate(turns):
        i, j = [k for k in range(3) if k != axis]
        turn = np.eye(3)
        turn[i, i] = turn[j, j] = np.cos(angle)
        turn[i, j], turn[j, i] = -np.sin(angle), np.sin(angle)
        rotation = rotation @ turn
    scale = rng.normal(1.06, 0.03, 3)
    if rng.random() < 0.5:
        scale[2] = -scale[2]  # swap left and right; the last coordinate is the first axis
    affine = np.concatenate([rotation * scale, rng.normal(0, 0.02, (3, 1))], axis=1)
    grid = F.affine_grid(torch.from_numpy(affine).float()[None], [1, 1, *size], align_corners=False)[0]
    return grid + torch.stack([_smooth_noise(rng, 4, size, 0.03) for _ in range(3)], dim=-1)


def _smooth_noise(rng: np.random.Generator, points: int, size: tuple[int, int, int], strength: float) -> Tensor:
    """Normal noise of deviation ``strength`` on a grid of ``points``^3, interpolated to (X, Y, Z)."""
    coarse = torch.from_numpy(rng.normal(0, strength, (1, 1, points, points, points))).float()
    return F.interpolate(coarse, size, mode="trilinear", align_corners=True)[0, 0]


def _tumour(rng: np.random.Generator, brain: Tensor, white: Tensor, low_grade: bool) -> Tensor:
    """Labels (X, Y, Z) int64: oedema around a core, restricted to the brain."""
    size = brain.shape
    axes = [torch.linspace(-1, 1, n) for n in size]
    grid = torch.stack(torch.meshgrid(*axes, indexing="ij"), dim=-1)
    # The centre lies in white matter, not at the surface of the brain.
    inside = (F.avg_pool3d(white[None, None], 5, stride=1, padding=2)[0, 0] > 0.35) & (grid.abs().amax(-1) < 0.7)
    choices = inside.nonzero()
    centre = grid[tuple(choices[int(rng.integers(len(choices)))])]
    radii = torch.from_numpy(rng.uniform(0.26, 0.46) * rng.uniform(0.8, 1.25, 3)).float()
    distance = ((grid - centre) / radii).norm(dim=-1) + _smooth_noise(rng, 9, tuple(size), 0.16)  # type: ignore[arg-type]
    core, dead = rng.uniform(0.6, 0.8), rng.uniform(0.3, 0.45)
    label = torch.zeros(size, dtype=torch.int64)
    label[distance < 1] = OEDEMA
    label[distance < core] = NECROSIS if low_grade else ENHANCING
    label[distance < dead] = NECROSIS
    if low_grade and rng.random() < 0.5:  # an enhancing spot
        spot = centre + torch.from_numpy(rng.uniform(-0.4, 0.4, 3)).float() * radii
        near = ((grid - spot) / radii).norm(dim=-1) < 0.35
        label[near & (label == NECROSIS)] = ENHANCING
    return label * brain
