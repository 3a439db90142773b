"""The lamp colours demo: the clips of a scene differ in the colour of one lamp, and show what their class says."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import pytest

from common.datamodules.manifest import Manifest
from data.demo._clips import IMAGES
from data.demo._folder import DemoError
from data.demo.lamp_colours import CLASSES, FRAMES, draw_clips, generate_lamp_colours
from data.demo.lamps import draw_lamps
from tests.data.test_lamps_demo import decode

SIZE = 48


def test_the_class_is_whether_the_hues_are_equal_or_opposite() -> None:
    for number in range(20):
        lamps = draw_lamps(np.random.default_rng((0, list(IMAGES).index("train"), number)))
        for name, clip in draw_clips(0, "train", number, SIZE):
            centres = [clip[0, int(y * SIZE), int(x * SIZE)] / 255 for x, y in (lamp.centre for lamp in lamps)]
            a, b = (colorsys.rgb_to_hsv(*colour)[0] for colour in centres)
            distance = abs(a - b) if abs(a - b) <= 0.5 else 1 - abs(a - b)
            assert distance == pytest.approx(0.0 if name == "same" else 0.5, abs=0.02)


def test_the_clips_of_a_scene_differ_in_one_lamp() -> None:
    changed = set()
    for number in range(20):
        same, different = (clip for _, clip in draw_clips(0, "test", number, SIZE))
        assert same.shape == different.shape == (FRAMES, SIZE, SIZE, 3)
        assert np.array_equal(same[0], same[1])
        rows, columns = np.nonzero((same[0] != different[0]).any(-1))
        assert max(np.ptp(rows), np.ptp(columns)) < 0.2 * SIZE
        changed.add((bool(rows.mean() < SIZE / 2), bool(columns.mean() < SIZE / 2)))
    assert len(changed) == 4  # either lamp of either diagonal


def test_files(tmp_path: Path) -> None:
    options = {"size": SIZE, "train": 2, "val": 1, "test": 2}
    path = generate_lamp_colours(tmp_path / "data", **options)
    manifest = Manifest.read(path, tmp_path / "data")
    assert manifest.class_names == CLASSES
    assert {split: manifest.class_counts(split) for split in manifest.splits()} == {
        "train": [2, 2],
        "val": [1, 1],
        "test": [2, 2],
    }
    assert all(decode(manifest.root / entry.path).shape == (FRAMES, SIZE, SIZE, 3) for entry in manifest.entries)
    again = generate_lamp_colours(tmp_path / "again", **options)
    name = "train/different/0001.mp4"
    assert (again.parent / name).read_bytes() == (tmp_path / "data" / name).read_bytes()
    with pytest.raises(DemoError, match="even"):
        generate_lamp_colours(tmp_path / "bad", size=33)
