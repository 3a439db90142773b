"""Brain scans in the folders and files of BraTS: NIfTI files, labels and the regions that are scored.

Files named `<case>_t1ce.nii.gz` are those of 2018 to 2021, with the labels 0, 1, 2 and 4. Files named
`<case>-t1c.nii.gz` are those of 2023 and later, where the enhancing tumour is 3 and 4 is a resection cavity. In this
project labels are those of 2018; files are read and written in the convention of their names.
"""

from __future__ import annotations

import math
import struct
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

from common.command_line import first_line
from common.datamodules.errors import VolumeReadError
from common.limits import HINT, limit

MODALITIES = ("flair", "t1", "t1ce", "t2")
SUFFIXES = (".nii.gz", ".nii")
#: what the files of the modalities are called since 2023
NAMES_2023 = {"flair": "t2f", "t1": "t1n", "t1ce": "t1c", "t2": "t2w", "seg": "seg"}
LABELS = (0, 1, 2, 4)  # background, necrotic and non-enhancing core, oedema, enhancing tumour
#: the labels 0 to 4 since 2023 as labels here; a resection cavity belongs to no region
LABELS_2023 = (0, 1, 2, 4, 0)
#: the regions that are scored, each a union of labels, in the order of Table 4 of the FDC3D paper
REGIONS = {"ET": (4,), "WT": (1, 2, 4), "TC": (1, 4)}
MAX_EXTENSIONS = limit(2**24)  # bytes of a header with its extensions
MAX_VOXELS = limit(2**28)  # of a scan; BraTS has 8.9 million


@dataclass(frozen=True)
class Case:
    """One scan: its folder and the file of each modality; ``label`` is None if there is no ``_seg`` file."""

    name: str
    folder: Path
    images: tuple[Path, ...]
    label: Path | None


def find_case_folders(paths: Iterable[str | Path]) -> list[Path]:
    """Folders with files ``<case>_<modality>.nii.gz`` or ``.nii``, or ``<case>-<modality>`` with the names of 2023.

    They are those given, or lie at any depth below them; sorted.

    Raises:
        FileNotFoundError: a path is not a folder, or has no such files.
    """
    folders: list[Path] = []
    for path in map(Path, paths):
        if not path.is_dir():
            raise FileNotFoundError(f"{path}: no such folder; a case is a folder with one file per modality.")
        patterns = ["*_*", *(f"*-{name}" for name in NAMES_2023.values())]
        cases = sorted({f.parent for end in SUFFIXES for pattern in patterns for f in path.rglob(pattern + end)})
        if not cases:
            raise FileNotFoundError(
                f"{path}: no file named <case>_<modality>.nii.gz (2018 to 2021) or <case>-<modality>.nii.gz (since "
                "2023) lies in it or below it."
            )
        folders += cases
    return folders


def find_case(folder: Path, modalities: Sequence[str] = MODALITIES, labelled: bool = False) -> Case:
    """The files of one case. Raises VolumeReadError with the names of those missing (``labelled``: also of labels)."""
    name = folder.resolve().name
    recent = any((folder / f"{name}-{part}{suffix}").is_file() for part in NAMES_2023.values() for suffix in SUFFIXES)

    def stem(part: str) -> str:
        return f"{name}-{NAMES_2023[part]}" if recent else f"{name}_{part}"

    def find(part: str) -> Path | None:
        return next((path for suffix in SUFFIXES if (path := folder / f"{stem(part)}{suffix}").is_file()), None)

    images = {modality: find(modality) for modality in modalities}
    missing = [f"{stem(modality)}.nii.gz" for modality, path in images.items() if path is None]
    label = find("seg")
    if labelled and label is None:
        missing.append(f"{stem('seg')}.nii.gz")
    if missing:
        raise VolumeReadError(folder, f"it lacks {', '.join(missing)}.")
    return Case(name, folder, tuple(path for path in images.values() if path is not None), label)


def _load(path: Path, read: Callable[[SpatialImage], Any]) -> Any:
    """What ``read`` makes of a NIfTI file, whose header is checked before any voxel is read."""
    try:
        _check_extensions(path)
        image: Any = nib.load(path)
        if math.prod(image.shape) > MAX_VOXELS:
            size = " x ".join(map(str, image.shape))
            raise VolumeReadError(path, f"its header claims {size} voxels; at most {MAX_VOXELS} are read; {HINT}.")
        if (dtype := image.get_data_dtype()).kind not in "biuf":
            raise VolumeReadError(path, f"its voxels are of the type {dtype}; they must be real numbers.")
        return read(image)
    except FileNotFoundError as error:
        raise VolumeReadError(path, "no such file.") from error
    except (ImageFileError, HeaderDataError, OSError, EOFError, ValueError, zlib.error) as error:
        raise VolumeReadError(path, f"not a readable NIfTI file ({first_line(error)}).") from error


def _check_extensions(path: Path) -> None:
    """Refuse a file whose header announces large extensions, which `nib.load` would read. Raises VolumeReadError."""
    with nib.openers.ImageOpener(str(path)) as file:
        start = file.read(176)
    order = next((order for order in "<>" if start[:4] in (struct.pack(f"{order}i", n) for n in (348, 540))), None)
    if order is None or len(start) < 176:
        return  # which `nib.load` says
    second = start[:4] == struct.pack(f"{order}i", 540)  # NIfTI-2
    [offset] = struct.unpack_from(f"{order}q", start, 168) if second else struct.unpack_from(f"{order}f", start, 108)
    if offset > MAX_EXTENSIONS:
        raise VolumeReadError(path, f"its header claims {offset:g} bytes before the voxels; it is damaged; {HINT}.")


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


def is_named_as_in_2023(path: Path) -> bool:
    """Whether a file of a case has a name of 2023 or later, such as ``<case>-t1c.nii.gz``."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    return stem.rpartition("-")[2] in NAMES_2023.values()


def read_label(path: Path) -> Tensor:
    """A label file as uint8 (D, H, W) with the labels of 2018: 0, 1, 2 and 4.

    Raises:
        VolumeReadError: the file cannot be read, or holds another label than those of its convention.
    """
    label = _load(path, lambda image: np.asarray(image.dataobj))
    recent = is_named_as_in_2023(path)
    known = range(len(LABELS_2023)) if recent else LABELS
    if unknown := sorted(set(np.unique(label).tolist()) - set(known)):
        years = "since 2023" if recent else "of 2018 to 2021"
        raise VolumeReadError(
            path, f"it holds the label {unknown[0]:g}; those of BraTS {years} are {', '.join(map(str, known))}."
        )
    label = label.astype(np.uint8)
    if recent:
        label = np.array(LABELS_2023, np.uint8)[label]
    return torch.from_numpy(label.transpose(2, 1, 0).copy())


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
    """Write labels (D, H, W) as a NIfTI file with the shape, affine, space and convention of the file ``like``.

    Raises:
        FileExistsError: ``out`` exists and ``overwrite`` is False; it is left as it is.
    """
    if out.exists() and not overwrite:
        raise FileExistsError(f"{out} exists; give another folder, or --force to overwrite it")
    affine, header = _load(like, lambda image: (image.affine, image.header.copy()))
    header.set_data_dtype(np.uint8)
    if is_named_as_in_2023(like):
        label = torch.where(label == 4, 3, label).to(torch.uint8)
    nib.save(nib.Nifti1Image(label.cpu().numpy().transpose(2, 1, 0), affine, header), out)


def voxel_spacing(path: Path) -> tuple[float, float, float]:
    """The size of a voxel of a NIfTI file in mm, between slices, rows and columns as :func:`load_volume` has them."""
    x, y, z = _load(path, lambda image: np.linalg.norm(image.affine[:3, :3], axis=0).tolist())
    return z, y, x
