"""Folders with one sub-folder per class, and finding files."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest

from common.datamodules.errors import DatasetError
from common.datamodules.folders import find_files, read_class_folders


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_folders_with_splits(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.AVI", "train/walk/c/img_1.jpg", "val/run/d.webm", "val/run/.x.mp4")
    touch(tmp_path, "train/walk/notes.txt", "train/walk/deep/er/e.mp4")
    manifest = read_class_folders(tmp_path)
    assert manifest.class_names == ("run", "walk")
    assert {(entry.path, entry.label, entry.split) for entry in manifest.entries} == {
        ("train/run/a.mp4", 0, "train"),
        ("train/walk/b.AVI", 1, "train"),
        ("train/walk/c", 1, "train"),
        ("train/walk/deep/er/e.mp4", 1, "train"),
        ("val/run/d.webm", 0, "val"),
    }


@pytest.mark.parametrize("names", [("training", "valid", "testing"), ("Train", "validation", "TEST")])
def test_usual_names_of_splits(tmp_path, names):
    touch(tmp_path, *(f"{name}/run/{name}.mp4" for name in names))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        manifest = read_class_folders(tmp_path)
    assert [(entry.split, entry.path) for entry in manifest.entries] == [
        (split, f"{name}/run/{name}.mp4") for split, name in zip(("train", "val", "test"), names, strict=True)
    ]


def test_what_was_not_used_is_named(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/run/b.mp4", "dev/run/c.mp4")
    with pytest.warns(UserWarning, match="taken from train") as caught:
        read_class_folders(tmp_path)
    assert [str(warning.message) for warning in caught] == [
        f"{tmp_path}: videos are taken from train; not used: dev.",
        f"{tmp_path} has train, but no videos for validation (val or valid or validation).",
    ]
    touch(tmp_path, "val/run/c.mp4", "validation/run/c.mp4")
    with pytest.raises(DatasetError, match="has the folders val and validation for one split"):
        read_class_folders(tmp_path)


def test_a_class_may_be_named_like_a_split(tmp_path):
    touch(tmp_path, "train/a.mp4", "train/b.mp4", "bus/c.mp4", "bus/d.mp4")
    with pytest.warns(UserWarning, match="held out"):
        assert read_class_folders(tmp_path).class_names == ("bus", "train")


def test_files_that_are_not_videos_are_counted_in_one_line(tmp_path):
    touch(tmp_path, *(f"train/run/{name}" for name in ("a.mp4", "b.MP4", "c.gif", "d.mp4.part", "notes.txt", "x.txt")))
    touch(tmp_path, "train/run/._a.mp4", "train/run/README", "val/run/f/1.jpg", "val/run/f/info.xml")
    with pytest.warns(UserWarning, match="not used") as caught:
        manifest = read_class_folders(tmp_path)
    assert [str(warning.message) for warning in caught] == [
        f"{tmp_path}: 4 videos; 5 other files are not used: 1 .part (train/run/d.mp4.part), "
        "2 .txt (train/run/notes.txt), 1 hidden (train/run/._a.mp4), 1 no extension (train/run/README)."
    ]
    assert [entry.path.rpartition("/")[2] for entry in manifest.entries] == ["a.mp4", "b.MP4", "c.gif", "f"]


def test_videos_in_no_class_folder_are_counted(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "val/run/b.mp4", "train/loose.mp4", "c.y4m", "classes.csv", ".hidden.mp4")
    with pytest.warns(UserWarning, match="no class folder") as caught:
        assert len(read_class_folders(tmp_path).entries) == 2
    assert [str(warning.message) for warning in caught] == [
        f"{tmp_path}: 2 videos lie in no class folder, and cannot be used (c.y4m)."
    ]


def test_missing_root_names_the_remedy(tmp_path):
    with pytest.raises(DatasetError, match=r"no folder .*gone .*folder of the images"):
        read_class_folders(tmp_path / "gone", kind="image")


def test_folders_without_splits_hold_out_one_in_five(tmp_path):
    touch(tmp_path, *(f"{name}/{index}.mp4" for name in "ab" for index in range(10)))
    with pytest.warns(UserWarning, match="4 of 20 videos are held out"):
        manifest = read_class_folders(tmp_path)
    assert manifest.class_counts("val") == [2, 2]
    touch(tmp_path, "a/new.mp4")
    with pytest.warns(UserWarning, match="held out"):
        again = read_class_folders(tmp_path)
    assert len({e.path for e in again.split("val").entries} & {e.path for e in manifest.split("val").entries}) >= 3


def test_empty_class_is_named(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/swim/notes.txt")
    with pytest.raises(DatasetError, match="train/swim"):
        read_class_folders(tmp_path)


def test_class_without_training_videos_is_named(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "val/swim/b.mp4")
    with pytest.raises(DatasetError, match="swim"):
        read_class_folders(tmp_path)


def test_single_videos_cannot_be_held_out(tmp_path):
    touch(tmp_path, "run/a.mp4", "swim/b.mp4")
    with pytest.raises(DatasetError, match="single video"):
        read_class_folders(tmp_path)


def test_folder_class_list(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/swim/b.mp4")
    assert read_class_folders(tmp_path, ["swim", "run"]).entries[0].label == 1
    (tmp_path / "classes.txt").write_text("run\n")
    with pytest.raises(DatasetError, match="not in the class list: swim"):
        read_class_folders(tmp_path)


def test_no_class_folders(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(DatasetError, match="no class folders"):
        read_class_folders(tmp_path)


def test_find_files(tmp_path):
    touch(tmp_path, "a.mp4", "d/c.avi", "d/b.mp4", "d/x.txt", "d/f/1.jpg", "odd.bin")
    (tmp_path / "list.txt").write_text("a.mp4\n\nd\n")
    expected = [tmp_path / "d/b.mp4", tmp_path / "d/c.avi", tmp_path / "d/f"]
    with pytest.warns(UserWarning, match=r"d: 3 videos; 1 other file is not used: 1 .txt \(x.txt\)"):
        assert find_files(tmp_path / "d", "video") == expected
    assert find_files(tmp_path / "d/f", "video") == [tmp_path / "d/f"]
    assert find_files([tmp_path / "list.txt", tmp_path / "odd.bin"], "video") == [
        tmp_path / "a.mp4",
        *expected,
        tmp_path / "odd.bin",
    ]
    (tmp_path / "list.txt").write_text("a.mp4\ngone.mp4\n")
    with pytest.raises(FileNotFoundError, match=r"list\.txt:2: .*gone"):
        find_files(tmp_path / "list.txt", "video")
    with pytest.raises(FileNotFoundError, match="nothing"):
        find_files(tmp_path / "nothing", "video")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no videos below"):
        find_files(tmp_path / "empty", "video")


def test_lists_that_have_no_end_or_no_files(tmp_path):
    (tmp_path / "a.txt").write_text("b.txt\n")
    (tmp_path / "b.txt").write_text("a.txt\n")
    with pytest.raises(DatasetError, match=r"a.txt lists itself: .*a.txt lists .*b.txt lists .*a.txt"):
        find_files(tmp_path / "a.txt", "video")
    (tmp_path / "b.txt").write_text("\n")
    with pytest.raises(DatasetError, match=r"b.txt lists no files"):
        find_files(tmp_path / "a.txt", "video")
    with pytest.raises(FileNotFoundError, match="a path is empty"):
        find_files([""], "video")
