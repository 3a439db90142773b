"""The list of videos that a run reads, as a CSV file.

The CSV has the columns ``path,label,label_name,num_frames,fps,duration,split``. ``path`` names a video file or a folder
of frames relative to the data root, or absolutely and below it; ``split`` is ``train``, ``val`` or ``test``;
``num_frames``, ``fps`` and ``duration`` (seconds) may be empty. A file ``classes.txt`` next to the CSV, one class name
per line, fixes the class list; without it the list is made from the labels in the CSV.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from common.datamodules.entries import BLOCK, ROW, Entries, Entry, EntryKind, Item, Items, append_rows
from common.datamodules.errors import DatasetError
from common.datamodules.tar_members import names_in
from common.output_files import written_whole

COLUMNS = ("path", "label", "label_name", "num_frames", "fps", "duration", "split")
SPLITS = ("train", "val", "test")
MANIFEST_FILE, CLASSES_FILE = "manifest.csv", "classes.txt"
MAX_REPORTED = 10
Row = tuple[int, list[str]]  # of a CSV file: line number and fields
Kind = tuple[str, str, str]  # label, label_name and split of a row, as they are written
MAX_KEPT = 100_000  # different numbers of a column that are kept to be looked up
MAX_NUMBER = 10**9  # of labels, frames, frames per second and seconds; more is an error in the file
LIST_LINE = re.compile(r"(.*[^\s,])[\s,]+([0-9]+)")  # of mmaction2, SlowFast and pytorchvideo: path and label


@dataclass(frozen=True)
class Manifest:
    """Entries, class names and the root that the paths are relative to.

    ``entries`` can be any sequence; :meth:`read` gives :class:`~common.datamodules.entries.Entries`. ``source`` is the
    CSV file or, without one, the root; ``expected`` is the number of videos listed before missing files were dropped by
    :meth:`present`.
    """

    root: Path
    entries: Sequence[Entry]
    class_names: tuple[str, ...]
    source: Path
    expected: int

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def read(cls, csv_path: str | Path, root: str | Path, class_names: Sequence[str] | None = None) -> Manifest:
        """Read and check a manifest.

        Args:
            csv_path: the CSV file.
            root: folder that the ``path`` column is relative to; it must exist.
            class_names: the class list; it takes precedence over ``classes.txt``.

        Raises:
            DatasetError: missing file, root or column, a wrong value, a path that leaves the root, or a label outside
                the class list. Each wrong line is named as ``file:line``.
        """
        csv_path, root = Path(csv_path), Path(root)
        if not csv_path.is_file():
            raise DatasetError(f"no manifest at {csv_path}: give the CSV file that `python -m data.prepare` wrote.")
        if not root.is_dir():
            raise DatasetError(
                f"no folder {root} (resolved: {os.path.realpath(root)}): set the root to that of the videos."
            )
        if class_names is None:
            class_names = read_class_names(csv_path.parent / CLASSES_FILE)
        table, problems = _read_rows(csv_path, os.path.abspath(root))
        names, wrong = (list(class_names), []) if class_names is not None else _class_list(csv_path, table.first)
        kinds, unlike = _known_kinds(table.first, names, fixed=class_names is not None)
        rows = table.rows()
        right = ~np.isin(rows["kind"], list(unlike))
        problems += [*wrong, *((line, unlike[kind]) for kind, line in rows[~right][["kind", "line"]].tolist())]
        entries = Entries(table.text, rows[right], kinds)
        repeated = _repeated(entries)
        problems += _conflicts(repeated)
        if problems:
            lines = [f"{csv_path}:{line}: {text}" for line, text in sorted(problems)]
            raise DatasetError(f"the manifest has wrong lines:\n{shorten(lines)}")
        if not entries:
            raise DatasetError(f"{csv_path} lists no videos.")
        manifest = cls(root, entries, tuple(names), csv_path, len(entries))
        if repeated:
            shown = [f"  {path}: lines {', '.join(str(e.line) for e in same)}" for path, same in repeated.items()]
            warnings.warn(
                f"{csv_path} lists {len(repeated)} videos more than once (in one split they count twice, "
                f"across splits the evaluation sees training videos):\n{shorten(shown)}",
                stacklevel=2,
            )
        return manifest

    # -- views of the list ------------------------------------------------------------------------------------------

    def split(self, name: str) -> Manifest:
        """The entries of one split; an error if there are none."""
        if name not in SPLITS:
            raise DatasetError(f"unknown split {name!r}: it is one of {', '.join(SPLITS)}.")
        listed = Entries.of(self.entries)
        entries = listed.of_kind(lambda _, __, split: split == name)
        if not entries:
            numbers = Counter[str]()
            for (*_, split), number in listed.kinds().items():
                numbers[split] += number
            have = ", ".join(f"{key} ({number})" for key, number in numbers.items())
            raise DatasetError(f"{self.source} has no videos in split {name!r}; it has: {have}.")
        return replace(self, entries=entries, expected=len(entries))

    def splits(self) -> tuple[str, ...]:
        """The splits that have entries, in the order train, val, test."""
        have = {split for *_, split in Entries.of(self.entries).kinds()}
        return tuple(name for name in SPLITS if name in have)

    def class_counts(self, split: str | None = None) -> list[int]:
        """Number of videos per class, of one split or of all."""
        counts = Counter[int | None]()
        for (label, _, own), number in Entries.of(self.entries).kinds().items():
            counts[label] += number if split in (None, own) else 0
        return [counts[label] for label in range(len(self.class_names))]

    def unlabelled(self) -> Sequence[Entry]:
        """The entries without a label."""
        return Entries.of(self.entries).of_kind(lambda label, *_: label is None)

    def duplicates(self) -> dict[str, list[int]]:
        """Paths that are listed more than once, with their lines."""
        return {
            path: [entry.line for entry in entries] for path, entries in _repeated(Entries.of(self.entries)).items()
        }

    def present(self) -> tuple[Manifest, list[Entry]]:
        """The manifest without the entries whose file is missing, and those entries.

        One directory listing per folder instead of one file status per video, which matters on network disks.
        """
        listings: dict[str, frozenset[str]] = {}
        entries, root = Entries.of(self.entries), str(self.root)
        found = np.zeros(len(entries), dtype=bool)
        for place, path in enumerate(entries.paths()):
            file = os.path.normpath(os.path.join(root, path))
            cut = file.rfind(os.sep) + 1  # os.path.split takes three times as long
            if (folder := file[:cut]) not in listings:
                listings[folder] = names_in(os.path.dirname(file))
            found[place] = file[cut:] in listings[folder]
        return replace(self, entries=entries.where(found)), list(entries.where(~found))

    def counts(self) -> str:
        """``N of M videos``: how many of the listed videos are in this manifest."""
        return f"{len(self.entries)} of {self.expected} videos"

    def items(self) -> Sequence[Item]:
        """The entries as items of a dataset, in their order."""
        return Items(Entries.of(self.entries), str(self.source), str(self.root))

    def text(self) -> str:
        """The entries as CSV text, the content that is written and hashed."""
        return "".join(self._csv())

    def _csv(self) -> Iterator[str]:
        yield ",".join(COLUMNS) + "\n"
        for columns in Entries.of(self.entries).columns():
            rows = zip(*map(_csv_fields, columns[: len(COLUMNS)]), strict=True)
            yield "\n".join(map(",".join, rows)) + "\n"

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the class list and the entries. Root, line ends and column order do not matter."""
        digest = hashlib.sha256(("\n".join(self.class_names) + "\n\n").encode())
        for text in self._csv():
            digest.update(text.encode())
        return digest.hexdigest()

    def write(self, csv_path: str | Path, overwrite: bool = False) -> None:
        """Write the CSV, and ``classes.txt`` next to it if there are classes.

        Raises:
            FileExistsError: one of the two exists with other content and ``overwrite`` is False.
        """
        csv_path = Path(csv_path)
        files = {csv_path: self.text()}
        if self.class_names:
            files[csv_path.parent / CLASSES_FILE] = "".join(f"{name}\n" for name in self.class_names)
        for path, content in files.items():
            if not overwrite and path.exists() and path.read_text(encoding="utf-8") != content:
                raise FileExistsError(f"{path} exists with other content; remove it or allow overwriting.")
        for path, content in files.items():
            with written_whole(path) as file:
                file.write(content)


def shorten(lines: Sequence[str], limit: int = MAX_REPORTED) -> str:
    """The first of many lines for a message, and how many more there are."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join([*lines[:limit], *more])


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        DatasetError: the file cannot be read, has another encoding, or holds NUL characters.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise DatasetError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise DatasetError(
            f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}): save it in UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise DatasetError(f"{path}:{line}: holds a NUL character: it is not a text file, or damaged.")
    return text


def read_json(path: Path) -> Any:
    """The content of a JSON file in UTF-8.

    Raises:
        DatasetError: the file cannot be read or is not JSON; the message names the line where that is known.
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        line = f":{error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise DatasetError(f"{path}{line}: not valid JSON, or an incomplete file: {error}.") from error


def is_text(name: str) -> bool:
    """Whether a name can be printed and written; the bytes of a file's name need not be UTF-8."""
    try:
        return bool(name.encode()) and "\0" not in name
    except UnicodeEncodeError:
        return False


def read_csv(path: Path, required: Sequence[str]) -> tuple[list[str], Iterator[Row]]:
    """The header of a CSV file, and an iterator of its rows that are not blank; fields are stripped.

    Raises:
        DatasetError: a required column is missing or named twice; at the latest after the last row: the file cannot be
            read, or is no CSV file in UTF-8.
    """
    rows = _stream_csv(path)
    header = next(rows, (1, []))[1]
    if missing := [name for name in required if name not in header]:
        raise DatasetError(f"{path}:1: missing columns: {', '.join(missing)}. Its columns: {','.join(header)}.")
    if len(set(header)) != len(header):
        raise DatasetError(f"{path}:1: a column is named twice: {','.join(header)}.")
    return header, rows


def _stream_csv(path: Path) -> Iterator[Row]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.reader(file)
            for fields in reader:
                stripped = [field.strip() for field in fields]
                if text := "".join(stripped):
                    if "\0" in text:
                        read_text(path)  # says where
                    yield reader.line_num, stripped
    except csv.Error as error:
        raise DatasetError(f"{path}:{reader.line_num}: not a CSV file: {error}.") from error
    except (OSError, UnicodeDecodeError):
        read_text(path)  # says what is wrong, and where
        raise


def read_class_names(path: Path) -> list[str] | None:
    """A class list, one name per line (blank lines at the end are ignored); None if there is no such file.

    Raises:
        DatasetError: a name is empty or occurs twice, or there are none.
    """
    if not path.is_file():
        return None
    names = [line.strip() for line in read_text(path).rstrip().splitlines()]
    seen: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name:
            raise DatasetError(f"{path}:{line}: empty class name.")
        if name in seen:
            raise DatasetError(f"{path}:{line}: class {name!r} is already on line {seen[name]}.")
        seen[name] = line
    if not names:
        raise DatasetError(f"{path} has no class names.")
    return names


# -- helpers --------------------------------------------------------------------------------------------------------


class _Table:
    """The rows of a manifest as those of `Entries`, and the first line of every label, label_name and split.

    Args:
        header: the columns of the file.
        root: the data root, absolute.
    """

    def __init__(self, header: Sequence[str], root: str) -> None:
        self.root = root
        self.text, self.tables = bytearray(), [np.empty(0, ROW)]
        self.first: dict[Kind, int] = {}
        # where a column is; behind the last if the file lacks it
        self.pick = itemgetter(*(header.index(name) if name in header else len(header) for name in COLUMNS))
        self.numbers = [_Numbers(key, kind) for key, kind in (("num_frames", int), ("fps", float), ("duration", float))]

    def add(self, lines: Sequence[int], columns: Iterable[Sequence[str]]) -> None:
        """Add rows, with the columns of the file. Raises ValueError if one is wrong, and then adds none."""
        paths, labels, names, *numbers, splits = self.pick([*columns, [""] * len(lines)])
        kinds = list(map(self.first.setdefault, zip(labels, names, splits, strict=True), lines))
        if not all(paths):
            raise ValueError("the path is empty.")
        paths = [path_below(path, self.root) if path[0] == os.sep or os.pardir in path else path for path in paths]
        values = [list(map(known.__getitem__, texts)) for known, texts in zip(self.numbers, numbers, strict=True)]
        self.tables.append(append_rows(self.text, paths, kinds, lines, *values))

    def rows(self) -> np.ndarray:
        """The rows of `Entries`; their kinds are those of `first`."""
        rows = np.concatenate(self.tables)
        rows["kind"] = np.searchsorted(list(self.first.values()), rows["kind"])
        return rows


def _read_rows(csv_path: Path, root: str) -> tuple[_Table, list[tuple[int, str]]]:
    """The rows with a right path and right numbers, and the wrong lines with what is wrong. ``root`` is absolute."""
    header, rows = _open_rows(csv_path)
    table = _Table(header, root)
    try:
        for lines, columns in _plain_blocks(csv_path, header):
            table.add(lines, columns)
        return table, []
    except (OSError, ValueError):  # what is unusual or wrong is found out below
        table = _Table(header, root)
    problems = []

    def add(block: Sequence[Row]) -> None:
        lines, fields = zip(*block, strict=True)
        if set(map(len, fields)) != {len(header)}:
            raise ValueError(f"{len(fields[0])} fields, the header has {len(header)}.")
        table.add(lines, zip(*fields, strict=True))

    while block := list(islice(rows, BLOCK)):
        try:
            add(block)
        except ValueError:
            for row in block:  # one by one, to name those that are wrong
                try:
                    add([row])
                except ValueError as error:
                    problems.append((row[0], str(error)))
    return table, problems


def _plain_blocks(path: Path, header: Sequence[str]) -> Iterator[tuple[range, list[list[str]]]]:
    """Lines and stripped columns of a CSV file, a number of rows at a time.

    Splitting at every comma takes half the time of the csv module. Raises ValueError where the two may differ (quotes,
    blank lines, NUL characters, very long fields), where a row has another number of fields than the header, or if the
    file is not in UTF-8.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        if [name.strip() for name in next(file, "").split(",")] != header:
            raise ValueError("the header is not the first line, or has quotes.")
        line, step = 2, len(header) + 1
        while block := list(islice(file, BLOCK)):
            text = "".join(block)
            text += "" if text.endswith("\n") else "\n"
            if '"' in text or "\0" in text or len(text) > csv.field_size_limit():
                raise ValueError("not plain.")
            fields = text.replace("\n", ",\n,").split(",")  # a line end is the last field of its row
            if fields[step - 1 :: step] != ["\n"] * len(block):
                raise ValueError("not plain.")
            yield range(line, line + len(block)), [list(map(str.strip, fields[k:-1:step])) for k in range(step - 1)]
            line += len(block)


def _open_rows(csv_path: Path) -> tuple[list[str], Iterator[Row]]:
    """The header of a manifest, and its rows."""
    if LIST_LINE.fullmatch(first := ",".join(next(_stream_csv(csv_path), (1, []))[1])):
        raise DatasetError(
            f"{csv_path}:1: {_excerpt(first)} is no header of a manifest, but looks like a line 'path label' of a list "
            "for mmaction2 or SlowFast. Make a manifest of such lists: "
            "`python -m data.prepare lists --train LIST --val LIST --root VIDEOS --out manifest.csv`."
        )
    header, rows = read_csv(csv_path, ("path", "split"))
    if not {"label", "label_name"} & set(header):
        raise DatasetError(f"{csv_path}:1: missing columns: label. Its columns: {','.join(header)}.")
    if unknown := [name for name in header if name not in COLUMNS]:
        raise DatasetError(f"{csv_path}:1: unknown columns: {', '.join(unknown)}. Columns: {','.join(COLUMNS)}.")
    return header, rows


def _class_list(csv_path: Path, kinds: Mapping[Kind, int]) -> tuple[list[str], list[tuple[int, str]]]:
    """The class list (name by label; sorted names where no row has a label), and what is wrong there.

    ``kinds`` has the first line of every label, label_name and split.
    """
    first: dict[tuple[str, str], int] = {}
    for (text, name, _), line in kinds.items():
        first.setdefault((text, name), line)
    names: dict[int, str] = {}
    labels: dict[str, int] = {}
    lines: dict[int, int] = {}  # where a label is named
    problems = []
    for (text, name), line in first.items():
        if (label := parse_label(text)) is None:
            continue
        if not names.get(label):
            names[label], lines[label] = name, line
        elif name not in ("", names[label]):
            problems.append((line, f"label {label} is named {name!r}, line {lines[label]} has {names[label]!r}."))
        if name and (other := labels.setdefault(name, label)) != label:
            problems.append((line, f"class {name!r} has label {label}, line {lines[other]} has {other}."))
    if not names:
        return sorted({name for _, name in first if name}), problems
    if gaps := label_gaps(names):
        raise DatasetError(
            f"{csv_path}: {gaps}: write the class names, one per line, to {csv_path.parent / CLASSES_FILE}."
        )
    return [names[label] or str(label) for label in range(len(names))], problems


def label_gaps(labels: Collection[int]) -> str:
    """Which of the labels from 0 to the largest do not occur, for a message; empty if all do."""
    last = max(labels)
    if not (absent := last + 1 - len(labels)):
        return ""
    first_few = islice((str(label) for label in range(last) if label not in labels), MAX_REPORTED)
    shown = ", ".join(first_few) + (", ..." if absent > MAX_REPORTED else "")
    return f"labels go up to {last}, but {absent} of them have no line ({shown})"


def parse_label(text: str) -> int | None:
    """A label, or None if the text is not a number from 0 to `MAX_NUMBER`."""
    plain = text.isascii() and text.isdigit() and len(text) <= len(str(MAX_NUMBER))
    return int(text) if plain and int(text) <= MAX_NUMBER else None


def _number(text: str, key: str, kind: type) -> Any:
    """A positive number up to `MAX_NUMBER`, or None if the field is empty."""
    if not text:
        return None
    try:
        value = kind(text)
    except ValueError:
        value = None
    if value is None or not 0 < value <= MAX_NUMBER:
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{key} is {_excerpt(text)}; it must be {what} above 0, at most {MAX_NUMBER}, or empty.")
    return value


def _excerpt(text: str) -> str:
    return repr(text if len(text) <= 60 else f"{text[:60]}...")


class _Numbers(dict[str, Any]):
    """The numbers of a column by their text. Raises ValueError as `_number`."""

    def __init__(self, key: str, kind: type) -> None:
        self.key, self.kind = key, kind

    def __missing__(self, text: str) -> Any:
        value = _number(text, self.key, self.kind)
        if len(self) < MAX_KEPT:
            self[text] = value
        return value


def _known_kinds(kinds: Iterable[Kind], names: Sequence[str], fixed: bool) -> tuple[list[EntryKind], dict[int, str]]:
    """Number and name of the class, and split, for every label, label_name and split of a manifest; and what is wrong
    with some of them, by their position.

    Args:
        kinds: these, as they are written.
        names: the class list.
        fixed: it does not follow from the manifest, so the names there must agree with it.
    """
    places = {name: label for label, name in reversed(list(enumerate(names)))}
    known: list[EntryKind] = []
    problems = {}
    for place, kind in enumerate(kinds):
        number = None
        try:
            number = _class_number(*kind, names, places, fixed)
        except ValueError as error:
            problems[place] = str(error)
        known.append((number, "" if number is None else names[number], kind[2]))
    return known, problems


def _class_number(
    label: str, name: str, split: str, names: Sequence[str], places: Mapping[str, int], fixed: bool
) -> int | None:
    if split not in SPLITS:
        raise ValueError(f"split is {_excerpt(split)}; it must be one of {', '.join(SPLITS)}.")
    if len(name.splitlines()) > 1:
        raise ValueError(f"label_name {_excerpt(name)} holds a line break.")
    if label:
        number = parse_label(label)
        if number is None:
            raise ValueError(f"label is {_excerpt(label)}; it must be a whole number (the name is label_name).")
        if number >= len(names):
            raise ValueError(f"label {number} is outside 0..{len(names) - 1} ({len(names)} classes).")
        if fixed and name not in ("", names[number]):
            raise ValueError(f"label {number} is {names[number]!r} in the class list, here {_excerpt(name)}.")
        return number
    if name:
        if name not in places:
            raise ValueError(f"label_name {_excerpt(name)} is not in the class list.")
        return places[name]
    if split != "test":
        raise ValueError(f"no label; only videos of the split test may lack one, this one is {split}.")
    return None


def path_below(path: str, root: str) -> str:
    """A path relative to the absolute path of the root. Raises ValueError if it leads out of it."""
    relative = os.path.relpath(path, root) if os.path.isabs(path) else path
    if leaves_root(relative):
        raise ValueError(
            f"the path {_excerpt(path)} leaves the data root; set `root` to a folder above it, which the paths are "
            "relative to, or to / if they are absolute."
        )
    return relative


def leaves_root(path: str) -> bool:
    """Whether a path is absolute, or leads out of the folder that it is relative to."""
    if os.path.isabs(path):
        return True
    return os.pardir in path and os.path.normpath(path).split(os.sep, 1)[0] == os.pardir


def _csv_fields(values: Sequence[Any]) -> list[str]:
    """Values of a column as the csv module writes them."""
    texts = ["" if value is None else str(value) for value in values]
    joined = "".join(texts)
    return [_quoted(text) for text in texts] if any(mark in joined for mark in ',"\r\n') else texts


def _quoted(text: str) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerow((text, ""))  # the second field ends the first
    return buffer.getvalue().removesuffix(",\n")


def _repeated(entries: Entries) -> dict[str, list[Entry]]:
    """Entries that share their path, by that path."""
    # numbers instead of the paths, which would take ten times the memory; different paths may have the same
    numbers = np.fromiter(map(hash, map(os.path.normpath, entries.paths())), np.int64, len(entries))
    values, counts = np.unique(numbers, return_counts=True)
    found: dict[str, list[Entry]] = {}
    for entry in entries.where(np.isin(numbers, values[counts > 1])):
        found.setdefault(os.path.normpath(entry.path), []).append(entry)
    return {path: same for path, same in found.items() if len(same) > 1}


def _conflicts(repeated: Mapping[str, list[Entry]]) -> list[tuple[int, str]]:
    """Lines whose label differs from that of an earlier line with the same path."""
    return [
        (entry.line, f"{entry.path} has label {entry.label}, line {first.line}: {first.label}.")
        for first, *others in repeated.values()
        for entry in others
        if entry.label != first.label
    ]
