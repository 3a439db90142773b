"""The list of videos a run reads: one CSV file, or a folder with one sub-folder per class (of images too).

The CSV has the columns ``path,label,label_name,num_frames,fps,duration,split``. ``path`` is relative to the data
root and names a video file or a folder of frames; ``split`` is ``train``, ``val`` or ``test``; ``num_frames``, ``fps``
and ``duration`` (seconds) may be empty. A file ``classes.txt`` next to the CSV, one class name a line, fixes the class
list; without it the list is made of the labels in the CSV.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Kind = Literal["video", "image"]
COLUMNS = ("path", "label", "label_name", "num_frames", "fps", "duration", "split")
SPLITS = ("train", "val", "test")
CLASSES_FILE = "classes.txt"
VIDEO_EXTENSIONS = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".vob", ".ts", ".mts"),
        *(".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf", ".rm", ".rmvb", ".gif"),
    )
)
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png"})
_EXTENSIONS = {"video": VIDEO_EXTENSIONS, "image": IMAGE_EXTENSIONS}
_A = {"video": "a video", "image": "an image"}
VAL_PART = 5  # one in five is held out of a class folder that has no val/
MAX_REPORTED = 10


class ManifestError(ValueError):
    """The manifest, or the data it points at, cannot be used; the message names file, line and remedy."""


@dataclass(frozen=True)
class Entry:
    """One video. ``label`` is None for a test video without a published label; ``line`` is 0 in folder mode."""

    path: str
    label: int | None
    label_name: str
    split: str
    num_frames: int | None = None
    fps: float | None = None
    duration: float | None = None
    line: int = 0

    def row(self) -> tuple[str, ...]:
        """The entry as the seven CSV fields."""
        values = (self.path, self.label, self.label_name, self.num_frames, self.fps, self.duration, self.split)
        return tuple("" if value is None else str(value) for value in values)


@dataclass(frozen=True)
class Manifest:
    """Entries, class names and the root that the paths are relative to.

    ``source`` is the CSV file or, in folder mode, the root; ``expected`` is the number of videos listed before
    missing files were dropped by :meth:`present`.
    """

    root: Path
    entries: tuple[Entry, ...]
    class_names: tuple[str, ...]
    source: Path
    expected: int

    # -- construction ---------------------------------------------------------------------------------------------

    @classmethod
    def read(
        cls, csv_path: str | Path, root: str | Path, split: str | None = None, class_names: Sequence[str] | None = None
    ) -> Manifest:
        """Read and check a manifest.

        Args:
            csv_path: the CSV file.
            root: folder that the ``path`` column is relative to; it must exist.
            split: keep only the entries of this split (the class list still comes from the whole file).
            class_names: the class list; it goes before ``classes.txt``.

        Raises:
            ManifestError: missing file, root or column, a wrong value, or a label outside the class list. Each wrong
                line is named as ``file:line``.
        """
        csv_path, root = Path(csv_path), Path(root)
        if not csv_path.is_file():
            raise ManifestError(f"no manifest at {csv_path}: give the CSV file that `python -m data.prepare` wrote.")
        _check_root(root)
        if class_names is None:
            class_names = read_class_names(csv_path.parent / CLASSES_FILE, missing_ok=True)
        rows, problems = _read_rows(csv_path)
        names, more = _class_list(rows, class_names, csv_path)
        entries: list[Entry] = []
        problems += more
        for line, row in rows:
            try:
                entries.append(_entry(row, line, names, fixed=class_names is not None))
            except ValueError as error:
                problems.append((line, str(error)))
        problems += _conflicts(entries)
        if problems:
            lines = [f"{csv_path}:{line}: {text}" for line, text in sorted(problems)]
            raise ManifestError(f"the manifest has wrong lines:\n{shorten(lines)}")
        if not entries:
            raise ManifestError(f"{csv_path} lists no videos.")
        manifest = cls(root, tuple(entries), tuple(names), csv_path, len(entries))
        if duplicates := manifest.duplicates():
            shown = [f"  {path}: lines {', '.join(map(str, lines))}" for path, lines in duplicates.items()]
            warnings.warn(
                f"{csv_path} lists {len(duplicates)} videos more than once (in one split they count twice, "
                f"across splits the evaluation sees training videos):\n{shorten(shown)}",
                stacklevel=2,
            )
        return manifest if split is None else manifest.split(split)

    @classmethod
    def from_folders(cls, root: str | Path, class_names: Sequence[str] | None = None, kind: Kind = "video") -> Manifest:
        """List a folder with one sub-folder per class, optionally below ``train/``, ``val/`` and ``test/``.

        A video is a file with a known extension or a folder of jpg or png frames; with ``kind="image"`` the entries
        are the jpg and png files instead, each by itself. Without split folders one in
        five of each class is held out for validation (chosen by the hash of its path, so the choice is stable), with a
        warning. ``classes.txt`` in the root fixes the class list.

        Raises:
            ManifestError: no root, no class folders, a class folder without videos, a class of the list without
                training videos, or a file between the class folders that cannot be told apart from a video.
        """
        root = Path(root)
        _check_root(root, kind)
        if class_names is None:
            class_names = read_class_names(root / CLASSES_FILE, missing_ok=True)
        splits = [name for name in SPLITS if (root / name).is_dir()]
        folders = {name: _subfolders(root / name) for name in splits} if splits else {"": _subfolders(root)}
        found = sorted({folder.name for group in folders.values() for folder in group})
        if not found:
            file, manifest_too = ("video.mp4", ", or give a manifest") if kind == "video" else ("image.png", "")
            raise ManifestError(
                f"{root} has no class folders: put the {kind}s of each class into a folder named after it "
                f"(root/<class>/{file} or root/train/<class>/{file}){manifest_too}."
            )
        names = list(class_names) if class_names is not None else found
        if unknown := [name for name in found if name not in names]:
            raise ManifestError(f"{root} has folders that are not in the class list: {', '.join(unknown)}.")
        entries, empty = [], []
        for split, group in folders.items():
            for folder in group:
                paths = _files_below(folder, root, kind)
                if not paths:
                    empty.append(str(folder.relative_to(root)))
                label = names.index(folder.name)
                entries += [Entry(path, label, folder.name, split) for path in paths]
        if empty:
            frames = f"; a folder of {' '.join(sorted(IMAGE_EXTENSIONS))} is a video" if kind == "video" else ""
            raise ManifestError(
                f"class folders without {_A[kind]} in {root}: {', '.join(empty)}. Known {kind} extensions: "
                f"{' '.join(sorted(_EXTENSIONS[kind]))}{frames}."
            )
        if not splits:
            entries = _hold_out(entries, root, kind)
        manifest = cls(root, tuple(entries), tuple(names), root, len(entries))
        if not splits or "train" in splits:
            counts = manifest.class_counts("train")
            if absent := [name for name, count in zip(names, counts, strict=True) if count == 0]:
                raise ManifestError(f"classes without a training {kind} in {root}: {', '.join(absent)}.")
        return manifest

    # -- views of the list ------------------------------------------------------------------------------------------

    def split(self, name: str) -> Manifest:
        """The entries of one split; an error if there are none."""
        if name not in SPLITS:
            raise ManifestError(f"unknown split {name!r}: it is one of {', '.join(SPLITS)}.")
        entries = tuple(entry for entry in self.entries if entry.split == name)
        if not entries:
            have = ", ".join(f"{key} ({count})" for key, count in Counter(e.split for e in self.entries).items())
            raise ManifestError(f"{self.source} has no videos in split {name!r}; it has: {have}.")
        return replace(self, entries=entries, expected=len(entries))

    def splits(self) -> tuple[str, ...]:
        """The splits that have entries, in the order train, val, test."""
        have = {entry.split for entry in self.entries}
        return tuple(name for name in SPLITS if name in have)

    def class_counts(self, split: str | None = None) -> list[int]:
        """Number of videos per class, of one split or of all."""
        counts = Counter(entry.label for entry in self.entries if split in (None, entry.split))
        return [counts[label] for label in range(len(self.class_names))]

    def duplicates(self) -> dict[str, list[int]]:
        """Paths that are listed more than once, with their lines."""
        lines: dict[str, list[int]] = {}
        for entry in self.entries:
            lines.setdefault(os.path.normpath(entry.path), []).append(entry.line)
        return {path: where for path, where in lines.items() if len(where) > 1}

    def present(self) -> tuple[Manifest, list[Entry]]:
        """The manifest without the entries whose file is missing, and those entries.

        One directory listing per folder instead of one file status per video, which matters on network disks.
        """
        listings: dict[str, frozenset[str]] = {}
        kept: list[Entry] = []
        missing: list[Entry] = []
        for entry in self.entries:
            folder, name = os.path.split(os.path.normpath(self.root / entry.path))
            if folder not in listings:
                listings[folder] = frozenset(os.listdir(folder)) if os.path.isdir(folder) else frozenset()
            (kept if name in listings[folder] else missing).append(entry)
        return replace(self, entries=tuple(kept)), missing

    def counts(self) -> str:
        """``N of M videos``: how many of the listed videos are in this manifest."""
        return f"{len(self.entries)} of {self.expected} videos"

    def text(self) -> str:
        """The entries as CSV text, the content that is written and hashed."""
        buffer = io.StringIO()
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(COLUMNS)
        writer.writerows(entry.row() for entry in self.entries)
        return buffer.getvalue()

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of the class list and the entries. Root, line ends and column order do not matter."""
        content = "\n".join(self.class_names) + "\n\n" + self.text()
        return hashlib.sha256(content.encode()).hexdigest()

    def write(self, csv_path: str | Path, overwrite: bool = False) -> None:
        """Write the CSV and ``classes.txt`` next to it.

        Raises:
            FileExistsError: one of the two exists with other content and ``overwrite`` is False.
        """
        csv_path = Path(csv_path)
        files = {csv_path: self.text(), csv_path.parent / CLASSES_FILE: "".join(f"{n}\n" for n in self.class_names)}
        for path, content in files.items():
            if not overwrite and path.exists() and path.read_text(encoding="utf-8") != content:
                raise FileExistsError(f"{path} exists with other content; remove it or allow overwriting.")
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        for path, content in files.items():
            temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
            temporary.write_text(content, encoding="utf-8", newline="\n")
            temporary.replace(path)


def shorten(lines: Sequence[str], limit: int = MAX_REPORTED) -> str:
    """The first of many lines for a message, and how many more there are."""
    more = [f"... and {len(lines) - limit} more"] if len(lines) > limit else []
    return "\n".join([*lines[:limit], *more])


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, with or without a byte-order mark.

    Raises:
        ManifestError: the file cannot be read, has another encoding, or holds NUL characters.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise ManifestError(f"{path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ManifestError(
            f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}): save it in UTF-8."
        ) from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ManifestError(f"{path}:{line}: holds a NUL character: it is not a text file, or damaged.")
    return text


def read_csv(path: Path, required: Sequence[str]) -> tuple[list[str], list[tuple[int, list[str]]]]:
    """The header of a CSV file, and its rows that are not blank with their line numbers; fields are stripped.

    Raises:
        ManifestError: the file cannot be read, or a required column is missing or named twice.
    """
    reader = csv.reader(io.StringIO(read_text(path)))
    try:
        header = [name.strip() for name in next(reader, [])]
        rows = [(reader.line_num, [field.strip() for field in fields]) for fields in reader if "".join(fields).strip()]
    except csv.Error as error:
        raise ManifestError(f"{path}:{reader.line_num}: not a CSV file: {error}.") from error
    if missing := [name for name in required if name not in header]:
        raise ManifestError(f"{path}:1: missing columns: {', '.join(missing)}. Its columns: {','.join(header)}.")
    if len(set(header)) != len(header):
        raise ManifestError(f"{path}:1: a column is named twice: {','.join(header)}.")
    return header, rows


def read_class_names(path: str | Path, missing_ok: bool = False) -> list[str] | None:
    """Read a class list, one name a line (blank lines at the end are ignored). Names must be unique."""
    path = Path(path)
    if not path.is_file():
        if missing_ok:
            return None
        raise ManifestError(f"no class list at {path}.")
    names = [line.strip() for line in read_text(path).rstrip().splitlines()]
    seen: dict[str, int] = {}
    for line, name in enumerate(names, 1):
        if not name:
            raise ManifestError(f"{path}:{line}: empty class name.")
        if name in seen:
            raise ManifestError(f"{path}:{line}: class {name!r} is already on line {seen[name]}.")
        seen[name] = line
    if not names:
        raise ManifestError(f"{path} has no class names.")
    return names


def is_frame_folder(path: str | Path) -> bool:
    """Whether the folder holds at least one jpg or png file."""
    with os.scandir(path) as items:
        return any(os.path.splitext(item.name)[1].lower() in IMAGE_EXTENSIONS for item in items)


def find_videos(paths: str | Path | Iterable[str | Path]) -> list[Path]:
    """The videos among `paths`; see :func:`find_files`."""
    return find_files(paths, "video")


def find_files(paths: str | Path | Iterable[str | Path], kind: Kind) -> list[Path]:
    """Expand files, folders (recursively) and ``.txt`` lists into paths of videos or images, sorted within a folder.

    Among videos, a folder that holds jpg or png frames is one video. A list has one path a line, relative to the
    list's folder. A file given by name is taken whatever its extension, so that its reader can say what is wrong
    with it.

    Raises:
        FileNotFoundError: a path (in a list: with file:line) does not exist, or a folder has nothing of the kind.
    """
    found: list[Path] = []
    for item in [paths] if isinstance(paths, str | Path) else paths:
        path = Path(item)
        if path.is_dir():
            one = kind == "video" and is_frame_folder(path)
            below = [path] if one else [path / name for name in _files_below(path, path, kind)]
            if not below:
                raise FileNotFoundError(f"no {kind}s below {path} (extensions {' '.join(sorted(_EXTENSIONS[kind]))}).")
            found += below
        elif path.is_file() and path.suffix.lower() == ".txt":
            for number, text in enumerate(read_text(path).splitlines(), 1):
                if text.strip():
                    listed = path.parent / text.strip()
                    if not listed.exists():
                        raise FileNotFoundError(f"{path}:{number}: {listed} does not exist.")
                    found += find_files(listed, kind)
        elif path.is_file():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist: give {kind} files, folders or a .txt list of them.")
    return found


# -- helpers --------------------------------------------------------------------------------------------------------


def _check_root(root: Path, kind: Kind = "video") -> None:
    if not root.is_dir():
        demo = {"video": "motion", "image": "digits"}[kind]
        raise ManifestError(
            f"the data root {root} does not exist (resolved: {root.resolve()}): set `root` to the folder with the "
            f"{kind}s, or make embedded data with `python -m data.demo {demo} --out {root}`."
        )


def _read_rows(csv_path: Path) -> tuple[list[tuple[int, dict[str, str]]], list[tuple[int, str]]]:
    """Rows as (line number, fields), and the lines whose number of fields is wrong."""
    header, lines = read_csv(csv_path, ("path", "split"))
    if not {"label", "label_name"} & set(header):
        raise ManifestError(f"{csv_path}:1: missing columns: label. Its columns: {','.join(header)}.")
    if unknown := [name for name in header if name not in COLUMNS]:
        raise ManifestError(f"{csv_path}:1: unknown columns: {', '.join(unknown)}. Columns: {','.join(COLUMNS)}.")
    rows, problems = [], []
    for line, fields in lines:
        if len(fields) != len(header):
            problems.append((line, f"{len(fields)} fields, the header has {len(header)}."))
        else:
            rows.append((line, dict.fromkeys(COLUMNS, "") | dict(zip(header, fields, strict=True))))
    return rows, problems


def _class_list(
    rows: list[tuple[int, dict[str, str]]], class_names: Sequence[str] | None, csv_path: Path
) -> tuple[list[str], list[tuple[int, str]]]:
    """The class list: as given, or from the rows (name by label; sorted names where no row has a label)."""
    if class_names is not None:
        return list(class_names), []
    names: dict[int, str] = {}
    first: dict[int, int] = {}
    problems = []
    for line, row in rows:
        if row["label"].isascii() and row["label"].isdigit():
            label = int(row["label"])
            if names.setdefault(label, row["label_name"]) != row["label_name"]:
                problems.append(
                    (line, f"label {label} is named {row['label_name']!r}, line {first[label]} has {names[label]!r}.")
                )
            first.setdefault(label, line)
    if not names:
        return sorted({row["label_name"] for _, row in rows if row["label_name"]}), problems
    if absent := sorted(set(range(max(names) + 1)) - set(names)):
        shown = ", ".join(map(str, absent[:MAX_REPORTED])) + (", ..." if len(absent) > MAX_REPORTED else "")
        raise ManifestError(
            f"{csv_path}: labels go to {max(names)} but {len(absent)} of them have no line ({shown}): "
            f"write the class names, one a line, to {csv_path.parent / CLASSES_FILE}."
        )
    return [names[label] or str(label) for label in range(len(names))], problems


def _number(row: dict[str, str], key: str, kind: type) -> float | None:
    """A positive number, or None where the field is empty."""
    if not row[key]:
        return None
    try:
        value = kind(row[key])
    except ValueError:
        value = None
    if value is None or not 0 < value < float("inf"):
        what = "a whole number" if kind is int else "a number"
        raise ValueError(f"{key} is {row[key]!r}; it must be {what} above 0, or empty.")
    return value


def _entry(row: dict[str, str], line: int, names: Sequence[str], fixed: bool) -> Entry:
    """Check one row. Raises ValueError with the text after ``file:line``."""
    if not row["path"]:
        raise ValueError("the path is empty.")
    if row["split"] not in SPLITS:
        raise ValueError(f"split is {row['split']!r}; it must be one of {', '.join(SPLITS)}.")
    label: int | None = None
    if row["label"]:
        try:
            label = int(row["label"])
        except ValueError:
            raise ValueError(
                f"label is {row['label']!r}; it must be a whole number (the name is label_name)."
            ) from None
        if not 0 <= label < len(names):
            raise ValueError(f"label {label} is outside 0..{len(names) - 1} ({len(names)} classes).")
        if fixed and row["label_name"] not in ("", names[label]):
            raise ValueError(f"label {label} is {names[label]!r} in the class list, here {row['label_name']!r}.")
    elif row["label_name"]:
        if row["label_name"] not in names:
            raise ValueError(f"label_name {row['label_name']!r} is not in the class list.")
        label = list(names).index(row["label_name"])
    elif row["split"] != "test":
        raise ValueError(f"no label; only videos of the split test may lack one, this one is {row['split']}.")
    return Entry(
        path=row["path"],
        label=label,
        label_name="" if label is None else names[label],
        split=row["split"],
        num_frames=_number(row, "num_frames", int),  # type: ignore[arg-type]
        fps=_number(row, "fps", float),
        duration=_number(row, "duration", float),
        line=line,
    )


def _conflicts(entries: Sequence[Entry]) -> list[tuple[int, str]]:
    """Lines that give a path another label than an earlier line."""
    first: dict[str, Entry] = {}
    problems = []
    for entry in entries:
        other = first.setdefault(os.path.normpath(entry.path), entry)
        if other.label != entry.label:
            problems.append((entry.line, f"{entry.path} has label {entry.label}, line {other.line}: {other.label}."))
    return problems


def _subfolders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _files_below(folder: Path, root: Path, kind: Kind) -> list[str]:
    """Files of a kind below a folder and, among videos, folders of frames; sorted, relative to the root."""
    found = []
    for path, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        extensions = {os.path.splitext(name)[1].lower() for name in files if not name.startswith(".")}
        if kind == "video" and Path(path) != folder and extensions & IMAGE_EXTENSIONS:
            found.append(Path(path))
            folders.clear()
            continue
        found += [
            Path(path, name)
            for name in files
            if os.path.splitext(name)[1].lower() in _EXTENSIONS[kind] and not name.startswith(".")
        ]
    return sorted(path.relative_to(root).as_posix() for path in found)


def _hold_out(entries: Sequence[Entry], root: Path, kind: Kind) -> list[Entry]:
    """Assign one entry in five of each class, at least one, to val; the rest to train."""
    result = []
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(entry.label_name, []).append(entry)
    for group in by_class.values():
        ranked = sorted(group, key=lambda entry: hashlib.sha256(entry.path.encode()).digest())
        held = {entry.path for entry in ranked[: max(1, len(group) // VAL_PART)]} if len(group) > 1 else set()
        result += [replace(entry, split="val" if entry.path in held else "train") for entry in group]
    if not any(entry.split == "val" for entry in result):
        raise ManifestError(f"every class in {root} has a single {kind}; make {root}/train and {root}/val folders.")
    count = sum(entry.split == "val" for entry in result)
    warnings.warn(
        f"{root} has no train/ and val/ folders: {count} of {len(result)} {kind}s are held out for validation.",
        stacklevel=3,
    )
    return result
