"""Manifests from annotation files in the official formats, beside tiny real media."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from common.datamodules.datasets import read_datasets
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import Manifest
from data.annotations import BENCHMARKS
from data.prepare import main
from tests.data import formats
from tests.data.formats import Case, Writer, diving48, jester, kinetics400, text, ucf101, video, write_frames


class Workplace:
    """Folders of one test and the command."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.videos, self.notes, self.out = folder / "videos", folder / "notes", folder / "out" / "manifest.csv"
        self.capsys = capsys

    def make(self, build: Writer) -> Case:
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


@pytest.mark.parametrize("build", formats.WRITERS)
def test_manifest_of_each_data_set(place: Workplace, build: Writer) -> None:
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


@pytest.mark.slow
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


@pytest.mark.parametrize(("build", "file", "old", "new", "message"), formats.WRONG_LINES)
def test_broken_annotations_name_file_and_line(
    place: Workplace, build: Writer, file: str, old: str, new: str, message: str
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
