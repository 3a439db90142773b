"""Manifests from annotation files in the official formats, beside tiny real media."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datamodules.datasets import read_datasets
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import Manifest
from data.annotations import BENCHMARKS
from data.prepare import main
from tests.media import write_video

HAND = "Moving something up"
HOLD = "Holding something next to something"


@dataclass
class Case:
    """A data set in a folder: its command-line name, and what the manifest must say."""

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


CASES = [
    something_v1,
    something_v2,
    something_v2_new,
    jester,
    jester_new,
    diving48,
    kinetics400,
    ucf101,
    hmdb51,
]


class Workplace:
    """Folders of one test and the command."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.videos, self.notes, self.out = folder / "videos", folder / "notes", folder / "out" / "manifest.csv"
        self.capsys = capsys

    def make(self, build: Callable[[Path, Path], Case]) -> Case:
        self.videos.mkdir()
        self.notes.mkdir()
        return build(self.videos, self.notes)

    def run(self, case: Case, *options: str) -> tuple[int, str]:
        """Exit status and what was printed."""
        places = ["--root", str(self.videos), "--annotations", str(self.notes), "--out", str(self.out)]
        status = main([case.name, *places, "--workers", "0", *case.options, *options])
        return status, self.capsys.readouterr().err

    def rows(self) -> list[dict[str, str]]:
        with open(self.out, newline="") as file:
            return list(csv.DictReader(file))

    def report(self) -> list[list[str]]:
        with open(self.out.with_suffix(".report.csv"), newline="") as file:
            return list(csv.reader(file))


@pytest.fixture
def place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Workplace:
    return Workplace(tmp_path, capsys)


@pytest.mark.parametrize("build", CASES)
def test_manifest_of_each_data_set(place: Workplace, build: Callable[[Path, Path], Case]) -> None:
    case = place.make(build)
    status, printed = place.run(case)
    assert status == 0, printed
    rows = place.rows()
    assert {(row["path"], row["label"], row["split"]) for row in rows} == case.rows
    assert len(rows) == len(case.rows)
    assert (place.out.parent / "classes.txt").read_text().splitlines() == case.classes
    frames, fps = case.numbers
    for row in rows:
        assert row["label_name"] == (case.classes[int(row["label"])] if row["label"] else "")
        assert (int(row["num_frames"]), float(row["fps"])) == (frames, fps)
        assert float(row["duration"]) == pytest.approx(frames / fps, abs=0.01)
    assert f"{len(rows)} of {len(rows)} videos" in printed
    assert f"{read_datasets()[case.name]['counts']['train']:,}" in printed
    assert place.report() == [["video", "split", "problem"]]
    manifest = Manifest.read(place.out, place.videos)
    assert manifest.present()[1] == []
    assert list(manifest.class_names) == case.classes


def test_a_broken_and_a_missing_video_are_named(place: Workplace) -> None:
    case = place.make(kinetics400)
    (place.videos / "val/testifying/--GkrdYZ9Tc_000000_000010.mp4").write_bytes(b"no video at all")
    (place.videos / "train/petting_animal/-3B32lodo2M_000000_000010.mkv").unlink()
    status, printed = place.run(case)
    assert status == 1
    assert "2 of 4 videos can be used" in printed
    assert "--allow-missing" in printed
    assert not place.out.exists()
    head, gone, broken = place.report()
    assert head == ["video", "split", "problem"]
    assert gone == ["-3B32lodo2M_000000_000010", "train", "missing"]
    assert broken[:2] == ["val/testifying/--GkrdYZ9Tc_000000_000010.mp4", "val"]
    assert "not a readable video" in broken[2]

    status, printed = place.run(case, "--allow-missing")
    assert status == 0
    assert "2 of 4 videos" in printed
    assert "classes without a training video: petting animal (not cat)" in printed
    manifest = Manifest.read(place.out, place.videos)
    assert len(manifest.class_names) == 2  # labels do not move
    present, missing = manifest.present()  # the missing one is counted, the broken one cannot be trained with
    assert present.counts() == "2 of 3 videos"
    assert [entry.path for entry in missing] == ["-3B32lodo2M_000000_000010"]
    assert missing[0].num_frames is None


def test_an_empty_or_holed_frame_folder_is_a_problem(place: Workplace) -> None:
    case = place.make(jester)
    (place.videos / "34870" / "00003.jpg").unlink()
    for file in (place.videos / "9223").iterdir():
        file.unlink()
    status, printed = place.run(case)
    assert status == 1
    assert "1 of 3 videos" in printed
    assert "00003.jpg is missing" in printed
    assert "holds no jpg or png frames" in printed


def test_no_probe_leaves_the_numbers_empty_but_still_looks_for_the_files(place: Workplace) -> None:
    case = place.make(ucf101)
    path = place.videos / "UCF-101/ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01.avi"
    path.write_bytes(b"")
    status, _ = place.run(case, "--no-probe")
    assert status == 0
    assert all(row["num_frames"] == row["fps"] == row["duration"] == "" for row in place.rows())
    path.unlink()
    assert place.run(case, "--no-probe", "--force")[0] == 1
    assert place.report()[1] == ["ApplyEyeMakeup/v_ApplyEyeMakeup_g01_c01", "val", "missing"]


def test_only_some_splits(place: Workplace) -> None:
    """Few have the test videos of Kinetics; without --only they would all be missing."""
    case = place.make(kinetics400)
    (place.videos / "test/_dbcJuKJQNs_000104_000114.mp4").unlink()
    assert place.run(case)[0] == 1
    status, printed = place.run(case, "--only", "train", "val")
    assert status == 0
    assert "3 of 3 videos" in printed
    assert {row["split"] for row in place.rows()} == {"train", "val"}


def test_only_a_split_that_the_annotations_lack(place: Workplace) -> None:
    status, printed = place.run(place.make(jester), "--only", "test")
    assert status == 1
    assert "list no videos of test" in printed


def test_nothing_at_all_is_refused_even_with_allow_missing(place: Workplace) -> None:
    case = place.make(diving48)
    for path in place.videos.rglob("*.mp4"):
        path.unlink()
    status, printed = place.run(case, "--allow-missing")
    assert status == 1
    assert "0 of 3 videos" in printed
    assert not place.out.exists()


def test_processes_give_what_one_process_gives(place: Workplace) -> None:
    case = place.make(ucf101)
    assert place.run(case)[0] == 0
    before = place.out.read_bytes()
    assert place.run(case, "--force", "--workers", "2")[0] == 0
    assert place.out.read_bytes() == before


def test_existing_manifest_is_kept_without_force(place: Workplace) -> None:
    case = place.make(jester)
    place.out.parent.mkdir()
    place.out.write_text("mine")
    status, printed = place.run(case)
    assert (status, place.out.read_text()) == (1, "mine")
    assert "--force" in printed
    assert place.run(case, "--force")[0] == 0
    assert len(place.rows()) == 3


def test_class_list_of_another_data_set_is_kept(place: Workplace) -> None:
    case = place.make(jester)
    place.out.parent.mkdir()
    (place.out.parent / "classes.txt").write_text("other\n")
    status, printed = place.run(case)
    assert status == 1
    assert "folder of its own" in printed
    assert (place.out.parent / "classes.txt").read_text() == "other\n"
    assert not place.out.exists()


def test_splits_of_one_data_set_share_a_folder(place: Workplace) -> None:
    case = place.make(ucf101)
    assert place.run(case)[0] == 0
    for stem in ("trainlist", "testlist"):
        (place.notes / f"{stem}03.txt").write_bytes((place.notes / f"{stem}02.txt").read_bytes())
    place.out = place.out.with_name("split3.csv")
    case.options = ["--split", "3"]
    assert place.run(case)[0] == 0
    assert place.out.with_name("split3.report.csv").exists()


def test_a_video_that_is_there_twice_is_refused(place: Workplace) -> None:
    case = place.make(diving48)
    video(place.videos / "copy" / "_8Vy3dlHg2w_00000.webm")
    status, printed = place.run(case)
    assert status == 1
    assert "copy/_8Vy3dlHg2w_00000.webm and rgb/_8Vy3dlHg2w_00000.mp4" in printed


def test_first_release_of_diving48(place: Workplace) -> None:
    case = place.make(diving48)
    status, printed = place.run(case, "--release", "V1")
    assert status == 1
    assert "no Diving48_train.json in" in printed
    for stem in ("train", "test"):
        (place.notes / f"Diving48_V2_{stem}.json").rename(place.notes / f"Diving48_{stem}.json")
    assert place.run(case, "--release", "V1")[0] == 0


def test_frame_folders_of_a_data_set_of_files(place: Workplace) -> None:
    """Extracted frames are found like files; their rate is not known."""
    case = place.make(ucf101)
    for path in list(place.videos.rglob("*.avi")):
        path.unlink()
        write_frames(path.with_suffix(""))
    status, printed = place.run(case)
    assert status == 0, printed
    assert {row["path"] for row in place.rows()} == {path.removesuffix(".avi") for path, *_ in case.rows}
    assert {(row["num_frames"], row["fps"], row["duration"]) for row in place.rows()} == {("6", "", "")}


def test_files_in_one_flat_folder(place: Workplace) -> None:
    case = place.make(ucf101)
    for path in list(place.videos.rglob("*.avi")):
        path.rename(place.videos / path.name)
    status, printed = place.run(case)
    assert status == 0, printed
    assert {row["path"] for row in place.rows()} == {Path(path).name for path, *_ in case.rows}


def test_kinetics_clips_named_by_their_id_and_a_header_with_blanks(place: Workplace) -> None:
    case = place.make(kinetics400)
    for path in list(place.videos.rglob("*_0*")):
        path.rename(path.with_name(path.stem[: -len("_000084_000094")] + path.suffix))
    notes = place.notes / "train.csv"
    notes.write_text(notes.read_text().replace("label,youtube_id", "label, youtube_id "))
    status, printed = place.run(case)
    assert status == 0, printed
    assert len(place.rows()) == 4
    (place.videos / "test/_dbcJuKJQNs.mp4").unlink()
    status, printed = place.run(case, "--force")
    assert status == 1
    assert "named _dbcJuKJQNs_000104_000114 (or _dbcJuKJQNs)" in printed


def test_a_folder_named_like_a_video_may_hold_it(place: Workplace) -> None:
    case = place.make(diving48)
    path = place.videos / "rgb/_8Vy3dlHg2w_00000.mp4"
    path.with_suffix("").mkdir()
    path.rename(path.with_suffix("") / path.name)
    (place.videos / "loop").symlink_to(place.videos)
    assert place.run(case)[0] == 0
    assert "rgb/_8Vy3dlHg2w_00000/_8Vy3dlHg2w_00000.mp4" in {row["path"] for row in place.rows()}


@pytest.mark.parametrize("missing", ["videos", "notes"])
def test_missing_folders(place: Workplace, missing: str) -> None:
    case = place.make(jester)
    setattr(place, missing, Path("nowhere"))
    status, printed = place.run(case)
    assert status == 1
    assert "no folder nowhere" in printed
    assert {"videos": "--root", "notes": "--annotations"}[missing] in printed


Breakage = tuple[Callable[[Path, Path], Case], str, str, str, str]
BROKEN: list[Breakage] = [
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


@pytest.mark.parametrize(("build", "file", "old", "new", "message"), BROKEN)
def test_broken_annotations_name_file_and_line(
    place: Workplace, build: Callable[[Path, Path], Case], file: str, old: str, new: str, message: str
) -> None:
    case = place.make(build)
    path = place.notes / file
    content = path.read_text()
    assert old in content
    path.write_text(content.replace(old, new, 1) if old != "]" else content[:-1])
    status, printed = place.run(case)
    assert status == 1
    assert message in printed
    assert path.name in printed
    assert not place.out.exists()


def test_annotations_that_are_not_text(place: Workplace) -> None:
    case = place.make(jester)
    path = place.notes / "jester-v1-train.csv"
    path.write_bytes(b"\xff\xfe1")
    status, printed = place.run(case)
    assert status == 1
    assert f"{path}: not a text file in UTF-8" in printed


def test_many_wrong_lines_are_counted(tmp_path: Path) -> None:
    text(tmp_path, labels_csv="Swiping Left\n", train_csv="1;Waving\n" * 30, validation_csv="2;Swiping Left\n")
    with pytest.raises(DatasetError, match=r"and 20 more$"):
        BENCHMARKS["jester"].read(tmp_path)


@pytest.mark.parametrize("name", BENCHMARKS)
def test_empty_annotation_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(DatasetError, match="set --annotations to the folder"):
        BENCHMARKS[name].read(tmp_path)


def test_interruption_writes_no_manifest(place: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    case = place.make(jester)

    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("data.prepare.probe_video", interrupted)
    status, printed = place.run(case)
    assert (status, place.out.exists()) == (130, False)
    assert "interrupted" in printed
