"""The videos of a manifest, and the items of a dataset, as columns of a million rows."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, overload

import numpy as np

NO_LABEL = -1
BLOCK = 256  # rows that are handled at a time: few enough for the cache of a CPU
ROW = np.dtype([(name, "i8") for name in ("start", "end", "kind", "line")]
               + [(name, "f8") for name in ("num_frames", "fps", "duration")])  # fmt: skip


class Item(NamedTuple):
    """A video or image of a dataset: the path as the user wrote it, its label, and where it is listed."""

    name: str
    label: int = NO_LABEL
    source: str = "the given paths"
    line: int = 0
    fps: float | None = None
    root: str = ""

    @property
    def path(self) -> str:
        """The file."""
        return os.path.join(self.root, self.name)

    @property
    def where(self) -> str:
        """File and line, for messages."""
        return f"{self.source}:{self.line}" if self.line else self.source


class Entry(NamedTuple):
    """One video; its fields are the columns, and the line, which is 0 without a CSV file. ``label`` is None for a test
    video without a published label."""

    path: str
    label: int | None
    label_name: str
    num_frames: int | None
    fps: float | None
    duration: float | None
    split: str
    line: int = 0


EntryKind = tuple[int | None, str, str]  # label, label_name and split


class Entries(Sequence[Entry]):
    """A sequence of entries, held as columns; an `Entry` is made when one is asked for.

    That takes little memory, and the processes of a loader share it: objects of Python would be copied into each, since
    looking at one writes its reference count.

    Args:
        paths: the paths in UTF-8, without anything between them; see `append_rows`.
        rows: an array of `ROW`: where the path lies, position in ``kinds``, line, and numbers, NaN if not known.
        kinds: label, label_name and split, which many entries have in common.
    """

    def __init__(self, paths: bytes | bytearray, rows: np.ndarray, kinds: Sequence[EntryKind]) -> None:
        self._paths, self._rows, self._kinds = paths, rows, kinds

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> Entries:
        """The columns of entries."""
        if isinstance(entries, Entries):
            return entries
        paths, labels, names, frames, fps, duration, splits, lines = list(zip(*entries, strict=True)) or [()] * 8
        text, kinds = bytearray(), dict[EntryKind, int]()
        places = [kinds.setdefault(kind, len(kinds)) for kind in zip(labels, names, splits, strict=True)]
        return cls(text, append_rows(text, paths, places, lines, frames, fps, duration), list(kinds))

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...
    @overload
    def __getitem__(self, index: slice) -> Entries: ...
    def __getitem__(self, index: int | slice) -> Entry | Entries:
        if isinstance(index, slice):
            return Entries(self._paths, self._rows[index], self._kinds)
        return next(iter(self.where([index])))

    def __iter__(self) -> Iterator[Entry]:
        for columns in self.columns():
            yield from map(Entry._make, zip(*columns, strict=True))

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entries | tuple):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    def __hash__(self) -> int:
        return hash(tuple(self))

    def __repr__(self) -> str:
        return repr(tuple(self))

    def where(self, chosen: np.ndarray | list[int]) -> Entries:
        """The entries at some positions, or where an array of bool is True."""
        return Entries(self._paths, self._rows[chosen], self._kinds)

    def of_kind(self, wanted: Callable[[int | None, str, str], bool]) -> Entries:
        """The entries with a wanted label, label_name and split."""
        chosen = np.array([wanted(*kind) for kind in self._kinds], dtype=bool)
        return self.where(chosen[self._rows["kind"]])

    def kinds(self) -> Counter[EntryKind]:
        """Number of entries by label, label_name and split."""
        counts = Counter[EntryKind]()
        for kind, number in zip(self._kinds, np.bincount(self._rows["kind"]).tolist(), strict=False):
            counts[kind] += number
        return +counts

    def paths(self) -> Iterator[str]:
        """The paths."""
        for rows in self._blocks():
            for start, end in zip(rows["start"].tolist(), rows["end"].tolist(), strict=True):
                yield self._paths[start:end].decode("utf-8", "surrogatepass")

    def columns(self) -> Iterator[tuple[Sequence[Any], ...]]:
        """The fields of `Entry`, each for a number of entries in succession."""
        for rows in self._blocks():
            paths = list(Entries(self._paths, rows, self._kinds).paths())
            labels, names, splits = zip(*[self._kinds[place] for place in rows["kind"].tolist()], strict=True)
            frames, fps, duration = (
                [None if value != value else value for value in rows[name].tolist()]
                for name in ("num_frames", "fps", "duration")
            )
            frames = [None if value is None else int(value) for value in frames]
            yield paths, labels, names, frames, fps, duration, splits, rows["line"].tolist()

    def _blocks(self) -> Iterator[np.ndarray]:
        for start in range(0, len(self), BLOCK):
            yield self._rows[start : start + BLOCK]


def append_rows(
    text: bytearray,
    paths: Sequence[str],
    kinds: Sequence[int],
    lines: Sequence[int],
    num_frames: Sequence[int | None],
    fps: Sequence[float | None],
    duration: Sequence[float | None],
) -> np.ndarray:
    """Append paths to the text of `Entries`; its rows."""
    encoded = [path.encode("utf-8", "surrogatepass") for path in paths]
    rows = np.empty(len(paths), ROW)
    rows["end"] = len(text) + np.cumsum([len(path) for path in encoded], dtype=np.int64)
    rows["start"][:1], rows["start"][1:] = len(text), rows["end"][:-1]
    rows["kind"], rows["line"], rows["num_frames"] = kinds, lines, num_frames
    rows["fps"], rows["duration"] = fps, duration
    text += b"".join(encoded)
    return rows


class Items(Sequence[Item]):
    """The items of entries, made when they are asked for."""

    def __init__(self, entries: Entries, source: str, root: str) -> None:
        self._entries, self._source, self._root = entries, source, root

    def __len__(self) -> int:
        return len(self._entries)

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Items: ...
    def __getitem__(self, index: int | slice) -> Item | Items:
        if isinstance(index, slice):
            return Items(self._entries[index], self._source, self._root)
        return self._item(self._entries[index])

    def __iter__(self) -> Iterator[Item]:
        return map(self._item, self._entries)

    def _item(self, entry: Entry) -> Item:
        label = NO_LABEL if entry.label is None else entry.label
        return Item(entry.path, label, self._source, entry.line, entry.fps, self._root)
