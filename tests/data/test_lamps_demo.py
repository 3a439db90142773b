"""The lamps demo: pairs differ only in when the second lamp is lit, lamps lie far apart, seeds decide everything."""

from __future__ import annotations

import itertools
from pathlib import Path

import av
import numpy as np
import pytest

from common.datamodules.manifest import Manifest
from data.demo.__main__ import main
from data.demo._folder import DemoError
from data.demo.lamps import CLASSES, FRAMES_PER_BEAT, GAP, draw_scene, generate_lamps, render

SIZE = 48


@pytest.fixture(scope="module")
def lamps(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("data") / "lamps"
    path = generate_lamps(folder, size=SIZE, train=2, val=1, test=2)
    return Manifest.read(path, folder)


def decode(path: Path) -> np.ndarray:
    """(T, H, W, 3) uint8, decoded here without the project's readers."""
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def test_manifest_lists_every_clip(lamps: Manifest) -> None:
    assert lamps.class_names == CLASSES
    assert {split: lamps.class_counts(split) for split in lamps.splits()} == {
        "train": [2] * 4,
        "val": [1] * 4,
        "test": [2] * 4,
    }
    assert all((lamps.root / entry.path).is_file() and entry.num_frames == 8 for entry in lamps.entries)


def test_beats_of_the_classes() -> None:
    for number in range(20):
        scene = draw_scene(3, "train", number)
        for name in CLASSES:
            first, second = scene.beats[name]
            assert sum(first) == sum(second) == (1 if name.startswith("rare") else 3)
            assert (first == second) == name.endswith("together")
        for kind in ("rare", "often"):
            assert scene.beats[f"{kind}_together"][0] == scene.beats[f"{kind}_apart"][0]


def test_lamps_lie_in_opposite_corners_far_apart() -> None:
    diagonals = set()
    for number in range(50):
        a, b = draw_scene(0, "test", number).lamps
        for axis in (0, 1):
            distance = abs(a.centre[axis] - b.centre[axis]) - a.radius - b.radius
            assert distance >= GAP - 1e-9
        for lamp in (a, b):
            assert all(lamp.radius <= c <= 1 - lamp.radius for c in lamp.centre)
        diagonals.add((a.centre[0] < b.centre[0]) == (a.centre[1] < b.centre[1]))
    assert diagonals == {True, False}


def test_every_place_shows_the_same_frames_in_both_clips_of_a_pair(lamps: Manifest) -> None:
    """After coding too: so a model that sees neighbourhoods and averages answers the same for both."""
    for split, kind in itertools.product(("train", "test"), ("rare", "often")):
        clips = [decode(lamps.root / f"{split}/{kind}_{how}/0000.mp4") for how in ("together", "apart")]
        assert not np.array_equal(*clips)
        half = SIZE // 2
        for rows, columns in itertools.product((slice(0, half), slice(half, None)), repeat=2):
            seen = [sorted(frame[rows, columns].tobytes() for frame in clip) for clip in clips]
            assert seen[0] == seen[1]


def test_a_beat_lasts_two_frames() -> None:
    clip = render(draw_scene(0, "val", 0), "rare_apart", SIZE)
    assert clip.shape == (8, SIZE, SIZE, 3)
    beats = clip.reshape(4, FRAMES_PER_BEAT, *clip.shape[1:])
    assert np.array_equal(beats[:, 0], beats[:, 1])
    assert len({beat.tobytes() for beat in beats[:, 0]}) == 3  # either lamp alone, and none twice


def test_the_same_seed_gives_the_same_files(lamps: Manifest, tmp_path: Path) -> None:
    options = {"size": SIZE, "train": 2, "val": 1, "test": 2}
    again = generate_lamps(tmp_path / "again", **options)
    other = generate_lamps(tmp_path / "other", seed=1, **options)
    path = "train/rare_apart/0001.mp4"
    assert (again.parent / path).read_bytes() == (lamps.root / path).read_bytes()
    assert (other.parent / path).read_bytes() != (lamps.root / path).read_bytes()


def test_command_line_and_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    few = ["--size", "32", "--train", "1", "--val", "0", "--test", "0"]
    assert main(["lamps", "--out", str(tmp_path / "lamps"), *few]) == 0
    assert capsys.readouterr().out.strip().endswith("manifest.csv")
    assert main(["lamps", "--out", str(tmp_path / "lamps"), "--size", "34"]) == 2
    assert "other parameters" in capsys.readouterr().err
    for options, message in (
        ({"size": 33}, "even"),
        ({"size": 30}, "at least 32"),
        ({"fps": 0}, "fps is 0; it must be at least 1"),
        ({"train": -1}, "must not be negative"),
        ({"train": 0, "val": 0, "test": 0}, "nor all be 0"),
    ):
        with pytest.raises(DemoError, match=message):
            generate_lamps(tmp_path / "bad", **options)
