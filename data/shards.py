"""Pack videos into tar archives, once, for disks and networks on which many files are slow: ``python -m data.shards
VIDEOS --out SHARDS``.

VIDEOS is a manifest, or a folder with one sub-folder per class. Each archive (shard) holds videos of one split, in an
order that mixes the classes, each followed by its label: the format of the WebDataset library, which can read them.
A manifest that names the videos in the shards is written to SHARDS, which is then the root of the data; training,
testing, ``data.check`` and ``data.browse`` read it like any other. Clips and their order are those of the files.

The videos are copied as they are, and not opened: ``python -m data.check`` finds broken ones, and ``python -m
data.resize`` makes them smaller. Dots in a name become underscores (``a.v2.mp4``: ``a_v2.mp4``), and a second video of
the same name with another extension gets a number; the order of the manifest stays. A shard appears under its name when
it is complete; the same command again makes what is missing, and what its videos are newer than.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import re
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from common.command_line import CommandParser, run_command
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import MANIFEST_FILE, Entry, Manifest, shorten
from common.datamodules.tar_members import find_span, members
from data._commands import local_path, map_files, read_listing, replace_manifest, reserved

RECORD = "shards.json"  # in the folder of the shards: what they were made from
LABEL = ".cls"
_OWN = re.compile(r"(\.)?(train|val|test)-\d{6}\.tar(?(1)\.\d+\.tmp)")  # shards, and parts of them


class Packed(NamedTuple):
    """A video in a shard: its file, its name there, and its label."""

    source: str
    name: str
    label: int | None


class ShardJob(NamedTuple):
    """A shard to write."""

    target: str
    videos: tuple[Packed, ...]


def pack(manifest: Manifest, out: Path, shard_bytes: int, workers: int | None = None) -> Manifest:
    """Write the shards and their manifest.

    Args:
        manifest: the videos.
        out: folder of the shards: new, empty, or of an earlier call with the same videos and size.
        shard_bytes: a shard is closed before it becomes larger; a larger video has one of its own.
        workers: processes; None: one per CPU; 0: this process alone.

    Returns:
        The manifest written.

    Raises:
        DatasetError: a video is missing or is a folder of frames, or ``out`` holds something else.
        OSError: a file cannot be read or written.
    """
    paths = plan(manifest, shard_bytes)
    by_shard: dict[str, list[Packed]] = {}
    labels = {os.path.normpath(entry.path): entry.label for entry in manifest.entries}
    for path, (shard, name) in paths.items():
        by_shard.setdefault(shard, []).append(Packed(str(manifest.root / path), name, labels[path]))
    jobs = [ShardJob(str(out / shard), tuple(videos)) for shard, videos in by_shard.items()]
    with reserved(out, manifest, RECORD, {"videos": manifest.hash, "shard_bytes": shard_bytes}):
        for left in _others(out, jobs):
            left.unlink()
        made = map_files(write_shard, jobs, "writing shards", workers, chunk=1)
        entries = tuple(_entry(entry, paths) for entry in manifest.entries)
        packed = Manifest(out, entries, manifest.class_names, out / MANIFEST_FILE, len(entries))
        replace_manifest(packed)
    print(f"{packed.source}: {len(paths)} videos in {len(jobs)} shards: {sum(made)} made, {len(made) - sum(made)} kept")
    return packed


def plan(manifest: Manifest, shard_bytes: int) -> dict[str, tuple[str, str]]:
    """Shard and name in it by normalised path of a video, in the order in which they are written.

    Raises:
        DatasetError: see `pack`.
    """
    split_of = {os.path.normpath(entry.path): entry.split for entry in reversed(manifest.entries)}
    sizes, problems = {}, []
    for path in split_of:
        span = find_span(manifest.root / path)
        if path.lower().endswith(LABEL):
            problems.append(f"  {path}: {LABEL} is the extension of labels; rename it")
        elif span is None:
            folder = os.path.isdir(manifest.root / path)
            problems.append(f"  {path}: {'a folder of frames, not a video file' if folder else 'no such file'}")
        else:
            sizes[path] = span.size
    if problems:
        raise DatasetError(f"{len(problems)} of {len(split_of)} videos cannot be packed:\n{shorten(problems)}")
    names = dict(zip(sizes, _names(sizes), strict=True))
    # The order is mixed, but the same in every run and after a video is added.
    order = sorted(sizes, key=lambda path: (split_of[path], hashlib.sha256(path.encode()).digest()))
    found: dict[str, tuple[str, str]] = {}
    split, number, filled = "", -1, 0
    for path in order:
        if split_of[path] != split:
            split, number, filled = split_of[path], 0, 0
        elif filled + sizes[path] > shard_bytes:
            number, filled = number + 1, 0
        found[path] = (f"{split}-{number:06d}.tar", names[path])
        filled += sizes[path]
    return found


def _names(paths: Sequence[str] | dict[str, int]) -> Iterator[str]:
    """Names in the shards: WebDataset takes what follows the first dot of a file name for its kind."""
    used: set[str] = set()
    for path in paths:
        pure = PurePosixPath(path.rpartition(".tar/")[2])
        key = str(pure.with_suffix(""))
        parent, _, stem = key.rpartition("/")
        key = f"{parent}/{stem.replace('.', '_')}".lstrip("/")
        name, copies = key, 1
        while name in used:
            copies += 1
            name = f"{key}-{copies}"
        used.add(name)
        yield f"{name}{pure.suffix.lower()}"


def _others(out: Path, jobs: Sequence[ShardJob]) -> list[Path]:
    """Shards of an earlier plan, and parts of shards that a killed run left."""
    planned = {Path(job.target).name for job in jobs}
    return [p for p in out.iterdir() if _OWN.fullmatch(p.name) and p.name not in planned]


def write_shard(job: ShardJob) -> bool:
    """Write one shard unless it is there, holds these videos, and is newer than them; whether it was written."""
    target = Path(job.target)
    spans = []
    for video in job.videos:
        span = find_span(video.source)
        if span is None:
            raise DatasetError(f"{video.source} has disappeared.")
        spans.append(span)
    if target.is_file() and target.stat().st_mtime_ns > max(os.stat(span.path).st_mtime_ns for span in spans):
        sizes = {video.name: span.size for video, span in zip(job.videos, spans, strict=True)}
        with contextlib.suppress(DatasetError):
            if {name: span.size for name, span in members(job.target).items() if not name.endswith(LABEL)} == sizes:
                return False
    temporary = target.with_name(f".{target.name}.{os.getpid()}.tmp")
    try:
        with tarfile.open(temporary, "x", format=tarfile.PAX_FORMAT) as shard:
            for video, span in zip(job.videos, spans, strict=True):
                with open(span.path, "rb") as file:
                    file.seek(span.start)
                    shard.addfile(_header(video.name, span.size), file)
                if video.label is not None:
                    label = str(video.label).encode()
                    name = f"{video.name.removesuffix(PurePosixPath(video.name).suffix)}{LABEL}"
                    shard.addfile(_header(name, len(label)), io.BytesIO(label))
        temporary.replace(target)
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror}; the same command resumes", job.target) from error
    finally:
        temporary.unlink(missing_ok=True)
    return True


def _header(name: str, size: int) -> tarfile.TarInfo:
    header = tarfile.TarInfo(name)
    header.size = size
    return header


def _entry(entry: Entry, paths: dict[str, tuple[str, str]]) -> Entry:
    return entry._replace(path="/".join(paths[os.path.normpath(entry.path)]))


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 refused, 130 interrupted."""
    parser = CommandParser(prog="python -m data.shards", description=__doc__)
    parser.add_argument("videos", type=local_path, help="manifest, or a folder with one sub-folder per class")
    parser.add_argument(
        "--root", type=local_path, help="folder that its paths are relative to (default: the manifest's)"
    )
    parser.add_argument("--out", type=local_path, required=True, help="folder of the shards and their manifest")
    parser.add_argument("--megabytes", type=float, default=500, help="size of a shard (default %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    args = parser.parse_args(argv)
    if not (math.isfinite(args.megabytes) and args.megabytes > 0):
        parser.error(f"--megabytes is {args.megabytes}; it must be positive")

    def command() -> None:
        pack(read_listing(args.videos, args.root), args.out, math.ceil(args.megabytes * 1e6), args.workers)

    return run_command(command, "interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
