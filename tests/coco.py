"""A tiny data set in the exact layout and format of COCO keypoints 2017."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from data.demo.figures import NAMES, SKELETON

CATEGORY: dict[str, Any] = {
    "supercategory": "person",
    "id": 1,
    "name": "person",
    "keypoints": list(NAMES),
    "skeleton": [list(bone) for bone in SKELETON],
}


def annotation(
    number: int, image_id: int, bbox: list[float], joints: dict[str, tuple[float, float, int]], **more: Any
) -> dict[str, Any]:
    """An entry of ``annotations`` with some labelled joints."""
    keypoints = [value for name in NAMES for value in joints.get(name, (0, 0, 0))]
    x, y, width, height = bbox
    return {
        "segmentation": [[x, y, x + width, y, x + width, y + height, x, y + height]],
        "num_keypoints": sum(v > 0 for v in keypoints[2::3]),
        "area": width * height,
        "iscrowd": 0,
        "keypoints": keypoints,
        "image_id": image_id,
        "bbox": bbox,
        "category_id": 1,
        "id": number,
        **more,
    }


def write_coco(root: Path, split: str, annotations: list[dict[str, Any]], images: dict[int, tuple[int, int]]) -> Path:
    """``annotations/person_keypoints_<split>2017.json`` and noisy jpg files of the given sizes (width, height)."""
    folder = root / f"{split}2017"
    folder.mkdir(parents=True)
    (root / "annotations").mkdir(exist_ok=True)
    listed = []
    for number, (width, height) in images.items():
        name = f"{number:012d}.jpg"
        pixels = np.random.default_rng(number).integers(0, 256, (height, width, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / name)
        url = f"http://images.cocodataset.org/{folder.name}/{name}"
        facts = {"license": 1, "coco_url": url, "flickr_url": "", "date_captured": "2013-11-14 17:02:52"}
        listed.append({**facts, "file_name": name, "height": height, "width": width, "id": number})
    content = {
        "info": {"description": "COCO 2017 Dataset", "version": "1.0", "year": 2017},
        "licenses": [{"url": "", "id": 1, "name": ""}],
        "images": listed,
        "annotations": annotations,
        "categories": [CATEGORY],
    }
    path = root / "annotations" / f"person_keypoints_{split}2017.json"
    path.write_text(json.dumps(content))
    return path


BODY = {
    "nose": (50.0, 20.0, 2),
    "left_shoulder": (60.0, 40.0, 2),
    "right_shoulder": (40.0, 40.0, 2),
    "left_hip": (57.0, 80.0, 1),
    "right_hip": (43.0, 80.0, 2),
    "left_ankle": (58.0, 130.0, 2),
}


def two_persons(root: Path) -> Path:
    """The same two persons, a crowd and an unlabelled person as train and val; ids as large as the real ones."""
    persons = [
        annotation(900100000001, 785, [35, 10, 30, 125], BODY),
        annotation(425226, 785, [100, 20, 60, 90], {"left_eye": (130.0, 30.0, 2), "right_eye": (122.5, 30.0, 2)}),
        annotation(
            425227, 872, [10, 10, 80, 40], {}, iscrowd=1, segmentation={"counts": [400, 8000], "size": [70, 120]}
        ),
        annotation(425228, 872, [10, 10, 20, 40], {}),
    ]
    for split in ("train", "val"):
        path = write_coco(root, split, persons, {785: (200, 150), 872: (120, 70)})
    return path
