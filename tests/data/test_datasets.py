"""The contract of a dataset: card, documents, reader and writer fit together, and a fault in one of them is named."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from common.datamodules import ImageDataModule, KeypointDataModule, VideoDataModule, VolumeDataModule
from common.datamodules import datasets as cards
from common.datamodules.datasets import read_card, read_datasets, with_dataset
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import Manifest
from data.annotations import BENCHMARKS
from tests.data import formats
from tests.datasets import write_dataset

TEXT = (Path(__file__).resolve().parents[2] / "data/datasets.md").read_text()
SECTIONS = dict(re.findall(r"^##? (.+?)\n(.*?)(?=^##? |\Z)", TEXT, re.MULTILINE | re.DOTALL))
PUBLISHED = [name for name, card in read_datasets().items() if card["root"].startswith("datasets/")]
VIDEOS = sorted({*BENCHMARKS, *(name for name in PUBLISHED if read_datasets()[name]["data"] == "video")})


def check_documents(name: str) -> None:
    """Section and table row of a dataset in ``data/datasets.md``."""
    card = read_datasets()[name]
    title = card["title"]
    text = next((text for heading, text in SECTIONS.items() if title in heading), None)
    assert text is not None, f"data/datasets.md has no section on {title}: write '## {title}'."
    for entry in ("Source", "Layout", "Licence", "Scores"):
        assert f"**{entry}**" in text, f"data/datasets.md: the section on {title} lacks **{entry}**."
    assert card["root"] in text or card["root"] == f"datasets/{name}"
    if "counts" in card:
        splits = ("train", "val", "test") if card["data"] == "video" else ("train", "test")
        numbers = [card["classes"], *(card["counts"].get(split) for split in splits)]
        cells = " | ".join(f"{number:,}" if number else "-" for number in numbers)
        flip = "yes" if card["horizontal_flip"] else "no"
        row = re.compile(rf"^\| \[{re.escape(title)}\]\(#\S+\) \| {re.escape(cells)} \| [^|]+ \| {flip} \|$", re.M)
        assert row.search(TEXT), (
            f"data/datasets.md has no row '| [{title}](#...) | {cells} | ... | {flip} |', as {name} in datasets.yaml "
            "would have it: correct the one or the other."
        )


def check_all(name: str, folder: Path) -> None:
    """The whole contract of a video dataset."""
    check_training(name, folder / name)
    check_command(name)
    check_documents(name)


def check_command(name: str) -> None:
    """The documented command writes where the card looks."""
    card = read_card(name)
    commands = re.findall(rf"`(python -m data.prepare {name} [^`]*)`", TEXT)
    assert len(commands) == 1, f"data/datasets.md should have one command `python -m data.prepare {name} ...`."
    for words in (f"--out {card['manifest']}", "--root ."):  # in the folder of the dataset
        assert words in commands[0], f"data/datasets.md: the command of {name} lacks '{words}'."
    assert card["root"] == f"datasets/{name}", f"datasets.yaml: the root of {name} should be datasets/{name}."


def check_training(name: str, folder: Path) -> None:
    """A tiny copy in the official format gives training and test batches."""
    assert name in BENCHMARKS, f"data/annotations.py: {name} has no reader: enter one in BENCHMARKS."
    folder.mkdir()
    root, manifest = write_dataset(name, folder)[1::2]
    repeated = Manifest.read(manifest, root).duplicates()
    assert not repeated, f"data/annotations.py: the reader of {name} lists {', '.join(repeated)} more than once."
    data = VideoDataModule(root, manifest, name, num_frames=4, crop_size=16, batch_size=2, num_workers=0)
    data.setup("fit")
    assert next(iter(data.train_dataloader()))["video"].shape[1:] == (3, 4, 16, 16)
    data.setup("test")
    labels = [label for batch in data.test_dataloader() for label in batch["label"].tolist()]
    assert min(labels) >= 0, f"datasets.yaml: the test_split of {name} has videos without a label."


@pytest.mark.parametrize("name", [name for name in PUBLISHED if name not in VIDEOS])
def test_every_other_dataset_is_documented(name: str) -> None:
    check_documents(name)


@pytest.mark.parametrize("name", VIDEOS)
def test_every_video_dataset_can_be_prepared_and_trained_on(name: str, tmp_path: Path) -> None:
    check_all(name, tmp_path)


Plant = Callable[[pytest.MonkeyPatch, Path], None]


def card(old: str, new: str) -> Plant:
    """Exchange a text in the card of Gym99."""

    def plant(patch: pytest.MonkeyPatch, folder: Path) -> None:
        before, start, after = cards.CARDS.read_text().partition("gym99:\n")
        assert old in start + after
        (folder / "datasets.yaml").write_text(before + (start + after).replace(old, new, 1))
        patch.setattr(cards, "CARDS", folder / "datasets.yaml")

    return plant


def reader(copies: int = 1, names: tuple[str, ...] = (), **changes: Any) -> Plant:
    """A reader of Gym99 that changes its first video, repeats it, or has other class names."""
    benchmark = BENCHMARKS["gym99"]

    def read_gym99(folder: Path, release: str) -> Any:
        listing = benchmark.read(folder, release)
        first, *others = listing.videos
        videos = (first,) * (copies - 1) + (replace(first, **changes), *others)
        return replace(listing, videos=videos, class_names=names or listing.class_names)

    return lambda patch, _: patch.setitem(BENCHMARKS, "gym99", replace(benchmark, read=read_gym99))


#: what is wrong with a new dataset -> (how it is planted, what the message says)
FAULTS: dict[str, tuple[Plant, str]] = {
    "no card": (card("gym99:", "gym-99:"), r"datasets.yaml: no entry gym99: add one"),
    "no reader": (lambda patch, _: patch.delitem(BENCHMARKS, "gym99"), r"data/annotations.py: gym99 has no reader"),
    "no writer": (
        lambda patch, _: patch.setattr(formats, "WRITERS", []),
        r"tests/data/formats.py has no writer of gym99",
    ),
    "card, classes": (card("classes: 99", "classes: 98"), r"datasets.md has no row '\| \[Gym99\].*98.*datasets.yaml"),
    "card, count": (card("train: 20484", "train: 20448"), r"datasets.md has no row .*20,448.*datasets.yaml"),
    "card, flip": (card("horizontal_flip: true", "horizontal_flip: false"), r"datasets.md has no row .*no \|"),
    "card, missing key": (card("test_split", "tset_split"), r"datasets.yaml: gym99 lacks the keys test_split: add"),
    "card, misspelt key": (card("root:", "resise: 64, root:"), r"unknown key resise. Did you mean resize\?"),
    "card, split": (
        card("test_split: val", "test_split: validation"),
        r"datasets.yaml: gym99 names the split validation",
    ),
    "card, split of counts": (
        card("val: 8521", "valid: 8521"),
        r"datasets.yaml: gym99 names the split valid .* correct",
    ),
    "card, manifest": (card("manifest.csv", "split.csv"), r"datasets.md: the command of gym99 lacks '--out split.csv'"),
    "reader, label": (reader(label=2), r"read_gym99 in data/annotations.py .*\n.*label 2 is outside of 0..1"),
    "reader, negative label": (reader(label=-1), r"annotations.py .*\n.*label -1 is outside"),
    "reader, no label": (reader(label=None), r"annotations.py .*\n.*no label"),
    "reader, split": (
        reader(split="validation"),
        r"annotations.py .*\n.*split is 'validation', not train, val or test",
    ),
    "reader, two labels": (reader(copies=2, label=1), r"annotations.py .*\n.*listed with label 0 and with label 1"),
    "reader, equal names": (reader(names=("leap", "leap")), r"annotations.py .*\n.*class 'leap' is listed 2 times"),
    "reader, empty name": (reader(names=("leap", "")), r"annotations.py .*\n.*a class has no name"),
    "reader, repeated": (reader(copies=2), r"data/annotations.py: the reader of gym99 lists .* more than once"),
    "reader, name": (
        reader(key="0LtLS9wROrk"),
        r"2 of 3 videos can be used .*\n  0LtLS9wROrk \(train\): missing",
    ),
}


@pytest.mark.filterwarnings("ignore:.* more than once")
@pytest.mark.parametrize(("plant", "message"), FAULTS.values(), ids=FAULTS)
def test_a_fault_of_a_new_dataset_is_named(
    plant: Plant, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    plant(monkeypatch, tmp_path)
    with pytest.raises((AssertionError, ValueError)) as caught:
        check_all("gym99", tmp_path)
    assert re.search(message, f"{caught.value}\n{capsys.readouterr().err}")


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
    given = {"root": "elsewhere", "manifest": None, "horizontal_flip": True, "scales": None, "test_split": None}
    filled = {"manifest": "manifest.csv", "test_split": "val"}
    assert with_dataset("jester", "video", **given) == given | filled
    with pytest.raises(ValueError, match=r"not a known video dataset. Did you mean jester\?"):
        with_dataset("jestr", "video", root=None)
    with pytest.raises(ValueError, match="The known ones are coco, figures"):
        with_dataset("kinetics400", "keypoints", root=None)
    with pytest.raises(ValueError, match="give `root`"):
        with_dataset(None, "video", root=None)
