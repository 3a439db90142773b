"""COCO's keypoint annotation files and detection files, checked and turned into persons."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.datamodules.errors import DatasetError
from common.datamodules.manifest import is_text, leaves_root, read_json, shorten

Array = NDArray[np.float64]
MAX_SIDE = 10**6  # of an image, in pixels
MAX_NUMBER = 10**15  # of ids and coordinates, which are float64 in between


@dataclass(frozen=True)
class Person:
    """A person whose keypoints are to be located.

    Attributes:
        path: image file.
        name: the file's name and the annotation or detection, for messages and predictions.
        image_id: of the annotation file.
        box: (4,) x, y, width, height within the image.
        score: of the detection; 1 for ground truth.
        keypoints: (J, 3) x, y and COCO's flag (0 not labelled, 1 hidden, 2 visible); None for a detection.
        where: the file and entry that list the person.
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
        content: its content in COCO's format, with the annotations of the category only.
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
            DatasetError: a keypoint lacks its counterpart.
        """
        position = {name: k for k, name in enumerate(self.keypoint_names)}
        pairs = []
        for name, k in position.items():
            side, _, rest = name.partition("_")
            if side in ("left", "right"):
                other = f"{'right' if side == 'left' else 'left'}_{rest}"
                if other not in position:
                    raise DatasetError(f"{self.path}: keypoint {name!r} has no counterpart {other!r}.")
                if side == "left":
                    pairs.append((k, position[other]))
        return tuple(pairs)


def read_annotations(path: str | Path, category: str = "person") -> KeypointAnnotations:
    """Read a file in the format of COCO's ``person_keypoints_*.json`` (or, without annotations, ``image_info_*.json``).

    Raises:
        DatasetError: the file is missing, has another format, or one of its annotations is malformed; the message
            names the annotation's id.
    """
    path = Path(path)
    content = read_json(path)
    lists = [content.get(key) for key in ("images", "categories")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, list) for part in lists) or not isinstance(content.get("annotations", []), list):
        raise DatasetError(f"{path}: not an annotation file of COCO: it lacks the lists images and categories.")
    categories = [c for c in content["categories"] if isinstance(c, dict) and c.get("name") == category][:1]
    if not categories or not isinstance(categories[0].get("id"), int):
        raise DatasetError(f"{path}: no category {category!r} among its categories.")
    names, skeleton = _keypoints(path, categories[0], bool(content.get("annotations")))
    images = {}
    for number, image in enumerate(content["images"]):
        if not isinstance(image, dict) or not isinstance(image.get("id"), int):
            raise DatasetError(f"{path}: entry {number} of images lacks an integer id.")
        for key, kind in (("file_name", str), ("width", int), ("height", int)):
            if not isinstance(image.get(key), kind) or (kind is int and not 0 < image[key] <= MAX_SIDE):
                raise DatasetError(f"{path}: image {image['id']} lacks {key}.")
        name = image["file_name"]
        if not is_text(name) or leaves_root(name):
            raise DatasetError(f"{path}: image {image['id']} has the file name {name!r}; it must lie below the images.")
        images[image["id"]] = image
    annotations = []
    for number, entry in enumerate(content.get("annotations", [])):
        if not isinstance(entry, dict) or not isinstance(entry.get("id"), int):
            raise DatasetError(f"{path}: entry {number} of annotations lacks an integer id.")
        if entry.get("category_id") == categories[0]["id"]:
            if problem := _problem(entry, images, len(names)):
                raise DatasetError(f"{path}: annotation {entry['id']} {problem}.")
            annotations.append(entry)
    checked = {**content, "categories": categories, "annotations": annotations}
    return KeypointAnnotations(path, checked, categories[0]["id"], names, skeleton)


def _keypoints(
    path: Path, category: Mapping[str, Any], annotated: bool
) -> tuple[tuple[str, ...], tuple[tuple[int, int], ...]]:
    """Names of a category's keypoints, and its skeleton counted from 0."""
    names = category.get("keypoints", [])
    if not isinstance(names, list) or (annotated and not names):
        raise DatasetError(
            f"{path}: category {category['name']!r} lacks keypoint names; use the file person_keypoints_*.json."
        )
    skeleton = []
    bones, joints = category.get("skeleton", []), range(1, len(names) + 1)
    for bone in bones if isinstance(bones, list) else [bones]:
        if not (isinstance(bone, list) and len(bone) == 2 and all(type(k) is int and k in joints for k in bone)):
            raise DatasetError(f"{path}: {bone} in the skeleton is not a pair of keypoints from 1 to {len(names)}.")
        skeleton.append((bone[0] - 1, bone[1] - 1))
    return tuple(str(name) for name in names), tuple(skeleton)


def _are_numbers(values: Any, count: int) -> bool:
    return (
        isinstance(values, list)
        and len(values) == count
        and all(isinstance(v, int | float) and -MAX_NUMBER <= v <= MAX_NUMBER for v in values)  # also not NaN
    )


def _problem(entry: Mapping[str, Any], images: Mapping[int, Any], joints: int) -> str:
    """What is wrong with an annotation; empty if nothing is."""
    if not isinstance(entry.get("image_id"), int) or entry["image_id"] not in images:
        return f"is of image {entry.get('image_id')}, which the file does not list"
    if not _are_numbers(entry.get("bbox"), 4):
        return f"lacks a bbox of four numbers: {entry.get('bbox')}"
    if not _are_numbers(entry.get("keypoints"), 3 * joints):
        length = len(entry["keypoints"]) if isinstance(entry.get("keypoints"), list) else "no list"
        return f"lacks keypoints of 3 x {joints} numbers: {length}"
    if not set(entry["keypoints"][2::3]) <= {0, 1, 2}:
        return "has a visibility other than 0, 1 and 2"
    for key in ("area", "iscrowd", "num_keypoints"):
        if not _are_numbers([entry.get(key)], 1):
            return f"lacks a number {key}"
    return ""


def annotated_persons(annotations: KeypointAnnotations, folder: str | Path) -> list[Person]:
    """The annotated persons, with their true boxes: no crowds, each with a box and at least one labelled keypoint."""
    images = {image["id"]: image for image in annotations.content["images"]}
    persons = []
    for entry in annotations.content["annotations"]:
        keypoints = np.array(entry["keypoints"], dtype=np.float64).reshape(-1, 3)
        image = images[entry["image_id"]]
        box = _clip_box(entry["bbox"], image)
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

    Detections of other categories, or with a score not above ``threshold``, are left out. So are those in images that
    the annotation file does not list, with a warning that counts them.

    Raises:
        DatasetError: the file is missing or has another format.
    """
    path = Path(path)
    content = read_json(path)
    if not isinstance(content, list):
        raise DatasetError(f"{path}: not a file of detections in COCO's results format: it is not a list.")
    images = {image["id"]: image for image in annotations.content["images"]}
    persons, unlisted = [], 0
    for number, entry in enumerate(content):
        if (
            not isinstance(entry, dict)
            or not _are_numbers([entry.get("image_id"), entry.get("category_id"), entry.get("score")], 3)
            or not _are_numbers(entry.get("bbox"), 4)
        ):
            raise DatasetError(
                f"{path}: entry {number} lacks image_id, category_id, bbox (four numbers) or score (a number)."
            )
        if entry["category_id"] != annotations.category_id or entry["score"] <= threshold:
            continue
        image = images.get(entry["image_id"])
        if image is None:
            unlisted += 1
            continue
        box = _clip_box(entry["bbox"], image)
        if box is not None:
            name, file = f"{image['file_name']}#detection{number}", str(Path(folder) / image["file_name"])
            persons.append(
                Person(file, name, image["id"], box, float(entry["score"]), None, f"entry {number} of {path}")
            )
    if unlisted:
        warnings.warn(
            f"{path}: {unlisted} detections are in images that {annotations.path} does not list.", stacklevel=2
        )
    return persons


def _clip_box(box: Sequence[float], image: Mapping[str, Any]) -> Array | None:
    """The part of a box within its image, clipped as in SimpleBaseline; None if nothing is left."""
    x1, y1 = max(0.0, box[0]), max(0.0, box[1])
    x2 = min(image["width"] - 1.0, x1 + max(0.0, box[2] - 1))
    y2 = min(image["height"] - 1.0, y1 + max(0.0, box[3] - 1))
    return np.array([x1, y1, x2 - x1, y2 - y1]) if x2 > x1 and y2 > y1 else None


def check_images(persons: Sequence[Person], folder: Path) -> None:
    """Raise DatasetError if an image of the persons is missing from its folder, before hours of training."""
    present = {entry.name for entry in os.scandir(folder)} if folder.is_dir() else set()
    missing: dict[str, Person] = {}
    for person in persons:
        name = os.path.relpath(person.path, folder)
        if name not in present and not (os.sep in name and Path(person.path).is_file()):
            missing.setdefault(person.path, person)
    if missing:
        lines = shorten([f"  {path} ({person.where})" for path, person in missing.items()], 5)
        raise DatasetError(f"{len(missing)} images are not below {folder}:\n{lines}")
