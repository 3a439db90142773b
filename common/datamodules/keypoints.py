"""Persons with keypoints, top-down: COCO's annotation files and images to crops of one person and their heatmaps.

A pixel with index (x, y) lies at the coordinate (x, y), in a picture, in a crop and in a heatmap; a heatmap is the crop
at a quarter of its size: the coordinate of a keypoint is divided by 4. This is the convention of SimpleBaseline
(Xiao et al., ECCV 2018), whose published weights it keeps valid.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset

from common.datamodules.clip_spec import Spec
from common.datamodules.datasets import with_dataset
from common.datamodules.image import open_image
from common.datamodules.loading import LoadingDataModule
from common.datamodules.readers import ImageReadError
from common.datamodules.sampling import sample_generator
from common.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, normalise

STRIDE = 4  # pixels of a crop for one of a heatmap
PADDING = 1.25  # of a person's box, before it is cropped
MAX_REPORTED = 5
Array = NDArray[np.float64]


class KeypointError(ValueError):
    """An annotation or detection file cannot be used; the message names the file, the entry and the remedy."""


@dataclass(frozen=True)
class KeypointSpec(Spec):
    """How a person's box becomes the network's input. It is stored in a checkpoint, so that the checkpoint can predict.

    Attributes:
        height, width: of the crop in pixels, multiples of 4; the box is widened to their ratio.
        mean, std: per colour, on the scale 0..1.
        left_right: pairs of keypoints that change places in a mirror.
        skeleton: pairs of keypoints that a line joins in a drawing.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    left_right: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()
    num_views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < STRIDE or value % STRIDE:
                raise ValueError(f"{name} is {value}; it must be a positive multiple of {STRIDE}.")
        self._check_colours()
        for name in ("left_right", "skeleton"):
            object.__setattr__(self, name, tuple((int(a), int(b)) for a, b in getattr(self, name)))

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one crop with its batch axis."""
        return 1, 3, self.height, self.width

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """Height and width of a heatmap."""
        return self.height // STRIDE, self.width // STRIDE

    def mirrored(self, joints: int) -> list[int]:
        """For every keypoint the one that takes its place in a mirror."""
        order = list(range(joints))
        for left, right in self.left_right:
            order[left], order[right] = right, left
        return order


# -- geometry ---------------------------------------------------------------------------------------------------------


def fit_box(box: Sequence[float] | Array, spec: KeypointSpec, padding: float = PADDING) -> tuple[Array, Array]:
    """Widen a box to the ratio of the crop and pad it.

    Args:
        box: x and y of the corner, width and height, in pixels of the picture.

    Returns:
        ``centre`` (2,) and ``size`` (2,), x before y, in pixels of the picture.
    """
    x, y, width, height = (float(value) for value in box)
    ratio = spec.width / spec.height
    size = np.array([max(width, height * ratio), max(height, width / ratio)])
    return np.array([x + width / 2, y + height / 2]), padding * size


def crop_matrix(centre: Array, size: Array, spec: KeypointSpec, rotation: float = 0.0, mirror: bool = False) -> Array:
    """Affine map (2, 3) from coordinates of the picture to those of the crop.

    The box's centre goes to (width / 2, height / 2) of the crop; then the box is turned by ``rotation`` degrees
    (clockwise as seen) and scaled to the crop; ``mirror`` swaps left and right before.
    """
    scale = spec.width / size[0]
    cos, sin = scale * math.cos(math.radians(rotation)), scale * math.sin(math.radians(rotation))
    linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if mirror else 1.0, 1.0])
    return np.column_stack([linear, np.array([spec.width / 2, spec.height / 2]) - linear @ centre])


def inverse_matrix(matrix: Array) -> Array:
    """The affine map (2, 3) that undoes one."""
    linear = np.linalg.inv(matrix[:, :2])
    return np.column_stack([linear, -linear @ matrix[:, 2]])


def move_points(points: Array, matrix: Array) -> Array:
    """Points (..., 2) through an affine map (2, 3)."""
    return points @ matrix[:, :2].T + matrix[:, 2]


def crop_person(picture: Image.Image, matrix: Array, spec: KeypointSpec) -> Tensor:
    """The crop of a picture as the network takes it, (3, height, width) float32; black beyond the picture."""
    (a, b, c), (d, e, f) = inverse_matrix(matrix)
    # Pillow counts from the corner of a pixel, not from its middle
    data = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
    size = (spec.width, spec.height)
    crop = picture.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
    pixels = torch.from_numpy(np.array(crop)).permute(2, 0, 1)
    return normalise(pixels[None], spec.mean, spec.std)[:, 0]


def draw_heatmaps(points: Array, visible: NDArray[np.bool_], spec: KeypointSpec, sigma: float) -> tuple[Tensor, Tensor]:
    """Targets of the network: a Gaussian of height 1 about each keypoint, cut off at three sigma.

    The middle is the pixel next to the keypoint, as in SimpleBaseline.

    Args:
        points: (J, 2) in the crop.
        visible: (J,), whether the keypoint is known.
        sigma: in pixels of the heatmap.

    Returns:
        Heatmaps (J, height / 4, width / 4) float32 and weights (J,) float32: 0 where the keypoint is not known or its
        Gaussian lies beyond the heatmap.
    """
    height, width = spec.heatmap_size
    middle = np.floor(points / STRIDE + 0.5)
    reach = int(3 * sigma)
    inside = ((middle >= -reach) & (middle < np.array([width, height]) + reach)).all(axis=1)
    weights = visible & inside

    def profile(size: int, centres: Array) -> Array:
        distance = np.arange(size) - centres[:, None]
        return np.exp(-(distance**2) / (2 * sigma**2)) * (np.abs(distance) <= reach)

    maps = profile(height, middle[:, 1])[:, :, None] * profile(width, middle[:, 0])[:, None]
    maps[~weights] = 0
    return torch.from_numpy(maps.astype(np.float32)), torch.from_numpy(weights.astype(np.float32))


# -- files ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Person:
    """One box to look at.

    Attributes:
        path: image file.
        name: the file's name and the annotation or detection, for messages and predictions.
        image_id: of the annotation file.
        box: (4,) x, y, width, height within the picture.
        score: of the detection; 1 for ground truth.
        keypoints: (J, 3) x, y and COCO's flag (0 not labelled, 1 hidden, 2 visible); None for a detection.
        where: file and entry that it is listed in.
    """

    path: str
    name: str
    image_id: int
    box: Array
    score: float
    keypoints: Array | None
    where: str


@dataclass(frozen=True)
class KeypointAnnotations:
    """A checked annotation file.

    Attributes:
        path: the file.
        content: what it holds, in COCO's format, with the annotations of the category only.
        category_id: of the category.
        keypoint_names: in the order of the annotations.
        skeleton: pairs of keypoints, counted from 0.
    """

    path: Path
    content: dict[str, Any]
    category_id: int
    keypoint_names: tuple[str, ...]
    skeleton: tuple[tuple[int, int], ...]

    @property
    def left_right(self) -> tuple[tuple[int, int], ...]:
        """Pairs of keypoints whose names begin with ``left_`` and ``right_``.

        Raises:
            KeypointError: one of a pair is missing.
        """
        place = {name: k for k, name in enumerate(self.keypoint_names)}
        pairs = []
        for name, k in place.items():
            side, _, rest = name.partition("_")
            if side in ("left", "right"):
                other = f"{'right' if side == 'left' else 'left'}_{rest}"
                if other not in place:
                    raise KeypointError(f"{self.path}: keypoint {name!r} has no counterpart {other!r}.")
                if side == "left":
                    pairs.append((k, place[other]))
        return tuple(pairs)


def read_annotations(path: str | Path, category: str = "person") -> KeypointAnnotations:
    """Read a file in the format of COCO's ``person_keypoints_*.json`` (or, without annotations, ``image_info_*.json``).

    Raises:
        KeypointError: the file is missing, is not of this format, or one of its annotations is malformed; the message
            names the annotation's id.
    """
    path = Path(path)
    content = _read_json(path)
    if not isinstance(content, dict) or not all(isinstance(content.get(key), list) for key in ("images", "categories")):
        raise KeypointError(f"{path}: not an annotation file of COCO: it has no lists images and categories.")
    found = [c for c in content["categories"] if isinstance(c, dict) and c.get("name") == category]
    if not found or not isinstance(found[0].get("keypoints", []), list) or not isinstance(found[0].get("id"), int):
        raise KeypointError(f"{path}: no category {category!r} among its categories.")
    names = tuple(str(name) for name in found[0].get("keypoints", []))
    if not names and content.get("annotations"):
        raise KeypointError(
            f"{path}: category {category!r} has no keypoint names; take the file person_keypoints_*.json."
        )
    skeleton = []
    for bone in found[0].get("skeleton", []):
        if not (isinstance(bone, list) and len(bone) == 2 and all(1 <= joint <= len(names) for joint in bone)):
            raise KeypointError(f"{path}: {bone} in the skeleton is no pair of keypoints from 1 to {len(names)}.")
        skeleton.append((bone[0] - 1, bone[1] - 1))
    images = {}
    for number, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int):
            raise KeypointError(f"{path}: entry {number} of images has no integer id.")
        for key, kind in (("file_name", str), ("width", int), ("height", int)):
            if not isinstance(image.get(key), kind):
                raise KeypointError(f"{path}: image {image['id']} has no {key}.")
        images[image["id"]] = image
    annotations = []
    for number, entry in enumerate(content.get("annotations", [])):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise KeypointError(f"{path}: entry {number} of annotations has no integer id.")
        if entry.get("category_id") == found[0]["id"]:
            if problem := _problem(entry, images, len(names)):
                raise KeypointError(f"{path}: annotation {entry['id']} {problem}.")
            annotations.append(entry)
    checked = {**content, "categories": found[:1], "annotations": annotations}
    return KeypointAnnotations(path, checked, found[0]["id"], names, tuple(skeleton))


def _read_json(path: Path) -> Any:
    try:
        with path.open(encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise KeypointError(f"{path} cannot be read ({error.strerror}); resolved: {path.resolve()}.") from error
    except ValueError as error:  # also of wrong encodings
        raise KeypointError(f"{path}: not a JSON file, or an incomplete one ({error}).") from error


def _numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and math.isfinite(v) for v in values)
    )


def _problem(entry: Mapping[str, Any], images: Mapping[int, Any], joints: int) -> str:
    """What is wrong with an annotation; empty if nothing."""
    if entry.get("image_id") not in images:
        return f"is of image {entry.get('image_id')}, which the file does not list"
    if not _numbers(entry.get("bbox"), 4):
        return f"has no bbox of four numbers, but {entry.get('bbox')}"
    if not _numbers(entry.get("keypoints"), 3 * joints):
        length = len(entry["keypoints"]) if isinstance(entry.get("keypoints"), list) else "no list"
        return f"has no keypoints of 3 x {joints} numbers, but {length}"
    if not set(entry["keypoints"][2::3]) <= {0, 1, 2}:
        return "has a visibility other than 0, 1 and 2"
    for key in ("area", "iscrowd", "num_keypoints"):
        if not _numbers([entry.get(key)], 1):
            return f"has no number {key}"
    return ""


def annotated_persons(annotations: KeypointAnnotations, folder: str | Path) -> list[Person]:
    """The persons that can be learned from or looked at with their true boxes: no crowds, with a keypoint and a box."""
    images = {image["id"]: image for image in annotations.content["images"]}
    persons = []
    for entry in annotations.content["annotations"]:
        keypoints = np.array(entry["keypoints"], dtype=np.float64).reshape(-1, 3)
        image = images[entry["image_id"]]
        box = _within(entry["bbox"], image)
        if entry["iscrowd"] or not (keypoints[:, 2] > 0).any() or box is None or entry["area"] <= 0:
            continue
        name = f"{image['file_name']}#{entry['id']}"
        where = f"annotation {entry['id']} of {annotations.path}"
        path = str(Path(folder) / image["file_name"])
        persons.append(Person(path, name, image["id"], box, 1.0, keypoints, where))
    return persons


def detected_persons(
    path: str | Path, annotations: KeypointAnnotations, folder: str | Path, threshold: float = 0.0
) -> list[Person]:
    """Boxes of a detection file in COCO's results format: a list of image_id, category_id, bbox and score.

    Detections of other categories, or with a score of ``threshold`` or less, are no persons to look at. Those in images
    that the annotation file does not list are left out with a warning that counts them.

    Raises:
        KeypointError: the file is missing or not of this format.
    """
    path = Path(path)
    content = _read_json(path)
    if not isinstance(content, list):
        raise KeypointError(f"{path}: not a file of detections in COCO's results format: it holds no list.")
    images = {image["id"]: image for image in annotations.content["images"]}
    persons, elsewhere = [], 0
    for number, entry in enumerate(content):
        if (
            not isinstance(entry, dict)
            or not _numbers([entry.get("image_id"), entry.get("category_id"), entry.get("score")], 3)
            or not _numbers(entry.get("bbox"), 4)
        ):
            raise KeypointError(f"{path}: entry {number} has not image_id, category_id, bbox (four numbers) and score.")
        if entry["category_id"] != annotations.category_id or entry["score"] <= threshold:
            continue
        image = images.get(entry["image_id"])
        if image is None:
            elsewhere += 1
            continue
        box = _within(entry["bbox"], image)
        if box is not None:
            name, file = f"{image['file_name']}#detection{number}", str(Path(folder) / image["file_name"])
            persons.append(
                Person(file, name, image["id"], box, float(entry["score"]), None, f"entry {number} of {path}")
            )
    if elsewhere:
        warnings.warn(
            f"{path}: {elsewhere} detections are of images that {annotations.path} does not list.", stacklevel=2
        )
    return persons


def _within(box: Sequence[float], image: Mapping[str, Any]) -> Array | None:
    """The part of a box within its image as SimpleBaseline cuts it; None if nothing is left."""
    x1, y1 = max(0.0, box[0]), max(0.0, box[1])
    x2 = min(image["width"] - 1.0, x1 + max(0.0, box[2] - 1))
    y2 = min(image["height"] - 1.0, y1 + max(0.0, box[3] - 1))
    return np.array([x1, y1, x2 - x1, y2 - y1]) if x2 > x1 and y2 > y1 else None


# -- datasets ---------------------------------------------------------------------------------------------------------


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
            picture = open_image(person.path)
        except ImageReadError as error:
            raise ImageReadError(error.path, f"{error.reason} (person {index}, {person.where})") from error
        centre, size = fit_box(person.box, spec)
        angle, mirror = 0.0, False
        if self.augmentation is not None:
            factor, angle, mirror = self.augmentation.draw(sample_generator(self.augmentation.seed, epoch, index))
            size = factor * size
        matrix = crop_matrix(centre, size, spec, angle, mirror)
        sample: dict[str, Any] = {"image": crop_person(picture, matrix, spec), "person_index": index}
        if self.augmentation is None:
            sample |= {name: torch.from_numpy(value).float() for name, value in (("centre", centre), ("size", size))}
            sample["path"] = person.name
        if person.keypoints is not None:
            keypoints = person.keypoints
            if mirror:
                keypoints = keypoints[spec.mirrored(len(keypoints))]
            points = move_points(keypoints[:, :2], matrix)
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
        KeypointError: in :meth:`setup`, for files that are missing or wrong; the message names file and entry.
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
            KeypointError: no root, missing or wrong files, images that are not there, no persons for the stage.
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
            raise KeypointError(
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
            raise KeypointError(f"{source}: no person to look at in the {split} images.")
        _check_images(persons, folder)
        if split == "train":
            if file not in (self.files["val"][0], self.files["test"][0]):
                self._read[file] = replace(annotations, content={})  # masks, which every worker would copy
            return PersonDataset(persons, self.keypoint_spec, self.sigma, augmentation)
        return PersonDataset(persons, self.keypoint_spec, self.sigma, augmentation, annotations)


def _check_images(persons: Sequence[Person], folder: Path) -> None:
    """Raise KeypointError if an image of the persons is not in its folder, before hours of training."""
    there = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    missing: dict[str, Person] = {}
    for person in persons:
        name = os.path.relpath(person.path, folder)
        if name not in there and not (os.sep in name and Path(person.path).is_file()):
            missing.setdefault(person.path, person)
    if missing:
        shown = "\n".join(f"  {path} ({person.where})" for path, person in list(missing.items())[:MAX_REPORTED])
        more = f"\n  ... and {len(missing) - MAX_REPORTED} more" if len(missing) > MAX_REPORTED else ""
        raise KeypointError(f"{len(missing)} images are not below {folder}:\n{shown}{more}")
