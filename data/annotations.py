"""Readers of the official annotation files of the benchmarks, in the formats in which they are distributed.

Each reader takes the folder of annotation files and returns a `Listing`: the videos that there should be, with label
and split. No reader looks for the videos. Class lists come from the official files, in the official order where there
is one (Kinetics-400 and HMDB-51 have none, so their classes are sorted by name). `read_lists` reads the lists that
mmaction2, SlowFast and pytorchvideo train on.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common.datamodules.errors import DatasetError
from common.datamodules.folders import VIDEO_EXTENSIONS
from common.datamodules.manifest import (
    LIST_LINE,
    MAX_NUMBER,
    SPLITS,
    label_gaps,
    parse_label,
    path_below,
    read_class_names,
    read_csv,
    read_json,
    read_text,
    shorten,
)


@dataclass(frozen=True)
class ListedVideo:
    """A video that the annotations name.

    Attributes:
        key: the name of its file without extension, or of its frame folder, below the data root. It starts with the
            class folder (``class/name``) in datasets that store videos in class folders.
        label: None for a test video without a published label.
        split: ``train``, ``val`` or ``test``.
        alias: another name that copies of the dataset use; it counts only if no other video has it.
    """

    key: str
    label: int | None
    split: str
    alias: str = ""


@dataclass(frozen=True)
class Listing:
    """What the annotation files say. ``frame_fps`` is the frame rate of a dataset of frame folders, otherwise None."""

    videos: tuple[ListedVideo, ...]
    class_names: tuple[str, ...]
    frame_fps: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """The reader of a dataset, and the option that selects among its annotation files."""

    read: Callable[..., Listing]
    option: str = ""
    choices: tuple[str, ...] = ()

    def listing(self, folder: Path, option: str | None = None) -> Listing:
        """What the reader finds in the folder of annotation files.

        Raises:
            DatasetError: the files are wrong, or the reader gives a list that cannot be a manifest.
        """
        listing = self.read(folder, **({self.option: option} if option else {}))
        if problems := [*_wrong_classes(listing), *_wrong_videos(listing)]:
            raise DatasetError(
                f"{self.read.__name__} in data/annotations.py gives a wrong list: correct it, or the annotation files "
                f"in {folder}:\n{shorten(problems)}"
            )
        return listing


def _wrong_classes(listing: Listing) -> Iterator[str]:
    for name, count in Counter(listing.class_names).items():
        if count > 1 or not name.strip():
            yield f"class {name!r} is listed {count} times." if name.strip() else "a class has no name."


def _wrong_videos(listing: Listing) -> Iterator[str]:
    """Labels outside of the class list, unknown splits, and videos with two labels."""
    first: dict[str, ListedVideo] = {}
    for video in listing.videos:
        other = first.setdefault(video.key, video)
        if video.split not in SPLITS:
            yield f"video {video.key}: the split is {video.split!r}, not {', '.join(SPLITS[:-1])} or {SPLITS[-1]}."
        elif video.label is None and video.split != "test":
            yield f"video {video.key}: no label; only videos of the split test may lack one, this one is {video.split}."
        elif video.label is not None and not 0 <= video.label < len(listing.class_names):
            yield f"video {video.key}: label {video.label} is outside of 0..{len(listing.class_names) - 1}."
        elif video.label != other.label:
            yield f"video {video.key}: listed with label {other.label} and with label {video.label}."


def _check(problems: Sequence[str]) -> None:
    """Raise DatasetError with what is wrong with a file, so that the user sees more than the first wrong line."""
    if problems:
        raise DatasetError(f"the annotations have wrong lines:\n{shorten(problems)}")


def _find(folder: Path, *names: str) -> Path:
    """The first of the file names that exists in the folder or in its sub-folder ``labels``."""
    path = _find_optional(folder, *names)
    if path is None:
        raise DatasetError(
            f"no {' or '.join(names)} in {folder}: set --annotations to the folder with the official annotation files."
        )
    return path


def _find_optional(folder: Path, *names: str) -> Path | None:
    paths = [place / name for place in (folder, folder / "labels") for name in names]
    return next((path for path in paths if path.is_file()), None)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers counted from 1."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _json(path: Path, kind: type) -> Any:
    content = read_json(path)
    if not isinstance(content, kind):
        raise DatasetError(f"{path}: holds a JSON {type(content).__name__}, expected a {kind.__name__}.")
    return content


def _unbracketed(name: str) -> str:
    """Class name of a template: ``Holding [something] up`` is the class ``Holding something up``."""
    return re.sub(r"[\[\]]", "", name).strip()


def _unknown(name: str, class_file: Path) -> str:
    return f"class {name!r} is not in {class_file.name}."


# -- Something-Something and Jester -----------------------------------------------------------------------------------


def _id_and_class(path: Path, labels: dict[str, int], class_file: Path, problems: list[str]) -> dict[str, int]:
    """Labels by video id of a file with lines ``id;class name``."""
    by_id = {}
    for number, line in _lines(path):
        fields = [field.strip() for field in line.split(";")]
        if len(fields) != 2 or not fields[0].isdecimal():
            problems.append(f"{path}:{number}: {line!r} should be 'id;class name'.")
        elif (name := _unbracketed(fields[1])) not in labels:
            problems.append(f"{path}:{number}: {_unknown(name, class_file)}")
        else:
            by_id[fields[0]] = labels[name]
    return by_id


def _test_videos(
    ids: Sequence[str], folder: Path, labels: dict[str, int], class_file: Path, problems: list[str]
) -> list[ListedVideo]:
    """Test videos; their labels are in ``test-answers.csv`` of the newer releases and unknown otherwise."""
    answers = _find_optional(folder, "test-answers.csv")
    truth = {} if answers is None else _id_and_class(answers, labels, class_file, problems)
    return [ListedVideo(video, truth.get(video), "test") for video in ids]


def _read_semicolons(folder: Path, prefix: str) -> Listing:
    """Something-Something v1 and Jester: lines ``id;class name``, folders of jpg frames taken at 12 per second."""
    class_file = _find(folder, f"{prefix}-labels.csv", "labels.csv")
    names = [_unbracketed(line) for _, line in _lines(class_file)]
    labels = {name: label for label, name in enumerate(names)}
    problems: list[str] = []
    if len(labels) != len(names):
        problems.append(f"{class_file}:1: {len(names) - len(labels)} class names are listed more than once.")
    videos = []
    for split, stem in (("train", "train"), ("val", "validation")):
        path = _find(folder, f"{prefix}-{stem}.csv", f"{stem}.csv")
        videos += [ListedVideo(*item, split) for item in _id_and_class(path, labels, class_file, problems).items()]
    if test_file := _find_optional(folder, f"{prefix}-test.csv", "test.csv"):
        ids = []
        for number, line in _lines(test_file):
            if not line.isdecimal():
                problems.append(f"{test_file}:{number}: {line!r} should be the id of a video.")
            ids.append(line)
        videos += _test_videos(ids, folder, labels, class_file, problems)
    _check(problems)
    return Listing(tuple(videos), tuple(names), frame_fps=12.0)


def read_something_v1(folder: Path) -> Listing:
    """``something-something-v1-{labels,train,validation,test}.csv``."""
    return _read_semicolons(folder, "something-something-v1")


def read_jester(folder: Path) -> Listing:
    """``jester-v1-{labels,train,validation,test}.csv``, or the same without ``jester-v1-`` in the newer release."""
    return _read_semicolons(folder, "jester-v1")


def read_something_v2(folder: Path) -> Listing:
    """``something-something-v2-{labels,train,validation,test}.json``, or ``labels/{labels,train,...}.json``."""
    prefix = "something-something-v2"
    class_file = _find(folder, f"{prefix}-labels.json", "labels.json")
    problems: list[str] = []
    labels: dict[str, int] = {}
    for name, label in _json(class_file, dict).items():
        if not str(label).isdecimal():
            problems.append(f"{class_file}:class {name!r}: its index is {label!r}, expected a whole number.")
        else:
            labels[_unbracketed(name)] = int(label)
    _check(problems)
    if sorted(labels.values()) != list(range(len(labels))):
        raise DatasetError(f"{class_file}: the indices of the {len(labels)} classes should be 0..{len(labels) - 1}.")
    videos = []
    for split, stem in (("train", "train"), ("val", "validation"), ("test", "test")):
        names = (f"{prefix}-{stem}.json", f"{stem}.json")
        if split == "test" and _find_optional(folder, *names) is None:
            continue
        path = _find(folder, *names)
        ids = []
        for number, entry in enumerate(_json(path, list), 1):
            where = f"entry {number}"
            if not isinstance(entry, dict) or not str(entry.get("id", "")).isdecimal():
                problems.append(f"{path}:{where}: lacks an 'id'.")
            elif split == "test":
                ids.append(str(entry["id"]))
            elif not isinstance(entry.get("template"), str):
                problems.append(f"{path}:{where}: (id {entry['id']}) lacks a 'template'.")
            elif (name := _unbracketed(entry["template"])) not in labels:
                problems.append(f"{path}:{where}: (id {entry['id']}) {_unknown(name, class_file)}")
            else:
                videos.append(ListedVideo(str(entry["id"]), labels[name], split))
        videos += _test_videos(ids, folder, labels, class_file, problems)
    _check(problems)
    return Listing(tuple(videos), tuple(sorted(labels, key=labels.__getitem__)))


# -- Diving-48 --------------------------------------------------------------------------------------------------------


def read_diving48(folder: Path, release: str = "V2") -> Listing:
    """``Diving48_V2_{train,test}.json`` (or without ``_V2``) and ``Diving48_vocab.json``; the test list is ``val``.

    A class is a list of four words: take-off, somersaults, twists, position.
    """
    class_file = _find(folder, "Diving48_vocab.json")
    names = [" ".join(map(str, words)) if isinstance(words, list) else str(words) for words in _json(class_file, list)]
    problems: list[str] = []
    videos = []
    for split, stem in (("train", "train"), ("val", "test")):
        path = _find(folder, f"Diving48_V2_{stem}.json" if release == "V2" else f"Diving48_{stem}.json")
        for number, entry in enumerate(_json(path, list), 1):
            where = f"entry {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("vid_name"), str):
                problems.append(f"{path}:{where}: lacks a 'vid_name'.")
            elif type(label := entry.get("label")) is not int or not 0 <= label < len(names):
                text = f"({entry['vid_name']}) label {label!r} should be in 0..{len(names) - 1} ({class_file.name})."
                problems.append(f"{path}:{where}: {text}")
            else:
                videos.append(ListedVideo(entry["vid_name"], label, split))
    _check(problems)
    return Listing(tuple(videos), tuple(names))


# -- FineGym ----------------------------------------------------------------------------------------------------------


def read_gym99(folder: Path, release: str = "V1.0") -> Listing:
    """``gym99_categories.txt``, ``gym99_train_element_v1.0.txt`` (or ``v1.1``) and ``gym99_val_element.txt``.

    Two classes have the same name in different sets, so the set becomes part of the name.
    """
    problems: list[str] = []
    class_file = _find(folder, "gym99_categories.txt")
    names: list[str] = []
    for number, line in _lines(class_file):
        fields = re.fullmatch(r"Clabel: *(\d+); *set: *(\d+); *Glabel: *\d+; *(.+)", line)
        if fields is None or int(fields[1]) != len(names):
            problems.append(
                f"{class_file}:{number}: {line!r} should be 'Clabel: {len(names)}; set: 1; Glabel: 1; name'."
            )
        names.append(f"{fields[3]} (set {fields[2]})" if fields else "")
    _check(problems)
    videos = []
    for split, stem in (("train", f"train_element_{release.lower()}"), ("val", "val_element")):
        path = _find(folder, f"gym99_{stem}.txt")
        for number, line in _lines(path):
            clip, _, label = line.rpartition(" ")
            if not clip or not label.isdecimal():
                problems.append(f"{path}:{number}: {line!r} should be the name of a clip and the number of its class.")
            elif int(label) >= len(names):
                problems.append(f"{path}:{number}: class {label} should be in 0..{len(names) - 1} ({class_file.name}).")
            else:
                videos.append(ListedVideo(clip, int(label), split))
    _check(problems)
    return Listing(tuple(videos), tuple(names))


# -- Kinetics-400 -----------------------------------------------------------------------------------------------------


def read_kinetics400(folder: Path) -> Listing:
    """``train.csv``, ``validate.csv`` (or ``val.csv``), ``test.csv`` with a header; classes sorted by name.

    The clip of a row is named ``<youtube_id>_<time_start>_<time_end>`` with six digits for the seconds.
    """
    problems: list[str] = []
    rows: list[tuple[Path, int, dict[str, str], str]] = []
    for split, names in (("train", ("train.csv",)), ("val", ("validate.csv", "val.csv")), ("test", ("test.csv",))):
        path = _find_optional(folder, *names) if split == "test" else _find(folder, *names)
        if path is not None:
            rows += [(path, line, row, split) for line, row in _kinetics_rows(path, split, problems)]
    class_names = sorted({row["label"] for _, _, row, split in rows if split == "train"})
    labels = {name: label for label, name in enumerate(class_names)}
    videos = []
    for path, line, row, split in rows:
        if row["label"] and row["label"] not in labels:
            problems.append(f"{path}:{line}: class {row['label']!r} is not in train.csv.")
        key = f"{row['youtube_id']}_{row['time_start']}_{row['time_end']}"
        videos.append(ListedVideo(key, labels.get(row["label"]), split, alias=row["youtube_id"]))
    _check(problems)
    return Listing(tuple(videos), tuple(class_names))


def _kinetics_rows(path: Path, split: str, problems: list[str]) -> Iterator[tuple[int, dict[str, str]]]:
    """Line numbers and rows of one file: label (empty in the test split), youtube_id, time_start and time_end."""
    header, rows = read_csv(path, ("youtube_id", "time_start", "time_end", *(("label",) if split != "test" else ())))
    for line, fields in rows:
        row = {"label": ""} | dict(zip(header, fields, strict=False))
        try:
            row |= {name: f"{int(float(row[name])):06d}" for name in ("time_start", "time_end")}
        except (KeyError, ValueError, OverflowError):
            row["youtube_id"] = ""
        if not row["youtube_id"]:
            problems.append(f"{path}:{line}: should be 'label,youtube_id,time_start,time_end,split'.")
        elif not row["label"] and split != "test":
            problems.append(f"{path}:{line}: no label for {row['youtube_id']}.")
        else:
            yield line, row


# -- UCF-101 and HMDB-51 ----------------------------------------------------------------------------------------------


def read_ucf101(folder: Path, split: str = "1") -> Listing:
    """``classInd.txt``, ``trainlist0N.txt``, ``testlist0N.txt``; the test list is the split ``val``."""
    problems: list[str] = []
    class_file = _find(folder, "classInd.txt")
    names: list[str] = []
    for number, line in _lines(class_file):
        fields = line.split()
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            problems.append(f"{class_file}:{number}: {line!r} should be '{len(names) + 1} ClassName'.")
        names.append(fields[-1])
    _check(problems)
    videos = []
    for part, stem in (("train", "trainlist"), ("val", "testlist")):
        path = _find(folder, f"{stem}0{split}.txt")
        for number, line in _lines(path):
            video, *rest = line.split()
            name, slash, file = video.partition("/")
            if not slash or not file.endswith(".avi") or len(rest) > 1:
                problems.append(f"{path}:{number}: {line!r} should be 'ClassName/video.avi' and the class number.")
            elif name not in names:
                problems.append(f"{path}:{number}: {_unknown(name, class_file)}")
            elif rest and rest[0] != str(names.index(name) + 1):
                expected = names.index(name) + 1
                problems.append(
                    f"{path}:{number}: class number {rest[0]}, but {name} is {expected} in {class_file.name}."
                )
            else:
                key = video.removesuffix(".avi")
                videos.append(ListedVideo(key, names.index(name), part, alias=file.removesuffix(".avi")))
    _check(problems)
    return Listing(tuple(videos), tuple(names))


def read_hmdb51(folder: Path, split: str = "1") -> Listing:
    """``<class>_test_splitN.txt`` with 1 (train), 2 (test, here ``val``) or 0 (unused) after each file name."""
    ending = f"_test_split{split}.txt"
    folder = next(
        (place for place in (folder, folder / "testTrainMulti_7030_splits") if any(place.glob("*" + ending))), folder
    )
    paths = {path.name.removesuffix(ending): path for path in sorted(folder.glob("*" + ending))}
    if not paths:
        raise DatasetError(f"no *{ending} in {folder}: set --annotations to the folder testTrainMulti_7030_splits.")
    problems: list[str] = []
    videos = []
    for label, (name, path) in enumerate(paths.items()):
        for number, line in _lines(path):
            file, _, use = line.rpartition(" ")
            if not file.strip().endswith(".avi") or use not in ("0", "1", "2"):
                problems.append(f"{path}:{number}: {line!r} should be 'video.avi' and 0, 1 or 2.")
            elif use != "0":
                stem = file.strip().removesuffix(".avi")
                videos.append(ListedVideo(f"{name}/{stem}", label, "train" if use == "1" else "val", alias=stem))
    _check(problems)
    return Listing(tuple(videos), tuple(paths))


# -- lists of mmaction2, SlowFast and pytorchvideo --------------------------------------------------------------------


def read_lists(lists: Mapping[str, tuple[Path, str]], root: Path, class_file: Path | None = None) -> Listing:
    """Lists with lines ``path label`` or ``folder total_frames label``, separated by spaces, tabs or commas.

    Paths may hold spaces. ``total_frames`` is not used: the frames are counted. The keys of the videos are their paths.

    Args:
        lists: file by split, and the folder below the root that its paths are relative to (empty: the root).
        root: folder of the videos; absolute paths must lie below it.
        class_file: class names, one per line; None: the classes are named by their numbers, which must have no gaps.

    Raises:
        DatasetError: a file is missing or empty, or lines are wrong; each is named as ``file:line``.
    """
    names = None if class_file is None else read_class_names(class_file)
    if class_file is not None and names is None:
        raise DatasetError(f"no file {class_file}: give --classes a text file with one class name per line.")
    problems: list[str] = []
    videos: list[ListedVideo] = []
    first: dict[str, tuple[int, str]] = {}  # label and place of the first line with a path
    for split, (path, folder) in lists.items():
        lines = list(_lines(path))
        if not lines:
            problems.append(f"{path}:1: lists no videos.")
        for number, line in lines:
            place = f"{path}:{number}"
            try:
                key, label = _path_and_label(line, root, folder)
            except ValueError as error:
                problems.append(f"{place}: {error}")
                continue
            other, where = first.setdefault(os.path.normpath(key), (label, place))
            if names is not None and label >= len(names):
                problems.append(f"{place}: label {label} is outside of 0..{len(names) - 1} ({class_file}).")
            elif label != other:
                problems.append(f"{place}: {key} has label {label}, {where}: {other}.")
            videos.append(ListedVideo(key, label, split))
    _check(problems)
    if names is None:
        labels = {label for label, _ in first.values()}
        if gaps := label_gaps(labels):
            raise DatasetError(f"{gaps} in the lists: give --classes a text file with one class name per line.")
        names = [str(label) for label in range(len(labels))]
    return Listing(tuple(videos), tuple(names))


def _path_and_label(line: str, root: Path, folder: str) -> tuple[str, int]:
    """Path below the root and label of a line. Raises ValueError with the text after ``file:line``."""
    fields = LIST_LINE.fullmatch(line)
    label = None if fields is None else parse_label(fields[2])
    if fields is None or label is None:
        raise ValueError(
            f"{line!r} should be 'path label' or 'folder total_frames label', with a label from 0 to {MAX_NUMBER}."
        )
    path = os.path.join(folder, fields[1])
    counted = LIST_LINE.fullmatch(fields[1])
    if counted is not None and not (root / path).exists():  # a name may end with a number, too
        path = os.path.join(folder, counted[1])
        if os.path.splitext(path)[1].lower() in VIDEO_EXTENSIONS and not (root / path).is_dir():
            raise ValueError(f"{line!r} has two numbers behind a video; give each video one label.")
    return path_below(path, os.path.abspath(root)), label


BENCHMARKS = {
    "something-v1": Benchmark(read_something_v1),
    "something-v2": Benchmark(read_something_v2),
    "jester": Benchmark(read_jester),
    "diving48": Benchmark(read_diving48, "release", ("V2", "V1")),
    "gym99": Benchmark(read_gym99, "release", ("V1.0", "V1.1")),
    "kinetics400": Benchmark(read_kinetics400),
    "ucf101": Benchmark(read_ucf101, "split", ("1", "2", "3")),
    "hmdb51": Benchmark(read_hmdb51, "split", ("1", "2", "3")),
}
"""The datasets that `python -m data.prepare` knows, by the name it takes; their facts are in `datasets.yaml`."""
