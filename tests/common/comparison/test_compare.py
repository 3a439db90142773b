"""`spectral compare` on real recipes and generated data: rows, resumption, failures, tables."""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml

from common.comparison import command, report, runs
from common.comparison.rows import StudyProgress, append_row, read_rows
from common.comparison.study import StudyError, load
from common.output_files import locked
from common.reporting.results import ReproduceError
from common.training import cli
from tests.common.comparison.test_rows import Trainings
from tests.common.comparison.test_study import write

ROOT = Path(__file__).resolve().parents[3]
RECIPE = str(ROOT / "papers/stft2d/recipes/demo.yaml")


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of demo data that the tests share."""
    return tmp_path_factory.mktemp("demo")


@pytest.fixture(autouse=True)
def work_folder(tmp_path: Path, demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").symlink_to(demo)
    monkeypatch.chdir(tmp_path)


def study_file(folder: Path, **changes: Any) -> Path:
    content = {
        "title": "Two small networks",
        "seeds": [0, 1],
        "rates": [0.001, 0.01],
        "steps": 3,
        "fitted": 0.01,
        "data": {"digits": {"demo": "digits --size 8"}},
        "methods": {
            "fixed": {"recipe": RECIPE, "title": "Fixed <b>"},
            "trainable": {"recipe": RECIPE, "options": "--model.method depthwise-separable"},
        },
        "claims": [
            {
                "id": "fewer",
                "claim": "Fixed filters need fewer parameters, and more multiply-adds.",
                "paper": "none",
                "comparisons": [
                    {"better": "trainable", "than": ["fixed"], "measure": "params"},
                    {"better": "fixed", "than": ["trainable"], "measure": "macs"},
                ],
            },
            {"id": "better", "claim": "x", "comparisons": [{"better": "fixed", "than": ["trainable"]}]},
        ],
    }
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(content | changes, sort_keys=False))
    return path


@pytest.mark.slow
def test_a_study_from_plan_to_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = study_file(tmp_path, seeds=[0])
    assert cli.main(["compare", str(path), "--dry-run"]) == 0
    planned = capsys.readouterr().out
    assert "6 trainings left" in planned
    assert "about" in planned
    assert not list(tmp_path.glob("runs/compare/*/rows.csv"))

    assert cli.main(["compare", str(path), "--jobs", "1"]) == 0
    place = next(tmp_path.glob("runs/compare/*"))
    rows = read_rows(place / "rows.csv")
    assert [row.stage for row in rows] == ["rate"] * 4 + ["score"] * 2 + ["cost"] * 2
    fitted = sorted((place / "trainings").iterdir())
    assert len(fitted) == 4, "the first seed is not trained twice"

    path = study_file(tmp_path)  # a second seed
    (tmp_path / "README.md").write_text("a\n<!-- claims: begin (by hand: no) -->\nold\n<!-- claims: end -->\nb\n")
    assert cli.main(["compare", str(path), "--jobs", "1", "--readme"]) == 0
    more = read_rows(place / "rows.csv")
    assert more[: len(rows)] == rows
    assert [(row.stage, row.seed) for row in more[len(rows) :]] == [("score", 1)] * 2
    progress = StudyProgress(load(path), more)
    for row in more:
        if row.stage == "score":
            assert row.outcomes() is not None
            assert row.outcomes().mean() == pytest.approx(row.test, abs=1e-6)  # type: ignore[union-attr]
    (outcome,) = report.outcomes(progress, progress.study.claims[0].comparisons[1])
    assert outcome.found is not None
    assert outcome.found.mean > 1
    assert report.findings(progress)[0].verdict == "holds in part"
    text = (tmp_path / "README.md").read_text()
    assert text.startswith("a\n<!-- claims: begin (by hand: no) -->\n")
    assert text.endswith("<!-- claims: end -->\nb\n")
    assert "| **holds in part** (1 of 2; 1 does not) |" in text
    page = (place / "report" / "index.html").read_text()
    assert "Fixed &lt;b&gt;" in page
    assert "Fixed <b>" not in page
    frame = command.frame(progress)
    assert len(frame) == len(more)

    # Times that are missing are measured again, also where the checkpoints are gone.
    shutil.rmtree(place / "trainings")
    lines = (place / "rows.csv").read_text().splitlines()
    (place / "rows.csv").write_text("".join(f"{line}\n" for line in lines if ",cost," not in line))
    assert cli.main(["compare", str(path), "--jobs", "1"]) == 0
    costs = [row for row in read_rows(place / "rows.csv") if row.stage == "cost"]
    assert len(costs) == 2
    assert all(row.infer_ms and row.train_ms and row.train_mb for row in costs)
    assert not (place / "timing").exists()


def test_a_training_that_fails_is_a_row_and_the_rest_goes_on(tmp_path: Path) -> None:
    path = study_file(tmp_path, seeds=[0], rates=[1e30], claims=[])
    told: list[str] = []
    progress = command.compare(path, jobs=1, tell=told.append)
    assert all(row.error for row in progress.rows)
    assert any("NaN or infinite" in line or "loss is" in line for line in told), told
    assert command.main([str(path), "--show"]) == 1
    assert [r[1] for r in csv.reader(Path("runs/compare").glob("*/rows.csv").__next__().open())][1:] == [
        "fixed",
        "trainable",
    ]


def test_an_error_that_begins_with_an_empty_line_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("\nCUDA error: out of memory\nmore")

    monkeypatch.setattr(runs, "fit", fail)
    study = load(study_file(tmp_path))
    place = runs.Place(tmp_path, tmp_path, tmp_path / "rows.csv")
    row = runs.train(study, place, StudyProgress(study, []).pending()[0])
    assert row.error == "CUDA error: out of memory"


def test_a_method_whose_start_is_gone_is_not_measured_again_and_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainings = Trainings(load(write(tmp_path)), {})
    trainings.finish()
    place = runs.Place(tmp_path, tmp_path, tmp_path / "rows.csv")
    for row in trainings.rows:
        append_row(place.rows, row)
    built = SimpleNamespace(model=SimpleNamespace(network=None, input_shape=(1,)))
    monkeypatch.setattr(runs, "_fit_without_files", lambda *_: built)
    monkeypatch.setattr(runs, "_costs", lambda networks, _: {name: {"infer_ms": 1.0} for name in networks})
    told: list[str] = []
    for _ in range(2):
        runs.measure_costs(trainings.study, place, told.append)
    measured = [(row.data, row.method) for row in read_rows(place.rows) if row.stage == "cost"]
    assert measured == [("a", "one"), ("a", "two"), ("b", "two")]
    assert "a: no times of three: the checkpoint of its training was deleted" in told


def children(pid: int) -> list[int]:
    """Processes whose parent is this one, that have not ended."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = stat.read_text().rpartition(")")[2].split()
            if int(fields[1]) == pid and fields[0] != "Z":
                found.append(int(stat.parent.name))
    return found


def ended(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    except OSError:
        return True


@pytest.mark.slow
def test_a_killed_study_continues_and_leaves_no_process(tmp_path: Path) -> None:
    path = study_file(tmp_path, seeds=[0], steps=20, rates=[0.003], claims=[])
    words = [sys.executable, "-m", "common.training.cli", "compare", str(path), "--jobs", "2"]
    process = subprocess.Popen(words, cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(ROOT)})
    rows = tmp_path / "runs" / "compare" / f"{tmp_path.name}_study" / "rows.csv"
    until = time.monotonic() + 300
    while not rows.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.05)
    workers = children(process.pid)
    process.kill()
    process.wait()
    assert len(workers) >= 2
    until = time.monotonic() + 20
    while not all(map(ended, workers)) and time.monotonic() < until:
        time.sleep(0.1)
    assert all(map(ended, workers))
    before = read_rows(rows)
    assert before
    progress = command.compare(path, jobs=1, tell=lambda line: None)
    assert progress.rows[: len(before)] == before
    assert [row.stage for row in progress.rows] == ["score", "score", "cost", "cost"]


def test_a_second_run_waits_for_the_first(tmp_path: Path) -> None:
    out = tmp_path / "study"
    out.mkdir()
    with locked(out / "running.lock", RuntimeError()), pytest.raises(StudyError, match="another run of this study"):
        command.compare(study_file(tmp_path), out=out)
    with locked(out / "running.lock", RuntimeError()):
        pass  # free again


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"score": "joy"}, "'joy' is no metric of fixed: .*top1"),
        (
            {"methods": {"x": {"recipe": RECIPE, "options": "--model.methd x"}}},
            r"study\.yaml:\d+: x on .*methd",
        ),
        ({"data": {"digits": {"demo": "digits --siz 8"}}}, "unrecognized arguments: --siz"),
    ],
)
def test_a_mistake_ends_the_study(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    path = study_file(tmp_path, claims=[], **{"seeds": [0], "rates": [0.01], **changes})
    with pytest.raises((StudyError, ReproduceError), match=re.compile(message, re.S)):
        command.compare(path, tell=lambda line: None)
    assert not list(tmp_path.glob("runs/compare/*/rows.csv"))


@pytest.mark.slow
def test_methods_of_the_user_need_to_be_allowed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", str(tmp_path))])
    (tmp_path / "my_compared.py").write_text("from papers.stft2d import STFT2DModule\nclass Mine(STFT2DModule): pass\n")
    own = yaml.safe_load(Path(RECIPE).read_text())
    own["model"]["class_path"] = "my_compared.Mine"
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(own))
    path = study_file(tmp_path, seeds=[0], rates=[0.001], methods={"mine": {"recipe": "own.yaml"}}, claims=[])
    command = ["compare", str(path), "--rows", "rows.csv", "--jobs", "2"]
    assert cli.main(command) == 1
    assert "add --allow my_compared" in capsys.readouterr().err
    assert cli.main([*command, "--allow", "my_compared"]) == 0
    assert [(row.method, row.stage, row.error) for row in read_rows("rows.csv")] == [
        ("mine", "score", ""),
        ("mine", "cost", ""),
    ]


def test_data_may_have_a_score_of_its_own(tmp_path: Path) -> None:
    pose = {
        "recipe": str(ROOT / "papers/srl/recipes/demo_pose.yaml"),
        "options": "--data.height 32 --data.width 32 --model.network.width 0.0625 --model.network.deconv_channels 16",
    }
    figures = {"demo": "figures --train 4 --val 2 --test 3", "score": "ap", "fitted": 0}
    path = study_file(
        tmp_path,
        **{"seeds": [0], "rates": [0.001], "fitted": 0.99, "claims": [], "methods": {"pose": pose}},
        data={"figures": figures},
    )
    progress = command.compare(path, tell=lambda line: None)
    assert [row.error for row in progress.rows] == ["", ""]
    (row,) = progress.scores("figures", "pose").values()
    assert row.outcomes() is None
    assert row.train is not None
    assert row.test is not None
    assert max(row.train, row.test) < 0.99
    assert progress.is_trained("figures", "pose")
