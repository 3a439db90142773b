"""Persons with keypoints, top-down: crops of one person and their heatmaps, and the Lightning data module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Generator
from torch.utils.data import Dataset

from common.datamodules.base import BaseDataModule
from common.datamodules.coco import (
    KeypointAnnotations,
    Person,
    annotated_persons,
    check_images,
    detected_persons,
    read_annotations,
)
from common.datamodules.datasets import with_dataset
from common.datamodules.errors import DatasetError, ImageReadError
from common.datamodules.image_dataset import open_image
from common.datamodules.loading import sample_generator
from common.datamodules.pose_geometry import KeypointSpec, PersonCrop, draw_heatmaps
from common.datamodules.spec import IMAGENET_MEAN, IMAGENET_STD, check_range


@dataclass(frozen=True)
class PoseAugmentation:
    """Random changes of a training crop, all uniform; see `KeypointDataModule`."""

    scale: float
    rotation: float
    flip: bool
    seed: int

    def __post_init__(self) -> None:
        check_range(0, 1, scale=self.scale)
        check_range(0, 181, rotation=self.rotation)

    def draw(self, generator: Generator) -> tuple[float, float, bool]:
        """Factor on the box, degrees, whether to mirror."""
        # All are drawn always, so that one option does not change the effect of another.
        size, turn, mirror = torch.rand(3, generator=generator).tolist()
        factor, angle = 1 + (2 * size - 1) * self.scale, (2 * turn - 1) * self.rotation
        return factor, angle, self.flip and mirror < 0.5


class PersonDataset(Dataset):
    """Persons by index. In training the key of a sample is (epoch, index); a plain index means epoch 0.

    A sample is a dict: ``image`` (3, height, width) float32, ``person_index``; if the keypoints are known, ``heatmap``
    (J, height / 4, width / 4) and ``weight`` (J,), see :func:`~common.datamodules.pose_geometry.draw_heatmaps`; without
    an augmentation also ``centre`` and ``size`` (2,) of the padded box in the image, x before y, float32, and ``path``
    (the name).
    """

    def __init__(
        self,
        persons: Sequence[Person],
        spec: KeypointSpec,
        sigma: float,
        augmentation: PoseAugmentation | None = None,
        annotations: KeypointAnnotations | None = None,
    ) -> None:
        self.items = list(persons)
        self.spec, self.sigma, self.augmentation, self.annotations = spec, sigma, augmentation, annotations

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        person, spec = self.items[index], self.spec
        try:
            image = open_image(person.path)
        except ImageReadError as error:
            raise ImageReadError(error.path, f"{error.reason} (person {index}, {person.where})") from error
        changes: tuple[float, float, bool] = (1.0, 0.0, False)
        if self.augmentation is not None:
            changes = self.augmentation.draw(sample_generator(self.augmentation.seed, epoch, index))
        crop = PersonCrop.around(person.box, spec, *changes)
        sample: dict[str, Any] = {"image": crop.cut(image), "person_index": index}
        if self.augmentation is None:
            sample["centre"], sample["size"] = torch.tensor(crop.centre).float(), torch.tensor(crop.size).float()
            sample["path"] = person.name
        if person.keypoints is not None:
            keypoints = person.keypoints
            if crop.mirror:
                keypoints = keypoints[spec.mirrored(len(keypoints))]
            points = crop.to_crop(keypoints[:, :2])
            sample["heatmap"], sample["weight"] = draw_heatmaps(points, keypoints[:, 2] > 0, spec, self.sigma)
        return sample


class KeypointDataModule(BaseDataModule):
    """Persons from COCO's official files, cropped one by one (top-down).

    A batch holds what :class:`PersonDataset` says. Training and validation use the true boxes, and so does testing
    unless ``detections`` names a file. Crowds and persons without a labelled keypoint are left out; they stay in the
    annotations that the results are scored against.

    Args:
        root: folder that the files and folders below are relative to.
        dataset: a known dataset, ``coco`` or ``figures``, whose entry in ``common/datamodules/datasets.yaml`` gives
            what is not given here: root, files and folders. None: your own files, under COCO's names.
        train_annotations, val_annotations: annotation files.
        train_images, val_images: folders of their images.
        test_annotations, test_images: those to test on; None: those of validation.
        detections: file of detected persons in the test images, in COCO's results format; None: the true boxes.
        detection_threshold: detections with a score above this are used.
        category: name of the category.
        height, width: of the crop in pixels, multiples of 4.
        sigma: of the Gaussians in pixels of the heatmap; None: ``height`` / 128, so 2 for 256 and 3 for 384.
        scale: training boxes are enlarged or reduced by at most this fraction.
        rotation: largest rotation of a training crop in degrees to either side.
        flip: mirror half of the training crops, with left and right keypoints swapped.
        mean, std: normalisation per colour on the scale 0..1.
        **loading: see :class:`~common.datamodules.base.BaseDataModule`.
    """

    kind = "person"
    demo = "figures"

    def __init__(
        self,
        root: str | None = None,
        dataset: str | None = None,
        train_annotations: str | None = None,
        val_annotations: str | None = None,
        train_images: str | None = None,
        val_images: str | None = None,
        test_annotations: str | None = None,
        test_images: str | None = None,
        detections: str | None = None,
        detection_threshold: float = 0.0,
        category: str = "person",
        height: int = 256,
        width: int = 192,
        sigma: float | None = None,
        scale: float = 0.3,
        rotation: float = 40.0,
        flip: bool = True,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        card = with_dataset(
            "coco" if dataset is None and root else dataset,
            "keypoints",
            root=root,
            train_annotations=train_annotations,
            val_annotations=val_annotations,
            test_annotations=test_annotations,
            train_images=train_images,
            val_images=val_images,
            test_images=test_images,
        )
        if sigma is not None and sigma <= 0:
            raise ValueError(f"sigma is {sigma}; it must be above 0.")
        if (card["test_annotations"] is None) != (card["test_images"] is None):
            raise ValueError("give test_annotations and test_images together, or neither.")
        self._size = KeypointSpec(height, width, mean, std)
        self.dataset, self.root, self.category = dataset, Path(card["root"]), category
        self.files = {
            "train": (card["train_annotations"], card["train_images"]),
            "val": (card["val_annotations"], card["val_images"]),
            "test": (card["test_annotations"], card["test_images"]),
        }
        if card["test_annotations"] is None:
            self.files["test"] = self.files["val"]
        self.detections, self.detection_threshold = detections, detection_threshold
        self.sigma = height / 128 if sigma is None else sigma
        self.augmentation = PoseAugmentation(scale, rotation, flip, self.seed)
        self._read: dict[str, KeypointAnnotations] = {}

    @property
    def output_names(self) -> list[str]:
        """Names of the keypoints in their order."""
        return list(self._any().keypoint_names)

    def facts(self) -> dict[str, Any]:
        """The number of keypoints, and height and width of a crop."""
        return {"num_joints": len(self.output_names), "input_size": (self._size.height, self._size.width)}

    @cached_property
    def spec(self) -> KeypointSpec:
        """Size, normalisation, left-right pairs and skeleton."""
        annotations = self._any()
        return replace(self._size, left_right=annotations.left_right, skeleton=annotations.skeleton)

    @cached_property
    def manifest_hash(self) -> str:
        """SHA-256 of the annotation files, and of the detections."""
        digest = hashlib.sha256()
        files = [annotations for annotations, _ in self.files.values()]
        for file in dict.fromkeys(files + ([self.detections] if self.detections else [])):
            path = self.root / file
            if path.is_file():
                digest.update(file.encode() + path.read_bytes())
        return digest.hexdigest()

    # -- parts ------------------------------------------------------------------------------------------------------

    def _annotations(self, file: str) -> KeypointAnnotations:
        self._check_root()
        if file not in self._read:
            self._read[file] = read_annotations(self.root / file, self.category)
        return self._read[file]

    def _any(self) -> KeypointAnnotations:
        """Annotations that name the keypoints: some that were read already, or those of the validation."""
        named = (annotations for annotations in self._read.values() if annotations.keypoint_names)
        return next(named, None) or self._annotations(self.files["val"][0])

    def _splits(self) -> Sequence[str]:
        return tuple(self.files)

    def _train_dataset(self) -> PersonDataset:
        file = self.files["train"][0]
        persons, annotations = self._persons("train")
        scored = {self.files[split][0] for split in ("val", "test", self.test_split or "test")}
        if file not in scored:
            self._read[file] = replace(annotations, content={})  # frees the masks, which every worker would copy
        return PersonDataset(persons, self.spec, self.sigma, self.augmentation)

    def _eval_dataset(self, split: str, stage: str) -> PersonDataset:
        persons, annotations = self._persons(split)
        return PersonDataset(persons, self.spec, self.sigma, annotations=annotations)

    def _persons(self, split: str) -> tuple[list[Person], KeypointAnnotations]:
        """The persons of a split, whose images exist, and the annotations of their images."""
        file, images = self.files[split]
        annotations, folder = self._annotations(file), self.root / images
        if split == "test" and self.detections is not None:
            source = self.root / self.detections
            persons = detected_persons(source, annotations, folder, self.detection_threshold)
        else:
            source = annotations.path
            persons = annotated_persons(annotations, folder)
        if not persons:
            raise DatasetError(f"{source}: no person with a box and keypoints in the {split} images.")
        check_images(persons, folder)
        return persons, annotations
