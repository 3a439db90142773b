"""Shards give the clips of the files, are read by the WebDataset library, and are written once."""

from __future__ import annotations

import io
import os
import shutil
import tarfile
import warnings
from collections import Counter
from pathlib import Path

import pytest
import torch
import webdataset

from common.datamodules import VideoDataModule
from common.datamodules.errors import DatasetError, VideoReadError
from common.datamodules.folders import find_files
from common.datamodules.manifest import Manifest
from common.datamodules.tar_members import find_span, members
from common.datamodules.video_reader import open_video
from data import check, shards
from tests.media import write_frames, write_video


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders with odd names, several containers and an unlabelled copy of a video."""
    root = tmp_path_factory.mktemp("videos")
    names = ["walk/a.mp4", "walk/b.v2.MP4", "run, fast/c.webm", "run, fast/ü:1.mkv", "run, fast/d.avi", "walk/e.mp4"]
    lines = []
    for index, name in enumerate(names):
        path = root / name
        path.parent.mkdir(exist_ok=True)
        write_video(path, 12 + index, codec="libvpx-vp9" if name.endswith("webm") else "libx264")
        lines.append(f'"{name}",{int(name.startswith("walk"))},{"val" if index > 3 else "train"}\n')
    (root / "classes.txt").write_text("run\nwalk\n")
    (root / "manifest.csv").write_text("path,label,split\n" + "".join(lines))
    return root


def run(videos: Path, out: Path, *options: str) -> int:
    return shards.main([str(videos), "--out", str(out), "--workers", "0", *options])


def test_clips_are_those_of_the_files(videos: Path, tmp_path: Path) -> None:
    assert run(videos, tmp_path / "shards") == 0
    assert sorted(path.name for path in (tmp_path / "shards").iterdir()) == [
        *("classes.txt", "manifest.csv", "shards.json", "train-000000.tar", "val-000000.tar"),
    ]
    batches = []
    for root, workers in ((videos, 0), (tmp_path / "shards", 2)):
        datamodule = VideoDataModule(
            str(root), num_frames=4, crop_size=32, batch_size=2, num_workers=workers, horizontal_flip=True
        )
        datamodule.setup("fit")
        loaders = (datamodule.train_dataloader(), datamodule.val_dataloader())
        batches.append([batch for loader in loaders for batch in loader])  # type: ignore[union-attr]
    assert len(batches[0]) == len(batches[1]) == 3
    for files, packed in zip(*batches, strict=True):
        assert torch.equal(files["video"], packed["video"])
        assert torch.equal(files["label"], packed["label"])
    report = check.check(Manifest.read(tmp_path / "shards" / "manifest.csv", tmp_path / "shards"), decode=True)
    assert report.ok
    assert [finding.num_frames for finding in report.findings] == [12, 13, 14, 15, 16, 17]


def test_webdataset_reads_them(videos: Path, tmp_path: Path) -> None:
    assert run(videos, tmp_path / "shards", "--megabytes", "0.002") == 0
    found = sorted((tmp_path / "shards").glob("*.tar"))
    assert len(found) > 2
    samples = list(webdataset.WebDataset([str(path) for path in found], shardshuffle=False))
    assert Counter(sample["cls"] for sample in samples) == {b"0": 3, b"1": 3}
    contents = {
        bytes(value) for sample in samples for key, value in sample.items() if key in ("mp4", "webm", "mkv", "avi")
    }
    originals = [path for path in videos.rglob("*") if path.suffix not in (".csv", ".txt", "")]
    assert contents == {path.read_bytes() for path in originals}
    again = shards.pack(Manifest.read(tmp_path / "shards" / "manifest.csv", tmp_path / "shards"), tmp_path / "b", 10**9)
    assert again.entries[0].path == "train-000000.tar/walk/a.mp4"


def test_a_second_run_makes_what_is_missing_or_old(
    videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = tmp_path / "videos", tmp_path / "shards"
    shutil.copytree(videos, root)
    assert run(root, out) == 0
    (out / "train-000000.tar").unlink()
    (out / ".val-000000.tar.1.tmp").write_text("of a killed run")
    assert run(root, out) == 0
    assert "6 videos in 2 shards: 1 made, 1 kept" in capsys.readouterr().out
    write_video(root / "walk" / "e.mp4", 20)
    later = (out / "val-000000.tar").stat().st_mtime_ns + 10**9
    os.utime(root / "walk" / "e.mp4", ns=(later, later))
    assert run(root, out) == 0
    assert "1 made, 1 kept" in capsys.readouterr().out
    assert not list(out.glob(".*"))
    with open_video(out / "val-000000.tar" / "walk" / "e.mp4") as video:
        assert video.num_frames == 20
    assert run(root, out, "--megabytes", "1") == 1
    assert "was made with shard_bytes 500000000, not 1000000" in capsys.readouterr().err


def test_what_cannot_be_packed_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "videos"
    write_frames(root / "frames", 3)
    (root / "manifest.csv").write_text("path,label,label_name,split\nframes,0,x,train\ngone.mp4,0,x,train\n")
    assert run(root, tmp_path / "shards") == 1
    printed = capsys.readouterr().err
    assert "frames: a folder of frames, not a video file" in printed
    assert "gone.mp4: no such file" in printed
    assert run(root, root / "shards") == 1
    assert not (tmp_path / "shards").exists()


def test_a_damaged_shard_is_named(videos: Path, tmp_path: Path) -> None:
    assert run(videos, tmp_path / "shards") == 0
    shard = tmp_path / "shards" / "train-000000.tar"
    whole = shard.read_bytes()
    name = next(iter(members(str(shard))))
    start = find_span(shard / name).start  # type: ignore[union-attr]
    datamodule = VideoDataModule(str(tmp_path / "shards"), num_frames=4, crop_size=32, num_workers=0)
    for damaged in (whole[: start + 100], b"x" * 1024, b""):
        shard.write_bytes(damaged)
        with pytest.raises(DatasetError, match=r"train-000000.tar is not a complete|missing"):
            datamodule.setup("fit")
        with pytest.raises(VideoReadError, match=r"not a complete|no such file"):
            open_video(shard / name)
    shard.write_bytes(whole[:start] + bytes(len(whole) - start))  # the archive is good, its video is not
    with pytest.raises(VideoReadError, match=r"not a readable video|no such file"):
        open_video(shard / name)


def test_members_with_absolute_names_stay_in_their_archive(tmp_path: Path) -> None:
    outside = tmp_path / "outside.mp4"
    outside.write_bytes(b"outside")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        header = tarfile.TarInfo(str(outside))
        header.size = 6
        archive.addfile(header, io.BytesIO(b"inside"))
    [path] = find_files(tmp_path / "a.tar", "video")
    span = find_span(path)
    assert span is not None
    assert span.read() == b"inside"


def test_links_and_other_members_are_no_files(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("x")
    with tarfile.open(tmp_path / "a.tar", "w") as archive:
        for kind, name in ((tarfile.SYMTYPE, "link"), (tarfile.LNKTYPE, "hard"), (tarfile.DIRTYPE, "folder")):
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, str(tmp_path / "secret")
            archive.addfile(member)
    assert members(str(tmp_path / "a.tar")) == {}
    with pytest.raises(VideoReadError, match="no such file"):
        open_video(tmp_path / "a.tar" / "link")


def header(name: str, size: int, kind: bytes = tarfile.REGTYPE) -> bytes:
    """A block with a valid checksum, whose size may be anything."""
    member = tarfile.TarInfo(name)
    member.type = kind
    block = bytearray(member.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size.to_bytes(12, "big", signed=True) if size < 0 or size >= 8**11 else f"{size:011o}\0".encode()
    block[124] |= 0x80 if size < 0 or size >= 8**11 else 0
    block[148:156] = b" " * 8
    block[148:156] = f"{sum(block):06o}\0 ".encode()
    return bytes(block)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header("a.mp4", -512), "claims -512 bytes"),
        (header("a.mp4", 10**12), "ends within a.mp4|unexpected end"),
        (header("a", 10**12, tarfile.GNUTYPE_LONGNAME), "claims 1000000000000 bytes"),
        (header("a", 10**12, tarfile.XHDTYPE), "claims 1000000000000 bytes"),
        (header("a", 3, tarfile.GNUTYPE_LONGNAME) + b"a.b".ljust(512, b"\0"), "empty header|bad subsequent header"),
        ((header("a", 3, tarfile.GNUTYPE_LONGNAME) + b"a.b".ljust(512, b"\0")) * 3000, "recursion"),
        (header("a.mp4", 0) + b"x" * 512 + header("b.mp4", 0), "the header at byte 512 is damaged or missing"),
        (header("a.mp4", 0), "the header at byte 512 is damaged or missing"),
    ],
    ids=range(8),
)
def test_claims_of_an_archive_are_limited(content: bytes, message: str, tmp_path: Path) -> None:
    good = header("first.mp4", 0)
    (tmp_path / "a.tar").write_bytes(good + content)
    if message.startswith("the header"):
        message = message.replace("512", "1024")
    with pytest.raises(DatasetError, match=rf"a.tar is not a complete, uncompressed tar archive \(.*({message})"):
        members(str(tmp_path / "a.tar"))


def test_a_plan_that_changes_replaces_the_shards_it_changes(videos: Path, tmp_path: Path) -> None:
    root, out = tmp_path / "videos", tmp_path / "shards"
    shutil.copytree(videos, root)
    assert run(root, out, "--megabytes", "0.012") == 0
    before = sorted(path.name for path in out.glob("*.tar"))
    with (root / "walk" / "a.mp4").open("ab") as file:  # a larger file, which moves others to another shard
        file.write(bytes([0, 0, 0x4E, 0x20]) + b"free" + bytes(19992))
    os.utime(root / "walk" / "a.mp4", ns=(0, 0))
    (out / "manifest.csv").write_text((out / "manifest.csv").read_text() + "\n")
    (out / "manifest.previous.csv").write_text("kept")
    (out / ".mine.tmp").write_text("not of this command")
    assert run(root, out, "--megabytes", "0.012") == 0
    assert check.check(Manifest.read(out / "manifest.csv", out), decode=True).ok
    assert {path.name for path in out.iterdir()} >= {"manifest.previous-2.csv", ".mine.tmp"}
    assert (out / "manifest.previous.csv").read_text() == "kept"
    (root / "walk" / "a.mp4").write_bytes((videos / "walk" / "a.mp4").read_bytes())
    assert run(root, out, "--megabytes", "0.012") == 0
    assert sorted(path.name for path in out.glob("*.tar")) == before


def test_files_of_archives_are_found(videos: Path, tmp_path: Path) -> None:
    assert run(videos, tmp_path / "shards") == 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = find_files(tmp_path / "shards", "video")
    assert len(found) == 6
    assert len(find_files(tmp_path / "shards" / "val-000000.tar", "video")) == 2
    assert find_files(found[0], "video") == [found[0]]
    for path in found:
        with open_video(path) as video:
            assert video.num_frames >= 12


@pytest.mark.parametrize("size", ["nan", "inf", "0"])
def test_a_wrong_size_is_refused(size: str, videos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(videos, tmp_path / "shards", "--megabytes", size)
    assert "must be positive" in capsys.readouterr().err


def test_archives_hold_videos_only(videos: Path, tmp_path: Path) -> None:
    assert run(videos, tmp_path / "shards") == 0
    (tmp_path / "shards" / "a.png").touch()
    with pytest.warns(UserWarning, match=r"1 images; .*2 .tar"):
        assert find_files(tmp_path / "shards", "image") == [tmp_path / "shards" / "a.png"]
    with pytest.raises(FileNotFoundError, match="does not exist"):
        find_files(tmp_path / "shards" / "train-000000.tar" / "walk" / "a.mp4", "image")
