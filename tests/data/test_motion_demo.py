"""The motion demo: only the order of frames tells the class, seeds decide everything, folders appear whole."""

from __future__ import annotations

import itertools
import json
import math
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from common.datamodules.manifest import Entry, Manifest
from common.datamodules.video_reader import open_video
from data.demo import _clips as clips_module
from data.demo.__main__ import main
from data.demo._clips import IMAGES, write_clip
from data.demo._folder import DemoError
from data.demo.motion import MOTION_PAIRS, draw_scene, generate_motion, render

TINY: dict[str, Any] = {"size": 16, "frames": 3, "train": 2, "val": 1, "test": 1}


def decode(path: Path) -> np.ndarray:
    """(T, H, W, 3) uint8, decoded here without the project's readers."""
    with av.open(str(path)) as container:
        container.streams.video[0].codec_context.thread_count = 1
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def grey(manifest: Manifest, entry: Entry) -> np.ndarray:
    with open_video(manifest.root / entry.path) as video:
        return video.get_frames(range(video.num_frames)).numpy().astype(float).mean(-1)


def twin(path: str) -> str:
    """The path of the same clip played backwards."""
    split, name, file = path.split("/")
    first, second = next(pair for pair in MOTION_PAIRS if name in pair)
    return f"{split}/{second if name == first else first}/{file}"


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_manifest_lists_every_clip(motion: Manifest) -> None:
    assert list(motion.class_names) == [name for pair in MOTION_PAIRS for name in pair]
    assert {split: motion.class_counts(split) for split in motion.splits()} == {
        "train": [40] * 8,
        "val": [2] * 8,
        "test": [40] * 8,
    }
    assert sorted(path.relative_to(motion.root).as_posix() for path in motion.root.rglob("*.mp4")) == sorted(
        entry.path for entry in motion.entries
    )
    entry = motion.entries[0]
    with av.open(str(motion.root / entry.path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.codec_context.pix_fmt) == ("h264", "yuv420p")
        assert (stream.width, stream.height, stream.frames) == (48, 48, 8)
        assert (stream.average_rate, entry.fps, entry.num_frames) == (12, 12.0, 8)
        assert entry.duration == pytest.approx(8 / 12, abs=1e-6)


@pytest.mark.parametrize("step", [9, pytest.param(1, marks=pytest.mark.slow)])
def test_twins_decode_to_the_same_frames_in_opposite_order(motion: Manifest, step: int) -> None:
    """So every model that sees the frames of a clip as a set answers the same for both, and is right for one."""
    assert sorted(twin(entry.path) for entry in motion.entries) == sorted(entry.path for entry in motion.entries)
    for entry in motion.entries[::step]:
        clip = decode(motion.root / entry.path)
        assert np.array_equal(clip, decode(motion.root / twin(entry.path))[::-1]), entry.path
        assert not np.array_equal(clip, clip[::-1]), entry.path


def test_compression_is_visible_and_the_same_at_every_place_in_the_file(tmp_path: Path) -> None:
    clip = render(draw_scene(0, "train", 0, 0, 6), 64)
    write_clip(tmp_path / "clip.mp4", clip, 12)
    write_clip(tmp_path / "shuffled.mp4", clip[[3, 0, 5, 1, 4, 2]], 12)
    coded = decode(tmp_path / "clip.mp4")
    assert np.array_equal(coded[[3, 0, 5, 1, 4, 2]], decode(tmp_path / "shuffled.mp4"))
    error = np.sqrt(((coded.astype(float) - clip) ** 2).mean((1, 2, 3)))
    assert np.all((error > 2) & (error < 20))


def order_free_features(clip: np.ndarray) -> np.ndarray:
    """Mean and sorted values over the frames of a small thumbnail, and sorted statistics of the frames."""
    frames, side = len(clip), clip.shape[1] // 6
    small = clip.reshape(frames, 6, side, 6, side).mean((2, 4)).reshape(frames, -1)
    levels = np.stack([clip.mean((1, 2)), clip.std((1, 2)), np.abs(np.diff(clip, axis=2)).mean((1, 2))])
    return np.concatenate([np.sort(small, axis=0).ravel(), small.std(0), np.sort(levels, axis=1).ravel()])


def test_order_free_classifier_is_at_chance_within_pairs(motion: Manifest) -> None:
    """With one twin of each two dropped, so that not even pairing helps: no statistical trace of the direction."""
    rng = np.random.default_rng(0)
    data = {}
    for split in ("train", "test"):
        subset = motion.split(split)
        number = len(subset.entries) // 8
        keep = rng.integers(2, size=(4, number))  # which twin of each pair stays
        chosen = [
            entry
            for entry in subset.entries
            if entry.label is not None and keep[entry.label // 2, int(Path(entry.path).stem)] == entry.label % 2
        ]
        features = np.stack([order_free_features(grey(motion, entry)) for entry in chosen])
        data[split] = features, np.array([entry.label for entry in chosen])
    (train, train_labels), (test, test_labels) = data["train"], data["test"]
    mean, scale = train.mean(0), train.std(0) + 1e-6
    train, test = (train - mean) / scale, (test - mean) / scale
    ridge_hits, nearest_hits = [], []
    for pair in range(4):
        x, y = train[train_labels // 2 == pair], 2.0 * (train_labels[train_labels // 2 == pair] % 2) - 1
        probe, truth = test[test_labels // 2 == pair], test_labels[test_labels // 2 == pair] % 2
        kernel = x @ x.T
        weights = x.T @ np.linalg.solve(kernel + 0.1 * np.trace(kernel) / len(x) * np.eye(len(x)), y)
        assert ((x @ weights > 0) == (y > 0)).mean() > 0.9  # it does learn its training clips
        ridge_hits.append((probe @ weights > 0) == truth)
        distance = ((probe[:, None] - x[None]) ** 2).sum(-1)
        votes = y[np.argsort(distance, axis=1)[:, :5]].sum(1)
        nearest_hits.append((votes > 0) == truth)
    for hits in (np.concatenate(ridge_hits), np.concatenate(nearest_hits)):
        bound = 3.29 * 0.5 / math.sqrt(len(hits))  # 99.9 % of a fair coin
        assert abs(hits.mean() - 0.5) < bound


def mean_flow(clip: np.ndarray) -> np.ndarray:
    """Least-squares optical flow of what changes: mean x and y velocity, growth and clockwise turn (4,)."""
    side = clip.shape[1]
    y, x = np.mgrid[:side, :side] / side
    flows = []
    for before, after in itertools.pairwise(clip):
        gradient_y, gradient_x = np.gradient((before + after) / 2)
        change = after - before
        weight = change**2
        dx, dy = x - (weight * x).sum() / weight.sum(), y - (weight * y).sum() / weight.sum()
        growth, turn = gradient_x * dx + gradient_y * dy, gradient_y * dx - gradient_x * dy
        system = np.stack([gradient_x, gradient_y, growth, turn], -1).reshape(-1, 4) * np.abs(change).reshape(-1, 1)
        flows.append(np.linalg.lstsq(system, -(change * np.abs(change)).ravel(), rcond=None)[0])
    return np.mean(flows, axis=0)


def test_the_order_of_frames_tells_the_class_as_it_is_named(motion: Manifest) -> None:
    """A rule without any training: left is less x, up is less y (y points down), clockwise and growth as they are."""
    hits: list[list[bool]] = [[], [], [], []]
    for entry in motion.split("test").entries:
        assert entry.label is not None
        velocity_x, velocity_y, growth, turn = mean_flow(grey(motion, entry))
        is_first = (velocity_x < 0, velocity_y < 0, turn > 0, growth > 0)[entry.label // 2]
        hits[entry.label // 2].append(is_first == (entry.label % 2 == 0))
    assert min(np.mean(pair) for pair in hits) > 0.9


def test_no_image_is_in_two_splits() -> None:
    names = [name for images in IMAGES.values() for name in images]
    assert len(set(names)) == len(names)
    assert "motorcycle_right.png" not in names  # the same scene as motorcycle_left.png
    for split, images in IMAGES.items():
        scenes = [draw_scene(0, split, pair, number, 4) for pair in range(4) for number in range(25)]
        used = {name for scene in scenes for name in (scene.object_image, scene.background_image)}
        assert used == set(images)
        assert all(scene.object_image != scene.background_image for scene in scenes)


def test_objects_stay_in_the_frame() -> None:
    for pair in range(4):
        for number in range(50):
            scene = draw_scene(1, "train", pair, number, 16)
            edge = np.stack(
                [scene.centre - scene.diameter[:, None] / 2, 1 - scene.centre - scene.diameter[:, None] / 2]
            )
            assert edge.min() > -1e-9


def test_same_seed_gives_the_same_bytes_and_another_seed_other_clips(tmp_path: Path) -> None:
    for name, seed in (("a", 5), ("b", 5), ("c", 6)):
        generate_motion(tmp_path / name, seed=seed, **TINY)
    first, again, other = (files(tmp_path / name) for name in "abc")
    assert first == again
    assert first.keys() == other.keys()
    assert all(first[name] != other[name] for name in first if name.endswith(".mp4"))


def test_a_clip_does_not_depend_on_the_rest_of_the_data_set(tmp_path: Path) -> None:
    generate_motion(tmp_path / "small", **TINY)
    generate_motion(tmp_path / "large", **{**TINY, "train": 3, "val": 2})
    generate_motion(tmp_path / "one", classes=["shrink"], **TINY)
    large = files(tmp_path / "large")
    for name in ("small", "one"):
        clips = {path: content for path, content in files(tmp_path / name).items() if path.endswith(".mp4")}
        assert clips.items() <= large.items()
    assert Manifest.read(tmp_path / "one" / "manifest.csv", tmp_path / "one").class_names == ("shrink",)


def test_finished_folder_is_reused_and_never_changed(tmp_path: Path) -> None:
    out = tmp_path / "clips"
    manifest = generate_motion(out, **TINY)
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*")}
    assert generate_motion(out, **TINY) == manifest
    with pytest.raises(DemoError, match=r"other parameters \(seed is 0, requested 1\)"):
        generate_motion(out, seed=1, **TINY)
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*")} == before


@pytest.mark.parametrize("record", [None, "[]", "{"])
def test_folder_of_the_user_is_refused(tmp_path: Path, record: str | None) -> None:
    out = tmp_path / "mine"
    out.mkdir()
    (out / "thesis.txt").write_text("mine")
    if record is not None:
        (out / "demo.json").write_text(record)
    before = files(tmp_path)
    with pytest.raises(DemoError, match="choose another --out"):
        generate_motion(out, **TINY)
    assert files(tmp_path) == before


def test_interruption_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def interrupted(path: Path, *rest: object) -> None:
        calls.append(path)
        path.touch()
        if len(calls) == 3:
            raise KeyboardInterrupt

    monkeypatch.setattr(clips_module, "write_clip", interrupted)
    with pytest.raises(KeyboardInterrupt):
        generate_motion(tmp_path / "clips", **TINY)
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_two_processes_that_make_the_same_folder_agree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The other process finishes first: its folder is taken."""
    out = tmp_path / "clips"
    write = write_clip

    def overtaken(*args: object) -> None:
        monkeypatch.setattr(clips_module, "write_clip", write)
        generate_motion(out, **TINY)
        write(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(clips_module, "write_clip", overtaken)
    assert generate_motion(out, **TINY) == out / "manifest.csv"
    assert [path.name for path in tmp_path.iterdir()] == ["clips"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"size": 33}, "size must be even"),
        ({"size": 8}, "size must be even"),
        ({"frames": 1}, "frames is 1; it must be at least 2"),
        ({"train": -1}, "must not be negative"),
        ({"train": 0, "val": 0, "test": 0}, "nor all be 0"),
        ({"classes": ["jump"]}, "different names out of move_left"),
        ({"classes": ["grow", "grow"]}, "different names"),
        ({"classes": []}, "different names"),
    ],
)
def test_wrong_arguments(tmp_path: Path, wrong: dict, message: str) -> None:
    with pytest.raises(DemoError, match=message):
        generate_motion(tmp_path / "clips", **{**TINY, **wrong})
    assert list(tmp_path.iterdir()) == []


def test_missing_image_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(IMAGES, "train", ("nowhere.png", "nothing.png"))
    with pytest.raises(DemoError, match=r"no readable (nowhere|nothing)\.png.*reinstall scikit-image"):
        generate_motion(tmp_path / "clips", **TINY)


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "clips"
    options = [text for key, value in TINY.items() for text in (f"--{key}", str(value))]
    assert main(["motion", "--out", str(out), *options]) == 0
    assert capsys.readouterr().out == f"{out / 'manifest.csv'}\n"
    record = json.loads((out / "demo.json").read_text())
    assert {key: record[key] for key in TINY} == TINY
    assert main(["motion", "--out", str(out), *options, "--seed", "1"]) == 2
    assert "other parameters (seed" in capsys.readouterr().err

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(clips_module, "write_clip", interrupted)
    assert main(["motion", "--out", str(tmp_path / "other"), *options]) == 130
    assert not (tmp_path / "other").exists()
