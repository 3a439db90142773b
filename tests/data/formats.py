"""Tiny copies of the benchmarks: a few real videos, and the annotation files in the official format.

A function named after a dataset, with underscores for hyphens, writes it: `something_v1(videos, notes)`, given two
empty folders, writes `something-v1` there and returns what the manifest must say. More functions that return a `Case`
write other releases. All are found by listing. `WRONG_LINES` has the mistakes in annotation files that readers report.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from common.datamodules.manifest import SPLITS
from tests.media import write_video

HAND = "Moving something up"
HOLD = "Holding something next to something"


@dataclass
class Case:
    """A dataset in a folder: its command-line name and options, and what the manifest must say."""

    name: str
    options: list[str]
    classes: list[str]
    rows: set[tuple[str, str, str]]
    """path, label (empty without one), split"""
    numbers: tuple[int, float] = (6, 25.0)


def write_frames(folder: Path, count: int = 6) -> None:
    folder.mkdir(parents=True)
    for number in range(1, count + 1):
        Image.fromarray(np.full((24, 32, 3), 20 * number, np.uint8)).save(folder / f"{number:05d}.jpg")


def text(folder: Path, **files: str) -> None:
    """Write files; in their names a double underscore stands for a hyphen, the last underscore for the dot."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in files.items():
        stem, _, extension = name.rpartition("_")
        (folder / f"{stem.replace('__', '-')}.{extension}").write_text(content, encoding="utf-8")


def video(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    codec = {".webm": "libvpx-vp9", ".avi": "mpeg4"}.get(path.suffix, "libx264")
    write_video(path, num_frames=6, width=32, height=32, codec=codec)


def something_v1(videos: Path, notes: Path) -> Case:
    text(
        notes,
        something__something__v1__labels_csv=f"{HOLD}\n{HAND}\n",
        something__something__v1__train_csv=f"1;{HAND}\n20;{HOLD}\n",
        something__something__v1__validation_csv=f"3;{HOLD}\n",
        something__something__v1__test_csv="4\n",
    )
    for number in (1, 20, 3, 4):
        write_frames(videos / "20bn-something-something-v1" / str(number))
    place = "20bn-something-something-v1"
    rows = {(f"{place}/1", "1", "train"), (f"{place}/20", "0", "train"), (f"{place}/3", "0", "val")}
    return Case("something-v1", [], [HOLD, HAND], rows | {(f"{place}/4", "", "test")}, (6, 12.0))


def jester(videos: Path, notes: Path) -> Case:
    text(
        notes,
        jester__v1__labels_csv="Swiping Left\nSwiping Right\n",
        jester__v1__train_csv="34870;Swiping Right\n56557;Swiping Left\n",
        jester__v1__validation_csv="9223;Swiping Left\n",
    )
    for number in (34870, 56557, 9223):
        write_frames(videos / str(number))
    rows = {("34870", "1", "train"), ("56557", "0", "train"), ("9223", "0", "val")}
    return Case("jester", [], ["Swiping Left", "Swiping Right"], rows, (6, 12.0))


def jester_new(videos: Path, notes: Path) -> Case:
    """The newer release: a folder ``labels`` with short names and the answers of the test."""
    text(
        notes / "labels",
        labels_csv="Swiping Left\nSwiping Right\n",
        train_csv="1;Swiping Right\n2;Swiping Left\n",
        validation_csv="3;Swiping Left\n",
        test_csv="4\n5\n",
    )
    text(notes / "labels", test__answers_csv="4;Swiping Right\n5;Swiping Left\n")
    for number in range(1, 6):
        write_frames(videos / "20bn-jester-v1" / str(number))
    labels = {1: ("1", "train"), 2: ("0", "train"), 3: ("0", "val"), 4: ("1", "test"), 5: ("0", "test")}
    rows = {(f"20bn-jester-v1/{number}", *rest) for number, rest in labels.items()}
    return Case("jester", [], ["Swiping Left", "Swiping Right"], rows, (6, 12.0))


def v2_entry(number: int, template: str) -> dict[str, object]:
    return {"id": str(number), "label": "a sentence", "template": template, "placeholders": ["cup"]}


def something_v2(videos: Path, notes: Path) -> Case:
    up, hold = "Moving [something] up", "Holding [something] next to [something]"
    feather = "[Something] falling like a feather or paper"
    text(
        notes,
        something__something__v2__labels_json=json.dumps(
            {HAND: "1", HOLD: "0", "Something falling like a feather or paper": "2"}
        ),
        something__something__v2__train_json=json.dumps([v2_entry(78687, up), v2_entry(2, hold), v2_entry(7, feather)]),
        something__something__v2__validation_json=json.dumps([v2_entry(3, up)]),
        something__something__v2__test_json=json.dumps([{"id": "1420"}]),
    )
    for number in (78687, 2, 7, 3, 1420):
        video(videos / "20bn-something-something-v2" / f"{number}.webm")
    place = "20bn-something-something-v2"
    rows = {
        (f"{place}/78687.webm", "1", "train"),
        (f"{place}/2.webm", "0", "train"),
        (f"{place}/7.webm", "2", "train"),
        (f"{place}/3.webm", "1", "val"),
        (f"{place}/1420.webm", "", "test"),
    }
    return Case("something-v2", [], [HOLD, HAND, "Something falling like a feather or paper"], rows)


def something_v2_new(videos: Path, notes: Path) -> Case:
    """The newer release: ``labels/train.json`` and so on, and the answers of the test."""
    text(
        notes / "labels",
        labels_json=json.dumps({HOLD: "0", HAND: "1"}),
        train_json=json.dumps([v2_entry(1, "Moving [something] up"), v2_entry(2, HOLD)]),
        validation_json=json.dumps([v2_entry(3, HOLD)]),
        test_json=json.dumps([{"id": "4"}]),
        test__answers_csv=f"4;{HAND}\n",
    )
    for number in range(1, 5):
        video(videos / f"{number}.webm")
    rows = {("1.webm", "1", "train"), ("2.webm", "0", "train"), ("3.webm", "0", "val"), ("4.webm", "1", "test")}
    return Case("something-v2", [], [HOLD, HAND], rows)


def diving48(videos: Path, notes: Path) -> Case:
    def entry(name: str, label: int) -> dict[str, object]:
        return {"vid_name": name, "label": label, "start_frame": 0, "end_frame": 6}

    text(
        notes,
        Diving48_vocab_json=json.dumps([["Back", "15som", "05Twis", "FREE"], ["Forward", "25som", "NoTwis", "PIKE"]]),
        Diving48_V2_train_json=json.dumps([entry("-mmq0PT-u8k_00155", 0), entry("e8ZGdVQMpsQ_00001", 1)]),
        Diving48_V2_test_json=json.dumps([entry("_8Vy3dlHg2w_00000", 1)]),
    )
    for name in ("-mmq0PT-u8k_00155", "e8ZGdVQMpsQ_00001", "_8Vy3dlHg2w_00000"):
        video(videos / "rgb" / f"{name}.mp4")
    rows = {("rgb/-mmq0PT-u8k_00155.mp4", "0", "train"), ("rgb/e8ZGdVQMpsQ_00001.mp4", "1", "train")}
    classes = ["Back 15som 05Twis FREE", "Forward 25som NoTwis PIKE"]
    return Case("diving48", [], classes, rows | {("rgb/_8Vy3dlHg2w_00000.mp4", "1", "val")})


def gym99(videos: Path, notes: Path) -> Case:
    """Two classes of different sets share a name."""
    clips = {
        "0LtLS9wROrk_E_002407_002435_A_0003_0005": ("0", "train"),
        "-PTsrTKYnGs_E_006244_006252_A_0000_0007": ("1", "train"),
        "A0xAXXysHUo_E_002184_002237_A_0035_0036": ("1", "val"),
    }
    lists = {split: [f"{clip} {label}\n" for clip, (label, use) in clips.items() if use == split] for split in SPLITS}
    (notes / "gym99_categories.txt").write_text(
        "Clabel:   0; set: 33; Glabel: 290; (BB) salto backward tucked\n"
        "Clabel:   1; set: 35; Glabel: 359; (BB) salto backward tucked\n"
    )
    (notes / "gym99_train_element_v1.0.txt").write_text("".join(lists["train"]))
    (notes / "gym99_val_element.txt").write_text("".join(lists["val"]))
    for clip in clips:
        video(videos / "subactions" / f"{clip}.mp4")
    classes = ["(BB) salto backward tucked (set 33)", "(BB) salto backward tucked (set 35)"]
    return Case("gym99", [], classes, {(f"subactions/{clip}.mp4", *about) for clip, about in clips.items()})


def kinetics400(videos: Path, notes: Path) -> Case:
    head = "label,youtube_id,time_start,time_end,split"
    text(
        notes,
        train_csv=f"{head},is_cc\ntestifying,---QUuC4vJs,84,94,train,0\n"
        '"petting animal (not cat)",-3B32lodo2M,0,10,train,0\n',
        validate_csv=f"{head}\ntestifying,--GkrdYZ9Tc,0,10,validate\n",
        test_csv="youtube_id,time_start,time_end,split\n_dbcJuKJQNs,104,114,test\n",
    )
    rows = {
        ("train/testifying/---QUuC4vJs_000084_000094.mp4", "1", "train"),
        ("train/petting_animal/-3B32lodo2M_000000_000010.mkv", "0", "train"),
        ("val/testifying/--GkrdYZ9Tc_000000_000010.mp4", "1", "val"),
        ("test/_dbcJuKJQNs_000104_000114.mp4", "", "test"),
    }
    for path, *_ in rows:
        video(videos / path)
    return Case("kinetics400", [], ["petting animal (not cat)", "testifying"], rows)


def ucf101(videos: Path, notes: Path) -> Case:
    text(
        notes,
        classInd_txt="1 ApplyEyeMakeup\r\n2 HandstandPushups\r\n",
        trainlist02_txt="ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi 1\r\n"
        "HandstandPushups/v_HandStandPushups_g08_c01.avi 2\r\n",
        testlist02_txt="ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi\r\n",
    )
    rows = {
        ("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g08_c01.avi", "0", "train"),
        ("UCF-101/HandstandPushups/v_HandStandPushups_g08_c01.avi", "1", "train"),
        ("UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi", "0", "val"),
    }
    for path, *_ in rows:
        video(videos / path)
    video(videos / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g25_c09.avi")  # in no list
    return Case("ucf101", ["--split", "2"], ["ApplyEyeMakeup", "HandstandPushups"], rows)


def hmdb51(videos: Path, notes: Path) -> Case:
    """Two classes may have files of one name; file names may hold brackets and number signs."""
    notes = notes / "testTrainMulti_7030_splits"
    notes.mkdir(parents=True)
    odd = "#122_Cleaning_(Beach)[1]_f_nm_np1_fr_bad_0"
    (notes / "brush_hair_test_split3.txt").write_text(f"a_0.avi 1 \n{odd}.avi 2 \nb_1.avi 0 \n")
    (notes / "cartwheel_test_split3.txt").write_text("a_0.avi 1 \n")
    (notes / "cartwheel_test_split1.txt").write_text("other_0.avi 1 \n")
    for path in ("brush_hair/a_0.avi", f"brush_hair/{odd}.avi", "cartwheel/a_0.avi"):
        video(videos / path)
    rows = {
        ("brush_hair/a_0.avi", "0", "train"),
        (f"brush_hair/{odd}.avi", "0", "val"),
        ("cartwheel/a_0.avi", "1", "train"),
    }
    return Case("hmdb51", ["--split", "3"], ["brush_hair", "cartwheel"], rows)


Writer = Callable[[Path, Path], Case]
WRITERS: list[Writer] = [
    value for value in list(globals().values()) if getattr(value, "__annotations__", {}).get("return") == "Case"
]
"""Every function of this file that writes a dataset."""

#: writer, file, text, text in its place, what the error must say
WRONG_LINES: list[tuple[Writer, str, str, str, str]] = [
    (something_v1, "something-something-v1-train.csv", "20;", "20,", ":2: '20,Holding"),
    (something_v1, "something-something-v1-train.csv", "1;M", "x1;M", ":1: 'x1;Moving"),
    (
        something_v1,
        "something-something-v1-validation.csv",
        HOLD,
        "Holding it",
        ":1: class 'Holding it' is not",
    ),
    (something_v1, "something-something-v1-test.csv", "4", "4\nfour", ":2: 'four' should be the id"),
    (something_v1, "something-something-v1-labels.csv", HAND, f"{HAND}\n{HAND}", ":1: 1 class names are listed more"),
    (jester_new, "labels/test-answers.csv", "Swiping Left", "Waving", ":2: class 'Waving' is not in labels.csv"),
    (something_v2, "something-something-v2-labels.json", '"1"', '"one"', "index is 'one'"),
    (something_v2, "something-something-v2-labels.json", '"1"', '"5"', "indices of the 3 classes should be 0..2"),
    (something_v2, "something-something-v2-train.json", "]", "", ":1: not valid JSON"),
    (something_v2, "something-something-v2-train.json", "[", "[" * 100_000, ": not valid JSON"),
    (something_v2, "something-something-v2-train.json", '"id": "2"', '"ident": "2"', ":entry 2: lacks an 'id'"),
    (something_v2, "something-something-v2-train.json", "feather", "stone", ":entry 3: (id 7) class 'Something fall"),
    (something_v2, "something-something-v2-validation.json", "template", "tmpl", ":entry 1: (id 3) lacks a 'template'"),
    (something_v2, "something-something-v2-test.json", "id", "number", ":entry 1: lacks an 'id'"),
    (something_v2, "something-something-v2-test.json", '[{"id": "1420"}]', "{}", "holds a JSON dict, expected a list"),
    (
        diving48,
        "Diving48_V2_train.json",
        '"label": 1',
        '"label": 2',
        ":entry 2: (e8ZGdVQMpsQ_00001) label 2",
    ),
    (diving48, "Diving48_V2_train.json", '"label": 1', '"label": true', "label True should be in 0..1"),
    (diving48, "Diving48_V2_test.json", "vid_name", "name", ":entry 1: lacks a 'vid_name'"),
    (gym99, "gym99_categories.txt", "Clabel:   1", "Clabel:   2", ":2: 'Clabel:   2; set: 35; Glabel: 359"),
    (gym99, "gym99_train_element_v1.0.txt", "0005 0", "0005", ":1: '0LtLS9wROrk_E_002407_002435_A_0003_0005' should"),
    (gym99, "gym99_val_element.txt", "0036 1", "0036 2", ":1: class 2 should be in 0..1 (gym99_categories.txt)"),
    (kinetics400, "train.csv", "youtube_id", "id", ":1: missing columns: youtube_id"),
    (kinetics400, "train.csv", "84,94", "start,94", ":2: should be 'label,youtube_id"),
    (kinetics400, "train.csv", "testifying,---", ",---", ":2: no label for ---QUuC4vJs"),
    (kinetics400, "validate.csv", "testifying", "testing", ":2: class 'testing' is not in train.csv"),
    (kinetics400, "validate.csv", ",0,10,validate", "", ":2: should be 'label,youtube_id"),
    (ucf101, "classInd.txt", "2 H", "3 H", ":2: '3 HandstandPushups' should be '2 ClassName'"),
    (ucf101, "trainlist02.txt", "avi 2", "avi 1", ":2: class number 1, but HandstandPushups is 2"),
    (ucf101, "trainlist02.txt", "ApplyEyeMakeup/", "", ":1: 'v_ApplyEyeMakeup_g08_c01.avi 1' should be"),
    (ucf101, "testlist02.txt", "ApplyEyeMakeup/", "Sitting/", ":1: class 'Sitting' is not in classInd.txt"),
    (hmdb51, "testTrainMulti_7030_splits/brush_hair_test_split3.txt", "avi 2", "avi 4", ":2: '#122"),
    (hmdb51, "testTrainMulti_7030_splits/cartwheel_test_split3.txt", ".avi", ".mp4", ":1: 'a_0.mp4 1' should be"),
]


def writer_of(dataset: str) -> Writer:
    """The writer that is named after a dataset."""
    name = dataset.replace("-", "_")
    found = [writer for writer in WRITERS if getattr(writer, "__name__", "") == name]
    assert found, (
        f"tests/data/formats.py has no writer of {dataset}: add {name}(videos: Path, notes: Path) -> Case, which "
        "writes a few videos and their annotations in the official format."
    )
    return found[0]
