"""The check of a manifest finds what is wrong, names it, and changes nothing."""

from __future__ import annotations

import csv
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datamodules.manifest import Manifest
from data.check import check, main
from data.demo.motion import generate_motion
from tests.media import truncate


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("check") / "clips"
    generate_motion(folder, size=32, frames=4, train=2, val=1, test=1, classes=["grow", "shrink"])
    return folder


@pytest.fixture
def root(clips: Path, tmp_path: Path) -> Path:
    """A copy that a test may spoil."""
    return Path(shutil.copytree(clips, tmp_path / "clips"))


def run(root: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    """Exit status and what was printed, without line breaks."""
    status = main([str(root / "manifest.csv"), "--root", str(root), "--workers", "0", *options])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def edit(root: Path, old: str, new: str) -> None:
    path = root / "manifest.csv"
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1))


@pytest.mark.parametrize("options", [(), ("--decode",)])
def test_a_good_data_set(root: Path, capsys: pytest.CaptureFixture[str], options: tuple[str, ...]) -> None:
    before = {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}
    report = root.parent / "report.csv"
    status, printed = run(root, capsys, "--report", str(report), *options)
    assert status == 0
    assert "8 of 8 videos are good; 0 problems" in printed
    assert "32x32 (4)" in printed
    with open(report, newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["line"] for row in rows] == [str(line) for line in range(2, 10)]
    assert {(row["num_frames"], row["width"], row["height"], row["problem"]) for row in rows} == {("4", "32", "32", "")}
    assert {path: path.read_bytes() for path in root.rglob("*") if path.is_file()} == before


def test_the_root_defaults_to_the_folder_of_the_manifest(root: Path) -> None:
    assert main([str(root / "manifest.csv"), "--workers", "0"]) == 0


@pytest.mark.slow
def test_processes_find_what_one_process_finds(root: Path) -> None:
    (root / "val/grow/0000.mp4").unlink()
    manifest = Manifest.read(root / "manifest.csv", root)
    assert check(manifest, workers=2).findings == check(manifest, workers=0).findings


def test_missing_broken_and_cut_videos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "train/grow/0000.mp4").unlink()
    (root / "train/grow/0001.mp4").write_bytes(b"not a video")
    (root / "train/shrink/0000.mp4").write_bytes(b"")
    truncate(root / "train/shrink/0001.mp4", 0.7)
    report = root.parent / "report.csv"
    status, printed = run(root, capsys, "--report", str(report))
    assert status == 1
    assert "4 of 8 videos are good; 4 problems" in printed
    assert f"{root / 'manifest.csv'}:2: train/grow/0000.mp4: no such file" in printed
    assert f"{root / 'manifest.csv'}:3: train/grow/0001.mp4: not a readable video" in printed
    assert f"{root / 'manifest.csv'}:4: train/shrink/0000.mp4: the file is empty" in printed
    assert f"{root / 'manifest.csv'}:5: train/shrink/0001.mp4:" in printed
    with open(report, newline="") as file:
        assert [bool(row["problem"]) for row in csv.DictReader(file)] == [True] * 4 + [False] * 4


def test_only_decoding_finds_a_spoilt_frame(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = root / "val/grow/frames"
    folder.mkdir()
    for number in range(1, 5):
        Image.fromarray(np.full((16, 24, 3), 50, np.uint8)).save(folder / f"{number:03d}.jpg")
    (folder / "003.jpg").write_bytes(b"spoilt")
    edit(root, "val/grow/0000.mp4", "val/grow/frames")
    status, printed = run(root, capsys)
    assert status == 0
    assert "24x16 (1)" in printed
    status, printed = run(root, capsys, "--decode")
    assert status == 1
    assert "frame 003.jpg cannot be read" in printed


def test_wrong_number_of_frames(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root, "val/grow/0000.mp4,0,grow,4", "val/grow/0000.mp4,0,grow,5")
    status, printed = run(root, capsys)
    assert status == 1
    assert "val/grow/0000.mp4: has 4 frames, the manifest says 5" in printed


def test_copies_in_two_splits(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.copy(root / "train/grow/0001.mp4", root / "test/grow/0000.mp4")
    status, printed = run(root, capsys)
    assert status == 1
    assert "the same file is in the splits test and train: train/grow/0001.mp4 (line 3), test/grow/0000.mp4" in printed
    assert "8 of 8 videos are good; 1 problem" in printed


def test_a_path_that_is_listed_twice(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root, "test/grow/0000.mp4", "train/grow/0001.mp4")
    status, printed = run(root, capsys)
    assert status == 1
    assert "train/grow/0001.mp4 is listed more than once: lines 3, 8" in printed


def test_classes_without_videos(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root, "val/shrink/0000.mp4,1,shrink", "val/shrink/0000.mp4,0,grow")
    status, printed = run(root, capsys)
    assert status == 1
    assert "split val lacks videos of 1 classes: shrink" in printed


def test_a_test_split_without_labels_is_fine(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    edit(root, "test/grow/0000.mp4,0,grow", "test/grow/0000.mp4,,")
    edit(root, "test/shrink/0000.mp4,1,shrink", "test/shrink/0000.mp4,,")
    assert run(root, capsys)[0] == 0


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("val/grow/0000.mp4,0,grow", "val/grow/0000.mp4,7,grow", ":6: label 7 is outside 0..1"),
        ("val/grow/0000.mp4,0,grow", "val/grow/0000.mp4,1,grow", ":6: label 1 is 'shrink'"),
        ("label,", "lable,", ":1: unknown columns: lable"),
    ],
)
def test_wrong_manifest(root: Path, capsys: pytest.CaptureFixture[str], old: str, new: str, message: str) -> None:
    edit(root, old, new)
    status, printed = run(root, capsys)
    assert status == 1
    assert message in printed


def test_missing_manifest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    status, printed = run(tmp_path, capsys)
    assert status == 1
    assert printed.startswith(f"error: {tmp_path / 'manifest.csv'} does not exist: give a manifest (CSV), or a folder")
    (tmp_path / "a.csv").touch()
    assert main([str(tmp_path / "a.csv"), "--report", str(tmp_path)]) == 1
    assert "give the name of a file" in capsys.readouterr().err


def test_long_lists_of_problems_are_cut(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = "train/grow/gone{}.mp4,0,grow,4,12.0,0.333333,train\n"
    with open(root / "manifest.csv", "a") as file:
        file.writelines(row.format(number) for number in range(25))
    status, printed = run(root, capsys)
    assert status == 1
    assert "... and 5 more" in printed
    assert "8 of 33 videos are good; 25 problems" in printed


def test_a_report_replaces_only_a_report(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mine = root.parent / "mine.csv"
    mine.write_text("a,b\n")
    status, printed = run(root, capsys, "--report", str(mine))
    assert (status, mine.read_text()) == (1, "a,b\n")
    assert "choose another --report" in printed
    report = root.parent / "report.csv"
    assert [run(root, capsys, "--report", str(report))[0] for _ in range(2)] == [0, 0]


def test_interruption(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.check.check_video", interrupted)
    assert main([str(root / "manifest.csv"), "--workers", "0"]) == 130


def test_a_class_folder_needs_no_manifest(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "manifest.csv").unlink()
    assert main([str(root), "--workers", "0"]) == 0
    assert "8 of 8 videos are good" in capsys.readouterr().out
    broken = root / "val/grow/0000.mp4"
    truncate(broken, 0.5)
    assert main([str(root), "--workers", "0"]) == 1
    assert f"{broken}: " in capsys.readouterr().out.replace("\n", "")
