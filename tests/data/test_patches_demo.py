"""Patches of real images: no pixel in two splits, colour and brightness tell nothing, files by seed."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from data.demo._clips import stock_image
from data.demo._folder import DemoError
from data.demo.patches import SOURCES, SPLITS, draw_patch, generate_patches


def hashes(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*.png")
    }


def test_files_follow_from_the_seed_and_more_begin_with_fewer(tmp_path: Path) -> None:
    few = generate_patches(tmp_path / "few", size=16, train=2, val=1, test=1)
    again = generate_patches(tmp_path / "again", size=16, train=2, val=1, test=1)
    more = generate_patches(tmp_path / "more", size=16, train=3, val=1, test=2)
    other = generate_patches(tmp_path / "other", seed=1, size=16, train=2, val=1, test=1)
    assert hashes(few) == hashes(again)
    assert hashes(few).items() < hashes(more).items()
    assert not set(hashes(few).values()) & set(hashes(other).values())
    assert len(hashes(few)) == 4 * len(SOURCES)
    assert (few / "classes.txt").read_text().split() == list(SOURCES)
    assert {Image.open(path).size for path in few.rglob("*.png")} == {(16, 16)}


@pytest.mark.parametrize("name", SOURCES)
@pytest.mark.parametrize("split", SPLITS)
def test_a_patch_stays_in_its_part_of_the_image(name: str, split: str, monkeypatch: pytest.MonkeyPatch) -> None:
    boxes = []
    image = stock_image(SOURCES[name])
    original = Image.Image.resize

    def resize(self: Image.Image, size: tuple[int, int], resample: int, box: tuple[float, ...]) -> Image.Image:
        boxes.append(box)
        return original(self, size, resample, box)

    monkeypatch.setattr(Image.Image, "resize", resize)
    for number in range(50):
        draw_patch(name, SPLITS[split], 32, np.random.default_rng(number))
    low, high = (part * image.width for part in SPLITS[split])
    for left, top, right, bottom in boxes:
        assert low <= left < right <= high + 1e-6
        assert 0 <= top < bottom <= image.height + 1e-6


def test_colour_and_brightness_tell_little(tmp_path: Path) -> None:
    """A linear classifier of each colour's mean and deviation is far from what the textures allow."""
    folder = generate_patches(tmp_path / "x", train=60, val=1, test=40)

    def read(split: str) -> tuple[np.ndarray, list[str]]:
        paths = sorted((folder / split).rglob("*.png"))
        pixels = np.stack([np.asarray(Image.open(path), dtype=float) for path in paths])
        return np.concatenate([pixels.mean((1, 2)), pixels.std((1, 2))], 1) / 50, [p.parent.name for p in paths]

    classifier = LogisticRegression(max_iter=2000).fit(*read("train"))
    assert classifier.score(*read("test")) < 0.3


def test_wrong_options_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="size"):
        generate_patches(tmp_path / "x", size=4)
    with pytest.raises(DemoError, match="train"):
        generate_patches(tmp_path / "x", train=0)
