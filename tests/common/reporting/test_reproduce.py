"""The command of a paper, on a paper whose networks train in seconds."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from torch import nn

from common.evaluation.complexity import count
from common.reporting import counting, main_job, reproduce, runs
from common.reporting.ledger import Ledger, load
from common.reporting.reproduce import main
from common.reporting.results import Result, read


def curve(job: runs.Job | None) -> Figure:
    figure = Figure(figsize=(1, 1))
    figure.subplots().plot([0, 1 if job is None or job.data() is None else 2])
    return figure


FIGURES = __name__  # the module with the figures


@pytest.fixture
def out(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "tiny"


def forbid(*args: object, **kwargs: object) -> None:
    raise AssertionError("nothing should be trained")


def test_the_whole_job_and_a_second_run(
    paper: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert main(paper, FIGURES, ["--out", str(out), "--readme", "--jobs", "1"]) == 0
    printed = capsys.readouterr().out
    assert "Table 1" in printed
    assert "Two motions" in printed
    assert str(out / "report" / "index.html") in printed.replace("\n", "")
    page = (out / "report" / "index.html").read_text()
    for text in ("4 of 4 videos", "2 trainings, 2 of them in this run", "Figure 2. A curve", "nowhere"):
        assert text in page
    for name in ("report.md", "demo-curves.png", "demo-cost.png", "demo-confusion.png", "figure2.png"):
        assert (out / "report" / name).is_file()
    rows = read(out / "results.csv")
    assert [row.entry for row in rows] == ["demo/one", "demo/two"]
    assert all(row.facts["seed"] == 0 and row.facts["videos"] == 4 for row in rows)
    readme = (paper / "README.md").read_text()
    assert readme.startswith("# Tiny\n\n<!-- tables: begin (written by a program) -->\n\n### Demo.")
    assert "old" not in readme
    assert readme.endswith("<!-- tables: end -->\n\nMore.\n")
    assert [row.entry for row in read(paper / "results.csv")] == ["demo/one", "demo/two"]

    monkeypatch.setattr(runs, "run_recipe", forbid)
    monkeypatch.setattr(Ledger, "count", forbid)
    took: list[float] = []
    facts = main_job.run_facts
    monkeypatch.setattr(main_job, "run_facts", lambda job, seconds: took.append(seconds) or facts(job, seconds))
    began = time.monotonic()
    assert main(paper, FIGURES, ["--out", str(out)]) == 0
    assert 0 < took[0] < time.monotonic() - began
    assert len(read(out / "results.csv")) == 2
    assert "2 trainings, 0 of them in this run" in (out / "report" / "index.html").read_text()

    ledger = load(paper / "ledger.yaml")
    own = ledger.demos[0]
    data = out.parent / "demo" / "motion"
    one, two = (runs.DemoJob(ledger, own, row, data, out, 0) for row in own.rows)
    keys = [one.key(), two.key(), replace(one, seed=1).key()]
    (paper / "recipes" / "demo.yaml").write_text((paper / "recipes" / "demo.yaml").read_text() + "# changed\n")
    keys.append(one.key())
    (data / "manifest.csv").write_text((data / "manifest.csv").read_text() + "\n")
    keys.append(one.key())
    assert len(set(keys)) == 5


def test_a_failure_is_told_and_the_rest_goes_on(paper: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ledger = paper / "ledger.yaml"
    ledger.write_text(ledger.read_text().replace("[--model.dropout", "[--model.droppout"))
    assert main(paper, FIGURES, ["--out", str(out), "--epochs", "1", "--jobs", "1"]) == 1
    assert "failed: demo/two" in capsys.readouterr().err
    page = (out / "report" / "index.html").read_text()
    assert "droppout" in page
    assert "1 training" in page
    assert "1 epochs instead of the recipe" in page
    assert [row.entry for row in read(out / "results.csv")] == ["demo/one"]
    (log,) = (out / "demo" / "two").glob("*/log.txt")
    assert "droppout" in log.read_text()


@pytest.mark.slow
def test_an_interrupted_demo_is_resumed_in_its_folder(
    paper: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    train = runs.run_recipe
    trained = []

    def interrupted(arguments: list[str], folder: Path, *rest: object) -> None:
        if trained:
            folder.mkdir(parents=True)
            (folder / "half").write_text("")
            raise KeyboardInterrupt
        trained.append(folder)
        train(arguments, folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(runs, "run_recipe", interrupted)
    command = ["--out", str(out), "--epochs", "1", "--jobs", "1"]
    assert main(paper, FIGURES, command) == 130
    assert "resumes from there" in capsys.readouterr().err
    assert len(list((out / "demo" / "one").iterdir())) == 1
    (half,) = (out / "demo" / "two").glob("*/half")
    assert not (out / "report").exists()
    trained.clear()
    assert main(paper, FIGURES, command) == 0
    assert trained == [half.parent]
    assert (half.parent / "result.json").is_file()
    assert f"--trainer.default_root_dir {half.parent} " in next(half.parent.glob("fit/*/README.txt")).read_text()


def test_predictions_of_files_whose_names_have_commas(tmp_path: Path) -> None:
    (tmp_path / "predictions.csv").write_text('path,dice\n"a, b",0.5\n')
    run = runs.Trained("demo/one", "One", Result("", "demo/one", "", {}, {}), tmp_path)
    assert run.predictions() == [{"path": "a, b", "dice": "0.5"}]


def test_counts_of_older_runs_are_read(tmp_path: Path) -> None:
    found = count(nn.Linear(8, 4), (1, 8))
    (tmp_path / "complexity.json").write_text(json.dumps(found.to_dict() | {"complex_weight": 1}))
    run = runs.Trained("demo/one", "One", Result("", "demo/one", "", {}, {}), tmp_path)
    assert run.complexity().macs_paper == found.macs_paper == 32


def test_a_training_depends_on_no_source_that_reports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "ROOT", tmp_path)
    hashes = [counting.source_hash(tmp_path / "papers" / "one")]
    for name in (
        "common/a.py",
        "common/reporting/b.py",
        "common/comparison/c.py",
        "papers/one/d.py",
        "papers/two/e.py",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
        hashes.append(counting.source_hash(tmp_path / "papers" / "one"))
    none, first, second = hashes[0], hashes[1], hashes[4]
    assert hashes == [none, first, first, first, second, second]
    assert len({none, first, second}) == 3


def test_lightnings_way_of_stopping_is_an_interruption(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise SystemExit(1)

    monkeypatch.setattr("common.training.cli.run", stop)
    with pytest.raises(KeyboardInterrupt):
        runs.run_recipe(["--config", "x.yaml"], tmp_path / "run", 0)


def test_a_logger_made_during_a_training_goes_on_with_the_terminal(tmp_path: Path) -> None:
    logger = logging.getLogger("made.meanwhile")
    try:
        for number in (1, 2):
            with (tmp_path / "log.txt").open("a") as log, runs.output_to(log):
                if number == 1:
                    logger.addHandler(logging.StreamHandler())
                logger.warning("training %d", number)
        assert (tmp_path / "log.txt").read_text() == "training 1\ntraining 2\n"
        assert isinstance(logger.handlers[0], logging.StreamHandler)
        assert not logger.handlers[0].stream.closed
    finally:
        logger.handlers.clear()


def test_a_recipe_on_real_data(paper: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(paper, FIGURES, ["demo/one", "--out", str(out), "--epochs", "1"]) == 0
    data = str(out.parent / "demo" / "motion")
    assert main(paper, FIGURES, ["table1/a", "--out", str(out), "--data", f"real={data}", "--epochs", "1"]) == 0
    (row,) = read(paper / "results.csv")
    assert (row.entry, row.dataset) == ("table1/a", "real")
    assert row.config["data"]["init_args"]["batch_size"] == 2
    assert f"{100 * row.metrics['top1']:.2f}" in capsys.readouterr().out
    assert main(paper, FIGURES, ["table1/a", "--out", str(out), "--data", data, "--epochs", "1"]) == 0
    assert len(read(paper / "results.csv")) == 1


def test_a_row_without_data_says_how_to_run_it(
    paper: Path, out: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runs, "run_recipe", forbid)
    assert main(paper, FIGURES, ["table1/a", "figure2", "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert f"spectral fit --config {paper / 'recipes' / 'demo.yaml'} --data.batch_size 2" in printed
    assert (out / "figures" / "figure2.png").is_file()


def test_list_and_complexity(paper: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(paper, FIGURES, ["--list"]) == 0
    listing = capsys.readouterr().out
    assert ".tiny.reproduce demo/one" in listing
    assert "quoted; nothing to run" in listing
    assert main(paper, FIGURES, ["--list", "--json", "table1"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [record["id"] for record in records] == ["table1/a", "table1/b"]
    assert [command[-8:] for command in records[0]["commands"][1:3]] == ["demo/one", "demo/two"]
    assert main(paper, FIGURES, ["--complexity", "--json", "--out", str(out)]) == 0
    (record,) = json.loads(capsys.readouterr().out)
    assert record["row"] == "table1/a"
    assert (record["params"], record["paper_params"]) == (36, 40)
    assert (record["macs_paper_convention"], record["macs_full"], record["paper_macs"]) == (32, 32, 32)
    assert record["networks"]["wide"]["params"] == 72
    assert main(paper, FIGURES, ["table1/b", "--complexity", "--out", str(out)]) == 0
    assert "has a network to count" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tabel1"], "Did you mean table1?"),
        (["table1", "--data", "nowhere"], "there is no folder nowhere"),
        (["table1", "--data", "rael=."], "no chosen row has rael; they have real"),
        (["table1/b", "--data", "."], "the chosen rows have no data set"),
    ],
)
def test_wrong_arguments(
    paper: Path, out: Path, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(paper, FIGURES, [*arguments, "--out", str(out)]) == 2
    assert message in capsys.readouterr().err


def test_data_of_several_data_sets_are_named(paper: Path, tmp_path: Path) -> None:
    path = paper / "ledger.yaml"
    column = "      - {key: top1b, name: Top 1, measure: top1, scale: 0.01, dataset: other}\n    shared:"
    text = path.read_text().replace("    shared:", column).replace('"-"]', '"-", "-"]').replace('"50.0"', '"50.0", "-"')
    path.write_text(text.replace("{real: {file: demo.yaml}}", "{real: {file: demo.yaml}, other: {file: demo.yaml}}"))
    ledger = load(path)
    with pytest.raises(reproduce.ReproduceError, match=r"say DATASET=\.; the chosen rows have other, real"):
        reproduce._data(["."], ledger, ["table1/a"])
    folder = tmp_path / "a=b"
    folder.mkdir()
    assert reproduce._data([f"real={folder}", "other=."], ledger, ["table1/a"]) == {"real": folder, "other": Path()}


def test_progress_without_a_terminal_is_told_in_lines(capsys: pytest.CaptureFixture[str]) -> None:
    printed, deadline = "", time.monotonic() + 10
    with main_job._ProgressLines(seconds=0.05) as progress:
        task = progress.add_task("Training", total=2)
        progress.update(task, advance=1)
        while "Training: 1 of 2" not in printed and time.monotonic() < deadline:
            time.sleep(0.02)
            printed += capsys.readouterr().err
        progress.update(task, completed=2)
    printed += capsys.readouterr().err
    assert printed.startswith("Training ...\n")
    assert "Training: 1 of 2, " in printed
    assert "Training: done in " in printed


@pytest.mark.slow
def test_a_reader_that_stops_early_gets_no_traceback(paper: Path) -> None:
    code = "import sys, pathlib; from common.reporting.reproduce import main; "
    code += "sys.exit(main(pathlib.Path(sys.argv[1]), '', ['--list', '--json']))"
    command = [sys.executable, "-c", code, str(paper)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
        assert process.wait() == 0


def test_a_figure_without_its_function(paper: Path, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(paper, "math", ["figure2", "--out", str(out)]) == 2
    assert "math has no function curve" in capsys.readouterr().err
    assert not out.exists(), "it is said before anything is trained"


def test_data_that_was_made_otherwise_is_not_touched(
    paper: Path, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = out.parent / "demo" / "motion" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    assert main(paper, FIGURES, ["demo", "--out", str(out)]) == 2
    assert "was not made by this command" in capsys.readouterr().err.replace("\n", " ")
    assert mine.read_text() == "mine"
