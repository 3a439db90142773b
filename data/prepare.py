"""Write the manifest of a benchmark from its official annotation files and the videos on this machine.

``python -m data.prepare DATASET --root VIDEOS --annotations FOLDER --out manifest.csv``

The videos are found by name anywhere below the root, whatever their extension. Frames, frame rate and duration are
read from the files. Next to the manifest go ``classes.txt`` and ``<manifest>.report.csv``, which lists the videos
that are missing or cannot be read.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from common.datamodules.manifest import CLASSES_FILE, SPLITS, VIDEO_EXTENSIONS, Entry, Manifest
from common.datamodules.readers import VideoReadError, open_video
from data._parallel import map_files
from data.annotations import BENCHMARKS, AnnotationError, Benchmark, Listing

MAX_REPORTED = 10


class PrepareError(Exception):
    """The manifest cannot be written as asked; the message says what to do."""


@dataclass(frozen=True)
class Probe:
    """What a file says about itself, or ``problem``."""

    num_frames: int | None = None
    fps: float | None = None
    duration: float | None = None
    problem: str = ""


def prepare(
    dataset: str,
    root: Path,
    annotations: Path,
    out: Path,
    *,
    option: str | None = None,
    only: Collection[str] | None = None,
    probe: bool = True,
    allow_missing: bool = False,
    force: bool = False,
    workers: int | None = None,
    console: Console | None = None,
) -> Manifest:
    """Write the manifest of a benchmark.

    Args:
        dataset: a name in `data.annotations.BENCHMARKS`.
        root: folder of the videos; the paths in the manifest are relative to it.
        annotations: folder of the official annotation files.
        out: the CSV file to write.
        option: which of the official splits (UCF-101, HMDB-51) or releases (Diving-48); None takes the first.
        only: the splits to list; None: all that the annotation files have.
        probe: open every video to read its frames, frame rate and duration; otherwise these columns stay empty.
        allow_missing: go on when videos are missing (they stay in the manifest, for `VideoDataModule` to drop and
            count) or unreadable (they are left out) instead of refusing.
        force: replace an existing manifest.
        workers: processes that open videos; None chooses by the machine.
        console: where to print; standard error by default.

    Returns:
        The manifest written; its ``expected`` is the number of videos in the annotations.

    Raises:
        PrepareError: no root, a manifest or another class list is there already, or videos are missing.
        AnnotationError: the annotation files are missing or wrong.
    """
    console = console or Console(stderr=True)
    benchmark = BENCHMARKS[dataset]
    if not root.is_dir():
        raise PrepareError(f"no folder {root} (resolved: {root.resolve()}): set --root to the folder of the videos.")
    if not annotations.is_dir():
        raise PrepareError(f"no folder {annotations}: set --annotations to the folder of the annotation files.")
    if out.exists() and not force:
        raise PrepareError(f"{out} exists: choose another --out, or give --force to replace it.")
    listing = benchmark.read(annotations, **({benchmark.option: option} if option else {}))
    classes = "".join(f"{name}\n" for name in listing.class_names)
    classes_path = out.parent / CLASSES_FILE
    if not force and classes_path.exists() and classes_path.read_text(encoding="utf-8") != classes:
        raise PrepareError(f"{classes_path} holds other classes: give every data set a folder of its own.")
    _print_counts(benchmark, listing, console)
    if only is not None:
        listing = replace(listing, videos=tuple(video for video in listing.videos if video.split in only))
        if not listing.videos:
            raise PrepareError(f"the annotation files list no videos of {' or '.join(only)}: correct --only.")

    paths = _locate(listing, root)
    present = [video for video in listing.videos if video.key in paths]
    probes = {}
    if probe:
        jobs = [(str(root / paths[video.key]), listing.frame_fps) for video in present]
        found = map_files(probe_video, jobs, "opening videos", workers)
        probes = {video.key: result for video, result in zip(present, found, strict=True)}
    entries, problems, usable = [], [], []
    for video in listing.videos:
        result = probes.get(video.key, Probe(problem="" if video.key in paths else "missing"))
        path = paths.get(video.key, video.key)
        name = "" if video.label is None else listing.class_names[video.label]
        entry = Entry(path, video.label, name, video.split, result.num_frames, result.fps, result.duration)
        if result.problem:
            problems.append((path, video.split, result.problem))
        else:
            usable.append(entry)
        if video.key not in paths or not result.problem:
            entries.append(entry)

    counts = f"{len(usable)} of {len(listing.videos)} videos"
    report = out.with_suffix(".report.csv")
    report.parent.mkdir(parents=True, exist_ok=True)
    with open(report, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("video", "split", "problem"), *problems])
    if problems:
        shown = "\n".join(f"  {video} ({split}): {problem}" for video, split, problem in problems[:MAX_REPORTED])
        text = f"{counts} can be used below {root}; the others are listed in {report}:\n{shown}"
        if len(problems) > MAX_REPORTED:
            text += f"\n  ... and {len(problems) - MAX_REPORTED} more"
        if not allow_missing or not usable:
            raise PrepareError(text + "\nGet these videos, or give --allow-missing to go on without them.")
        text += "\nThe missing ones stay in the manifest, so that every result says how many there were: set on_missing"
        text += " to drop in the recipe. Those that cannot be read are left out."
        console.print(text, markup=False, highlight=False, soft_wrap=True)
    manifest = Manifest(root, tuple(entries), listing.class_names, out, len(listing.videos))
    trained = {entry.label for entry in usable if entry.split == "train"}
    empty = [name for label, name in enumerate(listing.class_names) if label not in trained]
    if empty:
        console.print(
            f"classes without a training video: {', '.join(empty)}", markup=False, highlight=False, soft_wrap=True
        )
    manifest.write(out, overwrite=force)
    console.print(f"{out}: {counts}, hash {manifest.hash[:12]}", markup=False, highlight=False, soft_wrap=True)
    return manifest


def probe_video(job: tuple[str, float | None]) -> Probe:
    """Open the video of a (path, frame rate of frame folders) pair and read its numbers."""
    path, fps = job
    try:
        with open_video(path, fps=fps) as video:
            return Probe(video.num_frames, round(video.fps, 6), round(float(video.duration), 6))
    except VideoReadError as error:
        return Probe(problem=error.reason or str(error))


def _locate(listing: Listing, root: Path) -> dict[str, str]:
    """Paths relative to the root by key of the listed videos that are there."""
    wanted = {video.key for video in listing.videos}
    depth = 1 + max(key.count("/") for key in wanted)
    found: dict[str, str] = {}
    twice: dict[str, list[str]] = {}
    for path in _frame_folders(root) if listing.frame_fps else _video_files(root):
        stem = path if listing.frame_fps else os.path.splitext(path)[0]
        key = "/".join(stem.split("/")[-depth:])
        if key in wanted and found.setdefault(key, path) != path:
            twice.setdefault(key, [found[key]]).append(path)
    if twice:
        shown = "\n".join("  " + " and ".join(paths) for paths in list(twice.values())[:MAX_REPORTED])
        raise PrepareError(f"{len(twice)} videos are more than once below {root}: set --root lower.\n{shown}")
    return found


def _video_files(root: Path) -> list[str]:
    """Video files below the root, relative to it, with forward slashes."""
    found = []
    for folder, folders, files in os.walk(root):
        folders.sort()
        place = Path(folder).relative_to(root)
        found += [
            (place / name).as_posix() for name in sorted(files) if os.path.splitext(name)[1].lower() in VIDEO_EXTENSIONS
        ]
    return found


def _frame_folders(root: Path) -> list[str]:
    """Folders in the root and in its folders. The frames are not listed: there are millions."""
    found = []
    for folder in sorted(item.name for item in os.scandir(root) if item.is_dir()):
        found.append(folder)
        if not folder.isdecimal():  # not itself a video of these data sets
            found += sorted(f"{folder}/{item.name}" for item in os.scandir(root / folder) if item.is_dir())
    return found


def _print_counts(benchmark: Benchmark, listing: Listing, console: Console) -> None:
    """The numbers of the annotation files beside those of the paper."""
    counts = Counter(video.split for video in listing.videos)
    table = Table("", "annotations", "Table 1 of the paper", title=benchmark.title)
    for name in ("classes", "train", "val", "test"):
        here = len(listing.class_names) if name == "classes" else counts[name]
        if here or name in benchmark.published:
            table.add_row(name, f"{here:,}", f"{benchmark.published[name]:,}" if name in benchmark.published else "-")
    console.print(table)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 refused, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m data.prepare", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=benchmark.title, description=(benchmark.read.__doc__ or "").replace("``", "")
        )
        command.add_argument("--root", type=Path, required=True, help="folder of the videos")
        command.add_argument("--annotations", type=Path, required=True, help="folder of the official annotation files")
        command.add_argument("--out", type=Path, required=True, help="manifest to write, for example manifest.csv")
        if benchmark.option:
            default = benchmark.choices[0]
            text = f"which official {benchmark.option} (default {default})"
            command.add_argument(
                f"--{benchmark.option}", dest="option", choices=benchmark.choices, default=default, help=text
            )
        command.add_argument("--only", nargs="+", choices=SPLITS, help="list only the videos of these splits")
        command.add_argument("--no-probe", action="store_true", help="do not open the videos; leaves columns empty")
        command.add_argument("--allow-missing", action="store_true", help="go on when videos are missing or unreadable")
        command.add_argument("--force", action="store_true", help="replace an existing manifest and class list")
        command.add_argument("--workers", type=int, help="processes that open videos (0: none)")
    args = parser.parse_args(argv)
    try:
        prepare(
            args.dataset,
            args.root,
            args.annotations,
            args.out,
            option=getattr(args, "option", None),
            only=args.only,
            probe=not args.no_probe,
            allow_missing=args.allow_missing,
            force=args.force,
            workers=args.workers,
        )
    except (PrepareError, AnnotationError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; no manifest was written", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
