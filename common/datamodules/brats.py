"""Brain scans in the folders and files of BraTS 2018: NIfTI files, labels and the regions that are scored."""

from __future__ import annotations

import math
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import nibabel as nib
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import NormalizeIntensity
from nibabel.filebasedimages import ImageFileError
from nibabel.spatialimages import HeaderDataError, SpatialImage
from torch import Tensor

from common.datamodules.errors import VolumeReadError

MODALITIES = ("flair", "t1", "t1ce", "t2")
SUFFIXES = (".nii.gz", ".nii")
LABELS = (0, 1, 2, 4)  # background, necrotic and non-enhancing core, oedema, enhancing tumour
#: the regions that are scored, each a union of labels, in the order of Table 4 of the FDC3D paper
REGIONS = {"ET": (4,), "WT": (1, 2, 4), "TC": (1, 4)}
MAX_VOXELS = 2**28  # of a scan; BraTS has 8.9 million


@dataclass(frozen=True)
class Case:
    """One scan: its folder and the file of each modality; ``label`` is None if there is no ``_seg`` file."""

    name: str
    folder: Path
    images: tuple[Path, ...]
    label: Path | None


def find_case_folders(paths: Iterable[str | Path]) -> list[Path]:
    """Folders with files ``<case>_<modality>.nii.gz`` or ``.nii``: those given, or at any depth below them; sorted.

    Raises:
        FileNotFoundError: a path is not a folder, or has no such files.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder; a case is a folder with one file per modality.")
        cases = sorted({file.parent for suffix in SUFFIXES for file in path.rglob(f"*_*{suffix}")})
        if not cases:
            raise FileNotFoundError(f"{path}: no file named <case>_<modality>.nii.gz lies in it or below it.")
        folders += cases
    return folders


def find_case(folder: Path, modalities: Sequence[str] = MODALITIES, labelled: bool = False) -> Case:
    """The files of one case. Raises VolumeReadError with the names of those missing (``labelled``: also of labels)."""
    name = folder.resolve().name

    def find(part: str) -> Path | None:
        paths = [folder / f"{name}_{part}{suffix}" for suffix in SUFFIXES]
        return next((path for path in paths if path.is_file()), None)

    images = {modality: find(modality) for modality in modalities}
    missing = [f"{name}_{modality}.nii.gz" for modality, path in images.items() if path is None]
    label = find("seg")
    if labelled and label is None:
        missing.append(f"{name}_seg.nii.gz")
    if missing:
        raise VolumeReadError(folder, f"it lacks {', '.join(missing)}.")
    return Case(name, folder, tuple(path for path in images.values() if path is not None), label)


def _load(path: Path, read: Callable[[SpatialImage], Any]) -> Any:
    """What ``read`` makes of a NIfTI file, whose header is checked before any voxel is read."""
    try:
        image: Any = nib.load(path)
        if math.prod(image.shape) > MAX_VOXELS:
            size = " x ".join(map(str, image.shape))
            raise VolumeReadError(path, f"its header claims {size} voxels; at most {MAX_VOXELS} are read.")
        return read(image)
    except FileNotFoundError as error:
        raise VolumeReadError(path, "no such file.") from error
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise VolumeReadError(path, f"not a readable NIfTI file ({reason}).") from error


def check_case(case: Case) -> tuple[int, ...]:
    """Compare the headers of a case's files without reading voxels. Returns the shape (X, Y, Z).

    Raises:
        VolumeReadError: a file cannot be read, does not have three axes, or has another shape or position in space
            than the first one (the files are not aligned).
    """
    files = [*case.images, *([case.label] if case.label else [])]
    headers = [_load(path, lambda image: (tuple(image.shape), np.asarray(image.affine))) for path in files]
    shape, affine = headers[0]
    if len(shape) != 3:
        raise VolumeReadError(files[0], f"its shape is {shape}; a scan has three axes.")
    for path, (other, position) in zip(files[1:], headers[1:], strict=True):
        if other != shape:
            raise VolumeReadError(path, f"its shape is {other}, that of {files[0].name} {shape}; they are not aligned.")
        if not np.allclose(position, affine, atol=1e-3):
            raise VolumeReadError(
                path, f"its affine differs from that of {files[0].name}: they are not aligned in space."
            )
    return shape


def read_images(case: Case) -> Tensor:
    """The images of a case as stored, float32 (C, D, H, W) = (modalities, Z, Y, X). Raises VolumeReadError."""
    images = []
    for path in case.images:
        image = _load(path, lambda image: np.asarray(image.get_fdata(dtype=np.float32)))
        if not np.isfinite(image).all():
            raise VolumeReadError(path, "it holds values that are NaN or infinite.")
        images.append(torch.from_numpy(image.transpose(2, 1, 0).copy()))
    return torch.stack(images)


def read_label(path: Path) -> Tensor:
    """A label file as uint8 (D, H, W). Raises VolumeReadError, also for labels other than 0, 1, 2 and 4."""
    label = _load(path, lambda image: np.asarray(image.dataobj))
    if unknown := sorted(set(np.unique(label).tolist()) - set(LABELS)):
        raise VolumeReadError(path, f"it holds the label {unknown[0]}; those of BraTS 2018 are 0, 1, 2 and 4.")
    return torch.from_numpy(label.astype(np.uint8).transpose(2, 1, 0).copy())


def load_volume(case: Case) -> Tensor:
    """A case as the network takes it: float32 (C, D, H, W), checked and normalised. Raises VolumeReadError.

    Every channel has mean 0 and deviation 1 over its voxels that are not zero; these stay zero.
    """
    check_case(case)
    return plain_tensor(NormalizeIntensity(nonzero=True, channel_wise=True)(read_images(case))).float()


def plain_tensor(x: Any) -> Tensor:
    """A result of MONAI without its metadata, which would follow through the network."""
    return x.as_tensor() if isinstance(x, MetaTensor) else torch.as_tensor(x)


def label_to_regions(label: Tensor) -> Tensor:
    """Labels (..., D, H, W) to the regions ET, WT and TC, bool (..., 3, D, H, W); they contain each other."""
    return torch.stack([torch.isin(label, torch.tensor(v, device=label.device)) for v in REGIONS.values()], dim=-4)


def regions_to_label(regions: Tensor) -> Tensor:
    """Regions ET, WT and TC, bool (..., 3, D, H, W), to labels uint8 (..., D, H, W); the innermost region counts."""
    et, wt, tc = regions.unbind(-4)
    label = torch.zeros_like(wt, dtype=torch.uint8)
    label[wt] = 2
    label[tc] = 1
    label[et] = 4
    return label


def save_label(label: Tensor, like: Path, out: Path, overwrite: bool = False) -> None:
    """Write labels (D, H, W) as a NIfTI file with the shape, affine and space of the file ``like``.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is False; it is left as it is.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; give another folder, or --force to overwrite it")
    affine, header = _load(like, lambda image: (image.affine, image.header.copy()))
    header.set_data_dtype(np.uint8)
    nib.save(nib.Nifti1Image(label.cpu().numpy().transpose(2, 1, 0), affine, header), out)


def voxel_volume(path: Path) -> float:
    """The size of one voxel of a NIfTI file in millilitres."""
    return _load(path, lambda image: abs(float(np.linalg.det(image.affine[:3, :3])))) / 1000
