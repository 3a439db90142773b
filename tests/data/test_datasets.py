"""The cards of the datasets, their documentation and the command that prepares them say the same."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from common.datamodules import ImageDataModule, KeypointDataModule, VideoDataModule, VolumeDataModule
from common.datamodules.datasets import read_datasets, with_dataset
from common.datamodules.errors import DatasetError
from data.annotations import BENCHMARKS

CARDS = read_datasets()
TEXT = (Path(__file__).resolve().parents[2] / "data/datasets.md").read_text()
SECTIONS = dict(re.findall(r"^##? (.+?)\n(.*?)(?=^##? |\Z)", TEXT, re.MULTILINE | re.DOTALL))
ROWS = {
    name: [cell.strip() for cell in cells.split("|")]
    for name, cells in re.findall(r"^\| \[(.+?)\]\(.*?\) \|(.*)\|$", TEXT, re.MULTILINE)
}
PUBLISHED = {name: card for name, card in CARDS.items() if card["root"].startswith("datasets/")}


def number(cell: str) -> int:
    return int(cell.replace(",", "") if cell != "-" else 0)


def section(title: str) -> str:
    return next(text for name, text in SECTIONS.items() if title.split(" ")[0] in name and title[-2:] in name)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_dataset_is_documented(name: str) -> None:
    card = PUBLISHED[name]
    text = section(card["title"])
    for entry in ("Source", "Layout", "Licence", "Scores"):
        assert f"**{entry}**" in text, entry
    assert card["root"] in text or card["root"] == f"datasets/{name}"


@pytest.mark.parametrize("name", [name for name, card in PUBLISHED.items() if "counts" in card])
def test_the_tables_have_the_numbers_of_the_cards(name: str) -> None:
    card = CARDS[name]
    classes, *numbers = ROWS[card["title"]]
    assert number(classes) == card["classes"]
    splits = ("train", "val", "test") if card["data"] == "video" else ("train", "test")
    assert {split: number(cell) for split, cell in zip(splits, numbers, strict=False) if number(cell)} == card["counts"]
    assert (numbers[-1] == "yes") == card["horizontal_flip"]


@pytest.mark.parametrize("name", BENCHMARKS)
def test_the_command_writes_where_the_card_looks(name: str) -> None:
    card = CARDS[name]
    assert card["data"] == "video"
    assert card["test_split"] == "val"
    assert f"python -m data.prepare {name} " in TEXT
    [command] = re.findall(rf"`(python -m data.prepare {name} [^`]*)`", TEXT)
    assert f"--out {card['manifest']}" in command
    assert "--root ." in command  # in the folder of the dataset
    assert card["root"] == f"datasets/{name}"


@pytest.mark.parametrize(
    ("module", "dataset", "remedy"),
    [
        (VideoDataModule, None, "python -m data.demo motion --out gone"),
        (VideoDataModule, "lamps", "python -m data.demo lamps --out gone"),
        (VideoDataModule, "jester", "get jester as described in data/datasets.md"),
        (ImageDataModule, "digits", "python -m data.demo digits --out gone"),
        (ImageDataModule, "cifar10", "put cifar-10-binary.tar.gz there"),
        (KeypointDataModule, "figures", "python -m data.demo figures --out gone"),
        (KeypointDataModule, "coco", "get coco as described in data/datasets.md"),
        (VolumeDataModule, "brats2018", "get brats2018 as described in data/datasets.md"),
    ],
)
def test_a_missing_root_names_the_remedy(module: type, dataset: str | None, remedy: str) -> None:
    with pytest.raises(DatasetError, match=rf"gone.*{re.escape(remedy)}"):
        module("gone", dataset=dataset).setup("fit")


def test_what_is_given_takes_precedence_over_the_card() -> None:
    values = with_dataset("jester", "video", root="elsewhere", manifest=None, horizontal_flip=True, scales=None)
    assert values == {"root": "elsewhere", "manifest": "manifest.csv", "horizontal_flip": True, "scales": None}
    with pytest.raises(ValueError, match=r"not a known video dataset. Did you mean jester\?"):
        with_dataset("jestr", "video", root=None)
    with pytest.raises(ValueError, match="The known ones are coco, figures"):
        with_dataset("kinetics400", "keypoints", root=None)
    with pytest.raises(ValueError, match="give `root`"):
        with_dataset(None, "video", root=None)
