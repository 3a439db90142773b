"""Shards at a URL give the samples of local ones, arrive whole or not at all, and are fetched once."""

from __future__ import annotations

import io
import multiprocessing
import os
import resource
import tarfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import fsspec
import pytest
import torch
from fsspec.registry import known_implementations

from common.datamodules import VideoDataModule
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import Manifest
from common.datamodules.remote_shards import RemoteShards, default_cache, is_url
from data import shards
from tests.media import write_video
from tests.shard_server import Server, serving

FILES = ["classes.txt", "manifest.csv", "train-000000.tar", "train-000001.tar", "train-000002.tar", "val-000000.tar"]


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight videos, two in each of four shards."""
    root = tmp_path_factory.mktemp("videos")
    lines = []
    for index in range(8):
        write_video(root / f"{index}.mp4", 12, first=12 * index)
        lines.append(f"{index}.mp4,{index % 2},{('walk', 'run')[index % 2]},{'val' if index > 5 else 'train'}\n")
    (root / "manifest.csv").write_text("path,label,label_name,split\n" + "".join(lines))
    out = tmp_path_factory.mktemp("shards")
    size = max(path.stat().st_size for path in root.glob("*.mp4"))
    found = shards.pack(Manifest.read(root / "manifest.csv", root), out, 2 * size, workers=0)
    (out / shards.RECORD).unlink()
    assert sorted(path.name for path in out.iterdir()) == FILES
    assert set(Counter(entry.path.partition("/")[0] for entry in found.entries).values()) == {2}
    return out


@pytest.fixture
def server(packed: Path, tmp_path: Path) -> Iterator[Server]:
    """A web server with links to the shards."""
    folder = tmp_path / "served"
    folder.mkdir()
    for name in FILES:
        (folder / name).symlink_to(packed / name)
    with serving(folder) as running:
        yield running


@pytest.fixture
def bucket(packed: Path) -> Iterator[Any]:
    """fsspec's file system in memory with the shards at ``memory://shards``."""
    files = fsspec.filesystem("memory")
    for name in FILES:
        files.pipe_file(f"/shards/{name}", (packed / name).read_bytes())
    yield files
    files.rm("/shards", recursive=True)


def module(root: str | Path, cache: Path, **options: Any) -> VideoDataModule:
    options = {"num_frames": 4, "crop_size": 32, "batch_size": 2, "num_workers": 0, "horizontal_flip": True} | options
    made = VideoDataModule(str(root), cache=str(cache), **options)
    made.setup("fit")
    return made


def assert_equal(batches: list[Any], others: list[Any]) -> None:
    assert len(batches) == len(others) > 0
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for key, value in batch.items():
            assert torch.equal(value, other[key]) if isinstance(value, torch.Tensor) else value == other[key]


def names_in(folder: Path) -> list[str]:
    """All but the locks."""
    return sorted(path.name for path in folder.rglob("*") if path.is_file() and path.suffix != ".lock")


def test_samples_are_those_of_local_shards(packed: Path, server: Server, tmp_path: Path) -> None:
    here, there = module(packed, tmp_path), module(f"{server.url}/", tmp_path, num_workers=2)
    assert server.fetched == ["manifest.csv", "classes.txt"], "shards come when they are read"
    assert there.manifest_hash == here.manifest_hash
    train, val = there.train_dataloader(), there.val_dataloader()
    assert_equal(list(train), list(here.train_dataloader()))
    assert_equal(list(val), list(here.val_dataloader()))  # type: ignore[arg-type]
    assert names_in(there.root) == sorted(FILES)
    assert Counter(server.fetched) == Counter(FILES), "each once, though two workers read them"
    requests = server.requests
    other = here.train_dataloader()
    for loader in (train, other):
        loader.batch_sampler.set_epoch(1)  # type: ignore[union-attr]
    assert_equal(list(train), list(other))
    assert server.requests == requests, "the second epoch is local"


def test_two_workers_read_one_shard(packed: Path, server: Server, tmp_path: Path) -> None:
    server.delay = 0.5  # both ask for it before it is there
    here, there = (module(root, tmp_path, num_workers=2, batch_size=1) for root in (packed, server.url))
    assert_equal(list(there.val_dataloader()), list(here.val_dataloader()))  # type: ignore[arg-type]
    assert server.fetched == ["manifest.csv", "classes.txt", "val-000000.tar"]


def test_an_epoch_resumes_where_it_stopped(packed: Path, server: Server, tmp_path: Path) -> None:
    whole = list(module(packed, tmp_path).train_dataloader())
    loader = module(server.url, tmp_path / "first").train_dataloader()
    next(batches := iter(loader))
    state = loader.state_dict()  # type: ignore[attr-defined]
    batches.close()  # type: ignore[attr-defined]
    resumed = module(server.url, tmp_path / "second").train_dataloader()
    resumed.load_state_dict(state)  # type: ignore[attr-defined]
    assert_equal(list(resumed), whole[1:])


def test_processes_wait_for_one_that_fetches(server: Server, tmp_path: Path) -> None:
    remote, server.delay = RemoteShards.at(server.url, str(tmp_path)), 0.5
    processes = [
        multiprocessing.get_context("fork").Process(target=remote.fetch, args=("val-000000.tar/6.mp4",))
        for _ in range(3)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        assert process.exitcode == 0
    assert server.fetched == names_in(remote.folder) == ["val-000000.tar"]


@pytest.mark.parametrize("workers", [0, 1])
def test_an_interrupted_transfer_leaves_nothing(workers: int, server: Server, tmp_path: Path) -> None:
    server.cut = {name for name in FILES if name.startswith("train")}
    datamodule = module(server.url, tmp_path, num_workers=workers, on_read_error="replace")
    message = rf"{server.url}/train-00000\d.tar cannot be fetched .*not complete.* network"
    with pytest.raises(DatasetError, match=message):
        list(datamodule.train_dataloader())  # it is no error of one video, which another could replace
    assert names_in(datamodule.root) == ["classes.txt", "manifest.csv"]
    server.cut = set()
    assert len(list(module(server.url, tmp_path).train_dataloader())) == 3


def test_what_a_killed_process_left_is_overwritten(server: Server, tmp_path: Path) -> None:
    remote, server.delay = RemoteShards.at(server.url, str(tmp_path)), 20
    process = multiprocessing.get_context("fork").Process(target=remote.fetch, args=("val-000000.tar/6.mp4",))
    process.start()
    while not server.fetched:
        time.sleep(0.01)
    process.kill()
    process.join()
    server.delay = 0
    [lock] = remote.folder.iterdir()
    part = lock.with_name(f".val-000000.tar.{os.uname().nodename}.part")
    part.write_bytes(b"x" * 10**6)
    remote.fetch("val-000000.tar/6.mp4")
    assert names_in(remote.folder) == ["val-000000.tar"]
    assert (remote.folder / "val-000000.tar").read_bytes() == (server.folder / "val-000000.tar").read_bytes()


def test_sizes_are_compared(server: Server, tmp_path: Path) -> None:
    first = module(server.url, tmp_path)
    list(first.train_dataloader())
    shard = first.root / "train-000001.tar"
    shard.write_bytes(shard.read_bytes()[:-512])
    server.fetched.clear()
    with pytest.warns(UserWarning, match=rf"{server.url}: train-000001.tar changed there, and will be fetched again"):
        second = module(server.url, tmp_path)
    assert len(list(second.train_dataloader())) == 3
    assert server.fetched == ["manifest.csv", "classes.txt", "train-000001.tar"]
    server.claimed = {"val-000000.tar": 7}
    with pytest.raises(DatasetError, match=rf"{server.url}/val-000000.tar cannot be fetched \(.* bytes arrived of 7\)"):
        list(second.val_dataloader())  # type: ignore[arg-type]
    assert "val-000000.tar" not in names_in(first.root)


def test_other_protocols_and_missing_files(bucket: Any, packed: Path, tmp_path: Path) -> None:
    here, there = module(packed, tmp_path), module("memory://shards", tmp_path)
    assert_equal(list(there.train_dataloader()), list(here.train_dataloader()))
    by_file = module(packed.as_uri(), tmp_path)
    assert_equal(list(by_file.train_dataloader()), list(here.train_dataloader()))
    bucket.rm_file("/shards/val-000000.tar")
    with pytest.raises(DatasetError, match=r"^memory://shards/val-000000.tar does not exist .*complete folder of"):
        list(there.val_dataloader())  # type: ignore[arg-type]
    bucket.rm_file("/shards/classes.txt")
    assert module("memory://shards", tmp_path).class_names == ["walk", "run"]
    assert "classes.txt" not in names_in(there.root), "an old class list is not used"
    bucket.rm_file("/shards/manifest.csv")
    with pytest.raises(DatasetError, match=r"^memory://shards/manifest.csv does not exist"):
        module("memory://shards", tmp_path)


def test_a_shard_that_a_web_server_lacks(server: Server, tmp_path: Path) -> None:
    (server.folder / "train-000001.tar").unlink()
    datamodule = module(server.url, tmp_path, num_workers=2, on_read_error="replace", on_missing="drop")
    with pytest.raises(DatasetError, match=rf"{server.url}/train-000001.tar does not exist .*complete folder of"):
        list(datamodule.train_dataloader())
    assert "train-000001.tar" not in names_in(datamodule.root)


def test_a_local_manifest_chooses_from_the_shards(bucket: Any, packed: Path, tmp_path: Path) -> None:
    lines = (packed / "manifest.csv").read_text().splitlines(keepends=True)
    (tmp_path / "some.csv").write_text("".join(line for line in lines if "train-000002" not in line))
    bucket.rm_file("/shards/manifest.csv")
    some = module("memory://shards", tmp_path / "cache", manifest=str(tmp_path / "some.csv"))
    assert len(list(some.train_dataloader())) == 2
    assert names_in(some.root) == ["train-000000.tar", "train-000001.tar"]
    with pytest.raises(DatasetError, match=r"'https://x/m.csv', neither the name of a file"):
        module("memory://shards", tmp_path / "cache", manifest="https://x/m.csv")


def test_the_manifest_at_the_url_comes_before_a_local_one(
    bucket: Any, packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = (packed / "manifest.csv").read_text().splitlines(keepends=True)
    for name in ("manifest.csv", "some.csv"):
        (tmp_path / name).write_text("".join(line for line in lines if "train-000002" not in line))
    monkeypatch.chdir(tmp_path)
    steps = [
        len(list(module("memory://shards", tmp_path, manifest=m).train_dataloader())) for m in (None, "manifest.csv")
    ]
    assert steps == [3, 3]
    assert len(list(module("memory://shards", tmp_path, manifest="some.csv").train_dataloader())) == 2
    with pytest.raises(DatasetError, match="neither the name of a file"):
        module("memory://shards", tmp_path, manifest="train-000000.tar/some.csv")
    assert (tmp_path / "some.csv").is_file()


def test_a_shard_that_was_packed_again_with_the_same_size(server: Server, tmp_path: Path) -> None:
    shard = server.folder / "val-000000.tar"
    remote = RemoteShards.at(server.url, str(tmp_path / "cache"))
    remote.fetch("val-000000.tar/6.mp4")
    new = renamed(shard.read_bytes(), "6.mp4", "9.mp4")
    assert len(new) == shard.stat().st_size
    shard.unlink()  # a link to that of other tests
    shard.write_bytes(new)
    remote.fetch("val-000000.tar/9.mp4")
    assert (remote.folder / "val-000000.tar").read_bytes() == shard.read_bytes()
    with pytest.raises(DatasetError, match=rf"{server.url}/val-000000.tar/8.mp4 does not exist: .*it has no 8.mp4"):
        remote.fetch("val-000000.tar/8.mp4")


def renamed(archive: bytes, name: str, new: str) -> bytes:
    """A tar archive with another name of a file."""
    out = io.BytesIO()
    with tarfile.open(fileobj=io.BytesIO(archive)) as source, tarfile.open(fileobj=out, mode="w") as target:
        for member in source:
            content = source.extractfile(member)
            member.name = member.name.replace(name, new)
            target.addfile(member, content)
    return out.getvalue()


@pytest.mark.parametrize("content", [b"<html>Please log in</html>", b"", b"x" * 4096])
def test_what_is_no_archive_is_not_kept(content: bytes, server: Server, tmp_path: Path) -> None:
    shard = server.folder / "val-000000.tar"
    right = shard.read_bytes()
    shard.unlink()
    shard.write_bytes(content)
    remote = RemoteShards.at(server.url, str(tmp_path / "cache"))
    with pytest.raises(DatasetError, match=rf"^{server.url}/val-000000.tar is no archive of `python -m data.shards`: "):
        remote.fetch("val-000000.tar/6.mp4")
    assert names_in(remote.folder) == []
    shard.write_bytes(right)
    remote.fetch("val-000000.tar/6.mp4")
    kept = remote.folder / "val-000000.tar"
    kept.write_bytes(content)
    remote.fetch("val-000000.tar/6.mp4")
    assert kept.read_bytes() == right, "a damaged shard is fetched again"


def test_a_server_that_does_not_state_sizes(server: Server, tmp_path: Path) -> None:
    server.sized = False
    first = module(server.url, tmp_path)
    assert len(list(first.train_dataloader())) == 3
    kept = first.root / "train-000000.tar"
    before = kept.stat()
    assert len(list(module(server.url, tmp_path).train_dataloader())) == 3
    assert kept.stat() == before, "it is not fetched again"
    server.cut = {"val-000000.tar"}
    with pytest.raises(DatasetError, match="is no archive"):
        list(first.val_dataloader())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "path",
    [
        *("https://evil.invalid/a.tar/b.mp4", "x::https://evil.invalid/a.tar/b.mp4", "https:/evil.invalid/a.tar/b.mp4"),
        *("%2e%2e/a.tar/b.mp4", "../a.tar/b.mp4", "/a.tar/b.mp4", "a/../../b.tar/c.mp4", "a?b.tar/c.mp4", "a#.tar/c"),
        *("walk/a.mp4", ".a.tar/b.mp4", "a b.tar/c.mp4", "user@evil.invalid.tar/b.mp4", "ä.tar/b.mp4", "*.tar/b.mp4"),
    ],
)
def test_a_manifest_cannot_lead_elsewhere(path: str, server: Server, tmp_path: Path) -> None:
    (server.folder / "manifest.csv").unlink()
    (server.folder / "manifest.csv").write_text(f"path,label,label_name,split\n{path},0,walk,train\n")
    with pytest.raises(DatasetError, match=r"manifest.csv:2: "):
        module(server.url, tmp_path / "cache")
    assert server.fetched == ["manifest.csv", "classes.txt"]
    with pytest.raises(DatasetError, match="only shards"):
        RemoteShards.at(server.url, str(tmp_path / "cache")).fetch(path)
    assert server.fetched == ["manifest.csv", "classes.txt"]


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("http://127.0.0.1:9/shards", r"127.0.0.1:9/shards/manifest.csv cannot be fetched \(Client.*Check the address"),
        ("nopackage://bucket", r"^nopackage://bucket/manifest.csv cannot be fetched without .*: Install no_package.$"),
        ("unheard://bucket", "Protocol not known: unheard"),
        ("memory://", "memory://: give the URL of a folder"),
        ("file://shards", "file://shards: give the URL of a folder"),
        ("https://host/shards?key=1", r"shards\?key=1: names of files are appended .* it cannot have"),
    ],
)
def test_what_cannot_be_reached(url: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    absent = {"class": "no_package.FileSystem", "err": "Install no_package"}
    monkeypatch.setitem(known_implementations, "nopackage", absent)
    with pytest.raises(DatasetError, match=message) as caught:
        module(url, tmp_path)
    assert "\n" not in str(caught.value)
    assert names_in(tmp_path) == []


def test_a_cache_that_cannot_be_made(bucket: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match=r"cannot be made: .*; set data.cache to a folder that can be written"):
        module("memory://shards", tmp_path / "file")
    with pytest.raises(DatasetError, match=r"data.cache is ~no-user/x: "):
        RemoteShards.at("memory://shards", "~no-user/x")


def test_a_full_disk(server: Server, tmp_path: Path) -> None:
    remote = RemoteShards.at(server.url, str(tmp_path / "cache"))

    def fetch() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (5000, 5000))
        with pytest.raises(OSError, match=r"free some space, or set data.cache .*disk: '.*'$"):
            remote.fetch("val-000000.tar/6.mp4")

    process = multiprocessing.get_context("fork").Process(target=fetch)
    process.start()
    process.join()
    assert process.exitcode == 0
    assert names_in(tmp_path / "cache") == []


def test_each_url_has_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "spectral-video"
    one, same, other = (RemoteShards.at(url).folder for url in ("s3://b/a", "s3://b/a/", "s3://b/b"))
    assert one == same != other
    assert one.parent == other.parent == default_cache()
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "spectral-video"
    assert [root for root in ("s3://b/a", "HTTP://b", "videos", "/a/b", "C:/a", "./a://b", None) if is_url(root)] == [
        *("s3://b/a", "HTTP://b")
    ]
