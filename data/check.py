"""Check every video before training: ``python -m data.check manifest.csv --root VIDEOS``, or a class folder alone.

A video must exist, open, give its first frame and have the number of frames that the manifest says; ``--decode`` reads
every frame. Classes without videos, and videos that are in two splits, under the same path or as copies, are reported
too. Nothing is changed or deleted; the exit status is 1 if there is a problem.
"""

from __future__ import annotations

import csv
import sys
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from common.command_line import CommandParser, printable, run_command
from common.datamodules.errors import DatasetError, VideoReadError
from common.datamodules.manifest import Entry, Manifest, shorten
from common.datamodules.tar_members import find_span
from data._commands import Probe, local_path, map_files, read_listing

MAX_REPORTED = 20
DECODE_AT_ONCE = 32  # frames; bounds memory
COLUMNS = ("line", "path", "split", "label_name", "num_frames", "width", "height", "problem")


@dataclass(frozen=True)
class CheckReport:
    """Findings in the order of the entries, and the problems that do not belong to a single entry."""

    manifest: Manifest
    findings: tuple[Probe, ...]
    general: tuple[str, ...]

    @property
    def ok(self) -> bool:
        """Whether nothing is wrong."""
        return not self.general and not any(finding.problem for finding in self.findings)

    def write(self, path: Path) -> None:
        """Write one line per entry as CSV.

        Raises:
            FileExistsError: the file exists and is not such a report.
        """
        refuse_to_overwrite(path)
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(COLUMNS)
            for entry, finding in zip(self.manifest.entries, self.findings, strict=True):
                numbers = (finding.num_frames, finding.width, finding.height)
                writer.writerow([entry.line, entry.path, entry.split, entry.label_name, *numbers, finding.problem])


def refuse_to_overwrite(path: Path) -> None:
    """Raise FileExistsError if the path holds anything but a report of this command."""
    if path.is_dir() or not path.parent.is_dir():
        raise DatasetError(f"--report is {path}; give the name of a file in a folder that exists.")
    if path.exists():
        with open(path, encoding="utf-8", errors="replace") as file:
            if file.readline().rstrip("\n") != ",".join(COLUMNS):
                raise FileExistsError(f"{path} exists and is not a report of this command: choose another --report.")


def check(manifest: Manifest, *, decode: bool = False, workers: int | None = None) -> CheckReport:
    """Check the videos of a manifest; with ``decode`` every frame of them. See `map_files` for ``workers``."""
    jobs = [(str(manifest.root / entry.path), entry.num_frames, decode) for entry in manifest.entries]
    findings = map_files(check_video, jobs, "checking videos", workers)
    general = []
    for split in manifest.splits():
        counts = manifest.class_counts(split)
        empty = [name for name, count in zip(manifest.class_names, counts, strict=True) if count == 0]
        if empty and any(counts):  # a test split may lack labels altogether
            general.append(f"split {split} lacks videos of {len(empty)} classes: {', '.join(empty)}")
    for path, lines in manifest.duplicates().items():
        general.append(f"{path} is listed more than once: lines {', '.join(map(str, lines))}")
    general += [
        f"the same file is in the splits {' and '.join(sorted({entry.split for entry in group}))}: "
        + ", ".join(f"{entry.path} (line {entry.line})" if entry.line else entry.path for entry in group)
        for group in _copies(manifest)
    ]
    return CheckReport(manifest, tuple(findings), tuple(general))


def check_video(job: tuple[str, int | None, bool]) -> Probe:
    """Check one (path, number of frames in the manifest or None, whether to read every frame)."""
    from common.datamodules.video_reader import open_video  # takes seconds, because of torch: not for --help

    path, expected, decode = job
    count = None
    try:
        with open_video(path) as video:
            count = video.num_frames
            first = video.get_frames([0])
            for start in range(1, count if decode else 1, DECODE_AT_ONCE):
                video.get_frames(range(start, min(start + DECODE_AT_ONCE, count)))
    except VideoReadError as error:
        return Probe(count, problem=error.reason or str(error))
    height, width = first.shape[1:3]
    return Probe(count, width=width, height=height, problem=count_problem(count, expected))


def count_problem(count: int, expected: int | None, where: str = "the manifest says") -> str:
    """How the number of frames differs from that said elsewhere; empty if it does not, or nothing is said."""
    if expected is None or expected == count:
        return ""
    return f"has {count} frames, {where} {expected}"


def _copies(manifest: Manifest) -> list[list[Entry]]:
    """Files with the same content in more than one split, under different paths. Only files of equal size are read."""
    sizes: dict[int, dict[str, Entry]] = defaultdict(dict)
    spans = {entry.path: find_span(manifest.root / entry.path) for entry in manifest.entries}
    for entry in manifest.entries:
        if (span := spans[entry.path]) is not None:
            sizes[span.size][entry.path] = entry
    groups: dict[str, list[Entry]] = defaultdict(list)
    for size, same in sizes.items():
        if size and len({entry.split for entry in same.values()}) > 1:
            for entry in same.values():
                groups[spans[entry.path].sha256()].append(entry)  # type: ignore[union-attr]
    return [group for group in groups.values() if len({entry.split for entry in group}) > 1]


def print_report(report: CheckReport, console: Console) -> None:
    """Print a table of the splits, the first problems and a summary."""
    manifest = report.manifest
    pairs = list(zip(manifest.entries, report.findings, strict=True))
    title = escape(str(manifest.source))
    table = Table("split", "videos", "classes", "with problems", "frames", "frame sizes", title=title)
    for split in manifest.splits():
        findings = [finding for entry, finding in pairs if entry.split == split]
        sizes = Counter((f.width, f.height) for f in findings if f.width)
        common = [f"{width}x{height} ({count})" for (width, height), count in sizes.most_common(2)]
        table.add_row(
            split,
            f"{len(findings):,}",
            f"{sum(count > 0 for count in manifest.class_counts(split))} of {len(manifest.class_names)}",
            str(sum(bool(f.problem) for f in findings)),
            _span([f.num_frames for f in findings if f.num_frames]),
            ", ".join(common) + (f" and {len(sizes) - 2} more" if len(sizes) > 2 else ""),
        )
    console.print(table)
    lines = [f"{_where(manifest, entry)}: {finding.problem}" for entry, finding in pairs if finding.problem]
    good = len(pairs) - len(lines)
    lines += report.general
    if lines:
        console.print(escape(printable(shorten(lines, MAX_REPORTED))), highlight=False, soft_wrap=True)
    problems = f"{len(lines)} problem{'' if len(lines) == 1 else 's'}"
    console.print(f"{good} of {len(pairs)} videos are good; {problems}", highlight=False)


def _where(manifest: Manifest, entry: Entry) -> str:
    """File and line that an entry is listed in, and its path; the path alone in a class folder."""
    return f"{manifest.source}:{entry.line}: {entry.path}" if entry.line else str(manifest.source / entry.path)


def _span(values: Sequence[int]) -> str:
    if not values:
        return "-"
    return str(min(values)) if min(values) == max(values) else f"{min(values)} to {max(values)}"


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 all is well, 1 problems, 130 interrupted."""
    parser = CommandParser(prog="python -m data.check", description=__doc__)
    parser.add_argument("manifest", type=local_path, help="the CSV file, or a folder with one sub-folder per class")
    parser.add_argument(
        "--root", type=local_path, help="folder that its paths are relative to (default: the manifest's)"
    )
    parser.add_argument("--decode", action="store_true", help="read every frame of every video")
    parser.add_argument("--report", type=Path, help="write a CSV file with one line per video")
    parser.add_argument("--workers", type=int, help="processes (0: none)")
    args = parser.parse_args(argv)

    def command() -> int:
        if args.report:
            refuse_to_overwrite(args.report)  # before the long work, not after it
        report = check(read_listing(args.manifest, args.root), decode=args.decode, workers=args.workers)
        if args.report:
            report.write(args.report)
        print_report(report, Console())
        return 0 if report.ok else 1

    return run_command(command)


if __name__ == "__main__":
    sys.exit(main())
