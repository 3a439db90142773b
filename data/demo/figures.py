"""Jointed figures in front of real images, as a COCO keypoint dataset.

Folders and files are those of COCO: ``train``, ``val`` and ``test`` with jpg files, and
``annotations/person_keypoints_<split>.json`` with boxes, visible areas, masks, crowds and 17 keypoints, each visible,
hidden or not labelled. An image shows one to three people, who may occlude one another, stand behind an object, or
extend beyond the image.

The left and right sides of a figure look alike; only the head tells which is which. A figure that faces the viewer has
a face and its left hand on the viewer's right, one that looks away has hair all over and its left hand on the viewer's
left. The left ankle therefore cannot be told from the right one by its surroundings. The backgrounds are the images in
the scikit-image wheel.
"""

from __future__ import annotations

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from data._commands import with_progress
from data.demo._clips import IMAGES, cut
from data.demo._folder import check_minimum, make_folder

NAMES = (
    *("nose", "left_eye", "right_eye", "left_ear", "right_ear", "left_shoulder", "right_shoulder"),
    *("left_elbow", "right_elbow", "left_wrist", "right_wrist", "left_hip", "right_hip"),
    *("left_knee", "right_knee", "left_ankle", "right_ankle"),
)
"""The keypoints of COCO, in its order."""

SKELETON = (
    *((16, 14), (14, 12), (17, 15), (15, 13), (12, 13), (6, 12), (7, 13), (6, 7), (6, 8), (7, 9)),
    *((8, 10), (9, 11), (2, 3), (1, 2), (1, 3), (2, 4), (3, 5), (4, 6), (5, 7)),
)
"""The skeleton of COCO: pairs of keypoints, counted from 1."""

VERSION = 1  # of what the generator draws; increase it when the same parameters give different images
_OVERSAMPLING = 3
_FACE = ("nose", "left_eye", "right_eye")
Colour = tuple[int, int, int]


@dataclass(frozen=True)
class DrawnPerson:
    """A figure; lengths in pixels."""

    joints: dict[str, NDArray[np.float64]]
    """By name: x and y, y down, of COCO's keypoints, ``neck`` and ``head`` (its centre)."""
    height: float
    """From head to feet when standing upright."""
    faces_viewer: bool
    shirt: Colour
    trousers: Colour
    skin: Colour
    hair: Colour


def draw_person(rng: np.random.Generator, middle: NDArray[np.float64], height: float) -> DrawnPerson:
    """Draw the pose, the visible side and the colours of a figure whose hips are at ``middle``."""
    faces_viewer = bool(rng.random() < 0.5)
    lean = np.deg2rad(rng.uniform(-18, 18))

    def place(x: float, y: float) -> NDArray[np.float64]:
        """From the coordinates of the upright figure (hips at 0, y down, in units of its height) to the image."""
        cos, sin = np.cos(lean), np.sin(lean)
        return middle + height * np.array([cos * x - sin * y, sin * x + cos * y])

    local: dict[str, tuple[float, float]] = {"neck": (0.0, -0.31), "head": (0.0, -0.43), "nose": (0.0, -0.42)}
    for side in (-1, 1):  # as seen by the viewer
        name = "left" if (side == 1) == faces_viewer else "right"
        arm, leg = np.deg2rad(rng.uniform(-5, 150)), np.deg2rad(rng.uniform(-4, 40))  # outwards from hanging
        fore, shin = arm + np.deg2rad(rng.uniform(-30, 90)), leg - np.deg2rad(rng.uniform(-5, 45))
        local[f"{name}_eye"], local[f"{name}_ear"] = (side * 0.027, -0.445), (side * 0.06, -0.43)
        for first, second, third, start, angles, lengths in (
            ("shoulder", "elbow", "wrist", (0.105, -0.3), (arm, fore), (0.155, 0.145)),
            ("hip", "knee", "ankle", (0.06, 0.0), (leg, shin), (0.225, 0.225)),
        ):
            x, y = start
            local[f"{name}_{first}"] = (side * x, y)
            for joint, angle, length in zip((second, third), angles, lengths, strict=True):
                x, y = x + length * np.sin(angle), y + length * np.cos(angle)
                local[f"{name}_{joint}"] = (side * x, y)
    skin = np.array([[236, 188, 150], [198, 134, 94], [120, 78, 52]][rng.integers(3)]) + rng.integers(-12, 13)
    hair = np.array([[40, 28, 22], [92, 58, 34], [70, 70, 74]][rng.integers(3)])
    if skin.sum() < 300:
        hair = hair // 2
    return DrawnPerson(
        {name: place(*xy) for name, xy in local.items()},
        height,
        faces_viewer,
        *(_colour(values) for values in (rng.integers(30, 256, 3), rng.integers(20, 200, 3), skin, hair)),
    )


def _colour(values: NDArray[Any]) -> Colour:
    red, green, blue = (int(value) for value in np.clip(values, 0, 255))
    return red, green, blue


def render_person(person: DrawnPerson, size: tuple[int, int]) -> Image.Image:
    """The figure alone as an RGBA image of ``size`` (width, height), opaque where the figure is."""
    fine = _OVERSAMPLING
    image = Image.new("RGBA", (fine * size[0], fine * size[1]), (*person.shirt, 0))
    draw = ImageDraw.Draw(image)
    unit = fine * person.height

    def at(name: str) -> tuple[float, float]:
        x, y = fine * (person.joints[name] + 0.5)
        return x, y

    def limb(names: tuple[str, ...], width: float, colour: Colour) -> None:
        dark = tuple(int(0.55 * value) for value in colour)
        for extra, fill in ((0.014, dark), (0.0, colour)):  # an outline separates figures
            pen = unit * (width + extra)
            points = [at(name) for name in names]
            for a, b in itertools.pairwise(points):
                draw.line([a, b], fill=(*fill, 255), width=max(1, round(pen)))
            for x, y in points:
                draw.ellipse([x - pen / 2, y - pen / 2, x + pen / 2, y + pen / 2], fill=(*fill, 255))

    for side in ("left", "right"):
        limb((f"{side}_hip", f"{side}_knee", f"{side}_ankle"), 0.075, person.trousers)
    limb(("neck", "head"), 0.05, person.skin)
    body = [at(name) for name in ("left_shoulder", "right_shoulder", "right_hip", "left_hip")]
    limb(("left_shoulder", "right_shoulder", "right_hip", "left_hip", "left_shoulder"), 0.06, person.shirt)
    draw.polygon(body, fill=(*person.shirt, 255))
    for side in ("left", "right"):
        limb((f"{side}_elbow", f"{side}_wrist"), 0.048, person.skin)
        limb((f"{side}_shoulder", f"{side}_elbow"), 0.058, person.shirt)

    def disc(name: str, radius: float, colour: Colour, rise: float = 0.0) -> None:
        up = person.joints["head"] - person.joints["neck"]
        x, y = np.array(at(name)) + rise * fine * up
        draw.ellipse([x - radius * unit, y - radius * unit, x + radius * unit, y + radius * unit], fill=(*colour, 255))

    disc("head", 0.076, person.hair, 0.08)
    if person.faces_viewer:
        disc("head", 0.062, person.skin, -0.1)
        for eye in ("left_eye", "right_eye"):
            disc(eye, 0.013, (20, 20, 20))
        disc("nose", 0.01, _colour(np.array(person.skin) // 2), -0.08)
    return image.resize(size, Image.Resampling.BOX)


def draw_scene(seed: int, split: str, number: int) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Draw image ``number`` of a split; its annotations in COCO's format, without ids."""
    rng = np.random.default_rng((seed, list(IMAGES).index(split), number))
    width, height = [(240, 180), (180, 240), (220, 200)][rng.integers(3)]
    level = rng.uniform(0.3, 0.7)
    backdrop = cut(str(rng.choice(IMAGES[split])), max(width, height), (0.4, 0.9), level, rng)[:, :height, :width]
    canvas = Image.fromarray((255 * backdrop.transpose(1, 2, 0)).round().astype(np.uint8))

    layers: list[tuple[Image.Image, list[DrawnPerson], bool]] = []  # from back to front; the flag marks crowds
    if rng.random() < 0.25:
        layers.append(_draw_crowd(rng, (width, height)))
    count = int(rng.integers(1, 4))
    centres = (np.arange(count) + rng.uniform(0.2, 0.8, count)) / count
    for x in rng.permutation(centres):
        tall = rng.uniform(0.55, 0.85) * min(height, 1.1 * width)
        person = draw_person(rng, np.array([x * width, rng.uniform(0.42, 0.6) * height]), tall)
        layers.append((render_person(person, (width, height)), [person], False))
    if rng.random() < 0.4:
        layers.append((_draw_screen(rng, split, (width, height), level), [], False))

    masks = [np.asarray(layer)[..., 3] >= 128 for layer, _, _ in layers]
    annotations = []
    for place, (layer, persons, crowd) in enumerate(layers):
        canvas.paste(layer, mask=layer.getchannel("A"))
        covered = np.any(masks[place + 1 :], axis=0) if place + 1 < len(layers) else np.zeros((height, width), bool)
        visible = masks[place] & ~covered
        if persons and visible.sum() >= 30:
            keypoints = np.zeros((17, 3)) if crowd else _keypoints(persons[0], masks[place], covered)
            annotations.append(_annotation(visible, keypoints, crowd))
    return canvas, annotations


def _draw_crowd(rng: np.random.Generator, size: tuple[int, int]) -> tuple[Image.Image, list[DrawnPerson], bool]:
    """A row of small, distant figures."""
    image, persons = Image.new("RGBA", size), []
    x, y, tall = rng.uniform(0, 0.5) * size[0], rng.uniform(0.2, 0.3) * size[1], 0.16 * size[1]
    for k in range(5):
        persons.append(draw_person(rng, np.array([x + k * 0.4 * tall, y]), tall))
        layer = render_person(persons[-1], size)
        image.paste(layer, mask=layer.getchannel("A"))
    return image, persons, True


def _draw_screen(rng: np.random.Generator, split: str, size: tuple[int, int], level: float) -> Image.Image:
    """A board in the foreground, cut from another image."""
    wide, tall = (int(rng.uniform(0.15, 0.3) * side) for side in size)
    piece = cut(str(rng.choice(IMAGES[split])), max(wide, tall), (0.2, 0.6), 1 - level, rng)[:, :tall, :wide]
    board = Image.fromarray((255 * piece.transpose(1, 2, 0)).round().astype(np.uint8)).convert("RGBA")
    image = Image.new("RGBA", size)
    image.paste(board, (int(rng.uniform(0, size[0] - wide)), int(rng.uniform(0.4 * size[1], size[1] - tall))))
    return image


def _keypoints(person: DrawnPerson, own: NDArray[np.bool_], covered: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Keypoints (17, 3): flag 2, or 1 if covered; zeros beyond the image and for a face that looks away."""
    height, width = own.shape
    keypoints = np.zeros((17, 3))
    for k, name in enumerate(NAMES):
        x, y = person.joints[name]
        column, row = round(x), round(y)
        if not (0 <= column < width and 0 <= row < height) or (name in _FACE and not person.faces_viewer):
            continue
        keypoints[k] = round(x, 2), round(y, 2), 1 if covered[row, column] else 2
    return keypoints


def _annotation(visible: NDArray[np.bool_], keypoints: NDArray[np.float64], crowd: bool) -> dict[str, Any]:
    """A person in COCO's format: visible area, box and mask."""
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    x, y = int(columns[0]), int(rows[0])
    flat = visible.flatten(order="F")  # run lengths down the columns, starting with a run outside the mask
    edges = np.flatnonzero(np.diff(flat)) + 1
    counts = np.diff([0, *edges, len(flat)]).tolist()
    return {
        "segmentation": {"size": list(visible.shape), "counts": [0, *counts] if flat[0] else counts},
        "num_keypoints": int((keypoints[:, 2] > 0).sum()),
        "area": float(visible.sum()),
        "iscrowd": int(crowd),
        "keypoints": [int(v) if float(v).is_integer() else v for v in keypoints.flatten().tolist()],
        "bbox": [x, y, int(columns[-1]) - x + 1, int(rows[-1]) - y + 1],
        "category_id": 1,
    }


def generate_figures(out: str | Path, *, seed: int = 0, train: int = 400, val: int = 40, test: int = 100) -> Path:
    """Write the images ``<split>/<number>.jpg`` and ``annotations/person_keypoints_<split>.json`` to ``out``.

    The same arguments give the same files on one machine with one set of library versions. An image depends only on
    the seed, its split and its number, so a larger dataset starts with the images of a smaller one.

    Args:
        train: training images, at least 1
        val: validation images, at least 1
        test: test images, at least 1
    """
    counts = {"train": train, "val": val, "test": test}
    check_minimum(seed=(seed, 0), **{split: (count, 1) for split, count in counts.items()})

    def fill(folder: Path) -> None:
        category: dict[str, Any] = {"supercategory": "person", "id": 1, "name": "person"}
        category |= {"keypoints": list(NAMES), "skeleton": [list(bone) for bone in SKELETON]}
        (folder / "annotations").mkdir()
        for split, count in counts.items():
            (folder / split).mkdir()
            images: list[dict[str, Any]] = []
            annotations: list[dict[str, Any]] = []
            for number in with_progress(range(count), f"{split} images"):
                image, persons = draw_scene(seed, split, number)
                name = f"{number:012d}.jpg"
                image.save(folder / split / name, quality=92)
                width, height = image.size
                images.append({"id": number + 1, "file_name": name, "width": width, "height": height})
                for annotation in persons:
                    annotations.append({**annotation, "image_id": number + 1, "id": len(annotations) + 1})
            content: dict[str, Any] = {"info": {"description": "Jointed figures in front of images of scikit-image"}}
            content |= {"licenses": [], "images": images, "annotations": annotations, "categories": [category]}
            file = folder / "annotations" / f"person_keypoints_{split}.json"
            file.write_text(json.dumps(content), encoding="utf-8")

    return make_folder(out, {"demo": "figures", "version": VERSION, "seed": seed, **counts}, fill)
