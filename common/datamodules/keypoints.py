"""Persons with keypoints, top-down: crops of one person and their heatmaps, and the Lightning data module."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Generator
from torch.utils.data import Dataset

from common.datamodules.coco import (
    KeypointAnnotations,
    Person,
    annotated_persons,
    check_images,
    detected_persons,
    read_annotations,
)
from common.datamodules.datasets import with_dataset
from common.datamodules.image import open_image
from common.datamodules.loading import LoadingDataModule
from common.datamodules.manifest import ManifestError
from common.datamodules.pose_geometry import KeypointSpec, PersonCrop, draw_heatmaps
from common.datamodules.readers import ImageReadError
from common.datamodules.sampling import sample_generator
from common.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD


@dataclass(frozen=True)
class PoseAugmentation:
    """Random changes of a training crop; ``seed`` is that of the run.

    Attributes:
        scale: the box is made larger or smaller by at most this fraction; uniform.
        rotation: largest turn in degrees to either side; uniform.
        flip: mirror half of the persons.
    """

    scale: float
    rotation: float
    flip: bool
    seed: int

    def draw(self, generator: Generator) -> tuple[float, float, bool]:
        """Factor on the box, degrees, whether to mirror."""
        # All are drawn always: one option does not change what another one does.
        size, turn, mirror = torch.rand(3, generator=generator).tolist()
        factor, angle = 1 + (2 * size - 1) * self.scale, (2 * turn - 1) * self.rotation
        return factor, angle, self.flip and mirror < 0.5


class PersonDataset(Dataset):
    """Persons by index. In training the key of a sample is (epoch, index); a plain index means epoch 0.

    A sample is a dict: ``image`` (3, height, width) float32, ``person_index``; where the keypoints are known
    ``heatmap`` (J, height / 4, width / 4) and ``weight`` (J,), see :func:`draw_heatmaps`; without an augmentation also
    ``centre`` and ``size`` (2,) of the padded box in the picture, x before y, float32, and ``path`` (the name).
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


class KeypointDataModule(LoadingDataModule):
    """Persons from COCO's official files, cropped one by one (top-down).

    A batch holds what :class:`PersonDataset` says. Paths of the files are relative to ``root``. Training and validation
    take the true boxes, testing too unless ``detections`` names a file. Crowds and persons without a labelled keypoint
    are not looked at; they stay in the annotations that the results are scored against.

    The trainer must be made with ``use_distributed_sampler=False``; the samplers share the persons out themselves.

    Args:
        root: folder that these lie in.
        dataset: a known dataset, ``coco`` or ``figures``, whose entry in ``common/datamodules/datasets.yaml`` gives
            what is not given here: root, files and folders. None: your own files, under COCO's names.
        train_annotations, val_annotations: annotation files.
        train_images, val_images: folders of their images.
        test_annotations, test_images: those to test on; None: those of validation.
        detections: file of detected persons in the test images, in COCO's results format; None: the true boxes.
        detection_threshold: detections with a score above this are looked at.
        category: name of the category.
        height, width: of the crop in pixels, multiples of 4.
        sigma: of the Gaussians in pixels of the heatmap; None: ``height`` / 128, so 2 for 256 and 3 for 384.
        scale: training boxes are made larger or smaller by at most this fraction.
        rotation: largest turn of a training crop in degrees to either side.
        flip: mirror half of the training crops, with the left and right keypoints swapped.
        mean, std: normalisation per colour on the scale 0..1.
        batch_size: training persons per step and process.
        eval_batch_size: persons per evaluation batch; None: ``batch_size``.
        num_workers: loader processes.
        seed: of the order and the augmentation; None: that of `seed_everything`, 0 without one.
        drop_last: leave out a last training step that is not full.

    Raises:
        ValueError: in the constructor, for values out of range.
        ManifestError: in :meth:`setup`, for files that are missing or wrong; the message names file and entry.
    """

    kind = "person"

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
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        seed: int | None = None,
        drop_last: bool = False,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, drop_last)
        files = {
            "train_annotations": train_annotations,
            "val_annotations": val_annotations,
            "test_annotations": test_annotations,
            "train_images": train_images,
            "val_images": val_images,
            "test_images": test_images,
        }
        known = with_dataset(dataset, "keypoints", root=root, **files)
        if dataset is None:
            known = with_dataset("coco", "keypoints", root=root, **files)
        test_annotations, test_images = known["test_annotations"], known["test_images"]
        if not 0 <= scale < 1:
            raise ValueError(f"scale is {scale}; it is a fraction, at least 0 and below 1.")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation is {rotation}; it is in degrees, from 0 to 180.")
        if sigma is not None and sigma <= 0:
            raise ValueError(f"sigma is {sigma}; it must be above 0.")
        if (test_annotations is None) != (test_images is None):
            raise ValueError("give test_annotations and test_images together, or neither.")
        self._size = KeypointSpec(height, width, mean, std)
        self.root, self.category = Path(known["root"]), category
        self.files = {
            "train": (known["train_annotations"], known["train_images"]),
            "val": (known["val_annotations"], known["val_images"]),
            "test": (test_annotations or known["val_annotations"], test_images or known["val_images"]),
        }
        self.detections, self.detection_threshold = detections, detection_threshold
        self.sigma = height / 128 if sigma is None else sigma
        self.augmentation = PoseAugmentation(scale, rotation, flip, self.seed)
        self._read: dict[str, KeypointAnnotations] = {}
        self._hash: str | None = None

    # -- facts after setup ------------------------------------------------------------------------------------------

    @property
    def output_names(self) -> list[str]:  # type: ignore[override]
        """Names of the keypoints in their order."""
        return list(self._any().keypoint_names)

    def facts(self) -> dict[str, Any]:
        """What a module takes from the data: the number of keypoints, and height and width of a crop."""
        return {"num_joints": len(self.output_names), "input_size": (self._size.height, self._size.width)}

    @property
    def spec(self) -> KeypointSpec:
        """How a box becomes the network's input, as ``keypoint_spec``."""
        return self.keypoint_spec

    @property
    def keypoint_spec(self) -> KeypointSpec:
        """Size, normalisation, left-right pairs and skeleton."""
        known, size = self._any(), self._size
        return KeypointSpec(size.height, size.width, size.mean, size.std, known.left_right, known.skeleton)

    @property
    def manifest_hash(self) -> str:  # type: ignore[override]
        """SHA-256 of the annotation files, and of the detections."""
        if self._hash is None:
            digest = hashlib.sha256()
            files = [annotations for annotations, _ in self.files.values()]
            for file in dict.fromkeys(files + ([self.detections] if self.detections else [])):
                path = self.root / file
                if path.is_file():
                    digest.update(file.encode() + path.read_bytes())
            self._hash = digest.hexdigest()
        return self._hash

    # -- Lightning --------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the files and make the datasets of the stage (fit, validate, test, predict; None: all).

        Raises:
            ManifestError: no root, missing or wrong files, images that are not there, no persons for the stage.
        """
        if stage in (None, "fit") and self.train_dataset is None:
            self.train_dataset = self._make("train", self.augmentation)
        if stage in (None, "fit", "validate") and self.val_dataset is None:
            self.val_dataset = self._make("val")
        if stage in (None, "test") and self.test_dataset is None:
            self.test_dataset = self._make("test")
        if stage == "predict" and self.predict_dataset is None:
            self.predict_dataset = self._make("test")

    # -- parts ------------------------------------------------------------------------------------------------------

    def _annotations(self, file: str) -> KeypointAnnotations:
        if not self.root.is_dir():
            raise ManifestError(
                f"the data root {self.root} does not exist (resolved: {self.root.resolve()}): set `root` to the "
                "folder with COCO's images and annotations, or make a demo data set with: "
                f"python -m data.demo figures --out {self.root}"
            )
        if file not in self._read:
            self._read[file] = read_annotations(self.root / file, self.category)
        return self._read[file]

    def _any(self) -> KeypointAnnotations:
        """Annotations that tell the names: some that were read already, or those of the validation."""
        named = (annotations for annotations in self._read.values() if annotations.keypoint_names)
        return next(named, None) or self._annotations(self.files["val"][0])

    def _make(self, split: str, augmentation: PoseAugmentation | None = None) -> PersonDataset:
        file, images = self.files[split]
        annotations, folder = self._annotations(file), self.root / images
        if split == "test" and self.detections is not None:
            source = self.root / self.detections
            persons = detected_persons(source, annotations, folder, self.detection_threshold)
        else:
            source = annotations.path
            persons = annotated_persons(annotations, folder)
        if not persons:
            raise ManifestError(f"{source}: no person to look at in the {split} images.")
        check_images(persons, folder)
        if split == "train":
            if file not in (self.files["val"][0], self.files["test"][0]):
                self._read[file] = replace(annotations, content={})  # masks, which every worker would copy
            return PersonDataset(persons, self.keypoint_spec, self.sigma, augmentation)
        return PersonDataset(persons, self.keypoint_spec, self.sigma, augmentation, annotations)
