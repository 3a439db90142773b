"""Look at a dataset: ``python -m data.browse VIDEOS --out page.html`` writes a contact sheet as one HTML page.

VIDEOS is a manifest, or a folder with one sub-folder per class (of videos or of images). For some items of each class
and split the page shows frames as they are, the frames that the network gets after the transforms of a recipe, length,
frame rate, size, and what is wrong: missing or unreadable files, videos too short for a clip, another number of frames
than in the manifest. Items with known problems come first; ``--check`` looks for problems in all videos, not only in
those that are shown.
"""

from __future__ import annotations

import argparse
import hashlib
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from common.command_line import CommandParser, run_command
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import SPLITS, Entry, Manifest
from data._commands import local_path, map_files, read_videos_or_images
from data.check import check


def browse(args: argparse.Namespace) -> None:
    """Write the page, and say what it shows.

    Raises:
        DatasetError: the dataset or the recipe is wrong, or ``out`` exists and is not such a page.
    """
    from common.datamodules.spec import check_range  # these take seconds, because of torch: not for --help
    from common.output_files import written_whole
    from data._contact_sheet import MARK, contact_sheet
    from data._thumbnails import look, read_transforms

    check_range(1, None, per_class=args.per_class, max_items=args.max_items)
    out, recipe = args.out, args.recipe
    if out.exists() and (not out.is_file() or MARK.encode() not in out.read_bytes()[:2000]):
        raise DatasetError(f"{out} exists and is not a page of this command: choose another --out.")
    manifest, kind = read_videos_or_images(args.videos, args.root)
    if args.check and kind == "image":
        raise DatasetError("--check is for videos.")
    listed = manifest.split(args.split) if args.split else manifest
    bad = listed.present()[1]
    notes: Sequence[str] = ()
    if args.check:
        report = check(listed, workers=args.workers)
        notes = report.general
        bad = [entry for entry, found in zip(listed.entries, report.findings, strict=True) if found.problem]
    transforms = read_transforms(recipe, manifest.root, kind, listed.items())
    chosen = choose(listed, args.per_class, args.max_items, bad)
    shown = replace(listed, entries=tuple(chosen))
    jobs = [(transforms, entry, item) for entry, item in zip(chosen, shown.items(), strict=True)]
    views = map_files(look, jobs, f"reading {kind}s", args.workers)

    problems = sum(bool(view.problem) for view in views)
    text = f"{len(views)} of {len(listed.entries)} {kind}s, {len(listed.entries) - len(views)} left out"
    hidden = len(bad) - len(set(bad) & set(chosen))
    text += f"; {problems} shown with problems" + (f", {hidden} more left out" if hidden else "")
    counts = Counter(entry.split for entry in listed.entries)
    facts = {
        "Shown": text,
        "Classes": f"{len({entry.label for entry in chosen})} of {len(listed.class_names)}",
        "Splits": ", ".join(f"{name} {counts[name]}" for name in listed.splits()),
        "Files": str(manifest.root),
        f"Transforms of {recipe}" if recipe else "Default transforms": transforms.describe(),
    }
    with written_whole(out) as file:
        file.write(contact_sheet(str(manifest.source), facts, notes, views, listed.class_names))
    print(f"{out}: {text}")


def choose(manifest: Manifest, per_class: int, limit: int, first: Sequence[Entry] = ()) -> list[Entry]:
    """Some entries of each class and split, always the same ones, sorted by class and split.

    Args:
        manifest: the entries.
        per_class: number from each class and split.
        limit: number altogether; each class gets its first entry before any gets its second.
        first: entries that come before others; they take at most half of the limit.
    """
    first = first[: max(1, limit // 2)]
    taken = set(first)
    groups: dict[tuple[int, int], list[Entry]] = defaultdict(list)
    for entry in manifest.entries:
        if entry not in taken:
            groups[_order(manifest, entry)].append(entry)
    ranked = []
    for group in groups.values():
        group.sort(key=lambda entry: hashlib.sha256(entry.path.encode()).digest())
        ranked += list(enumerate(group[:per_class]))
    ranked.sort(key=lambda pair: (pair[0], _order(manifest, pair[1])[::-1]))
    chosen = [*first, *(entry for _, entry in ranked)][:limit]
    return sorted(chosen, key=lambda entry: _order(manifest, entry))


def _order(manifest: Manifest, entry: Entry) -> tuple[int, int]:
    """Sort key by class, those without label last, and split."""
    label = len(manifest.class_names) if entry.label is None else entry.label
    return label, SPLITS.index(entry.split)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 written, 1 refused, 130 interrupted."""
    parser = CommandParser(prog="python -m data.browse", description=__doc__)
    parser.add_argument("videos", type=local_path, help="manifest, or a folder with one sub-folder per class")
    parser.add_argument(
        "--root", type=local_path, help="folder that its paths are relative to (default: the manifest's)"
    )
    parser.add_argument(
        "--out", type=local_path, default=Path("browse.html"), help="page to write (default %(default)s)"
    )
    parser.add_argument("--recipe", type=Path, help="recipe whose transforms are shown (default: those without one)")
    parser.add_argument("--split", choices=("train", "val", "test"), help="show this split alone")
    parser.add_argument("--per-class", type=int, default=4, help="from each class and split (default %(default)s)")
    parser.add_argument("--max-items", type=int, default=200, help="altogether (default %(default)s)")
    parser.add_argument("--check", action="store_true", help="open every video and show those with problems")
    parser.add_argument("--workers", type=int, help="processes (0: none)")
    args = parser.parse_args(argv)
    return run_command(lambda: browse(args))


if __name__ == "__main__":
    sys.exit(main())
