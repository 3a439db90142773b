"""Errors about data whose message is written for the user."""

from __future__ import annotations

import os
from typing import Any


class DatasetError(ValueError):
    """A manifest, annotation file or archive cannot be used; the message names file, entry and remedy."""


class UnusedFilesWarning(UserWarning):
    """Files or folders beside the data were passed over; the message names them."""


class ReadError(RuntimeError):
    """A file cannot be read. ``path`` and ``reason`` are also in the message."""

    def __init__(self, path: str | os.PathLike[str], reason: str = "") -> None:
        # One argument must do: torch rebuilds an exception of a loader worker from its message alone.
        super().__init__(f"{os.fspath(path)}: {reason}" if reason else os.fspath(path))
        self.path = os.fspath(path)
        self.reason = reason

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason)


class VideoReadError(ReadError):
    """A video cannot be read."""


class ImageReadError(ReadError):
    """An image cannot be read."""


class VolumeReadError(ReadError):
    """A case of BraTS, or one of its files, is missing, broken or does not match its others."""
