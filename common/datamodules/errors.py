"""Errors about data whose message is written for the user."""

from __future__ import annotations

import os
from typing import Any


class DatasetError(ValueError):
    """A manifest, annotation file or archive cannot be used; the message names file, entry and remedy."""


def first_line(error: BaseException, message: str | None = None) -> str:
    """The first line of an error's message, or of the `message` that stands for it; the error's type if it is empty."""
    return ((str(error) if message is None else message).strip() or type(error).__name__).splitlines()[0]


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
