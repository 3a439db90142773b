"""The Lightning data module for image classification."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from common.datamodules.base import LabelledDataModule
from common.datamodules.datasets import with_dataset
from common.datamodules.errors import DatasetError
from common.datamodules.folders import find_files, read_class_folders
from common.datamodules.image_archives import ImageArchive, read_cifar, read_fashion_mnist
from common.datamodules.image_dataset import (
    ImageAugmentation,
    ImageDataset,
    ImageSpec,
    class_members,
    colour_statistics,
    read_image,
)
from common.datamodules.loading import sample_generator
from common.datamodules.manifest import Item, Manifest
from common.datamodules.spec import check_range

#: readers of the datasets that come as archives
ARCHIVES: dict[str, Callable[[Path], ImageArchive]] = {
    "cifar10": partial(read_cifar, dataset="cifar10"),
    "cifar100": partial(read_cifar, dataset="cifar100"),
    "fashion-mnist": read_fashion_mnist,
}


class ImageDataModule(LabelledDataModule):
    """Images with one label each: CIFAR-10, CIFAR-100, Fashion-MNIST, or a folder with one sub-folder per class.

    A batch is a dict: ``image`` float32 (B, 3, H, W), ``label`` int64 (B,), ``image_index`` int64 (B,) and ``path``
    (list of str). Grey images are repeated in the three colours. ``label`` is -1 if it is not known (prediction).

    Args:
        root: folder of the data.
        dataset: a known dataset, whose entry in ``common/datamodules/datasets.yaml`` gives what is not given here:
            ``cifar10`` and ``cifar100`` (archive or unpacked folder of the binary or the Python version),
            ``fashion-mnist`` (idx files), or ``digits``. None: your own jpg and png files in one folder per class,
            below ``train/``, ``val/`` and ``test/`` if those exist; otherwise one image in five is held out.
        image_size: side in pixels that images are resized to; None: as stored, all of one size.
        horizontal_flip: mirror half of the training images (default False).
        shift: largest shift of a training image along each axis, as a fraction of the side.
        rotation: largest rotation of a training image in degrees.
        mean, std: normalisation per colour on the scale 0..1; None: those of the training images, which are computed
            for a folder and known for the others.
        train_per_class: number of training images per class, chosen by the seed; those of a smaller number are among
            those of a larger one. None: all.
        val_per_class: number of training images per class, the last ones, that are held out for validation, for
            datasets without validation images of their own.
        cache_decoded: keep the decoded images of a folder in memory.
        **loading: see :class:`~common.datamodules.base.BaseDataModule`.
    """

    kind = "image"
    demo = "digits"

    def __init__(
        self,
        root: str | None = None,
        dataset: str | None = None,
        image_size: int | None = None,
        horizontal_flip: bool | None = None,
        shift: float = 0.0,
        rotation: float = 0.0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        train_per_class: int | None = None,
        val_per_class: int = 0,
        cache_decoded: bool = False,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        card = with_dataset(
            dataset, "image", root=root, horizontal_flip=horizontal_flip, mean=mean, std=std, counts=None
        )
        check_range(1, None, image_size=image_size, train_per_class=train_per_class)
        check_range(0, None, val_per_class=val_per_class)
        if (mean is None) != (std is None):
            raise ValueError("give mean and std together, or neither.")
        if dataset not in ARCHIVES and val_per_class:
            raise ValueError("val_per_class is for datasets without validation images; a folder has its own rule.")
        self.dataset, self.root, self.image_size = dataset, Path(card["root"]), image_size
        self.augmentation = ImageAugmentation(bool(card["horizontal_flip"]), shift, rotation, self.seed)
        self.train_per_class, self.val_per_class = train_per_class, val_per_class
        self.cache_decoded = cache_decoded
        self._colours = None if card["mean"] is None else (tuple(card["mean"]), tuple(card["std"]))
        self._published: dict[str, int] = card["counts"] or {}
        self._parts: dict[str, tuple[list[Item], Tensor | None]] = {}

    @cached_property
    def spec(self) -> ImageSpec:
        """Size and normalisation. For a folder they are computed from its training images."""
        name = next(name for name in ("train", "val", "test") if name in self._splits())
        items, pixels = self._part(name)
        first = read_image(items[0].path) if pixels is None else pixels[0]
        height, width = (self.image_size,) * 2 if self.image_size else first.shape[-2:]
        if self._colours is None and name != "train":
            raise DatasetError(f"{self.root} has no training images to compute mean and std from; give both.")
        mean, std = self._colours or ((0.0,) * 3, (1.0,) * 3)
        spec = ImageSpec(height, width, mean, std)
        if self._colours is None:
            mean, std = colour_statistics(self._images("train", spec))
            spec = replace(spec, mean=mean, std=std)
        return spec

    # -- parts ------------------------------------------------------------------------------------------------------

    @cached_property
    def _loaded(self) -> Manifest | ImageArchive:
        read = ARCHIVES.get(self.dataset or "")
        if read is None:
            self._check_root()
            return read_class_folders(self.root, kind="image")
        source = read(self.root)
        for split, expected in self._published.items():
            if (count := len(source.splits[split][1])) != expected:
                warnings.warn(f"{self.root}: {count} of {expected} {split} images of {self.dataset}.", stacklevel=2)
        return source

    def _splits(self) -> tuple[str, ...]:
        source = self._loaded
        if isinstance(source, Manifest):
            return source.splits()
        return ("train", "val", "test") if self.val_per_class else ("train", "test")

    def _part(self, split: str) -> tuple[list[Item], Tensor | None]:
        """Items of a split and, if they are in memory, their images."""
        if split not in self._parts:
            source = self._loaded
            if isinstance(source, Manifest):
                items, pixels = source.split(split).items(), None
                chosen = torch.arange(len(items))
            else:
                items, pixels, chosen = self._archived(source, split)
            if split == "train" and self.train_per_class is not None:
                chosen = self._fewer(chosen, items, self.train_per_class)
            items = [items[index] for index in chosen.tolist()]
            self._parts[split] = items, None if pixels is None else pixels[chosen]
        return self._parts[split]

    def _archived(self, source: ImageArchive, split: str) -> tuple[list[Item], Tensor, Tensor]:
        """Items and images of an archive, and the positions of those in the split."""
        if split not in self._splits():
            raise DatasetError(f"{self.dataset} has no images in split {split!r}; hold some out with val_per_class.")
        name = "test" if split == "test" else "train"
        pixels, labels = source.splits[name]
        items = [Item(f"{name}[{index}]", label, str(self.root)) for index, label in enumerate(labels.tolist())]
        if name == "test" or not self.val_per_class:
            return items, pixels, torch.arange(len(items))
        groups = class_members(labels, len(source.class_names))
        if (least := min(map(len, groups))) <= self.val_per_class:
            raise DatasetError(f"val_per_class is {self.val_per_class}; a class has only {least} training images.")
        side = slice(-self.val_per_class, None) if split == "val" else slice(-self.val_per_class)
        return items, pixels, torch.cat([group[side] for group in groups]).sort().values

    def _fewer(self, chosen: Tensor, items: Sequence[Item], number: int) -> Tensor:
        """This number of the chosen items of each class."""
        kept = []
        groups = class_members([items[index].label for index in chosen.tolist()], len(self.class_names))
        for label, group in enumerate(groups):
            if len(group) < number:
                raise DatasetError(
                    f"train_per_class is {number}; class {self.class_names[label]!r} has only {len(group)} training "
                    "images."
                )
            generator = sample_generator(self.seed, label, 0, 0)  # no training sample has a key of this length
            kept.append(group[torch.randperm(len(group), generator=generator)[:number]])
        return chosen[torch.cat(kept).sort().values]

    def _images(self, split: str, spec: ImageSpec) -> Tensor:
        """All images of a split, uint8 (N, 3, H, W); kept with ``cache_decoded``."""
        items, pixels = self._part(split)
        dataset = ImageDataset(items, spec, pixels, fixed_size=self.image_size is None)
        images = torch.stack([dataset.image(index) for index in range(len(items))])
        if self.cache_decoded:
            self._parts[split] = items, images
        return images

    def _train_dataset(self) -> ImageDataset:
        all_used = not self.val_per_class and self.train_per_class is None
        return self._dataset("train", self._published.get("train") if all_used else None, self.augmentation)

    def _eval_dataset(self, split: str, stage: str) -> ImageDataset:
        return self._dataset(split, self._published.get(split))

    def _dataset(self, split: str, expected: int | None, augmentation: ImageAugmentation | None = None) -> ImageDataset:
        spec = self.spec
        if self.cache_decoded and self._part(split)[1] is None:
            self._images(split, spec)
        items, pixels = self._part(split)
        return ImageDataset(items, spec, pixels, augmentation, self.image_size is None, expected)

    def _files_dataset(self, paths: Sequence[str]) -> ImageDataset:
        return ImageDataset([Item(str(path)) for path in find_files(paths, "image")], self.spec)
