"""The videos or images that a command line names: a manifest, or a folder with one sub-folder per class."""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

from common.datamodules.errors import DatasetError, UnusedFilesWarning
from common.datamodules.folders import Kind, read_class_folders
from common.datamodules.manifest import Manifest

MANIFEST_FILE = "manifest.csv"


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
