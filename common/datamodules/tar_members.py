"""Files inside uncompressed tar archives, by paths that go on behind the archive's: ``train-000000.tar/walk/a.mp4``.

Nothing is extracted. An archive's headers are read once a process, and again if it changes.
"""

from __future__ import annotations

import hashlib
import os
import tarfile
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from common.datamodules.errors import DatasetError

SUFFIX = ".tar"
_MAX_EXTENSION = 2**20  # bytes of a long name


class Span(NamedTuple):
    """Bytes ``start`` to ``start + size`` of the file ``path``."""

    path: str
    start: int
    size: int

    def read(self, last: int | None = None) -> bytes:
        """The bytes, or the last ones of them."""
        length = self.size if last is None else min(last, self.size)
        with open(self.path, "rb") as file:
            file.seek(self.start + self.size - length)
            return file.read(length)

    def sha256(self) -> str:
        """Hex digest of the bytes."""
        digest, left = hashlib.sha256(), self.size
        with open(self.path, "rb") as file:
            file.seek(self.start)
            while left and (block := file.read(min(left, 2**20))):
                digest.update(block)
                left -= len(block)
        return digest.hexdigest()


def find_span(path: str | Path) -> Span | None:
    """Where the bytes of a file are, which may be in an archive; None if there is no such file.

    Raises:
        DatasetError: the archive cannot be read.
    """
    path = str(path)
    if os.path.isfile(path):
        return Span(path, 0, os.path.getsize(path))
    archive, name = split(path)
    return members(archive).get(name) if archive else None


def split(path: str) -> tuple[str, str]:
    """The archive that a path leads into, and the name in it; two empty strings if it leads into none."""
    at = path.find(SUFFIX + "/")
    while at >= 0:
        end = at + len(SUFFIX)
        if os.path.isfile(path[:end]):
            return path[:end], path[end + 1 :]
        at = path.find(SUFFIX + "/", end)
    return "", ""


def names_in(folder: str) -> frozenset[str]:
    """The names in a folder, also in one of an archive; none if it does not exist.

    Raises:
        DatasetError: the archive cannot be read.
    """
    if os.path.isdir(folder):
        return frozenset(os.listdir(folder))
    archive, inner = split(folder + "/")
    return _contents(archive)[1].get(inner.rstrip("/"), frozenset()) if archive else frozenset()


def members(archive: str) -> dict[str, Span]:
    """The regular files of an archive, by name.

    Raises:
        DatasetError: it is compressed, damaged or cut off.
    """
    return _contents(archive)[0]


def _contents(archive: str) -> tuple[dict[str, Span], dict[str, frozenset[str]]]:
    """Members by name, and their last names by folder."""
    try:
        state = os.stat(archive)
        return _read(archive, state.st_mtime_ns, state.st_size)
    except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
        raise DatasetError(
            f"{archive} is not a complete, uncompressed tar archive ({error}); write it again with "
            "`python -m data.shards`."
        ) from error


class _Header(tarfile.TarInfo):
    """A header whose extension, which is read into memory, has a limited size."""

    def _proc_member(self, archive: tarfile.TarFile) -> Any:
        if self.size < 0 or (self.type not in tarfile.REGULAR_TYPES and self.size > _MAX_EXTENSION):
            raise tarfile.ReadError(f"a header claims {self.size} bytes")
        return super()._proc_member(archive)  # type: ignore[misc]


@cache
def _read(archive: str, _modified: int, size: int) -> tuple[dict[str, Span], dict[str, frozenset[str]]]:
    found: dict[str, Span] = {}
    names: dict[str, set[str]] = {}
    with tarfile.open(archive, "r:", tarinfo=_Header) as file:
        while (member := file.next()) is not None:
            if member.isreg() and not member.issparse():
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError(f"it ends within {member.name}")
                path = member.name.removeprefix("./").lstrip("/")  # absolute, it would lead out of the archive
                found[path] = Span(archive, member.offset_data, member.size)
                folder, name = os.path.split(path)
                names.setdefault(folder, set()).add(name)
            file.members.clear()  # type: ignore[attr-defined]  # of which it would keep all
        # A header that it cannot read ends an archive as its end mark does.
        with open(archive, "rb") as raw:
            raw.seek(file.offset)
            if raw.read(tarfile.BLOCKSIZE) != bytes(tarfile.BLOCKSIZE):
                raise tarfile.ReadError(f"the header at byte {file.offset} is damaged or missing")
    return found, {folder: frozenset(inside) for folder, inside in names.items()}
