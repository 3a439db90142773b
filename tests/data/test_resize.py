"""Smaller copies of videos show the same frames at the same times, and are made once."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datamodules.errors import DatasetError
from common.datamodules.manifest import Manifest
from common.datamodules.video_reader import EncodedVideoReader, open_video
from data._shrink import shrunk_size
from data.resize import main, target_paths
from tests.media import read_index, set_edit_list, truncate, write_frames, write_video

SIDE = 32


def run(videos: Path, out: Path, capsys: pytest.CaptureFixture[str], *options: str) -> tuple[int, str]:
    status = main([str(videos), "--out", str(out), "--short-side", str(SIDE), "--workers", "0", *options])
    captured = capsys.readouterr()
    return status, captured.out + captured.err


def content(path: Path) -> tuple[list[int], list[float], tuple[int, int]]:
    """Numbers of the frames of a video of `tests.media`, their times, and their height and width."""
    with open_video(path) as video:
        images = list(video.iterate())
        return [read_index(image) for image in images], list(video.times), images[0].shape[:2]


def snapshot(folder: Path) -> dict[Path, tuple[bytes, int]]:
    return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(
    ("size", "short_side", "multiple", "expected"),
    [
        ((1080, 1920), 256, 2, (256, 454)),
        ((1920, 1080), 256, 2, (454, 256)),
        ((47, 63), 256, 2, (46, 62)),
        ((47, 63), 256, 1, (47, 63)),
        ((47, 63), 32, 1, (32, 42)),
        ((1, 5), 256, 2, (2, 4)),
    ],
)
def test_size(size: tuple[int, int], short_side: int, multiple: int, expected: tuple[int, int]) -> None:
    assert shrunk_size(*size, short_side, multiple) == expected


@pytest.mark.parametrize(
    ("options", "name", "size"),
    [
        ({"b_frames": 2}, "a.mp4", (32, 42)),
        ({"width": 65, "height": 49, "pix_fmt": "yuv444p"}, "odd.mp4", (32, 42)),
        ({"width": 31, "height": 27, "pix_fmt": "yuv444p"}, "small.mp4", (26, 30)),
        ({"times": [0, 40, 90, 200, 230, 400, 410, 500]}, "variable.mkv", (32, 42)),
        ({"codec": "mpeg4", "fps": 30}, "old.avi", (32, 42)),
        ({"codec": "libvpx-vp9", "fps": 10}, "a.webm", (32, 42)),
    ],
)
def test_frames_times_and_rate_stay(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict, name: str, size: tuple[int, int]
) -> None:
    root, out = tmp_path / "videos", tmp_path / "small"
    write_video(root / "train/x" / name, num_frames=8, **options)
    status, printed = run(root, out, capsys)
    assert status == 0, printed
    assert "1 videos: 1 made, 0 were there, 0 cannot be read" in printed
    assert "clips/s before" in printed
    copy = (out / "train/x" / name).with_suffix(".mp4")
    old, new = content(root / "train/x" / name), content(copy)
    assert new[0] == old[0] == list(range(8))
    assert np.allclose(new[1], old[1], atol=1e-6)
    assert new[2] == size
    with open_video(root / "train/x" / name) as before, EncodedVideoReader(copy) as after:
        assert after.selective
        if "times" not in options:
            assert after.fps == pytest.approx(before.fps, rel=1e-4)


def colours(path: Path, size: tuple[int, int]) -> np.ndarray:
    with open_video(path) as video:
        images = [Image.fromarray(image).resize(size[::-1], Image.Resampling.BICUBIC) for image in video.iterate()]
    return np.stack([np.asarray(image, float) for image in images])


@pytest.mark.parametrize(
    "options",
    [
        {"rotation": 90},
        {"matrix": (-1, 0, 0, 1)},
        {"pix_fmt": "yuvj420p"},
        {"options": {"colorspace": "bt709", "x264-params": "colormatrix=bt709:colorprim=bt709:transfer=bt709"}},
    ],
)
def test_orientation_and_colours_stay(tmp_path: Path, capsys: pytest.CaptureFixture[str], options: dict) -> None:
    root, out = tmp_path / "videos", tmp_path / "small"
    path = write_video(root / "train/x/a.mp4", num_frames=4, width=128, height=96, **options)
    assert run(root, out, capsys)[0] == 0
    copy = out / "train/x/a.mp4"
    size = content(copy)[2]
    assert size == ((42, 32) if "rotation" in options else (32, 42))
    difference = colours(copy, size) - colours(path, size)
    assert np.abs(difference).mean() < 6  # of 255; the edges of the stripes are blurred
    assert np.abs(difference.mean((0, 1, 2))).max() < 2


def test_an_edit_list_is_applied(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "videos", tmp_path / "small"
    set_edit_list(write_video(root / "train/x/a.mp4", num_frames=30), 0.4, 0.4)
    assert run(root, out, capsys)[0] == 0
    assert content(out / "train/x/a.mp4")[:2] == content(root / "train/x/a.mp4")[:2]


def test_folders_of_frames(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "videos", tmp_path / "small"
    write_frames(root / "train/x/large", 3)
    write_frames(root / "train/x/small", 3, width=31, height=21)
    write_frames(root / "train/x/png", 3, pattern="{:03d}.png")
    assert run(root, out, capsys)[0] == 0
    for name, size in (("large", (32, 42)), ("small", (21, 31)), ("png", (32, 42))):
        assert content(out / "train/x" / name)[::2] == ([0, 1, 2], size)
        files = [{path.name for path in (base / "train/x" / name).iterdir()} for base in (root, out)]
        assert files[0] == files[1]
    for path in (root / "train/x/small").iterdir():
        assert (out / "train/x/small" / path.name).read_bytes() == path.read_bytes()


def write_manifest(root: Path, rows: Sequence[str], name: str = "list.csv") -> Path:
    path = root / name
    path.write_text("path,label,label_name,split\n" + "".join(f"{row}\n" for row in rows))
    return path


def test_manifest_broken_videos_and_a_second_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "videos", tmp_path / "small"
    for name in ("a.mp4", "b.avi", "b.mp4", "cut.mp4"):
        write_video(root / name, num_frames=6, codec="mpeg4" if name.endswith("avi") else "libx264")
    truncate(root / "cut.mp4", 0.6)
    rows = ["./a.mp4,0,x,train", "b.avi,1,y,train", "b.mp4,1,y,val", "cut.mp4,0,x,val", "gone.mp4,,,test"]
    manifest = write_manifest(root, rows)
    originals = snapshot(root)
    status, printed = run(manifest, out, capsys)
    assert status == 1
    assert "5 videos: 3 made, 0 were there, 2 cannot be read" in printed
    assert "cut.mp4: " in printed
    assert "gone.mp4: no such file" in printed
    small = Manifest.read(out / "list.csv", out)
    assert [(e.path, e.label, e.split, e.num_frames) for e in small.entries] == [
        ("a.mp4", 0, "train", 6),
        ("b.avi.mp4", 1, "train", 6),
        ("b.mp4", 1, "val", 6),
        ("cut.mp4", 0, "val", None),
        ("gone.mp4", None, "test", None),
    ]
    assert small.class_names == ("x", "y")
    assert [entry.path for entry in small.present()[1]] == ["cut.mp4", "gone.mp4"]

    # what a killed run leaves: a copy that is missing, one that is damaged and half a file under a hidden name
    first = snapshot(out)
    (out / "a.mp4").unlink()
    (out / ".a.mp4.part").write_bytes(b"half")
    truncate(out / "b.mp4", 0.5)
    write_video(root / "cut.mp4", num_frames=5)
    status, printed = run(manifest, out, capsys)
    assert status == 1
    assert "5 videos: 3 made, 1 were there, 1 cannot be read" in printed
    second = snapshot(out)
    assert second.keys() == first.keys() | {out / "cut.mp4", out / "list.previous.csv"}
    assert second[out / "b.avi.mp4"] == first[out / "b.avi.mp4"]
    assert Manifest.read(out / "list.csv", out).entries[3].num_frames == 5
    del originals[root / "cut.mp4"]
    assert originals.items() <= snapshot(root).items()

    later = (out / "a.mp4").stat().st_mtime + 10  # a video that changed is made again
    os.utime(root / "a.mp4", (later, later))
    assert "5 videos: 1 made, 3 were there" in run(manifest, out, capsys)[1]


def test_paths_of_copies(tmp_path: Path) -> None:
    rows = ["a/c.avi", "a/b.mp4", "a/b.avi", "a/b.v2.mov", "b.avi"]
    path = write_manifest(tmp_path, [f"{name},0,x,train" for name in rows])
    assert list(target_paths(Manifest.read(path, tmp_path)).values()) == [
        "a/c.mp4",
        "a/b.mp4",
        "a/b.avi.mp4",
        "a/b.v2.mp4",
        "b.mp4",
    ]
    path = write_manifest(tmp_path, [f"{name},0,x,train" for name in ("b.avi", "b.mp4", "b.avi.mp4")])
    with pytest.raises(DatasetError, match=r"would be named b\.avi\.mp4"):
        target_paths(Manifest.read(path, tmp_path))


def test_interruption(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    root, out = tmp_path / "videos", tmp_path / "small"
    for name in "abc":
        write_video(root / "train/x" / f"{name}.mp4", num_frames=4)
    with monkeypatch.context() as patch:
        iterate = EncodedVideoReader.iterate

        def interrupted(video: EncodedVideoReader):
            yield next(iterate(video))
            if video.path.name == "b.mp4":
                raise KeyboardInterrupt
            yield from list(iterate(video))[1:]

        patch.setattr(EncodedVideoReader, "iterate", interrupted)
        status, printed = run(root, out, capsys)
    assert (status, printed.strip()) == (130, "interrupted; the same command resumes")
    assert {path.name for path in out.rglob("*") if path.is_file()} == {"a.mp4", "resize.json"}
    status, printed = run(root, out, capsys)
    assert status == 0
    assert "3 videos: 2 made, 1 were there" in printed


@pytest.mark.slow
def test_processes_make_the_same_copies(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "videos"
    for name in "ab":
        write_video(root / "train/x" / f"{name}.mp4", num_frames=4)
    assert run(root, tmp_path / "one", capsys)[0] == 0
    assert run(root, tmp_path / "two", capsys, "--workers", "2")[0] == 0
    for path in (tmp_path / "one/train").rglob("*.mp4"):
        assert path.read_bytes() == (tmp_path / "two" / path.relative_to(tmp_path / "one")).read_bytes()


def test_refusals(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root, out = tmp_path / "videos", tmp_path / "small"
    write_video(root / "train/x/a.mp4", num_frames=4)
    for place in (root, root / "small", tmp_path):
        status, printed = run(root, place, capsys)
        assert status == 1
        assert "must lie outside of each other" in printed
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    status, printed = run(root, out, capsys)
    assert status == 1
    assert "was not made by this command: choose another --out" in printed
    assert [path.name for path in out.iterdir()] == ["mine.txt"]
    (out / "mine.txt").unlink()
    assert run(root, out, capsys)[0] == 0
    status, printed = run(root, out, capsys, "--short-side", "24")
    assert status == 1
    assert "was made with short_side" in printed
    assert run(root, tmp_path / "other", capsys, "--short-side", "1")[0] == 1
