"""Runs are found again from their files, explained, and listed; modules of the user's are allowed by name."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
import yaml

from common.training.checkpoints import CheckpointError, find_checkpoint
from common.training.cli import main, run
from common.training.run_folders import list_runs, new_run_dir, run_name, with_recipe_beside


def test_a_run_is_tested_and_resumed_from_its_own_files(recipe, capsys) -> None:
    assert main(["fit", "--config", recipe(max_epochs=1), "--trainer.limit_train_batches", "1"]) == 0
    first = Path("runs/tiny/version_0")
    text = (first / "README.txt").read_text()
    assert text.startswith("spectral fit --config")
    assert "--trainer.limit_train_batches 1" in text
    resume = next(line for line in text.splitlines() if line.startswith("Resume:")).split()[2:]
    assert main([*resume, "--trainer.max_epochs", "2"]) == 0
    assert (Path("runs/tiny/version_1") / "last.ckpt").is_file()

    tested = run(["test", "--ckpt_path", str(first / "last.ckpt")])  # the recipe stands beside the checkpoint
    assert tested.run_dir == Path("runs/tiny/version_2")
    capsys.readouterr()
    assert main(["runs"]) == 0
    printed = capsys.readouterr().out
    assert "runs/tiny/version_2" in printed
    assert f"top1 {tested.result['top1']:.4f}" in printed
    runs = list_runs(Path("runs"))
    assert [run["folder"].name for run in runs] == ["version_2", "version_1", "version_0"]
    assert [run["files"] for run in runs] == [[], ["last.ckpt"], ["last.ckpt", "best.ckpt"]]
    assert all(0 <= run["scores"]["val_top1"] <= 1 for run in runs[1:])  # of the trainings
    assert f"val_top1 {runs[2]['scores']['val_top1']:.4f}" in printed
    assert list_runs(Path("runs"), "other") == []


def test_a_recipe_beside_a_checkpoint_fetches_nothing(recipe, capsys) -> None:
    """A folder with a checkpoint may be anybody's; a URL is opened only if the user names it, or the recipe."""
    assert main(["fit", "--config", recipe(max_epochs=1)]) == 0
    path, url = Path("runs/tiny/version_0/config.yaml"), "memory://nothing/here"
    content = yaml.safe_load(path.read_text())
    content["data"]["init_args"] |= {"root": url, "manifest": None}
    path.write_text(yaml.safe_dump(content))
    capsys.readouterr()
    for command in ("validate", "test", "fit"):
        checkpoint = ["--ckpt_path", str(path.with_name("last.ckpt")), "--data.cache", f"cache_{command}"]
        assert main([command, *checkpoint]) == 2
        assert f"{path}, the recipe beside the checkpoint, would fetch data from {url}" in capsys.readouterr().err
        assert not Path(f"cache_{command}").exists()
        for typed in (["--config", str(path)], ["--data.root", url], [f"--data.root={url}"]):
            assert main([command, *typed, *checkpoint]) == 1
            assert f"{url}/manifest.csv does not exist" in capsys.readouterr().err


def test_a_logger_does_not_move_the_recipe(recipe) -> None:
    logger = ["--trainer.logger", "CSVLogger", "--trainer.logger.save_dir", "logs"]
    finished = run(["fit", "--config", recipe(max_epochs=1), *logger])
    assert Path(finished.trainer.log_dir, "metrics.csv").is_relative_to("logs")
    assert (finished.run_dir / "config.yaml").is_file()
    assert not list(Path("logs").rglob("config.yaml"))


def test_a_damaged_record_is_listed(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["runs"]) == 1
    assert "runs is no folder" in capsys.readouterr().err
    folder = tmp_path / "runs" / "[red]" / "version_0"
    folder.mkdir(parents=True)
    assert main(["runs"]) == 0
    assert "There are no runs" in capsys.readouterr().out
    good = folder.parent / "version_1" / "run.json"
    good.parent.mkdir()
    good.write_text('{"created": null}')
    for damage in ("{", "[1]", "3", "[" * 100_000):
        (folder / "run.json").write_text(damage)
        assert main(["runs"]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert "damaged" in printed
        assert "[red]" in printed
    (folder / "run.json").write_text("{}")
    (folder / "result.json").write_text("3")
    assert main(["runs"]) == 0
    (folder.parent / "version_²").mkdir()
    assert new_run_dir(folder.parent).name == "version_2"
    assert main(["runs", "--nam", "x"]) == 2
    assert "unrecognized arguments: --nam. Did you mean --name?" in capsys.readouterr().err


def test_the_average_over_the_splits_of_a_dataset(tmp_path, capsys) -> None:
    def record(name: str, version: int, command: str, **scores: float) -> None:
        folder = tmp_path / name / f"version_{version}"
        folder.mkdir(parents=True)
        (folder / "run.json").write_text(json.dumps({"command": command, "created": f"2026-01-0{version + 1}"}))
        if scores:
            (folder / "result.json").write_text(json.dumps({**scores, "videos": 3, "kind": "video"}))

    record("[a]_split1", 0, "test", top1=0.1)
    record("[a]_split1", 1, "test", top1=0.5)  # the newest test counts
    record("[a]_split1", 2, "fit")
    record("[a]_split2", 0, "test", top1=0.7)
    record("[a]_split3", 0, "test", top1=0.9)
    record("other", 0, "test", top1=0.0)
    assert main(["runs", str(tmp_path), "--name", "*_split?", "--average"]) == 0
    expected = "mean of the newest tests of [a]_split1, [a]_split2, [a]_split3: top1 0.7000 (sd 0.2000)"
    assert capsys.readouterr().out.splitlines()[-1] == expected
    assert main(["runs", str(tmp_path), "--name", "[a]_split1", "--average"]) == 2
    assert "tests of two names or more, and there are 1" in capsys.readouterr().err


def test_names_and_arguments(tmp_path) -> None:
    folder = tmp_path / "mine" / "version_3"
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    (folder / "last.ckpt").touch()
    assert run_name(folder / "config.yaml") == "mine"
    assert run_name("recipes/demo.yaml") == "demo"
    config = ["--config", str(folder / "config.yaml")]
    for given in (folder, folder / "last.ckpt"):
        assert with_recipe_beside(["test", "--ckpt_path", str(given)])[:3] == ["test", *config]
    for args in (["test"], ["fit", "--config", "a.yaml", "--ckpt_path", str(folder)], ["fit", "--ckpt_path", "last"]):
        assert with_recipe_beside(args) == args


def test_best_of_an_older_run_is_not_taken_silently(tmp_path) -> None:
    for n, names in enumerate((("best.ckpt", "last.ckpt"), ("last.ckpt",))):
        folder = tmp_path / f"version_{n}"
        folder.mkdir()
        for name in names:
            (folder / name).touch()
            os.utime(folder / name, (100 + n, 100 + n))
    with pytest.raises(
        CheckpointError, match=r"newest run, .*version_1, has no best.ckpt: .* or .*version_0/best.ckpt"
    ):
        find_checkpoint(tmp_path)


MODULE = """
from tests.common.training.tiny import TinyModule

class Mine(TinyModule):
    pass
"""


def test_a_module_of_the_current_folder_trains_and_predicts(recipe, motion, capsys) -> None:
    path = Path(recipe(max_epochs=1))
    Path("my_own_module.py").write_text(MODULE)
    content = yaml.safe_load(path.read_text())
    content["model"]["class_path"] = "my_own_module.Mine"
    path.write_text(yaml.safe_dump(content))
    before = list(sys.path)
    sys.path[:] = [place for place in before if place not in ("", str(Path.cwd()))]
    fit = ["fit", "--config", str(path), "--trainer.limit_train_batches", "1"]
    try:
        assert main(fit) == 2
        assert "add --allow my_own_module" in capsys.readouterr().err
        assert main([*fit, "--allow", "my_own_module"]) == 0
        readme = Path("runs/tiny/version_0/README.txt").read_text()
        assert readme.count("--allow my_own_module") == 4  # the command, and those that go on
        video = str(next(motion.parent.rglob("*.mp4")))
        predict = ["predict", "--checkpoint", "runs/tiny/version_0/last.ckpt", video]
        capsys.readouterr()
        assert main(predict) == 1
        assert "add --allow my_own_module" in capsys.readouterr().err
        assert main([*predict, "--allow", "my_own_module"]) == 0
    finally:
        sys.path[:] = before
        sys.modules.pop("my_own_module", None)
