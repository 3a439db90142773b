"""The Lightning data module for brain scans with tumour labels."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from monai.transforms import (
    Compose,
    RandCropByPosNegLabeld,
    RandFlipd,
    RandScaleIntensityd,
    RandShiftIntensityd,
    RandSpatialCropd,
    SpatialPadd,
)
from torch import Tensor
from torch.utils.data import Dataset

from common.datamodules.base import BaseDataModule
from common.datamodules.brats import (
    MODALITIES,
    REGIONS,
    Case,
    check_case,
    find_case,
    find_case_folders,
    is_named_as_in_2023,
    load_volume,
    plain_tensor,
    read_label,
    voxel_spacing,
)
from common.datamodules.datasets import with_dataset
from common.datamodules.errors import DatasetError
from common.datamodules.loading import sample_generator
from common.datamodules.manifest import SPLITS, read_csv
from common.datamodules.spec import InputSpec, check_range


@dataclass(frozen=True)
class VolumeSpec(InputSpec):
    """How a case becomes the network's input; see `VolumeDataModule`."""

    patch_size: tuple[int, int, int]
    modalities: tuple[str, ...] = MODALITIES
    overlap: float = 0.5

    def __post_init__(self) -> None:
        object.__setattr__(self, "modalities", tuple(self.modalities))
        if not self.modalities or len(set(self.modalities)) < len(self.modalities):
            raise ValueError(f"modalities is {self.modalities}; it must be one or more different names.")
        object.__setattr__(self, "patch_size", tuple(self.patch_size))
        if len(self.patch_size) != 3 or min(self.patch_size) < 1:
            raise ValueError(f"patch_size is {self.patch_size}; it must be three numbers of at least 1.")
        check_range(0, 1, overlap=self.overlap)
        self._check_memory()

    @property
    def input_shape(self) -> tuple[int, ...]:
        return 1, len(self.modalities), *self.patch_size


class VolumeDataset(Dataset):
    """Cases by index. A key (epoch, index) gives a training patch, a plain index the whole volume.

    Args:
        cases: with labels, unless for prediction.
        spec: how they are read.
        augment: makes a training patch of a dict with ``volume`` and ``label``; None: whole volumes.
        seed: of the patches.
        cache_decoded: keep normalised volumes in memory (per loader worker).
    """

    def __init__(
        self,
        cases: Sequence[Case],
        spec: VolumeSpec,
        augment: Compose | None = None,
        seed: int = 0,
        cache_decoded: bool = False,
    ) -> None:
        self.items = list(cases)
        self.spec, self.augment, self.seed = spec, augment, seed
        self.videos_expected = len(self.items)
        self._cache: dict[int, tuple[Tensor, Tensor]] | None = {} if cache_decoded else None

    def __len__(self) -> int:
        return len(self.items)

    def _read(self, index: int) -> tuple[Tensor, Tensor]:
        """Normalised images and labels; without a label file the labels are -1."""
        if self._cache is not None and index in self._cache:
            return self._cache[index]
        case = self.items[index]
        volume = load_volume(case)
        label = torch.full(volume.shape[1:], -1, dtype=torch.int16) if case.label is None else read_label(case.label)
        if self._cache is not None:
            self._cache[index] = volume, label
        return volume, label

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        volume, label = self._read(index)
        if isinstance(key, tuple) and self.augment is not None:
            # MONAI draws with numpy; the seed of a patch follows from (seed, epoch, case) alone.
            self.augment.set_random_state(int(torch.randint(2**31, (), generator=sample_generator(self.seed, *key))))
            patch = self.augment({"volume": volume, "label": label[None]})
            patch = patch[0] if isinstance(patch, list) else patch
            volume, label = plain_tensor(patch["volume"]).contiguous(), plain_tensor(patch["label"])[0].contiguous()
        item = {"volume": volume, "label": label, "volume_index": index, "path": self.items[index].name}
        if not isinstance(key, tuple):
            item["spacing"] = torch.tensor(voxel_spacing(self.items[index].images[0]))
        return item


class VolumeDataModule(BaseDataModule):
    """Brain scans of BraTS 2018: patches to train on, whole volumes to validate and test on.

    A batch is a dict: ``volume`` float32 (B, C, D, H, W), the axes being slices from the feet to the head, back to
    front and side to side; ``label`` uint8 (B, D, H, W) with the values 0, 1, 2 and 4; ``volume_index`` int64 (B,);
    ``path`` (list of str), the name of the case; and of whole volumes ``spacing`` float32 (B, 3), in mm. Each channel
    is normalised over its voxels that are not zero.

    The cases are found below ``root``, as in the official archive (``HGG/<case>/<case>_flair.nii.gz``, ...), and all
    their headers are compared before the first epoch. A broken, missing or misaligned file is an error that names it.

    Args:
        root: folder of the cases.
        dataset: a known dataset, ``brats2018`` or ``brain``, whose entry in ``common/datamodules/datasets.yaml`` gives
            the root if none is given.
        patch_size: depth, height and width of a training patch, which is also what the network sees at once when whole
            volumes are segmented; a smaller volume is padded with zeros.
        tumour_patches: fraction of the training patches whose centre lies in the tumour; 0: anywhere, uniformly.
        flip: probability of mirroring a training patch along each axis.
        intensity: a channel of a training patch is scaled by up to 1 +- this and shifted by up to this.
        val_fraction: fraction of the cases that is held out, chosen by ``split_seed``; 0.2 of 285 cases are 57.
        split_seed: seed of that choice, independent of the seed of the run.
        splits: CSV file with the columns case and split (train, val or test) instead; every case must be in it.
        modalities: channels, by the end of their files' names.
        overlap: of the patches that cover a volume, as a fraction of the side.
        batch_size: training patches per step and process.
        eval_batch_size: cases per evaluation batch; more than 1 needs volumes of one shape.
        cache_decoded: keep the volumes in memory.
        **loading: see :class:`~common.datamodules.base.BaseDataModule`.
    """

    kind = "volume"
    demo = "brain"

    def __init__(
        self,
        root: str | None = None,
        patch_size: tuple[int, int, int] = (128, 192, 160),
        dataset: str | None = None,
        tumour_patches: float = 0.0,
        flip: float = 0.5,
        intensity: float = 0.1,
        val_fraction: float = 0.2,
        split_seed: int = 0,
        splits: str | None = None,
        modalities: tuple[str, ...] = MODALITIES,
        overlap: float = 0.5,
        batch_size: int = 1,
        eval_batch_size: int = 1,
        cache_decoded: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, **loading)
        for name, value in (("tumour_patches", tumour_patches), ("flip", flip)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; it must lie between 0 and 1.")
        check_range(0, 1, intensity=intensity, val_fraction=val_fraction)
        self.dataset, self.splits_file = dataset, splits
        self.root = Path(with_dataset(dataset, "volumes", root=root)["root"])
        self.tumour_patches, self.flip, self.intensity = tumour_patches, flip, intensity
        self.val_fraction, self.split_seed = val_fraction, split_seed
        self.cache_decoded = cache_decoded
        self.spec: VolumeSpec = VolumeSpec(patch_size, modalities, overlap)

    @property
    def output_names(self) -> list[str]:
        """The regions that are segmented."""
        return list(REGIONS)

    def facts(self) -> dict[str, Any]:
        """The number of regions and of channels (modalities)."""
        return {"num_regions": len(REGIONS), "in_channels": len(self.spec.modalities)}

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of the names, splits, file sizes and shapes of the cases."""
        return self._loaded[1]

    # -- parts ------------------------------------------------------------------------------------------------------

    @cached_property
    def _loaded(self) -> tuple[dict[str, list[Case]], str]:
        """The cases by split, and the hash of the data."""
        self._check_root()
        folders = find_case_folders([self.root])
        cases = [find_case(folder, self.spec.modalities, labelled=True) for folder in folders]
        cases.sort(key=lambda case: case.name)
        for one, other in pairwise(cases):
            if one.name == other.name:
                raise DatasetError(f"the case {one.name} exists twice: {one.folder} and {other.folder}.")
        shapes = [check_case(case) for case in cases]
        recent = sum(is_named_as_in_2023(case.images[0]) for case in cases)
        if recent:
            rank_zero_info(
                f"{recent} of {len(cases)} cases are named as in BraTS 2023: the enhancing tumour has the label 3"
            )
        split = self._read_splits(cases) if self.splits_file else self._draw_splits(cases)
        by_split: dict[str, list[Case]] = {}
        digest = hashlib.sha256()
        for case, shape in zip(cases, shapes, strict=True):
            by_split.setdefault(split[case.name], []).append(case)
            sizes = [path.stat().st_size for path in (*case.images, case.label) if path is not None]
            digest.update(f"{case.name} {split[case.name]} {shape} {sizes}\n".encode())
        return by_split, digest.hexdigest()

    def _draw_splits(self, cases: Sequence[Case]) -> dict[str, str]:
        order = torch.randperm(len(cases), generator=sample_generator(self.split_seed)).tolist()
        held_out = set(order[: round(self.val_fraction * len(cases))])
        return {case.name: "val" if k in held_out else "train" for k, case in enumerate(cases)}

    def _read_splits(self, cases: Sequence[Case]) -> dict[str, str]:
        path = Path(str(self.splits_file))
        header, rows = read_csv(path, ("case", "split"))
        split: dict[str, str] = {}
        for line, fields in rows:
            row = {"case": "", "split": ""} | dict(zip(header, fields, strict=False))
            if row["split"] not in SPLITS:
                raise DatasetError(f"{path}:{line}: the split is {row['split']!r}; it must be {', '.join(SPLITS)}.")
            if row["case"] in split:
                raise DatasetError(f"{path}:{line}: the case {row['case']} is listed twice.")
            split[row["case"]] = row["split"]
        names = {case.name for case in cases}
        if missing := sorted(names - set(split)):
            raise DatasetError(f"{path}: {len(missing)} cases of {self.root} are not in it, the first is {missing[0]}.")
        if unknown := sorted(set(split) - names):
            raise DatasetError(f"{path}: {len(unknown)} cases are not in {self.root}, the first is {unknown[0]}.")
        return split

    def _augmentation(self) -> Compose:
        both, size, inside = ["volume", "label"], self.spec.patch_size, self.tumour_patches
        steps: list[Any] = [SpatialPadd(both, size)]
        if inside:
            steps.append(RandCropByPosNegLabeld(both, "label", size, pos=inside, neg=1 - inside, num_samples=1))
        else:
            steps.append(RandSpatialCropd(both, size, random_size=False))
        if self.flip:
            steps += [RandFlipd(both, self.flip, axis) for axis in range(3)]
        if self.intensity:
            steps.append(RandScaleIntensityd("volume", self.intensity, prob=1.0, channel_wise=True))
            steps.append(RandShiftIntensityd("volume", self.intensity, prob=1.0, channel_wise=True))
        return Compose(steps)

    def _splits(self) -> Sequence[str]:
        return tuple(self._loaded[0])

    def _train_dataset(self) -> VolumeDataset:
        return self._dataset("train", self._augmentation())

    def _eval_dataset(self, split: str, stage: str) -> VolumeDataset:
        return self._dataset(split)

    def _dataset(self, split: str, augment: Compose | None = None) -> VolumeDataset:
        cases = self._loaded[0].get(split, [])
        if not cases:
            raise DatasetError(f"{self.root} has no {split} cases; see val_fraction and splits.")
        return VolumeDataset(cases, self.spec, augment, self.seed, self.cache_decoded)

    def _files_dataset(self, paths: Sequence[str]) -> VolumeDataset:
        return VolumeDataset([find_case(path, self.spec.modalities) for path in find_case_folders(paths)], self.spec)
