"""Write the manifest of a benchmark from its official annotation files and the videos on this machine.

``python -m data.prepare DATASET --root VIDEOS --annotations FOLDER --out manifest.csv``
``python -m data.prepare lists --train LIST --val LIST --root VIDEOS --out manifest.csv``

A video is found by the name of its file, whatever the extension, or of its folder of frames, anywhere below the root;
one of a list of mmaction2, SlowFast or pytorchvideo by its path.
The number of frames, frame rate and duration are read from the files. ``classes.txt`` and ``<manifest>.report.csv``
are written next to the manifest; the report lists the videos that are missing or cannot be read.
"""

from __future__ import annotations

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

from common.command_line import CommandParser, UsageError, run_command
from common.datamodules.datasets import CARDS, read_card
from common.datamodules.errors import DatasetError, VideoReadError
from common.datamodules.folders import VIDEO_EXTENSIONS
from common.datamodules.manifest import CLASSES_FILE, SPLITS, Entry, Manifest, shorten
from data._commands import Probe, local_path, map_files
from data.annotations import BENCHMARKS, ListedVideo, Listing, read_lists

LISTS = "lists"  # in place of a dataset's name
MISSING = "missing"
KEPT = (
    "Missing videos stay in the manifest, so that every result says how many there were: set on_missing to drop in the "
    "recipe. Unreadable ones are left out."
)


class FoundVideo(NamedTuple):
    """A listed video with its path relative to the root (its key if it is missing) and what its file says."""

    listed: ListedVideo
    path: str
    probe: Probe


def prepare(args: argparse.Namespace) -> None:
    """Write the manifest of a benchmark. With ``--allow-missing``, missing videos stay in it, for `VideoDataModule` to
    drop and count, and unreadable ones are left out.

    Raises:
        DatasetError: the annotation files or the root are missing or wrong, a manifest or another class list exists
            already, or videos are missing.
    """
    console = _console()
    card = read_card(args.dataset)
    _check_folders(args, ("--root", args.root, "videos"), ("--annotations", args.annotations, "annotation files"))
    listing = BENCHMARKS[args.dataset].listing(args.annotations, getattr(args, "option", None))
    _check_class_file(args, listing)
    console.print(_counts_table(card, listing))
    for remark in _remarks(args.dataset, card, listing):
        console.print(remark)
    if args.only is not None:
        listing = replace(listing, videos=tuple(video for video in listing.videos if video.split in args.only))
        if not listing.videos:
            raise DatasetError(f"the annotation files list no videos of {' or '.join(args.only)}: correct --only.")
    _write_manifest(args, listing, locate(listing.videos, args.root), console)


def prepare_lists(args: argparse.Namespace) -> None:
    """Write the manifest of lists with lines ``path label``; missing and unreadable videos as in :func:`prepare`.

    Raises:
        DatasetError: as :func:`prepare` and :func:`data.annotations.read_lists`.
        UsageError: no list is given.
    """
    splits = [split for split in SPLITS if getattr(args, split) is not None]
    if not splits:
        raise UsageError(f"no list is given: give one or more of {', '.join(f'--{split}' for split in SPLITS)}.")
    _check_folders(args, ("--root", args.root, "videos"))
    lists = {split: (getattr(args, split), getattr(args, f"{split}_folder")) for split in splits}
    listing = read_lists(lists, args.root, args.classes)
    _check_class_file(args, listing)
    entries = _entries([FoundVideo(video, video.key, Probe()) for video in listing.videos], listing.class_names)
    present, _ = Manifest(args.root, entries, listing.class_names, args.out, len(entries)).present()
    _write_manifest(args, listing, {entry.path: entry.path for entry in present.entries}, _console())


def _console() -> Console:
    return Console(stderr=True, soft_wrap=True, markup=False, highlight=False)


def _write_manifest(args: argparse.Namespace, listing: Listing, paths: Mapping[str, str], console: Console) -> None:
    """Open the videos, and write manifest, class list and report. ``paths`` are those of the videos found, by key."""
    root, out = args.root, args.out
    videos = _open(listing, root, paths, not args.no_probe, args.workers)
    report = out.with_suffix(".report.csv")
    usable = [video for video in videos if not video.probe.problem]
    counts = f"{len(usable)} of {len(videos)} videos"
    if problems := _write_report(videos, report):
        text = f"{counts} can be used below {root}; the others are listed in {report}:\n{shorten(problems)}"
        if not args.allow_missing or not usable:
            raise DatasetError(f"{text}\n{_advice(videos, args.dataset)}")
        console.print(f"{text}\n{KEPT}")
    trained = {video.listed.label for video in usable if video.listed.split == "train"}
    if empty := [name for label, name in enumerate(listing.class_names) if label not in trained]:
        console.print(f"classes without a training video: {', '.join(empty)}")
    manifest = Manifest(root, _entries(videos, listing.class_names), listing.class_names, out, len(videos))
    manifest.write(out, overwrite=args.force)
    console.print(f"{out}: {counts}, hash {manifest.hash[:12]}")


def _check_folders(args: argparse.Namespace, *folders: tuple[str, Path, str]) -> None:
    """Check folders, each with its option and what it holds, and that ``--out`` may be written."""
    for option, folder, content in folders:
        if not folder.is_dir():
            raise DatasetError(
                f"no folder {folder} (resolved: {folder.resolve()}): set {option} to the folder of the {content}."
            )
    if args.out.exists() and not args.force:
        raise DatasetError(f"{args.out} exists: choose another --out, or give --force to replace it.")


def _check_class_file(args: argparse.Namespace, listing: Listing) -> None:
    classes, class_file = "".join(f"{name}\n" for name in listing.class_names), args.out.parent / CLASSES_FILE
    if not args.force and class_file.exists() and class_file.read_text(encoding="utf-8") != classes:
        use = f", or --classes {class_file} to use them" if args.dataset == LISTS else ""
        raise DatasetError(f"{class_file} holds other classes: give every dataset a folder of its own{use}.")


def _counts_table(card: Mapping[str, Any], listing: Listing) -> Table:
    """The numbers of the annotation files next to the published ones."""
    counts = {"classes": len(listing.class_names), **Counter(video.split for video in listing.videos)}
    published = {"classes": card["classes"], **card["counts"]}
    table = Table("", "annotations", "published", title=card["title"])
    for name in ("classes", *SPLITS):
        if name in counts or name in published:
            table.add_row(name, f"{counts.get(name, 0):,}", f"{published[name]:,}" if name in published else "-")
    return table


def _remarks(dataset: str, card: Mapping[str, Any], listing: Listing) -> Iterator[str]:
    """What may be wrong with the card or the annotation files, but need not be."""
    classes = len(listing.class_names)
    if classes != card["classes"]:
        yield (
            f"The annotation files have {classes} classes, but {dataset} in {CARDS} has {card['classes']}: complete "
            "the files, or correct the number there."
        )
    uses = Counter(video.key for video in listing.videos)
    if repeated := [f"  {key}" for key, count in uses.items() if count > 1]:
        yield (
            f"The annotation files list {len(repeated)} videos more than once: remove the repetitions, or correct the "
            f"reader in data/annotations.py if they are different videos.\n{shorten(repeated)}"
        )


# -- finding and opening the videos -----------------------------------------------------------------------------------


def _open(listing: Listing, root: Path, paths: Mapping[str, str], probe: bool, workers: int | None) -> list[FoundVideo]:
    """The listed videos with their files; with ``probe`` each file is opened."""
    jobs = [(str(root / path), listing.frame_fps) for path in paths.values()] if probe else []
    probes = dict(zip(paths, map_files(probe_video, jobs, "opening videos", workers), strict=False))
    return [
        FoundVideo(video, paths[video.key], probes.get(video.key, Probe()))
        if video.key in paths
        else FoundVideo(video, video.key, Probe(problem=MISSING))
        for video in listing.videos
    ]


def probe_video(job: tuple[str, float | None]) -> Probe:
    """Open the video of a (path, frame rate of frame folders) pair and read its numbers."""
    from common.datamodules.video_reader import open_video  # takes seconds, because of torch: not for --help

    path, fps = job
    try:
        with open_video(path, fps=fps) as video:
            if fps is None and os.path.isdir(path):  # the files do not tell their rate
                return Probe(video.num_frames)
            return Probe(video.num_frames, round(video.fps, 6), round(float(video.duration), 6))
    except VideoReadError as error:
        return Probe(problem=error.reason or str(error))


def locate(videos: Sequence[ListedVideo], root: Path) -> dict[str, str]:
    """Paths relative to the root, by key, of the listed videos that exist: files, or folders of frames.

    Raises:
        DatasetError: a video exists more than once.
    """
    uses = Counter(video.alias for video in videos)
    keys = {video.alias: video.key for video in videos if uses[video.alias] == 1}
    keys |= {video.key: video.key for video in videos}
    paths: dict[str, str] = {}
    repeated: dict[str, list[str]] = {}
    for key, path in _walk(root, "", keys, {root.resolve()}):
        if paths.setdefault(key, path) != path:
            repeated.setdefault(key, [paths[key]]).append(path)
    if repeated:
        shown = shorten(["  " + " and ".join(group) for group in repeated.values()])
        raise DatasetError(f"{len(repeated)} videos exist more than once below {root}: set --root lower.\n{shown}")
    return paths


def _walk(root: Path, below: str, keys: Mapping[str, str], visited: set[Path]) -> Iterator[tuple[str, str]]:
    """Keys and paths relative to the root of videos below a folder, in order; folders of frames are not listed."""
    for item in sorted(os.scandir(root / below), key=lambda item: item.name):
        path = f"{below}/{item.name}" if below else item.name
        stem, extension = os.path.splitext(path)
        if item.is_dir():
            key = _key(path, keys)
            if key is not None and _may_hold_frames(item.path):
                yield key, path
            elif (place := Path(item.path).resolve()) not in visited:  # a link may lead back up
                visited.add(place)
                yield from _walk(root, path, keys, visited)
        elif extension.lower() in VIDEO_EXTENSIONS and (key := _key(stem, keys)) is not None:
            yield key, path


def _key(name: str, keys: Mapping[str, str]) -> str | None:
    """The key of a video, from the last two parts of its path or the last one."""
    _, _, last = name.rpartition("/")
    return keys.get("/".join(name.split("/")[-2:])) or keys.get(last)


def _may_hold_frames(folder: str) -> bool:
    """Whether the first item of a folder is neither a folder nor a video; listing all frames would take long."""
    with os.scandir(folder) as items:
        first = next((item for item in items if not item.name.startswith(".")), None)
        return first is None or (first.is_file() and os.path.splitext(first.name)[1].lower() not in VIDEO_EXTENSIONS)


# -- results ----------------------------------------------------------------------------------------------------------


def _write_report(videos: Sequence[FoundVideo], path: Path) -> list[str]:
    """Write the videos that cannot be used as CSV; returns them as lines for a message."""
    rows = [(video.path, video.listed.split, video.probe.problem) for video in videos if video.probe.problem]
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "w", encoding="utf-8", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows([("video", "split", "problem"), *rows])
    return [f"  {name} ({split}): {problem}" for name, split, problem in rows]


def _advice(videos: Sequence[FoundVideo], dataset: str) -> str:
    text = "Get these videos, or give --allow-missing to continue without them."
    missing = next((video.listed for video in videos if video.probe.problem == MISSING), None)
    if missing is None:
        return text
    if dataset == LISTS:
        return f"{text} Paths are relative to --root, or to the folder below it that --train-folder and so on give."
    alias = f" (or {missing.alias})" if missing.alias else ""
    return f"{text} A video is a file with any video extension or a folder of frames, here named {missing.key}{alias}."


def _entries(videos: Sequence[FoundVideo], class_names: Sequence[str]) -> tuple[Entry, ...]:
    """The entries of the manifest: all videos except those that exist but cannot be read."""
    entries = []
    for video in videos:
        if video.probe.problem in ("", MISSING):
            label, probe = video.listed.label, video.probe
            name = "" if label is None else class_names[label]
            numbers = (probe.num_frames, probe.fps, probe.duration)
            entries.append(Entry(video.path, label, name, *numbers, video.listed.split))
    return tuple(entries)


def _parser() -> CommandParser:
    parser = CommandParser(prog="python -m data.prepare", description=__doc__)
    commands = parser.add_subparsers(dest="dataset", required=True, metavar="DATASET")
    for name, benchmark in BENCHMARKS.items():
        command = commands.add_parser(
            name, help=read_card(name)["title"], description=(benchmark.read.__doc__ or "").replace("``", "")
        )
        command.add_argument("--annotations", type=Path, required=True, help="folder of the official annotation files")
        if benchmark.option:
            default = benchmark.choices[0]
            text = f"which official {benchmark.option} (default {default})"
            command.add_argument(
                f"--{benchmark.option}", dest="option", choices=benchmark.choices, default=default, help=text
            )
        command.add_argument("--only", nargs="+", choices=SPLITS, help="list only the videos of these splits")
        _add_shared(command)
    text = "lists of mmaction2, SlowFast or pytorchvideo"
    command = commands.add_parser(LISTS, help=text, description=f"{text}: lines 'path label' or 'folder frames label'")
    for split in SPLITS:
        command.add_argument(f"--{split}", type=Path, metavar="LIST", help=f"list of the split {split}")
        text = f"folder below --root that the paths of --{split} are relative to (default: --root itself)"
        command.add_argument(f"--{split}-folder", default="", metavar="FOLDER", help=text)
    text = "class names in the order of the labels, one per line; without it, classes are named by their numbers"
    command.add_argument("--classes", type=Path, help=text)
    _add_shared(command)
    return parser


def _add_shared(command: argparse.ArgumentParser) -> None:
    command.add_argument("--root", type=local_path, required=True, help="folder of the videos")
    command.add_argument("--out", type=local_path, required=True, help="manifest to write, for example manifest.csv")
    command.add_argument("--no-probe", action="store_true", help="do not open the videos; their columns stay empty")
    command.add_argument("--allow-missing", action="store_true", help="continue although videos are missing")
    command.add_argument("--force", action="store_true", help="replace an existing manifest and class list")
    command.add_argument("--workers", type=int, help="processes that open videos (0: none)")


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 refused, 130 interrupted."""
    args = _parser().parse_args(argv)
    action = prepare_lists if args.dataset == LISTS else prepare
    return run_command(lambda: action(args), "interrupted; no manifest was written")


if __name__ == "__main__":
    sys.exit(main())
