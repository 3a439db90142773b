"""Manifests: checks that name file and line, folder mode, hashing and writing."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.datamodules.manifest import Entry, Manifest, ManifestError, find_videos, read_class_names

HEADER = "path,label,label_name,num_frames,fps,duration,split\n"


def write(folder: Path, rows: str, classes: str | None = None, header: str = HEADER) -> Path:
    path = folder / "manifest.csv"
    path.write_text(header + rows, encoding="utf-8")
    if classes is not None:
        (folder / "classes.txt").write_text(classes)
    return path


def touch(root: Path, *names: str) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def test_round_trip(tmp_path):
    path = write(tmp_path, 'a.mp4,0,"walk, fast",10,25,0.4,train\nb,1,run,,,,val\nc.avi,,,7,29.97,,test\n')
    manifest = Manifest.read(path, tmp_path)
    assert manifest.class_names == ("walk, fast", "run")
    assert manifest.entries[0] == Entry("a.mp4", 0, "walk, fast", "train", 10, 25.0, 0.4, 2)
    assert manifest.entries[2].label is None
    manifest.write(tmp_path / "out" / "copy.csv")
    copy = Manifest.read(tmp_path / "out" / "copy.csv", tmp_path)
    assert copy.entries == manifest.entries
    assert copy.hash == manifest.hash
    copy.write(tmp_path / "out" / "copy.csv")  # the same content again is fine


def test_hash_is_of_the_content(tmp_path):
    first = Manifest.read(write(tmp_path, "a.mp4,0,x,,,,train\nb.mp4,1,y,,,,val\n"), tmp_path).hash
    header = "split,path,label,label_name\r\n"
    same = write(tmp_path, "train,a.mp4,0,x\r\n\r\nval,b.mp4,1,y\r\n", header="\ufeff" + header)
    assert Manifest.read(same, tmp_path).hash == first
    for rows in ("a.mp4,0,x,,,,train\nb.mp4,1,z,,,,val\n", "b.mp4,1,y,,,,val\na.mp4,0,x,,,,train\n"):
        assert Manifest.read(write(tmp_path, rows), tmp_path).hash != first


def test_nothing_is_overwritten(tmp_path):
    manifest = Manifest.read(write(tmp_path, "a.mp4,0,x,,,,train\n"), tmp_path)
    target = tmp_path / "other" / "m.csv"
    touch(tmp_path, "other/classes.txt")
    with pytest.raises(FileExistsError, match=r"classes\.txt"):
        manifest.write(target)
    assert not target.exists()
    manifest.write(target, overwrite=True)
    assert read_class_names(target.parent / "classes.txt") == ["x"]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("a.mp4,7,x,,,,train", "label 7 is outside 0..1"),
        ("a.mp4,-1,x,,,,train", "label -1 is outside 0..1"),
        ("a.mp4,one,x,,,,train", "label is 'one'"),
        ("a.mp4,1,x,,,,train", "label 1 is 'y' in the class list"),
        ("a.mp4,,nobody,,,,train", "'nobody' is not in the class list"),
        ("a.mp4,,,,,,val", "no label"),
        (",0,x,,,,train", "path is empty"),
        ("a.mp4,0,x,,,,validation", "split is 'validation'"),
        ("a.mp4,0,x,ten,,,train", "num_frames is 'ten'"),
        ("a.mp4,0,x,0,,,train", "num_frames is '0'"),
        ("a.mp4,0,x,,nan,,train", "fps is 'nan'"),
        ("a.mp4,0,x,,25,-3,train", "duration is '-3'"),
        ("a.mp4,0,x,,train", "5 fields"),
        ("good.mp4,1,y,,,,train", "line 2: 0"),
    ],
)
def test_wrong_lines_are_named(tmp_path, row, words):
    path = write(tmp_path, f"good.mp4,0,x,,,,train\n{row}\n", classes="x\ny\n")
    with pytest.raises(ManifestError) as caught:
        Manifest.read(path, tmp_path)
    assert f"{path}:3: " in str(caught.value)
    assert words in str(caught.value)


def test_label_from_name_only(tmp_path):
    manifest = Manifest.read(write(tmp_path, "a,run,train\nb,walk,val\n", header="path,label_name,split\n"), tmp_path)
    assert manifest.class_names == ("run", "walk")
    assert [entry.label for entry in manifest.entries] == [0, 1]


@pytest.mark.parametrize(
    ("header", "words"),
    [
        ("path,label\n", "missing columns: split"),
        ("path,split\n", "missing columns: label"),
        ("path,label,split,num_frame\n", "unknown columns: num_frame"),
        ("path,label,split,path\n", "twice"),
    ],
)
def test_wrong_header(tmp_path, header, words):
    with pytest.raises(ManifestError, match=words):
        Manifest.read(write(tmp_path, "", header=header), tmp_path)


def test_labels_with_gaps_need_a_class_list(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\nb,3,y,,,,train\n")
    with pytest.raises(ManifestError, match=r"\(1, 2\).*classes\.txt"):
        Manifest.read(path, tmp_path)
    names = ["x", "p", "q", "y"]
    assert Manifest.read(path, tmp_path, class_names=names).class_counts() == [1, 0, 0, 1]


def test_one_label_with_two_names(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\nb,0,y,,,,train\n")
    with pytest.raises(ManifestError, match=rf"{path}:3: label 0 is named 'y', line 2"):
        Manifest.read(path, tmp_path)


def test_many_wrong_lines_are_counted(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\n" + "b,0,x,,,,nothing\n" * 25)
    with pytest.raises(ManifestError, match="and 15 more"):
        Manifest.read(path, tmp_path)


def test_missing_root_names_the_remedy(tmp_path):
    for make in (
        lambda: Manifest.read(write(tmp_path, "a,0,x,,,,train\n"), tmp_path / "gone"),
        lambda: Manifest.from_folders(tmp_path / "gone"),
    ):
        with pytest.raises(ManifestError, match=r"gone does not exist.*data\.demo"):
            make()
    with pytest.raises(ManifestError, match="no manifest at"):
        Manifest.read(tmp_path / "gone.csv", tmp_path)


def test_duplicates_are_reported(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\nb,0,x,,,,train\n./a,0,x,,,,val\n")
    with pytest.warns(UserWarning, match="a: lines 2, 4"):
        manifest = Manifest.read(path, tmp_path)
    assert manifest.duplicates() == {"a": [2, 4]}


def test_splits_and_present(tmp_path):
    path = write(tmp_path, "a.mp4,0,x,,,,train\nsub/b.mp4,0,x,,,,train\nc.mp4,0,x,,,,val\n")
    touch(tmp_path, "sub/b.mp4")
    train = Manifest.read(path, tmp_path, split="train")
    kept, missing = train.present()
    assert kept.counts() == "1 of 2 videos"
    assert [entry.path for entry in missing] == ["a.mp4"]
    with pytest.raises(ManifestError, match=r"no videos in split 'test'; it has: train \(2\), val \(1\)"):
        Manifest.read(path, tmp_path, split="test")
    with pytest.raises(ManifestError, match="unknown split"):
        Manifest.read(path, tmp_path, split="dev")


# -- folder per class -------------------------------------------------------------------------------------------------


def test_folders_with_splits(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/walk/b.AVI", "train/walk/c/img_1.jpg", "val/run/d.webm", "val/run/.x.mp4")
    touch(tmp_path, "train/walk/notes.txt", "train/walk/deep/er/e.mp4")
    manifest = Manifest.from_folders(tmp_path)
    assert manifest.class_names == ("run", "walk")
    assert {(entry.path, entry.label, entry.split) for entry in manifest.entries} == {
        ("train/run/a.mp4", 0, "train"),
        ("train/walk/b.AVI", 1, "train"),
        ("train/walk/c", 1, "train"),
        ("train/walk/deep/er/e.mp4", 1, "train"),
        ("val/run/d.webm", 0, "val"),
    }


def test_folders_without_splits_hold_out_one_in_five(tmp_path):
    touch(tmp_path, *(f"{name}/{index}.mp4" for name in "ab" for index in range(10)))
    with pytest.warns(UserWarning, match="4 of 20 videos are held out"):
        manifest = Manifest.from_folders(tmp_path)
    assert manifest.class_counts("val") == [2, 2]
    touch(tmp_path, "a/new.mp4")
    with pytest.warns(UserWarning, match="held out"):
        again = Manifest.from_folders(tmp_path)
    assert len({e.path for e in again.split("val").entries} & {e.path for e in manifest.split("val").entries}) >= 3


def test_empty_class_is_named(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/swim/notes.txt")
    with pytest.raises(ManifestError, match="train/swim"):
        Manifest.from_folders(tmp_path)


def test_class_without_training_videos_is_named(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "val/swim/b.mp4")
    with pytest.raises(ManifestError, match="swim"):
        Manifest.from_folders(tmp_path)


def test_single_videos_cannot_be_held_out(tmp_path):
    touch(tmp_path, "run/a.mp4", "swim/b.mp4")
    with pytest.raises(ManifestError, match="single video"):
        Manifest.from_folders(tmp_path)


def test_folder_class_list(tmp_path):
    touch(tmp_path, "train/run/a.mp4", "train/swim/b.mp4")
    assert Manifest.from_folders(tmp_path, ["swim", "run"]).entries[0].label == 1
    (tmp_path / "classes.txt").write_text("run\n")
    with pytest.raises(ManifestError, match="not in the class list: swim"):
        Manifest.from_folders(tmp_path)


def test_no_class_folders(tmp_path):
    touch(tmp_path, "a.mp4")
    with pytest.raises(ManifestError, match="no class folders"):
        Manifest.from_folders(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"), [("a\n\nb\n", ":2: empty"), ("a\nb\na\n", ":3: .*line 1"), ("", "no class")]
)
def test_class_list_checks(tmp_path, text, words):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(ManifestError, match=words):
        read_class_names(tmp_path / "classes.txt")


def test_find_videos(tmp_path):
    touch(tmp_path, "a.mp4", "d/c.avi", "d/b.mp4", "d/x.txt", "d/f/1.jpg", "odd.bin")
    (tmp_path / "list.txt").write_text("a.mp4\n\nd\n")
    expected = [tmp_path / "d/b.mp4", tmp_path / "d/c.avi", tmp_path / "d/f"]
    assert find_videos(tmp_path / "d") == expected
    assert find_videos(tmp_path / "d/f") == [tmp_path / "d/f"]
    assert find_videos([tmp_path / "list.txt", tmp_path / "odd.bin"]) == [
        tmp_path / "a.mp4",
        *expected,
        tmp_path / "odd.bin",
    ]
    (tmp_path / "list.txt").write_text("a.mp4\ngone.mp4\n")
    with pytest.raises(FileNotFoundError, match=r"list\.txt:2: .*gone"):
        find_videos(tmp_path / "list.txt")
    with pytest.raises(FileNotFoundError, match="nothing"):
        find_videos(tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no videos below"):
        find_videos(tmp_path / "empty")
