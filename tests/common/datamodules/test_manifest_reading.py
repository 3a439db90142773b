"""Manifests are read in columns: the result and the errors are those of reading row by row."""

from __future__ import annotations

import csv
import hashlib
import io
import os
import pickle
import warnings
from pathlib import Path
from random import Random
from typing import Any

import pytest

from common.datamodules import manifest as module
from common.datamodules.entries import Entries, Entry
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import COLUMNS, Manifest

PATHS = ("train/a/{}.mp4", "{}", " a/{}.mp4 ", "a//{}/", "./{}", "a/../{}", "é/{}.mp4", "{}, b", 'say "{}"')
ODD = {
    "path": ("", "../{}", "/etc/{}", "a/../../{}", "{root}/{}", "same", "./same", "a\n{}", "a\0{}", "x" * 140_000),
    "label": ("", "0", "00", "7", "-1", "one", "²", "9" * 5000, "1000000001"),
    "label_name": ("", "run", "walk", "wa\nlk", "wa\0lk", "c,d", " run "),
    "num_frames": ("0", "ten", "1_0", "1.5", " 7 ", "9" * 5000, "10000000000", "-3"),
    "fps": ("nan", "inf", "1e308", "1e-320", "0", "x", "29.97002997", "25"),
    "duration": ("nan", "-1", "1_0.5", "٣", ""),
    "split": ("", "test", "validation", "Train", " val "),
}
LINES = ("", " ", ",,,,,,", '"a', "a.mp4,0,walk", '"a.mp4",0,walk,1,2,3,train', "b.mp4,1,run,,,,val,", "a\rb", "\ufeff")


def rows(rng: Random, root: Path, faults: int) -> list[list[str]]:
    found = []
    for k in range(rng.randrange(30)):
        label = rng.randrange(2)
        path = rng.choice(PATHS if rng.random() < 0.2 else PATHS[:2]).format(k)
        numbers = [str(rng.randrange(1, 999)), rng.choice(("25.0", "29.97", "")), rng.choice(("1.5", "0.04", ""))]
        found.append([path, str(label), ("walk", "run")[label], *numbers, rng.choice(("train", "val", "test"))])
    for _ in range(faults if found else 0):
        place = rng.randrange(len(COLUMNS))
        odd = rng.choice(ODD[COLUMNS[place]])
        rng.choice(found)[place] = odd.replace("{root}", str(root)).replace("{}", str(rng.randrange(99)))
    return found


def content(rng: Random, root: Path) -> bytes:
    """A manifest; a third has no fault, and some of the others are no text."""
    faults = rng.choice((0, 1, 4))
    header, listed = list(COLUMNS), rows(rng, root, faults)
    if rng.random() < 0.3:  # columns in another order, some are left out
        kept = rng.sample(COLUMNS, rng.randrange(3 if faults else 5, 8))
        header = kept if faults else list(dict.fromkeys((*kept, "path", "label", "split")))
        listed = [[row[COLUMNS.index(name)] for name in header] for row in listed]
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=rng.choice(("\n", "\n", "\r\n")))
    writer.writerows([header, *listed])
    lines = buffer.getvalue().splitlines(keepends=True)
    for _ in range(rng.choice((0, 0, 0, 1)) if faults else 0):
        lines.insert(rng.randrange(len(lines) + 1), rng.choice(LINES) + "\n")
    data = ("\ufeff" * rng.randrange(2) + "".join(lines)).encode()
    data = data.removesuffix(b"\n") if rng.random() < 0.2 else data
    return data + b"\xff" if faults and rng.random() < 0.05 else data


def read(path: Path, root: Path, names: list[str] | None) -> Any:
    """What a manifest gives, or the error; and the warnings."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            manifest = Manifest.read(path, root, names)
            result: Any = (manifest, manifest.hash, manifest.text())
        except DatasetError as error:
            result = str(error)
    return result, [str(warning.message) for warning in caught]


def test_columns_give_what_single_rows_give(tmp_path, monkeypatch) -> None:
    rng, outcomes, path = Random(0), set[str](), tmp_path / "manifest.csv"
    quick = module._plain_blocks
    for number in range(600):
        path.write_bytes(content(rng, tmp_path))
        names = rng.choice((None, None, ["walk", "run"], ["run", "walk", "c,d"]))
        results = []
        for block, function in ((4, quick), (256, quick), (4, None), (1, None)):
            monkeypatch.setattr(module, "BLOCK", block)
            monkeypatch.setattr(module, "_plain_blocks", function or refuse)
            results.append(read(path, tmp_path, names))
        assert all(result == results[-1] for result in results), number
        result = results[-1][0]
        if isinstance(result, tuple):
            assert list(result[0].entries) == expected(path, result[0])
            assert result[1:] == written(result[0])
        outcomes.add("manifest" if isinstance(result, tuple) else result.partition(": ")[2][:12])
    assert len(outcomes) > 20  # many kinds of errors


def refuse(*_: Any) -> None:
    raise ValueError


def expected(path: Path, manifest: Manifest) -> list[Entry]:
    """The entries of a right manifest, by its definition."""
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.reader(file)
        listed = [(reader.line_num, [field.strip() for field in fields]) for fields in reader]
    (_, header), *listed = [(line, fields) for line, fields in listed if any(fields)]
    found = []
    for line, fields in listed:
        row = dict.fromkeys(COLUMNS, "") | dict(zip(header, fields, strict=True))
        name = row["label_name"]
        label = int(row["label"]) if row["label"] else manifest.class_names.index(name) if name else None
        place = os.path.relpath(row["path"], manifest.root) if row["path"].startswith("/") else row["path"]
        frames, fps, duration = (
            kind(row[key]) if row[key] else None
            for key, kind in (("num_frames", int), ("fps", float), ("duration", float))
        )
        name = "" if label is None else manifest.class_names[label]
        found.append(Entry(place, label, name, frames, fps, duration, row["split"], line))
    return found


def written(manifest: Manifest) -> tuple[str, str]:
    """Hash and text of a manifest, by their definition."""
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows([COLUMNS, *(entry[:-1] for entry in manifest.entries)])
    text = buffer.getvalue()
    return hashlib.sha256("\n".join((*manifest.class_names, "", text)).encode()).hexdigest(), text


def test_entries_are_a_sequence() -> None:
    plain = tuple(Entry(f"é\udcff/{k}", k % 3 or None, "a", k or None, None, k / 7, "val", k) for k in range(600))
    entries = Entries.of(plain)
    assert entries == plain
    assert plain == entries
    assert entries == Entries.of(iter(plain))
    assert entries != plain[:-1]
    assert hash(entries) == hash(plain)
    assert (entries[0], entries[-1], entries[300]) == (plain[0], plain[-1], plain[300])
    assert entries[5:90:7] == plain[5:90:7]
    assert tuple(reversed(entries)) == plain[::-1]
    assert plain[7] in entries
    assert entries.index(plain[7]) == 7
    assert pickle.loads(pickle.dumps(entries)) == plain
    assert Entries.of(()) == ()
    with pytest.raises(IndexError):
        entries[600]


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").is_file(), reason="the memory of a process is read from /proc")
def test_a_forked_process_shares_entries_and_items() -> None:
    entries = Entries.of(
        Entry(f"train/class/video_{k:07d}.mp4", 0, "a", k, 25.0, k / 25, "train", k) for k in range(200_000)
    )
    manifest = Manifest(Path("videos"), entries, ("a",), Path("manifest.csv"), len(entries))
    items = manifest.items()
    assert items[3] == list(items[:9])[3]
    here, there = os.pipe()
    if not (child := os.fork()):
        before = private_kilobytes()
        for k in range(0, 200_000, 10):
            entries[k], items[k]
        os.write(there, str(private_kilobytes() - before).encode())
        os._exit(0)
    os.waitpid(child, 0)
    assert int(os.read(here, 99)) < 8_000  # as objects of Python: more than 20,000
    for end in (here, there):
        os.close(end)


def private_kilobytes() -> int:
    lines = Path("/proc/self/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private"))
