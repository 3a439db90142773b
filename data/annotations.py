"""Readers of the official annotation files of the benchmarks, in the formats they are distributed in.

Each reader takes the folder of annotation files and gives a `Listing`: which videos there should be, with label and
split. Nothing here looks for the videos. Lists of classes come from the official files, in the official order where
there is one (by name for Kinetics-400 and HMDB-51, which have none).
"""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

MAX_REPORTED = 10


class AnnotationError(ValueError):
    """Annotation files are missing or wrong; the message names file and line."""


@dataclass(frozen=True)
class ListedVideo:
    """A video that the annotations name.

    ``key`` is how it is found below the data root: the name of its file without extension (or of its frame folder),
    with the class folder before it where the data set counts on class folders (``class/name``).
    """

    key: str
    label: int | None
    split: str


@dataclass(frozen=True)
class Listing:
    """What the annotation files say. ``frame_fps`` is the frame rate of a data set of frame folders, else None."""

    videos: tuple[ListedVideo, ...]
    class_names: tuple[str, ...]
    frame_fps: float | None = None


@dataclass(frozen=True)
class Benchmark:
    """A data set: its reader, the videos it should have, and the options that choose among its annotation files.

    ``published``: number of classes, then of videos by split, of Table 1 of the paper of `papers.stft3d`.
    """

    title: str
    read: Callable[..., Listing]
    published: dict[str, int]
    option: str = ""
    choices: tuple[str, ...] = ()


class _Problems:
    """Collects what is wrong with a file, so that the user sees more than the first line."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def add(self, path: Path, line: int | str, text: str) -> None:
        self.lines.append(f"{path}:{line}: {text}")

    def check(self) -> None:
        if self.lines:
            rest = len(self.lines) - MAX_REPORTED
            more = f"\n... and {rest} more" if rest > 0 else ""
            raise AnnotationError("the annotations have wrong lines:\n" + "\n".join(self.lines[:MAX_REPORTED]) + more)


def _find(folder: Path, *names: str) -> Path:
    """The first of the file names that exists in the folder or in its sub-folder ``labels``."""
    path = _find_optional(folder, *names)
    if path is None:
        raise AnnotationError(
            f"no {' or '.join(names)} in {folder}: set --annotations to the folder with the official annotation files."
        )
    return path


def _find_optional(folder: Path, *names: str) -> Path | None:
    paths = [place / name for place in (folder, folder / "labels") for name in names]
    return next((path for path in paths if path.is_file()), None)


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1; tolerant of a byte-order mark and of Windows line ends."""
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}).") from None
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def _json(path: Path, kind: type) -> Any:
    try:
        content = json.loads(path.read_text(encoding="utf-8-sig"))
    except UnicodeDecodeError as error:
        raise AnnotationError(f"{path}: not a text file in UTF-8 ({error.reason} at byte {error.start}).") from None
    except json.JSONDecodeError as error:
        raise AnnotationError(f"{path}:{error.lineno}: not valid JSON: {error.msg}.") from None
    if not isinstance(content, kind):
        raise AnnotationError(f"{path}: holds a JSON {type(content).__name__}, should be a {kind.__name__}.")
    return content


def _unbracketed(name: str) -> str:
    """Class name of a template: ``Holding [something] up`` is the class ``Holding something up``."""
    return re.sub(r"[\[\]]", "", name).strip()


def _unknown(name: str, known: Path) -> str:
    return f"class {name!r} is not in {known.name}."


# -- Something-Something and Jester -----------------------------------------------------------------------------------


def _id_and_class(path: Path, labels: dict[str, int], known: Path, problems: _Problems) -> dict[str, int]:
    """Labels by video id of a file with lines ``id;class name``."""
    found = {}
    for number, line in _lines(path):
        fields = [field.strip() for field in line.split(";")]
        if len(fields) != 2 or not fields[0].isdecimal():
            problems.add(path, number, f"{line!r} should be 'id;class name'.")
        elif (name := _unbracketed(fields[1])) not in labels:
            problems.add(path, number, _unknown(name, known))
        else:
            found[fields[0]] = labels[name]
    return found


def _tests(
    ids: Sequence[str], folder: Path, labels: dict[str, int], known: Path, problems: _Problems
) -> list[ListedVideo]:
    """Test videos; the labels are in ``test-answers.csv`` of the newer releases and unknown otherwise."""
    answers = _find_optional(folder, "test-answers.csv")
    truth = {} if answers is None else _id_and_class(answers, labels, known, problems)
    return [ListedVideo(video, truth.get(video), "test") for video in ids]


def _read_semicolons(folder: Path, prefix: str) -> Listing:
    """Something-Something v1 and Jester: lines ``id;class name``, folders of jpg frames taken at 12 per second."""
    known = _find(folder, f"{prefix}-labels.csv", "labels.csv")
    names = [_unbracketed(line) for _, line in _lines(known)]
    labels = {name: label for label, name in enumerate(names)}
    problems = _Problems()
    if len(labels) != len(names):
        problems.add(known, 1, f"{len(names) - len(labels)} class names are listed more than once.")
    videos = []
    for split, stem in (("train", "train"), ("val", "validation")):
        path = _find(folder, f"{prefix}-{stem}.csv", f"{stem}.csv")
        videos += [ListedVideo(*item, split) for item in _id_and_class(path, labels, known, problems).items()]
    if tests := _find_optional(folder, f"{prefix}-test.csv", "test.csv"):
        ids = []
        for number, line in _lines(tests):
            if not line.isdecimal():
                problems.add(tests, number, f"{line!r} should be the id of a video.")
            ids.append(line)
        videos += _tests(ids, folder, labels, known, problems)
    problems.check()
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
    known = _find(folder, f"{prefix}-labels.json", "labels.json")
    problems = _Problems()
    labels: dict[str, int] = {}
    for name, label in _json(known, dict).items():
        if not str(label).isdecimal():
            problems.add(known, f"class {name!r}", f"its index is {label!r}, should be a whole number.")
        else:
            labels[_unbracketed(name)] = int(label)
    problems.check()
    if sorted(labels.values()) != list(range(len(labels))):
        raise AnnotationError(f"{known}: the indices of the {len(labels)} classes should be 0..{len(labels) - 1}.")
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
                problems.add(path, where, "has no 'id'.")
            elif split == "test":
                ids.append(str(entry["id"]))
            elif not isinstance(entry.get("template"), str):
                problems.add(path, where, f"(id {entry['id']}) has no 'template'.")
            elif (name := _unbracketed(entry["template"])) not in labels:
                problems.add(path, where, f"(id {entry['id']}) {_unknown(name, known)}")
            else:
                videos.append(ListedVideo(str(entry["id"]), labels[name], split))
        videos += _tests(ids, folder, labels, known, problems)
    problems.check()
    return Listing(tuple(videos), tuple(sorted(labels, key=labels.__getitem__)))


# -- Diving-48 --------------------------------------------------------------------------------------------------------


def read_diving48(folder: Path, release: str = "V2") -> Listing:
    """``Diving48_V2_{train,test}.json`` (or without ``_V2``) and ``Diving48_vocab.json``; the test list is ``val``.

    A class is a list of four words: take-off, somersaults, twists, position.
    """
    known = _find(folder, "Diving48_vocab.json")
    names = [" ".join(map(str, words)) if isinstance(words, list) else str(words) for words in _json(known, list)]
    problems = _Problems()
    videos = []
    for split, stem in (("train", "train"), ("val", "test")):
        path = _find(folder, f"Diving48_V2_{stem}.json" if release == "V2" else f"Diving48_{stem}.json")
        for number, entry in enumerate(_json(path, list), 1):
            where = f"entry {number}"
            if not isinstance(entry, dict) or not isinstance(entry.get("vid_name"), str):
                problems.add(path, where, "has no 'vid_name'.")
            elif type(label := entry.get("label")) is not int or not 0 <= label < len(names):
                text = f"({entry['vid_name']}) label {label!r} should be in 0..{len(names) - 1} ({known.name})."
                problems.add(path, where, text)
            else:
                videos.append(ListedVideo(entry["vid_name"], label, split))
    problems.check()
    return Listing(tuple(videos), tuple(names))


# -- Kinetics-400 -----------------------------------------------------------------------------------------------------


def read_kinetics400(folder: Path) -> Listing:
    """``train.csv``, ``validate.csv`` (or ``val.csv``), ``test.csv`` with a header; classes in order of name.

    The clip of a row is named ``<youtube_id>_<time_start>_<time_end>`` with six digits for the seconds.
    """
    problems = _Problems()
    rows = []
    for split, names in (("train", ("train.csv",)), ("val", ("validate.csv", "val.csv")), ("test", ("test.csv",))):
        path = _find_optional(folder, *names) if split == "test" else _find(folder, *names)
        if path is None:
            continue
        with open(path, encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file)
            wanted = ("youtube_id", "time_start", "time_end", *(("label",) if split != "test" else ()))
            if absent := [name for name in wanted if name not in (reader.fieldnames or ())]:
                raise AnnotationError(f"{path}:1: missing columns: {', '.join(absent)} (found: {reader.fieldnames}).")
            for row in reader:
                try:
                    times = [f"{int(float(row[name])):06d}" for name in ("time_start", "time_end")]
                except (TypeError, ValueError):
                    times = []
                if not times or not row["youtube_id"]:
                    problems.add(path, reader.line_num, "should be 'label,youtube_id,time_start,time_end,split'.")
                elif not (label := (row.get("label") or "").strip()) and split != "test":
                    problems.add(path, reader.line_num, f"no label for {row['youtube_id']}.")
                else:
                    rows.append((path, reader.line_num, "_".join([row["youtube_id"], *times]), label, split))
    class_names = sorted({label for *_, label, split in rows if split == "train"})
    index = {name: label for label, name in enumerate(class_names)}
    for path, line, _, label, _ in rows:
        if label and label not in index:
            problems.add(path, line, f"class {label!r} is not in train.csv.")
    problems.check()
    videos = (ListedVideo(key, index.get(label), split) for _, _, key, label, split in rows)
    return Listing(tuple(videos), tuple(class_names))


# -- UCF-101 and HMDB-51 ----------------------------------------------------------------------------------------------


def read_ucf101(folder: Path, split: str = "1") -> Listing:
    """``classInd.txt``, ``trainlist0N.txt``, ``testlist0N.txt``; the test list is the split ``val``."""
    problems = _Problems()
    known = _find(folder, "classInd.txt")
    names: list[str] = []
    for number, line in _lines(known):
        fields = line.split()
        if len(fields) != 2 or fields[0] != str(len(names) + 1):
            problems.add(known, number, f"{line!r} should be '{len(names) + 1} ClassName'.")
        names.append(fields[-1])
    problems.check()
    videos = []
    for part, stem in (("train", "trainlist"), ("val", "testlist")):
        path = _find(folder, f"{stem}0{split}.txt")
        for number, line in _lines(path):
            video, *rest = line.split()
            name, slash, file = video.partition("/")
            if not slash or not file.endswith(".avi") or len(rest) > 1:
                problems.add(path, number, f"{line!r} should be 'ClassName/video.avi' and the class number.")
            elif name not in names:
                problems.add(path, number, _unknown(name, known))
            elif rest and rest[0] != str(names.index(name) + 1):
                expected = names.index(name) + 1
                problems.add(path, number, f"class number {rest[0]}, but {name} is {expected} in {known.name}.")
            else:
                videos.append(ListedVideo(video.removesuffix(".avi"), names.index(name), part))
    problems.check()
    return Listing(tuple(videos), tuple(names))


def read_hmdb51(folder: Path, split: str = "1") -> Listing:
    """``<class>_test_splitN.txt`` with 1 (train), 2 (test, here ``val``) or 0 (left out) behind each file name."""
    ending = f"_test_split{split}.txt"
    folder = next(
        (place for place in (folder, folder / "testTrainMulti_7030_splits") if any(place.glob("*" + ending))), folder
    )
    paths = {path.name.removesuffix(ending): path for path in sorted(folder.glob("*" + ending))}
    if not paths:
        raise AnnotationError(f"no *{ending} in {folder}: set --annotations to the folder testTrainMulti_7030_splits.")
    problems = _Problems()
    videos = []
    for label, (name, path) in enumerate(paths.items()):
        for number, line in _lines(path):
            file, _, use = line.rpartition(" ")
            if not file.strip().endswith(".avi") or use not in ("0", "1", "2"):
                problems.add(path, number, f"{line!r} should be 'video.avi' and 0, 1 or 2.")
            elif use != "0":
                key = f"{name}/{file.strip().removesuffix('.avi')}"
                videos.append(ListedVideo(key, label, "train" if use == "1" else "val"))
    problems.check()
    return Listing(tuple(videos), tuple(paths))


BENCHMARKS = {
    "something-v1": Benchmark(
        "Something-Something v1", read_something_v1, {"classes": 174, "train": 86017, "val": 11522, "test": 10960}
    ),
    "something-v2": Benchmark(
        "Something-Something v2", read_something_v2, {"classes": 174, "train": 168913, "val": 24777, "test": 27157}
    ),
    "jester": Benchmark("Jester", read_jester, {"classes": 27, "train": 118562, "val": 14787, "test": 14743}),
    "diving48": Benchmark(
        "Diving-48", read_diving48, {"classes": 48, "train": 16067, "val": 2337}, "release", ("V2", "V1")
    ),
    "kinetics400": Benchmark(
        "Kinetics-400", read_kinetics400, {"classes": 400, "train": 246535, "val": 19907, "test": 38686}
    ),
    "ucf101": Benchmark("UCF-101", read_ucf101, {"classes": 101, "train": 9537, "val": 3783}, "split", ("1", "2", "3")),
    "hmdb51": Benchmark("HMDB-51", read_hmdb51, {"classes": 51, "train": 3570, "val": 1530}, "split", ("1", "2", "3")),
}
"""The data sets that `python -m data.prepare` knows, by the name it takes."""
