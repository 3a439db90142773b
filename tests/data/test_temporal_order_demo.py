"""The temporal order demo: only frames far apart, together, tell the class."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.datamodules.manifest import Manifest
from common.datamodules.video_reader import open_video
from data.demo.__main__ import main
from data.demo._clips import IMAGES
from data.demo._folder import DemoError
from data.demo.temporal_order import CLASSES, draw_scene, gaps, generate_temporal_order

TINY: dict[str, Any] = {"size": 32, "train": 12, "val": 1, "test": 2}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    folder = tmp_path_factory.mktemp("order") / "clips"
    return Manifest.read(generate_temporal_order(folder, **TINY), folder)


def decode(manifest: Manifest, path: str) -> np.ndarray:
    with open_video(manifest.root / path) as video:
        return video.get_frames(range(video.num_frames)).numpy()


def cues(clip: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """How warm and how cold each frame is (T,), from the share of clearly coloured pixels."""
    difference = clip[..., 0].astype(int) - clip[..., 2]
    return (difference > 30).mean((1, 2)), (difference < -30).mean((1, 2))


def test_manifest_lists_every_clip(clips: Manifest) -> None:
    assert clips.class_names == CLASSES
    assert {split: clips.class_counts(split) for split in clips.splits()} == {
        "train": [12, 12],
        "val": [1, 1],
        "test": [2, 2],
    }
    entry = clips.entries[0]
    assert (entry.num_frames, entry.fps) == (16, 12.0)
    assert decode(clips, entry.path).shape == (16, 32, 32, 3)


def test_twins_are_the_same_frames_in_opposite_order(clips: Manifest) -> None:
    for entry in clips.entries:
        if entry.label == 0:
            twin = entry.path.replace(CLASSES[0], CLASSES[1])
            assert np.array_equal(decode(clips, entry.path), decode(clips, twin)[::-1])


def test_products_of_frames_tell_the_class_at_the_gap_and_nothing_nearer(clips: Manifest) -> None:
    for entry in clips.entries:
        warm, cold = cues(decode(clips, entry.path))
        assert (warm > 0.02).sum() == (cold > 0.02).sum() == 1
        evidence = {lag: (warm[:-lag] * cold[lag:]).sum() - (cold[:-lag] * warm[lag:]).sum() for lag in range(1, 16)}
        near = [abs(evidence[lag]) for lag in range(1, min(gaps(16)))]
        far = sum(evidence[lag] for lag in gaps(16))
        assert max(near) < 1e-9
        assert (far > 1e-4) == (entry.label == 0)
        assert abs(far) > 1e-4


@pytest.mark.parametrize("frames", [16, 24, 32, 40])
def test_places_in_time_are_alike_in_both_directions(frames: int) -> None:
    scenes = [draw_scene(0, "train", number, frames) for number in range(1500)]
    first = np.array([scene.begin[0] for scene in scenes])
    # where the first cue begins in a clip, and where it begins in the clip played backwards
    reverse = np.array([frames - scene.duration - scene.begin[1] for scene in scenes])
    assert first.min() == reverse.min() == frames // 8
    assert first.max() == reverse.max()
    assert abs(first.mean() - reverse.mean()) < 4 * np.hypot(first.std(), reverse.std()) / np.sqrt(len(scenes))
    for scene in scenes:
        gap = scene.begin[1] - scene.begin[0]
        assert gap in gaps(frames)
        assert gap < frames - gap  # a circular shift cannot turn one order into the other
        assert frames - scene.begin[1] - scene.duration >= frames // 8
        assert np.all(scene.centre - scene.diameter[:, None] / 2 > -1e-9)
        assert np.all(scene.centre + scene.diameter[:, None] / 2 < 1 + 1e-9)
        assert set(scene.images) <= set(IMAGES["train"])
        assert len(set(scene.images)) == 3


def test_same_seed_gives_the_same_bytes_and_a_clip_does_not_depend_on_the_rest(tmp_path: Path, clips: Manifest) -> None:
    small = {**TINY, "train": 1, "val": 0, "test": 1}
    generate_temporal_order(tmp_path / "same", **small)
    generate_temporal_order(tmp_path / "other", seed=1, **small)
    for path in (tmp_path / "same").rglob("*.mp4"):
        name = path.relative_to(tmp_path / "same")
        assert path.read_bytes() == (clips.root / name).read_bytes()
        assert path.read_bytes() != (tmp_path / "other" / name).read_bytes()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 33}, "size must be even"),
        ({"frames": 15}, "frames is 15; it must be at least 16"),
        ({"seed": -1}, "seed is -1; it must be at least 0"),
        ({"test": -1}, "must not be negative"),
        ({"train": 0, "val": 0, "test": 0}, "nor all be 0"),
    ],
)
def test_wrong_arguments(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(DemoError, match=message):
        generate_temporal_order(tmp_path / "clips", **{**TINY, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--size", "16", "--train", "1", "--val", "0", "--test", "1"]
    assert main(["temporal_order", "--out", str(tmp_path / "clips"), *options]) == 0
    assert capsys.readouterr().out == f"{tmp_path / 'clips' / 'manifest.csv'}\n"
    assert main(["temporal_order", "--out", str(tmp_path / "clips"), *options, "--seed", "1"]) == 2
    assert "other parameters (seed" in capsys.readouterr().err


@pytest.mark.parametrize("gap", [(1, 3), (9, 11), (5, 5)])
def test_the_distance_of_the_cues_is_that_of_the_option(tmp_path: Path, gap: tuple[int, int]) -> None:
    distances = range(gap[0], gap[1] + 1)
    seen = set()
    for number in range(40):
        begin = draw_scene(0, "train", number, 16, distances).begin
        seen.add(begin[1] - begin[0])
        assert min(begin) >= 2
        assert max(begin) < 14
    assert seen == set(distances)
    manifest = generate_temporal_order(tmp_path / "x", size=16, train=1, val=1, test=1, gap=gap)
    assert manifest.is_file()


@pytest.mark.parametrize("gap", [(0, 3), (3, 2), (7, 9), (8, 8), (9, 12)])
def test_a_distance_that_cannot_be_is_refused(tmp_path: Path, gap: tuple[int, int]) -> None:
    with pytest.raises(DemoError, match="gap is"):
        generate_temporal_order(tmp_path / "x", size=16, gap=gap)
