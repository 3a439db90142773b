"""Shards of videos at a URL, each fetched into a local folder when a video of it is first read.

The URL is the user's own: names from a manifest are appended to it, and have no characters that could lead elsewhere.
"""

from __future__ import annotations

import hashlib
import os
import platform
import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.command_line import first_line
from common.datamodules.entries import Entries
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import CLASSES_FILE, MANIFEST_FILE, Manifest, shorten
from common.datamodules.tar_members import SUFFIX, members
from common.output_files import FULL, locked

_NAME = re.compile(r"[a-z0-9_-][a-z0-9_.-]*(/[a-z0-9_-][a-z0-9_.-]*)*", re.IGNORECASE)
ONLY_SHARDS = (
    "from a URL only shards of `python -m data.shards` are read: the path of a video is such as "
    "train-000000.tar/walk/a.mp4, with letters, digits, '.', '_' and '-' in the name of the shard"
)
SILENCE = 60  # seconds without a byte from a web server, after which the connection counts as lost


def is_url(root: Any) -> bool:
    """Whether a data root is a URL such as ``s3://bucket/shards``."""
    return isinstance(root, str) and re.match(r"[a-z][a-z0-9+.-]*://", root, re.IGNORECASE) is not None


def default_cache() -> Path:
    """The folder ``spectral-video`` in the user's cache directory."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "spectral-video"


@dataclass(frozen=True)
class RemoteShards:
    """A folder of ``python -m data.shards`` at a URL, and the local folder that its files are fetched into.

    A file appears there when it is complete. A lock keeps the processes of a machine from fetching a file twice, and
    machines that share the folder do not mix up theirs.

    Args:
        url: of the folder, for any protocol that fsspec knows.
        folder: the local folder.
    """

    url: str
    folder: Path

    @classmethod
    def at(cls, url: str, cache: str | None = None) -> RemoteShards:
        """The shards at a URL, with a folder of their own below ``cache`` or :func:`default_cache`.

        Raises:
            DatasetError: the URL names no folder, one relative to the current folder, or has a query; or the home
                folder in ``cache`` is not known.
        """
        scheme, _, place = url.partition("://")
        url = f"{scheme.lower()}://{place.rstrip('/')}"
        if not place.strip("/") or (scheme.lower() == "file" and not place.startswith("/")):
            raise DatasetError(f"{url}: give the URL of a folder, such as s3://bucket/shards or file:///data/shards.")
        if _is_web(url) and ("?" in url or "#" in url):
            raise DatasetError(
                f"{url}: names of files are appended to the URL of a folder, so it cannot have '?' or '#'."
            )
        try:
            base = Path(cache).expanduser() if cache else default_cache()
        except RuntimeError as error:
            raise DatasetError(f"data.cache is {cache or '~/.cache'}: {first_line(error)}") from error
        return cls(url, base.absolute() / hashlib.sha256(url.encode()).hexdigest()[:16])

    def read_manifest(self, name: str | None = None, class_names: Sequence[str] | None = None) -> Manifest:
        """Fetch a manifest and its class list, and check them and the shards that are in the folder already.

        A shard whose size is not that of the remote one is removed, with a warning, to be fetched again.

        Args:
            name: of a file at the URL, or otherwise of a local one; None: ``manifest.csv`` at the URL.
            class_names: the class list, in place of ``classes.txt``.

        Raises:
            DatasetError: the URL cannot be read, the manifest is missing or wrong, or names files outside of shards, or
                the local folder cannot be made.
            OSError: the local folder cannot be written.
        """
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno in FULL:
                raise
            reason = f"{self.folder} cannot be made: {error.strerror}"
            raise DatasetError(f"{reason}; set data.cache to a folder that can be written.") from error
        path = self.folder / (name or MANIFEST_FILE)
        if name is None or (_NAME.fullmatch(name) and f"{SUFFIX}/" not in name):
            self._fetch(name or MANIFEST_FILE, path, optional=name is not None and Path(name).is_file())
            if path.is_file():
                classes = path.with_name(CLASSES_FILE)
                self._fetch(classes.relative_to(self.folder).as_posix(), classes, optional=True)
        if name is not None and not path.is_file() and not (path := Path(name)).is_file():
            raise DatasetError(f"manifest is {name!r}, neither the name of a file at {self.url} nor a local one.")
        manifest = Manifest.read(path, self.folder, class_names)
        self._check_sizes(_shards(manifest))
        return manifest

    def fetch(self, path: str) -> None:
        """Fetch the shard of a video, a path of the manifest, unless it is in the folder and has the video.

        Raises:
            DatasetError: the path leads into no shard, it does not exist, is no archive or lacks the video, or the
                connection fails.
            OSError: the local folder cannot be written, or the disk is full; nothing is left.
        """
        if not (shard := _shard(path)):
            raise DatasetError(f"{path}: {ONLY_SHARDS}.")
        video, target = path.removeprefix(f"{shard}/"), self.folder / shard
        if not target.is_file() or _lacks(target, video):  # damaged, or packed again since it was fetched
            self._fetch(shard, target, video)
            if problem := _lacks(target, video):
                raise DatasetError(
                    f"{self.url}/{path} does not exist: the manifest is not that of the shard ({problem})."
                )

    def _fetch(self, name: str, target: Path, video: str | None = None, optional: bool = False) -> None:
        """Fetch a file, unless it is a shard that is in the folder and has the video; one that is ``optional`` may be
        missing."""
        target.parent.mkdir(parents=True, exist_ok=True)
        # Named after the machine, within which the lock holds: what a killed process left is overwritten.
        part = target.with_name(f".{target.name}.{platform.node()}.part")
        with locked(target.with_name(f".{target.name}.lock")):
            if video is not None and target.is_file() and not _lacks(target, video):
                return  # by another process
            try:
                with self._connected(name) as (files, source):
                    try:
                        files.get_file(source, str(part))
                    except FileNotFoundError as error:
                        if not optional:
                            raise DatasetError(
                                f"{self.url}/{name} does not exist ({first_line(error)}): the URL must be that of a "
                                "complete folder of `python -m data.shards`."
                            ) from error
                        target.unlink(missing_ok=True)
                        return
                    arrived, size = part.stat().st_size, files.size(source)
                    if arrived != size and size is not None:  # not every web server states it
                        raise EOFError(f"{arrived} bytes arrived of {size}")
                if name.endswith(SUFFIX) and (problem := _lacks(part)):
                    raise DatasetError(f"{self.url}/{name} is no archive of `python -m data.shards`: {problem}.")
                part.replace(target)
            finally:
                part.unlink(missing_ok=True)

    def _check_sizes(self, shards: Sequence[str]) -> None:
        """Remove the shards whose size is not that of the remote ones."""
        held = [name for name in shards if (self.folder / name).is_file()]
        if not held:
            return
        with self._connected("") as (files, root):
            sizes = files.sizes([f"{root}{name}" for name in held])
        own = [(self.folder / name).stat().st_size for name in held]
        old = [name for name, size, here in zip(held, sizes, own, strict=True) if size not in (None, here)]
        for name in old:
            (self.folder / name).unlink(missing_ok=True)
        if old:
            names = shorten(old).replace("\n", ", ")
            warnings.warn(f"{self.url}: {names} changed there, and will be fetched again.", stacklevel=3)

    @contextmanager
    def _connected(self, name: str) -> Iterator[tuple[Any, str]]:
        """The file system of the URL, and the path of a file in it; errors name the URL, or a folder on a full disk."""
        import fsspec  # here, so that local data do without it

        url = f"{self.url}/{name}"
        try:
            # Anew each time: fsspec keeps one for each process, and those of the parent do not survive a fork.
            files, root = fsspec.core.url_to_fs(self.url, **({"timeout": _timeout()} if _is_web(self.url) else {}))
            yield files, f"{root.rstrip('/')}/{name}"
        except DatasetError:
            raise
        except ImportError as error:
            raise DatasetError(f"{url} cannot be fetched without another package: {first_line(error)}.") from error
        except Exception as error:  # each protocol has errors of its own
            if isinstance(error, OSError) and error.errno in FULL:
                full = f"{os.strerror(error.errno)}; free some space, or set data.cache to a folder on another disk"
                raise OSError(error.errno, full, str(self.folder)) from error
            reason = error.__cause__ if isinstance(error, FileNotFoundError) and error.__cause__ else error
            text = first_line(reason, f"{type(reason).__name__}: {reason}").rstrip(": ")
            raise DatasetError(
                f"{url} cannot be fetched ({text}). Check the address, the rights and the network, and run the "
                f"command again; complete shards stay in {self.folder}."
            ) from error


def _is_web(url: str) -> bool:
    return url.lower().startswith(("http://", "https://"))


def _timeout() -> Any:
    """Of requests to web servers, in place of five minutes for a whole file."""
    import aiohttp

    return aiohttp.ClientTimeout(total=None, sock_connect=SILENCE, sock_read=SILENCE)


def _lacks(archive: Path, video: str | None = None) -> str:
    """What is wrong with an archive: that it cannot be read, or lacks a video; empty if nothing is."""
    try:
        found = members(str(archive))
    except DatasetError as error:
        return first_line(error.__cause__ or error)
    return "" if video is None or video in found else f"it has no {video}"


def _shard(path: str) -> str:
    """The shard that a path of the manifest leads into; empty if there is none of a valid name."""
    shard, inside, _ = path.partition(f"{SUFFIX}/")
    return f"{shard}{SUFFIX}" if inside and _NAME.fullmatch(shard) else ""


def _shards(manifest: Manifest) -> list[str]:
    """The shards that a manifest names."""
    shards: dict[str, None] = {}
    wrong = []
    for place, path in enumerate(Entries.of(manifest.entries).paths()):
        if shard := _shard(path):
            shards[shard] = None
        else:
            wrong.append(f"{manifest.source}:{manifest.entries[place].line}: {path}")
    if wrong:
        raise DatasetError(f"{ONLY_SHARDS}:\n{shorten(wrong)}")
    return list(shards)
