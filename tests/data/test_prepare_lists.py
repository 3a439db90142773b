"""Manifests from the lists of mmaction2, SlowFast and pytorchvideo, beside tiny real media."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from common.datamodules.manifest import Manifest
from data.prepare import main
from tests.data.formats import video, write_frames


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Videos, one of them with blanks in its path, and folders of frames, one of them with a number in its name."""
    root = tmp_path / "videos"
    for name in ("walk/a.mp4", "my run/b 2.mp4", "walk/e.mp4"):
        video(root / name)
    for name in ("frames/c", "frames/d 12", "frames/d 13", "frames/e"):
        write_frames(root / name)
    return root


def prepare(root: Path, *options: str, **lists: str) -> int:
    """Write the lists, and run the command on them; its exit status."""
    words = []
    for name, content in lists.items():
        (root.parent / f"{name}.txt").write_text(content, encoding="utf-8")
        words += [f"--{name}", str(root.parent / f"{name}.txt")]
    out = str(root.parent / "out" / "manifest.csv")
    return main(["lists", *words, "--root", str(root), "--out", out, "--workers", "0", *options])


def read(root: Path) -> Manifest:
    return Manifest.read(root.parent / "out" / "manifest.csv", root)


def rows(root: Path) -> list[tuple[object, ...]]:
    """Path, label, number of frames and split of each video."""
    return [(entry.path, entry.label, entry.num_frames, entry.split) for entry in read(root).entries]


@pytest.mark.parametrize("between", [" ", ",", "\t", ", "])
def test_videos(root: Path, between: str) -> None:
    lists = {"train": f"walk/a.mp4{between}0\n\nmy run/b 2.mp4{between}1\n", "val": f"{root}/walk/e.mp4{between}0"}
    assert prepare(root, **lists) == 0
    assert rows(root) == [("walk/a.mp4", 0, 6, "train"), ("my run/b 2.mp4", 1, 6, "train"), ("walk/e.mp4", 0, 6, "val")]
    assert read(root).class_names == ("0", "1")


def test_frame_folders(root: Path) -> None:
    """With and without the number of frames, which is counted; a number can also be the end of a name."""
    lists = {"train": "frames/c 5 0\nframes/d 12 6 1\nframes/d 13 1\n", "test": "frames/e 0\n"}
    assert prepare(root, **lists) == 0
    assert rows(root) == [
        ("frames/c", 0, 6, "train"),
        ("frames/d 12", 1, 6, "train"),
        ("frames/d 13", 1, 6, "train"),
        ("frames/e", 0, 6, "test"),
    ]


def test_folders_of_the_splits_and_class_names(root: Path) -> None:
    (root.parent / "names.txt").write_text("stand\nwalk\nrun\n")
    options = ["--train-folder", "walk", "--val-folder", "my run", "--classes", str(root.parent / "names.txt")]
    assert prepare(root, *options, train="a.mp4 1\n", val="b 2.mp4 2\n") == 0
    assert rows(root) == [("walk/a.mp4", 1, 6, "train"), ("my run/b 2.mp4", 2, 6, "val")]
    assert read(root).class_names == ("stand", "walk", "run")
    assert read(root).class_counts() == [0, 1, 1]


def test_missing_and_broken_videos_are_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "walk/bad.mp4").write_bytes(b"no video at all")
    lists = {"train": "walk/a.mp4 0\nwalk/gone.mp4 0\nwalk/bad.mp4 0\nframes/gone 7 0\n"}
    assert prepare(root, **lists) == 1
    printed = capsys.readouterr().err
    assert "1 of 4 videos can be used" in printed
    assert "--root, or to the folder below it" in printed
    assert "--allow-missing" in printed
    with open(root.parent / "out" / "manifest.report.csv", newline="") as file:
        found = [(path, problem.split(":")[0]) for path, _, problem in csv.reader(file)][1:]
    assert [path for path, _ in found] == ["walk/gone.mp4", "walk/bad.mp4", "frames/gone"]
    assert found[0][1] == found[2][1] == "missing"
    assert not (root.parent / "out" / "manifest.csv").exists()
    assert prepare(root, "--allow-missing", **lists) == 0
    assert [path for path, *_ in rows(root)] == ["walk/a.mp4", "walk/gone.mp4", "frames/gone"]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("walk/a.mp4", "should be 'path label' or 'folder total_frames label'"),
        ("walk/a.mp4 walk", "should be 'path label'"),
        ("walk/a.mp4 -1", "should be 'path label'"),
        ("walk/a.mp4 1.0", "should be 'path label'"),
        ("walk/a.mp4 1000000001", "a label from 0 to 1000000000"),
        ("7", "should be 'path label'"),
        ("walk/a.mp4 0 1", "two numbers behind a video"),
        ("../a.mp4 0", "leaves the data root"),
        ("/elsewhere/a.mp4 0", "leaves the data root"),
        ("walk/./a.mp4 1", "has label 1, {file}:1: 0."),
    ],
)
def test_wrong_lines_are_named(root: Path, capsys: pytest.CaptureFixture[str], line: str, words: str) -> None:
    assert prepare(root, train=f"walk/a.mp4 0\n\n{line}\nmy run/b 2.mp4 1\n") == 1
    place = root.parent / "train.txt"
    printed = capsys.readouterr().err
    assert f"{place}:3: " in printed
    assert words.format(file=place) in printed
    assert not (root.parent / "out").exists()


@pytest.mark.parametrize(
    ("content", "classes", "words"),
    [
        ("walk/a.mp4 5\nmy run/b 2.mp4 1", None, "labels go up to 5, but 4 of them have no line (0, 2, 3, 4)"),
        ("walk/a.mp4 1000000000", None, "give --classes"),
        ("walk/a.mp4 0\nmy run/b 2.mp4 1", "walk\n", "train.txt:2: label 1 is outside of 0..0"),
        ("\n", None, "train.txt:1: lists no videos"),
    ],
)
def test_labels_and_class_list(
    root: Path, capsys: pytest.CaptureFixture[str], content: str, classes: str | None, words: str
) -> None:
    options = []
    if classes is not None:
        (root.parent / "names.txt").write_text(classes)
        options = ["--classes", str(root.parent / "names.txt")]
    assert prepare(root, *options, train=content) == 1
    assert words in capsys.readouterr().err


def test_files_and_options_that_are_missing(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prepare(root) == 2
    assert "give one or more of --train, --val, --test" in capsys.readouterr().err
    assert prepare(root, "--train", "gone.txt") == 1
    assert "gone.txt cannot be read" in capsys.readouterr().err
    assert prepare(root, "--classes", "gone.txt", train="walk/a.mp4 0\n") == 1
    assert "no file gone.txt: give --classes" in capsys.readouterr().err
    (root.parent / "out").mkdir()
    (root.parent / "out" / "classes.txt").write_text("walk\n")
    assert prepare(root, train="walk/a.mp4 0\n") == 1
    assert f"--classes {root.parent}/out/classes.txt to use them" in capsys.readouterr().err
