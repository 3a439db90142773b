"""Manifests: checks that name file and line, hashing and writing."""

from __future__ import annotations

import tracemalloc
from pathlib import Path

import pytest

from common.datamodules.errors import DatasetError
from common.datamodules.manifest import COLUMNS, Entry, Manifest, read_class_names

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
    assert manifest.entries[0] == Entry("a.mp4", 0, "walk, fast", 10, 25.0, 0.4, "train", 2)
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
        ("a.mp4,-1,x,,,,train", "label is '-1'; it must be a whole number"),
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
    with pytest.raises(DatasetError) as caught:
        Manifest.read(path, tmp_path)
    assert f"{path}:3: " in str(caught.value)
    assert words in str(caught.value)


def test_a_class_name_of_two_lines_is_refused(tmp_path):
    path = write(tmp_path, 'a.mp4,0,"walk\nfast",,,,train\n')
    with pytest.raises(DatasetError, match=r"manifest\.csv:3: label_name 'walk\\nfast' holds a line break"):
        Manifest.read(path, tmp_path)


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
    with pytest.raises(DatasetError, match=words):
        Manifest.read(write(tmp_path, "", header=header), tmp_path)


@pytest.mark.parametrize(
    "line", ["walk/a.mp4 0", "my videos/a, b.mp4 12", "walk/a.mp4,3", "walk/a 250 7", "/v/a.mp4\t1"]
)
def test_a_list_of_another_library_names_the_command(tmp_path, line):
    path = write(tmp_path, f"{line}\n", header=f"{line}\n")
    with pytest.raises(DatasetError, match=r"csv:1: '.*' is no header.*`python -m data\.prepare lists --train"):
        Manifest.read(path, tmp_path)


def test_labels_with_gaps_need_a_class_list(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\nb,3,y,,,,train\n")
    with pytest.raises(DatasetError, match=r"labels go up to 3, but 2 of them have no line \(1, 2\).*classes\.txt"):
        Manifest.read(path, tmp_path)
    names = ["x", "p", "q", "y"]
    assert Manifest.read(path, tmp_path, class_names=names).class_counts() == [1, 0, 0, 1]


def test_one_label_with_two_names(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\nb,0,y,,,,train\n")
    with pytest.raises(DatasetError, match=rf"{path}:3: label 0 is named 'y', line 2"):
        Manifest.read(path, tmp_path)


def test_two_labels_with_one_name(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\nb,1,x,,,,train\n")
    with pytest.raises(DatasetError, match=rf"{path}:3: class 'x' has label 1, line 2 has 0"):
        Manifest.read(path, tmp_path)


def test_some_rows_without_the_name_of_their_label(tmp_path):
    path = write(tmp_path, "a,0,,,,,train\nb,0,x,,,,train\nc,0,,,,,train\nd,1,y,,,,train\n")
    assert Manifest.read(path, tmp_path).class_names == ("x", "y")


def test_a_manifest_without_classes_is_written_and_read(tmp_path):
    path = write(tmp_path, "a,,,,,,test\n")
    copy = tmp_path / "copy" / "manifest.csv"
    copy.parent.mkdir()
    Manifest.read(path, tmp_path).write(copy)
    assert Manifest.read(copy, tmp_path).class_names == ()


def test_many_wrong_lines_are_counted(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\n" + "b,0,x,,,,nothing\n" * 25)
    with pytest.raises(DatasetError, match="and 15 more"):
        Manifest.read(path, tmp_path)


def test_missing_root_names_the_remedy(tmp_path):
    with pytest.raises(DatasetError, match=r"no folder .*gone .*set the root"):
        Manifest.read(write(tmp_path, "a,0,x,,,,train\n"), tmp_path / "gone")
    with pytest.raises(DatasetError, match="no manifest at"):
        Manifest.read(tmp_path / "gone.csv", tmp_path)


def test_duplicates_are_reported(tmp_path):
    path = write(tmp_path, "a,0,x,,,,train\nb,0,x,,,,train\n./a,0,x,,,,val\n")
    with pytest.warns(UserWarning, match="a: lines 2, 4"):
        manifest = Manifest.read(path, tmp_path)
    assert manifest.duplicates() == {"a": [2, 4]}


def test_splits_and_present(tmp_path):
    path = write(tmp_path, "a.mp4,0,x,,,,train\nsub/b.mp4,0,x,,,,train\nc.mp4,0,x,,,,val\n")
    touch(tmp_path, "sub/b.mp4")
    manifest = Manifest.read(path, tmp_path)
    train = manifest.split("train")
    kept, missing = train.present()
    assert kept.counts() == "1 of 2 videos"
    assert [entry.path for entry in missing] == ["a.mp4"]
    with pytest.raises(DatasetError, match=r"no videos in split 'test'; it has: train \(2\), val \(1\)"):
        manifest.split("test")
    with pytest.raises(DatasetError, match="unknown split"):
        manifest.split("dev")


@pytest.mark.parametrize(
    ("text", "words"), [("a\n\nb\n", ":2: empty"), ("a\nb\na\n", ":3: .*line 1"), ("", "no class")]
)
def test_class_list_checks(tmp_path, text, words):
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(DatasetError, match=words):
        read_class_names(tmp_path / "classes.txt")


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("../../etc/a.mp4,0,x,,,,train", "leaves the data root"),
        ("b/../../a.mp4,0,x,,,,train", "leaves the data root"),
        ("/etc/a.mp4,0,x,,,,train", "leaves the data root"),
        ("a.mp4,99999999999,x,,,,train", "label is '99999999999'; it must be a whole number"),
        (f"a.mp4,{'9' * 5000},x,,,,train", "label is '999999"),
        ("a.mp4,0,x,10000000000,,,train", "at most 1000000000"),
        (f"a.mp4,0,x,{'9' * 5000},,,train", "num_frames is '9999"),
        ("a.mp4,0,x,,1e308,,train", "fps is '1e308'"),
    ],
)
def test_what_a_manifest_may_not_claim(tmp_path, row, words):
    """Without a class list too: nothing is made as long as a label says."""
    path = write(tmp_path, f"good.mp4,0,x,,,,train\n{row}\n")
    with pytest.raises(DatasetError) as caught:
        Manifest.read(path, tmp_path)
    assert f"{path}:3: " in str(caught.value)
    assert words in str(caught.value)
    assert len(str(caught.value)) < 500


def test_absolute_paths_below_the_root_become_relative(tmp_path):
    path = write(tmp_path, f"{tmp_path}/a/b.mp4,0,x,,,,train\na/c.mp4,0,x,,,,train\n")
    assert [entry.path for entry in Manifest.read(path, tmp_path).entries] == ["a/b.mp4", "a/c.mp4"]
    (tmp_path / "all").mkdir()
    write(tmp_path / "all", f"{tmp_path}/a/b.mp4,0,x,,,,train\n")
    [item] = Manifest.read(tmp_path / "all/manifest.csv", "/").items()
    assert item.path == f"{tmp_path}/a/b.mp4"


def test_a_high_label_without_a_class_list_is_refused_at_once(tmp_path):
    path = write(tmp_path, "good.mp4,0,x,,,,train\na.mp4,1000000000,y,,,,train\n")
    with pytest.raises(DatasetError, match=r"999999999 of them have no line \(1, 2, .*, \.\.\.\)"):
        Manifest.read(path, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("path,label,split\na,0,train\n".encode("utf-16"), "not a text file in UTF-8"),
        ("path,label,label_name,split\na,0,caf\xe9,train\n".encode("latin-1"), "not a text file in UTF-8"),
        (b"path,label,split\na\0b,0,train\n", ":2: holds a NUL"),
        (b"path,label,split\n" + b"a" * 200_000 + b",0,train\n", ":2: not a CSV file: field larger than"),
    ],
)
def test_files_that_are_no_manifest(tmp_path, content, words):
    path = tmp_path / "manifest.csv"
    path.write_bytes(content)
    with pytest.raises(DatasetError) as caught:
        Manifest.read(path, tmp_path)
    assert str(path) in str(caught.value)
    assert words in str(caught.value)


def test_rows_share_what_they_have_in_common(tmp_path) -> None:
    """A manifest of a million rows is held as its paths, and little more."""
    path = tmp_path / "manifest.csv"
    rows = (f"train/some_class/video_{i:07d}.mp4,{i % 7},c{i % 7},250,25.0,10.0,train" for i in range(20_000))
    path.write_text("\n".join([",".join(COLUMNS), *rows]) + "\n")
    tracemalloc.start()
    manifest = Manifest.read(path, tmp_path)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(manifest.entries) == 20_000
    assert held < 20_000 * 300
    assert peak < 20_000 * 450
    assert manifest.entries[9].label_name is manifest.entries[2].label_name
