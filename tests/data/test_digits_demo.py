"""The digits demo: every image of scikit-learn once, splits by class and seed, folders appear whole."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from common.datamodules import ImageDataModule
from data.demo.__main__ import main
from data.demo.digits import NAMES, generate_digits


def numbers(folder: Path, split: str) -> set[int]:
    return {int(path.stem) for path in folder.glob(f"{split}/*/*.png")}


def test_every_digit_is_in_one_split(tmp_path):
    folder = generate_digits(tmp_path / "digits")
    parts = [numbers(folder, split) for split in ("train", "val", "test")]
    assert [len(part) for part in parts] == [1086, 176, 535]
    assert set.union(*parts) == set(range(1797))
    target = load_digits().target
    for path in folder.glob("*/*/*.png"):
        assert NAMES[target[int(path.stem)]] == path.parent.name
    data = ImageDataModule(str(folder), num_workers=0)
    data.setup()
    assert (data.class_names, data.spec.size) == (list(NAMES), (16, 16))
    assert generate_digits(tmp_path / "digits") == folder  # reused


def test_at_the_original_size_pixels_are_the_original_ones(tmp_path):
    folder = generate_digits(tmp_path / "digits", size=8)
    images = load_digits().images
    for path in list(folder.glob("val/*/*.png"))[:50]:
        assert np.array_equal(np.asarray(Image.open(path)), np.round(images[int(path.stem)] * 255 / 16))


def test_the_seed_decides_the_splits(tmp_path):
    first, same, other = (
        generate_digits(tmp_path / name, seed=seed) for name, seed in zip("abc", (0, 0, 1), strict=True)
    )
    assert numbers(first, "test") == numbers(same, "test") != numbers(other, "test")
    for path in first.rglob("*.png"):
        assert path.read_bytes() == (same / path.relative_to(first)).read_bytes()


def test_the_command(tmp_path, capsys):
    out = tmp_path / "digits"
    assert main(["digits", "--out", str(out), "--size", "8"]) == 0
    assert capsys.readouterr().out.strip() == str(out)
    assert json.loads((out / "demo.json").read_text())["size"] == 8
    assert main(["digits", "--out", str(out)]) == 2
    assert "was made with other parameters (size is 8, requested 16)" in capsys.readouterr().err
    assert main(["digits", "--out", str(tmp_path / "x"), "--size", "4"]) == 2
    assert not (tmp_path / "x").exists()


def test_wrong_arguments(tmp_path):
    from data.demo._folder import DemoError

    for options in ({"size": 7}, {"seed": -1}):
        with pytest.raises(DemoError, match="must be at least"):
            generate_digits(tmp_path / "x", **options)
