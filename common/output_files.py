"""Files of results: rows as CSV or JSON, and files that appear whole."""

from __future__ import annotations

import csv
import errno
import fcntl
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import IO, Any

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # disk, quota or file size are used up


def write_rows(path: Path, rows: Sequence[dict[str, Any]], overwrite: bool = False) -> None:
    """Write rows as CSV, the whole file or nothing; the columns are those of all rows.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is False.
    """
    with new_file(path, overwrite) as temporary:
        save_rows(temporary, rows)


def save_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Write rows as CSV to a path of :func:`new_file` or :func:`new_files`."""
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    with path.open("w", newline="", encoding="utf-8") as file:
        write = _row_function(file, columns)
        for row in rows:
            write(row)


@contextmanager
def row_writer(path: Path, columns: Sequence[str], overwrite: bool = False) -> Iterator[Callable[[dict], None]]:
    """A function that writes a row to a CSV file, which holds the row when it returns.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is False.
    """
    mode = "w" if overwrite else "x"
    with naming_full_disk(path), path.open(mode, buffering=1, newline="", encoding="utf-8") as file:
        yield _row_function(file, columns)


def _row_function(file: IO[str], columns: Sequence[str]) -> Callable[[dict], None]:
    writer = csv.DictWriter(file, columns)
    writer.writeheader()
    return lambda row: writer.writerow({key: cell(value) for key, value in row.items()})


def write_json(path: Path, content: Any, overwrite: bool = False) -> None:
    """Write values as JSON, the whole file or nothing; what JSON does not know becomes text.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is False.
    """
    with new_file(path, overwrite) as temporary:
        save_json(temporary, content)


def save_json(path: Path, content: Any) -> None:
    """Write values as JSON to a path of :func:`new_file` or :func:`new_files`."""
    with path.open("w", encoding="utf-8") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")


@contextmanager
def naming_full_disk(path: Path) -> Iterator[None]:
    """Let the error of a full disk, which names no file, name this one."""
    try:
        yield
    except OSError as error:
        numpys = "requested and" in str(error)  # 1000 requested and 12 written
        if error.filename is None and (error.errno in FULL or numpys):
            text = f"{error.strerror or error}; free some space, or write elsewhere"
            raise OSError(error.errno or errno.ENOSPC, text, str(path)) from error
        raise


@contextmanager
def locked(path: Path, busy: Exception | None = None) -> Iterator[IO[str]]:
    """A text file, open for reading and appending and made if missing, that one process at a time can hold.

    If another process holds it, raises ``busy``; None: waits.
    """
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (fcntl.LOCK_NB if busy else 0))
        except BlockingIOError:
            if busy is None:
                raise
            raise busy from None
        yield file


@contextmanager
def new_file(path: Path, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path beside ``path``, which takes its place at the end; after an error nothing is left of it.

    Raises:
        FileExistsError: the file exists at the end and ``overwrite`` is False.
    """
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:
        temporary = Path(folder) / path.name
        with naming_full_disk(path):
            yield temporary
        if path.exists() and not overwrite:
            raise FileExistsError(f"{path} exists; give another name, or --force to overwrite it")
        temporary.replace(path)


@contextmanager
def new_files(overwrite: bool = False) -> Iterator[Callable[[Path], Path]]:
    """A function that gives :func:`new_file` for a path; all files appear at the end, and none after an error.

    With ``overwrite``, links, devices and pipes, such as /dev/stdout, are written in place.
    """
    with ExitStack() as files:

        def new(path: Path) -> Path:
            if overwrite and path.exists() and (path.is_symlink() or not path.is_file()):
                files.enter_context(naming_full_disk(path))
                return path
            return files.enter_context(new_file(path, overwrite))

        yield new


@contextmanager
def written_whole(path: str | Path, mode: str = "w") -> Iterator[IO[Any]]:
    """Open a file for writing that appears under `path`, replacing it, only when all is written."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": ""}
    with new_file(path, overwrite=True) as temporary, temporary.open(mode, **text) as file:  # type: ignore[call-overload]
        yield file
        file.flush()
        os.fsync(file.fileno())


def cell(value: Any) -> Any:
    """A value for a CSV file: text that a spreadsheet would take for a formula gets an apostrophe in front."""
    return f"'{value}" if isinstance(value, str) and value[:1] in tuple("=+-@\t\r") else value
