"""Videos and images in folders: which files count, and folders with one sub-folder per class."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Literal

from common.datamodules.entries import Entries
from common.datamodules.errors import DatasetError, UnusedFilesWarning
from common.datamodules.manifest import CLASSES_FILE, Entry, Manifest, is_text, read_class_names, read_text
from common.datamodules.tar_members import SUFFIX, find_span, members

Kind = Literal["video", "image"]
VIDEO_EXTENSIONS = frozenset(
    (
        *(".mp4", ".m4v", ".mov", ".qt", ".avi", ".divx", ".mkv", ".webm", ".mpg", ".mpeg", ".vob", ".ts", ".mts"),
        *(".m2ts", ".wmv", ".asf", ".flv", ".f4v", ".3gp", ".3g2", ".ogv", ".ogm", ".mxf", ".rm", ".rmvb", ".gif"),
        *(".m1v", ".m2v", ".mpv", ".h264", ".264", ".h265", ".265", ".hevc", ".ivf", ".y4m", ".nut", ".wtv", ".ismv"),
    )
)
IMAGE_EXTENSIONS = frozenset({".jpg", ".jpeg", ".png"})
_EXTENSIONS = {"video": VIDEO_EXTENSIONS, "image": IMAGE_EXTENSIONS}
SPLIT_FOLDERS = {"train": ("train", "training"), "val": ("val", "valid", "validation"), "test": ("test", "testing")}
HELD_OUT = 5  # one in five is held out of a class folder if there is no folder of validation files


def read_class_folders(root: str | Path, class_names: Sequence[str] | None = None, kind: Kind = "video") -> Manifest:
    """List a folder with one sub-folder per class, optionally below folders for the splits.

    A video is a file with a known extension or a folder of jpg or png frames; with ``kind="image"`` the entries are
    the jpg and png files instead. The splits are ``train`` (or ``training``), ``val`` (``valid``, ``validation``) and
    ``test`` (``testing``). Without them one in five of each class is held out for validation, chosen by the hash of
    its path so that the choice is stable, with a warning. ``classes.txt`` in the root fixes the class list. Files and
    folders that are not used are named in a warning.

    Raises:
        DatasetError: no root, no class folders, a class folder without videos, a class of the list without training
            videos, or two folders for one split.
    """
    root = Path(root)
    if not root.is_dir():
        raise DatasetError(
            f"no folder {root} (resolved: {os.path.realpath(root)}): set the root to the folder of the {kind}s."
        )
    if class_names is None:
        class_names = read_class_names(root / CLASSES_FILE)
    groups = _split_folders(root, kind)
    present = sorted({folder.name for group in groups.values() for folder in group})
    if not present:
        file, hint = ("video.mp4", ", or give a manifest") if kind == "video" else ("image.png", "")
        raise DatasetError(
            f"{root} has no class folders: put the {kind}s of each class into a folder named after it "
            f"(root/<class>/{file} or root/train/<class>/{file}){hint}."
        )
    names = list(class_names) if class_names is not None else present
    if unknown := [name for name in present if name not in names]:
        raise DatasetError(f"{root} has folders that are not in the class list: {', '.join(unknown)}.")
    entries = _list_classes(root, groups, names, kind)
    if "" in groups:
        entries = _hold_out(entries, root, kind)
    manifest = Manifest(root, Entries.of(entries), tuple(names), root, len(entries))
    if "" in groups or "train" in groups:
        counts = manifest.class_counts("train")
        if absent := [name for name, count in zip(names, counts, strict=True) if count == 0]:
            raise DatasetError(f"classes without a training {kind} in {root}: {', '.join(absent)}.")
    return manifest


def find_files(paths: str | Path | Iterable[str | Path], kind: Kind, _within: tuple[Path, ...] = ()) -> list[Path]:
    """Expand files, folders (recursively), ``.txt`` lists and tar archives (of videos) into paths of videos or images.

    They are sorted within a folder or archive.

    Among videos, a folder that holds jpg or png frames is one video. A list has one path per line, relative to the
    folder of the list. A file given by name is taken whatever its extension, so that its reader can say what is wrong
    with it.

    Raises:
        FileNotFoundError: a path (in a list: with file:line) does not exist, or a folder has nothing of the kind.
        DatasetError: a list is not a text file, is empty, or lists itself; an archive is damaged.
    """
    files: list[Path] = []
    for item in [paths] if isinstance(paths, str | Path) else paths:
        if item == "":
            raise FileNotFoundError("a path is empty.")
        path = Path(item)
        if path.is_dir():
            if kind == "video" and {_extension(name) for name in os.listdir(path)} & IMAGE_EXTENSIONS:
                files.append(path)
                continue
            names, others = _list_files(path, path, kind)
            archives = [name for name in others if kind == "video" and name.endswith(SUFFIX)]
            names += [f"{name}/{inner}" for name in archives for inner in _list_archive(path / name, kind)]
            others = [name for name in others if name not in archives]
            if not names:
                raise FileNotFoundError(f"no {kind}s below {path} (extensions {' '.join(sorted(_EXTENSIONS[kind]))}).")
            if others:
                warnings.warn(
                    f"{path}: {len(names)} {kind}s; {_by_extension(others)}.", UnusedFilesWarning, stacklevel=2
                )
            files += [path / name for name in names]
        elif path.is_file() and path.suffix.lower() == ".txt":
            files += _read_list(path, kind, _within)
        elif kind == "video" and path.is_file() and path.suffix == SUFFIX:
            inside = _list_archive(path, kind)
            if not inside:
                raise FileNotFoundError(f"no {kind}s in {path} (extensions {' '.join(sorted(_EXTENSIONS[kind]))}).")
            files += [path / name for name in inside]
        elif _exists(path, kind):
            files.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist: give {kind} files, folders or a .txt list of them.")
    return files


# -- helpers ----------------------------------------------------------------------------------------------------------


def _read_list(path: Path, kind: Kind, within: tuple[Path, ...]) -> list[Path]:
    """The files of a ``.txt`` list, which is in the lists `within`."""
    if path.resolve() in within:
        raise DatasetError(f"{path} lists itself: {' lists '.join(map(str, (*within, path.resolve())))}.")
    files: list[Path] = []
    for number, text in enumerate(read_text(path).splitlines(), 1):
        if text.strip():
            listed = path.parent / text.strip()
            if not listed.is_dir() and not _exists(listed, kind):
                raise FileNotFoundError(f"{path}:{number}: {listed} does not exist.")
            files += find_files(listed, kind, (*within, path.resolve()))
    if not files:
        raise DatasetError(f"{path} lists no files.")
    return files


def _exists(path: Path, kind: Kind) -> bool:
    """Whether there is a file; videos may lie in an archive."""
    return path.is_file() or (kind == "video" and find_span(path) is not None)


def _list_archive(path: Path, kind: Kind) -> list[str]:
    return sorted(name for name in members(str(path)) if _extension(name) in _EXTENSIONS[kind])


def _extension(name: str) -> str:
    return os.path.splitext(name)[1].lower()


def _subfolders(path: Path) -> list[Path]:
    return sorted(child for child in path.iterdir() if child.is_dir() and not child.name.startswith("."))


def _split_folders(root: Path, kind: Kind) -> dict[str, list[Path]]:
    """Class folders by split; under the key "" if there are no folders for the splits."""
    split_of = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
    folders: dict[str, Path] = {}
    unused = []
    for folder in _subfolders(root):
        split = split_of.get(folder.name.lower())
        if split is None or not _subfolders(folder):
            unused.append(folder.name)
        elif split in folders:
            raise DatasetError(f"{root} has the folders {folders[split].name} and {folder.name} for one split.")
        else:
            folders[split] = folder
    if not folders:
        return {"": _subfolders(root)}
    used = ", ".join(folder.name for folder in folders.values())
    if unused:
        warnings.warn(
            f"{root}: {kind}s are taken from {used}; not used: {', '.join(unused)}.", UnusedFilesWarning, stacklevel=3
        )
    if "train" in folders and "val" not in folders:
        warnings.warn(
            f"{root} has {used}, but no {kind}s for validation ({' or '.join(SPLIT_FOLDERS['val'])}).", stacklevel=3
        )
    return {split: _subfolders(folders[split]) for split in SPLIT_FOLDERS if split in folders}


def _list_classes(root: Path, groups: dict[str, list[Path]], names: Sequence[str], kind: Kind) -> list[Entry]:
    """The entries of all class folders."""
    entries: list[Entry] = []
    empty: list[str] = []
    others: list[str] = []
    for split, folders in groups.items():
        for folder in folders:
            paths, unknown = _list_files(folder, root, kind)
            if not paths:
                empty.append(str(folder.relative_to(root)))
            others += unknown
            label = names.index(folder.name)
            entries += [Entry(path, label, folder.name, None, None, None, split) for path in paths]
    _warn_of_loose_files(root, {folder.parent for folders in groups.values() for folder in folders}, kind)
    if empty:
        frames = f"; a folder of {' '.join(sorted(IMAGE_EXTENSIONS))} is a video" if kind == "video" else ""
        raise DatasetError(
            f"class folders without {kind}s in {root}: {', '.join(empty)}. Known {kind} extensions: "
            f"{' '.join(sorted(_EXTENSIONS[kind]))}{frames}."
        )
    if others:
        warnings.warn(f"{root}: {len(entries)} {kind}s; {_by_extension(others)}.", UnusedFilesWarning, stacklevel=3)
    return entries


def _warn_of_loose_files(root: Path, parents: set[Path], kind: Kind) -> None:
    """Warn of files of the kind that lie beside the class folders, or beside the folders of the splits."""
    files = sorted(path for parent in {root, *parents} for path in parent.iterdir() if path.is_file())
    loose = [path for path in files if _extension(path.name) in _EXTENSIONS[kind] and not path.name.startswith(".")]
    if loose:
        count = f"1 {kind} lies" if len(loose) == 1 else f"{len(loose)} {kind}s lie"
        warnings.warn(
            f"{root}: {count} in no class folder, and cannot be used ({loose[0].relative_to(root)}).",
            UnusedFilesWarning,
            stacklevel=4,
        )


def _by_extension(paths: Sequence[str]) -> str:
    """One line about files that are not used: the number of each kind, with an example."""
    groups: dict[str, list[str]] = {}
    for path in paths:
        hidden = os.path.basename(path).startswith(".")
        groups.setdefault("hidden" if hidden else _extension(path) or "no extension", []).append(path)
    parts = [f"{len(group)} {name} ({group[0]})" for name, group in sorted(groups.items())]
    count = "1 other file is" if len(paths) == 1 else f"{len(paths)} other files are"
    return f"{count} not used: {', '.join(parts)}"


def _list_files(folder: Path, root: Path, kind: Kind) -> tuple[list[str], list[str]]:
    """Files of a kind below a folder (among videos: also folders of frames), and other files; relative to the root."""
    files: list[Path] = []
    others: list[Path] = []
    for path, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        visible = [name for name in names if not name.startswith(".")]
        if kind == "video" and Path(path) != folder and {_extension(name) for name in visible} & IMAGE_EXTENSIONS:
            files.append(Path(path))
            folders.clear()
            continue
        chosen = {name for name in visible if _extension(name) in _EXTENSIONS[kind]}
        files += [Path(path, name) for name in chosen]
        others += [Path(path, name) for name in names if name not in chosen]
    relative = [sorted(path.relative_to(root).as_posix() for path in group) for group in (files, others)]
    if odd := [name for group in relative for name in group if not is_text(name)]:
        raise DatasetError(f"{root}: the name {odd[0]!r} is not in UTF-8: rename it.")
    return relative[0], relative[1]


def _hold_out(entries: Sequence[Entry], root: Path, kind: Kind) -> list[Entry]:
    """Assign one entry in five of each class, at least one, to val; the rest to train."""
    result = []
    by_class: dict[str, list[Entry]] = {}
    for entry in entries:
        by_class.setdefault(entry.label_name, []).append(entry)
    for group in by_class.values():
        ranked = sorted(group, key=lambda entry: hashlib.sha256(entry.path.encode()).digest())
        held = {entry.path for entry in ranked[: max(1, len(group) // HELD_OUT)]} if len(group) > 1 else set()
        result += [entry._replace(split="val" if entry.path in held else "train") for entry in group]
    if not any(entry.split == "val" for entry in result):
        raise DatasetError(f"every class in {root} has a single {kind}; make {root}/train and {root}/val folders.")
    count = sum(entry.split == "val" for entry in result)
    warnings.warn(
        f"{root} has no train/ and val/ folders: {count} of {len(result)} {kind}s are held out for validation.",
        stacklevel=3,
    )
    return result
