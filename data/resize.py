"""Make smaller copies of all videos, once, so that training decodes less: ``python -m data.resize VIDEOS --out SMALL``.

VIDEOS is a manifest, or a folder with one sub-folder per class. A video becomes H.264 in mp4 with a keyframe every 12
frames, without sound; a folder of frames stays a folder. The short side becomes ``--short-side`` pixels, and is never
enlarged; frames, their times and orientation stay. A manifest with the same labels and splits is written to SMALL,
which is then the root of the data.

The originals are only read. A file appears under its name when it is complete; the same command again makes what is
missing, and what is older than its original. Videos that cannot be read are named, and the exit status is 1; they stay
in the manifest, so that a training either stops at them or, with ``on_missing: drop``, counts them.
"""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from common.command_line import CommandParser, run_command
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import MANIFEST_FILE, Entry, Manifest
from data._commands import local_path, map_files, read_listing, replace_manifest, reserved

if TYPE_CHECKING:
    from data._shrink import CopyResult

RECORD = "resize.json"  # in the folder of the copies: what they were made from
TIMED = 16  # videos whose decoding is timed
CLIP = 16  # frames of a clip


def resize(manifest: Manifest, out: Path, short_side: int, workers: int | None = None) -> tuple[Manifest, int]:
    """Make the copies and their manifest.

    Args:
        manifest: the videos.
        out: folder of the copies: new, empty, or of an earlier call with the same root and short side.
        short_side: in pixels.
        workers: processes; None: one per CPU; 0: this process alone.

    Returns:
        The manifest written, and the number of its videos that have no copy.

    Raises:
        DatasetError: ``out`` holds something else, lies in the root or around it, or is being written to.
    """
    from data._shrink import CopyJob, shrink_video  # takes seconds, because of torch: not for --help

    if short_side < 2:
        raise DatasetError(f"--short-side is {short_side}; it must be at least 2.")
    targets = target_paths(manifest)
    fps = {os.path.normpath(entry.path): entry.fps for entry in manifest.entries}
    jobs = [
        CopyJob(str(manifest.root / path), str(out / target), short_side, fps[path]) for path, target in targets.items()
    ]
    with reserved(out, manifest, RECORD, {"short_side": short_side}):
        found = map_files(shrink_video, jobs, "making smaller videos", workers, chunk=1)
        outcomes = dict(zip(targets, found, strict=True))
        paths = [os.path.normpath(entry.path) for entry in manifest.entries]
        entries = tuple(
            _entry(entry, targets[path], outcomes[path]) for entry, path in zip(manifest.entries, paths, strict=True)
        )
        name = manifest.source.name if manifest.source.is_file() else MANIFEST_FILE
        small = Manifest(out, entries, manifest.class_names, out / name, len(entries))
        replace_manifest(small)
    _print_outcomes(small, outcomes)
    good = [job for job, outcome in zip(jobs, found, strict=True) if not outcome.probe.problem]
    if good:
        _print_speed([(job.source, job.target) for job in good[:: -(-len(good) // TIMED)]])
    return small, sum(bool(outcome.probe.problem) for outcome in found)


def target_paths(manifest: Manifest) -> dict[str, str]:
    """Paths of the copies by normalised paths of the videos: ``a/b.mp4`` for ``a/b.avi``, or ``a/b.avi.mp4`` if there
    is another ``a/b``. Files in mp4 and folders of frames keep their names.

    Raises:
        DatasetError: two copies would have one path.
    """
    plain = {
        path: path if (manifest.root / path).is_dir() else f"{os.path.splitext(path)[0]}.mp4"
        for path in (os.path.normpath(entry.path) for entry in manifest.entries)
    }
    uses = Counter(plain.values())
    paths = {path: target if uses[target] == 1 or target == path else f"{path}.mp4" for path, target in plain.items()}
    if twice := [target for target, count in Counter(paths.values()).items() if count > 1]:
        raise DatasetError(f"the copies of two videos would be named {twice[0]}: rename one of the videos.")
    return paths


def _entry(entry: Entry, path: str, outcome: CopyResult) -> Entry:
    """The line of the copy; numbers that its file does not tell are those of the video."""
    probe = outcome.probe
    return entry._replace(
        path=path,
        num_frames=probe.num_frames or entry.num_frames,
        fps=probe.fps or entry.fps,
        duration=probe.duration or entry.duration,
    )


# -- what is printed --------------------------------------------------------------------------------------------------


def _print_outcomes(small: Manifest, outcomes: dict[str, CopyResult]) -> None:
    problems = {path: outcome.probe.problem for path, outcome in outcomes.items() if outcome.probe.problem}
    for path, problem in problems.items():
        print(f"{path}: {problem}", file=sys.stderr)
    made = sum(outcome.made for outcome in outcomes.values())
    kept = len(outcomes) - made - len(problems)
    print(f"{small.source}: {len(outcomes)} videos: {made} made, {kept} were there, {len(problems)} cannot be read")


def _print_speed(pairs: Sequence[tuple[str, str]]) -> None:
    """Time the reading of a clip from videos and from their copies, in one process."""
    before, after = (_clips_per_second([pair[which] for pair in pairs]) for which in (0, 1))
    print(
        f"reading clips of {CLIP} frames, one process, {len(pairs)} videos: {before:.1f} clips/s before, "
        f"{after:.1f} after ({after / before:.1f} times as fast)"
    )


def _clips_per_second(paths: Sequence[str]) -> float:
    from common.datamodules.video_clips import segment_indices
    from common.datamodules.video_reader import open_video

    seconds = 0.0
    for timed in (False, True):  # the first reading fills the file cache
        start = time.perf_counter()
        for path in paths:
            with open_video(path) as video:
                video.get_frames(segment_indices(video.num_frames, CLIP).tolist())
        seconds = time.perf_counter() - start if timed else seconds
    return len(paths) / seconds


def main(argv: list[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 refused or some videos cannot be read, 130 interrupted."""
    parser = CommandParser(prog="python -m data.resize", description=__doc__)
    parser.add_argument("videos", type=local_path, help="manifest, or a folder with one sub-folder per class")
    parser.add_argument(
        "--root", type=local_path, help="folder that its paths are relative to (default: the manifest's)"
    )
    parser.add_argument("--out", type=local_path, required=True, help="folder of the copies and their manifest")
    parser.add_argument("--short-side", type=int, default=256, help="in pixels (default %(default)s)")
    parser.add_argument("--workers", type=int, help="processes (default: one per CPU)")
    args = parser.parse_args(argv)

    def command() -> int:
        _, problems = resize(read_listing(args.videos, args.root), args.out, args.short_side, args.workers)
        return 1 if problems else 0

    return run_command(command, "interrupted; the same command resumes")


if __name__ == "__main__":
    sys.exit(main())
