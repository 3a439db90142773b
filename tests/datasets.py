"""Tiny copies of datasets in their exact format, by name, and recipes with the facts of their dataset."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import yaml

from common.datamodules.datasets import read_datasets
from data.annotations import BENCHMARKS
from data.demo.brain import generate_brain
from data.demo.digits import generate_digits
from data.demo.figures import generate_figures
from data.demo.lamp_colours import generate_lamp_colours
from data.demo.lamps import generate_lamps
from data.demo.motion import generate_motion
from data.demo.patches import generate_patches
from data.demo.temporal_order import generate_temporal_order
from data.prepare import main as prepare
from tests.coco import two_persons
from tests.data.formats import writer_of
from tests.images import write_cifar_binary, write_fashion_mnist
from tests.volumes import write_brats

#: data without official annotation files; the writers of the others are in `tests/data/formats.py`
WRITERS: dict[str, Callable[[Path], Any]] = {
    "cifar10": lambda root: write_cifar_binary(root, 10, per_batch=10),
    "cifar100": lambda root: write_cifar_binary(root, 100, per_batch=100),
    "fashion-mnist": write_fashion_mnist,
    "coco": two_persons,
    "brats2018": write_brats,
    "motion": lambda root: generate_motion(root, size=32, frames=8, train=1, val=1, test=1),
    "temporal_order": lambda root: generate_temporal_order(root, size=32, train=4, val=1, test=1),
    "lamps": lambda root: generate_lamps(root, train=1, val=1, test=1),
    "lamp_colours": lambda root: generate_lamp_colours(root, train=2, val=1, test=1),
    "digits": lambda root: generate_digits(root, size=8),
    "patches": lambda root: generate_patches(root, size=8, train=2, val=1, test=1),
    "figures": lambda root: generate_figures(root, train=3, val=1, test=1),
    "brain": lambda root: generate_brain(root, cases=4, size=(16, 16, 16)),
}


def write_dataset(name: str, folder: Path) -> list[str]:
    """Write a tiny copy of a dataset below a folder; the arguments of `spectral` that point a recipe of it there."""
    root, notes, manifest = folder / "data", folder / "annotations", folder / "manifest.csv"
    root.mkdir(parents=True, exist_ok=True)
    if name not in BENCHMARKS:
        WRITERS[name](root)
        return ["--data.root", str(root)]
    notes.mkdir(exist_ok=True)
    case = writer_of(name)(root, notes)
    places = ["--root", str(root), "--annotations", str(notes)]
    assert prepare([name, *places, "--out", str(manifest), "--workers", "0", *case.options]) == 0
    return ["--data.root", str(root), "--data.manifest", str(manifest)]


def published_classes(dataset: str) -> int:
    """Number of classes of a dataset as published."""
    return read_datasets()[dataset]["classes"]


def read_recipe(recipe: Path, overrides: Sequence[str] = ()) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Arguments of the model, of the data (with those of the dataset's entry) and of the trainer that a recipe and
    its overrides give."""
    content = yaml.safe_load(recipe.read_text())
    parts = {part: dict(content[part].get("init_args", {})) for part in ("model", "data")}
    parts["trainer"] = dict(content["trainer"])
    for option, value in zip(overrides[::2], overrides[1::2], strict=True):
        part, *keys = option.removeprefix("--").split(".")
        if part in parts:
            place = parts[part]
            for key in keys[:-1]:
                place[key] = dict(place.get(key) or {})
                place = place[key]
            place[keys[-1]] = yaml.safe_load(value)
    data = read_datasets()[parts["data"]["dataset"]] | parts["data"]
    return parts["model"], data, parts["trainer"]
