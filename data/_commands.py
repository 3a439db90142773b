"""What the commands of this package share: the files that a command line names, work in processes, folders to fill."""

from __future__ import annotations

import argparse
import itertools
import json
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import track

from common.datamodules.errors import DatasetError, UnusedFilesWarning
from common.datamodules.folders import Kind, read_class_folders
from common.datamodules.manifest import CLASSES_FILE, MANIFEST_FILE, Manifest, read_class_names
from common.datamodules.remote_shards import is_url
from common.output_files import locked

Item = TypeVar("Item")
Result = TypeVar("Result")

FILES_PER_PROCESS = 256  # fewer are read before another process has started
CHUNK = 16


@dataclass(frozen=True)
class Probe:
    """What a video says about itself, as far as it was asked; ``problem`` is empty if all is well."""

    num_frames: int | None = None
    fps: float | None = None
    duration: float | None = None
    width: int | None = None
    height: int | None = None
    problem: str = ""


def local_path(text: str) -> Path:
    """An argument of a command, which works on local files. Raises ArgumentTypeError for a URL."""
    if is_url(text):
        raise argparse.ArgumentTypeError(
            f"{text} is a URL: this command reads and writes local folders. Shards are copied by the tool of their "
            "bucket or server, and read from there by `spectral fit --data.root URL`"
        )
    return Path(text)


def read_listing(source: Path, root: Path | None = None) -> Manifest:
    """Read a manifest, or list a folder: its ``manifest.csv`` if there is one, as in training, or its class folders.

    Args:
        source: CSV file or folder.
        root: folder that the paths of the CSV file are relative to; None: that of the file.

    Raises:
        DatasetError: see `Manifest.read` and `read_class_folders`.
    """
    if not source.exists():
        raise DatasetError(
            f"{source} does not exist: give a manifest (CSV), or a folder with one sub-folder per class."
        )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if source.is_dir() and (source / MANIFEST_FILE).is_file():
            source = source / MANIFEST_FILE
        listed = read_class_folders(source) if source.is_dir() else Manifest.read(source, root or source.parent)
    for warning in caught:  # the commands show duplicates and held-out videos themselves
        if issubclass(warning.category, UnusedFilesWarning):
            print(f"note: {warning.message}", file=sys.stderr)
    return listed


def read_videos_or_images(source: Path, root: Path | None = None) -> tuple[Manifest, Kind]:
    """Like `read_listing`, also for class folders of images; returns the kind of the files, too."""
    try:
        return read_listing(source, root), "video"
    except DatasetError as no_videos:
        if not source.is_dir() or (source / MANIFEST_FILE).is_file():
            raise
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                return read_class_folders(source, kind="image"), "image"
            except DatasetError:
                raise no_videos from None


def with_progress(items: Iterable[Item], description: str, total: int | None = None) -> Iterable[Item]:
    """The items, with a progress bar on standard error if that is a terminal."""
    console = Console(stderr=True)
    return track(items, description, total, console=console, disable=not console.is_terminal, transient=True)


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    workers: int | None = None,
    chunk: int = CHUNK,
) -> list[Result]:
    """``[function(item) for item in items]``, in order.

    Args:
        function: must be importable (no lambda).
        items: its arguments.
        description: of the progress bar.
        workers: number of processes; 0 or 1: this process alone; None: chosen from the CPUs and the number of items.
        chunk: number of items that a process gets at a time; 1 for those that take long.
    """
    if workers is None:
        workers = min(os.cpu_count() or 1, len(items) // (FILES_PER_PROCESS if chunk > 1 else 1))
    if workers <= 1:
        return [function(item) for item in with_progress(items, description)]
    # Spawned, not forked: the parent has threads of torch, with which a forked child can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            results = pool.map(function, items, chunksize=chunk)
            return list(with_progress(results, description, len(items)))
        except BaseException:  # including KeyboardInterrupt: drop the rest of the list
            pool.shutdown(wait=False, cancel_futures=True)
            raise


@contextmanager
def reserved(out: Path, manifest: Manifest, record_file: str, options: Mapping[str, Any]) -> Iterator[None]:
    """Check that the folder may be written to, and keep other runs of the command out of it.

    Args:
        out: folder for files made from those of a manifest: new, empty, or of an earlier run.
        manifest: what they are made from.
        record_file: name of the file in ``out`` that holds root and options.
        options: those of the command; an earlier run must have had the same.

    Raises:
        DatasetError: ``out`` holds something else, lies in the root or around it, or is being written to.
    """
    here, root = out.resolve(), manifest.root.resolve()
    if here == root or here.is_relative_to(root) or root.is_relative_to(here):
        raise DatasetError(f"--out {out} and the folder of the videos, {root}, must lie outside of each other.")
    record, file = {"root": str(root), **options}, out / record_file
    if out.exists() and not file.is_file() and (not out.is_dir() or any(out.iterdir())):
        raise DatasetError(f"{out} exists and was not made by this command: choose another --out.")
    names = read_class_names(out / CLASSES_FILE) if out.exists() else None
    if names is not None and names != list(manifest.class_names):
        raise DatasetError(f"{out / CLASSES_FILE} holds other classes: choose another --out.")
    out.mkdir(parents=True, exist_ok=True)
    busy = DatasetError(f"another run of this command is writing to {out}: wait until it has ended.")
    with locked(file, busy) as lock:
        lock.seek(0)
        if text := lock.read():
            if text != json.dumps(record):
                raise DatasetError(f"{out} was made {_difference(text, record)}: choose another --out.")
        else:
            lock.write(json.dumps(record))
            lock.flush()
        yield


def _difference(text: str, record: Mapping[str, Any]) -> str:
    """In which of the options that a command recorded it differs from another run of it."""
    try:
        before = json.loads(text)
        names = [name for name in record if before.get(name) != record[name]]
    except (ValueError, AttributeError):
        return "by another command"
    texts = {"root": f"from videos in {before.get('root')}", "videos": "from another list of videos"}
    return "; ".join(texts.get(name, f"with {name} {before.get(name)}, not {record[name]}") for name in names)


def replace_manifest(manifest: Manifest) -> None:
    """Write a manifest to its `source`. One with other content, which a user may have edited, is kept beside it."""
    path = manifest.source
    if path.is_file() and path.read_text(encoding="utf-8") != manifest.text():
        names = (f"{path.stem}.previous{'' if n == 1 else f'-{n}'}{path.suffix}" for n in itertools.count(1))
        kept = next(place for name in names if not (place := path.with_name(name)).exists())
        path.replace(kept)
        print(f"{path} differs from the new one and was renamed to {kept.name}")
    manifest.write(path, overwrite=True)
