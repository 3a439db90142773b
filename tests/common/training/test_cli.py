import csv
import json
import multiprocessing
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from common.training.cli import main, run, user_errors
from common.training.processes import LostProcessError

ROOT = Path(__file__).resolve().parents[3]
STOCK = {
    "class_path": "common.training.library_network.LibraryNetworkModule",
    "init_args": {"num_classes": 2, "network": "torchvision.models.video.mc3_18", "learning_rate": 0.01},
}


def read_csv(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def edit(recipe: str, change) -> str:
    content = yaml.safe_load(Path(recipe).read_text())
    change(content)
    Path(recipe).write_text(yaml.safe_dump(content))
    return recipe


def test_fit_then_test_leaves_a_complete_record(recipe, capsys, caplog):
    path = recipe(max_epochs=2, log_every_n_steps=1)
    with caplog.at_level("INFO"):
        assert main(["fit", "--config", path, "--trainer.accumulate_grad_batches", "2"]) == 0
    assert "Effective batch size: 8 clips (4 per batch x 1 processes x 2 accumulated batches)" in caplog.text
    first = Path("runs/tiny/version_0")
    assert {"config.yaml", "run.json", "last.ckpt", "best.ckpt"} <= {p.name for p in first.iterdir()}
    assert yaml.safe_load((first / "config.yaml").read_text())["trainer"]["accumulate_grad_batches"] == 2
    record = json.loads((first / "run.json").read_text())
    assert {"commit", "dirty", "manifest_hash", "versions", "seed"} <= record.keys()
    torch.load(first / "last.ckpt", weights_only=True)

    cli = run(["test", "--config", path, "--ckpt_path", "best", "--data.num_clips", "2", "--data.num_crops", "3"])
    assert cli.run_dir == Path("runs/tiny/version_1")
    result = json.loads((cli.run_dir / "result.json").read_text())
    assert result == json.loads(json.dumps(cli.result, default=str))
    expected_keys = "top1 top5 mean_class loss videos videos_expected views params seed commit manifest_hash config"
    expected_keys += " stage created duration_s clips_per_s versions predictions"
    assert set(expected_keys.split()) <= result.keys()
    assert (result["videos"], result["videos_expected"], result["views"], result["stage"]) == (6, 6, 6, "test")
    assert result["config"]["data"]["init_args"]["num_crops"] == 3
    assert result["manifest_hash"] == record["manifest_hash"]
    rows = read_csv(result["predictions"])
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert sum(int(row["correct"]) for row in rows) / 6 == result["top1"]
    assert {row["label"] for row in rows} == {"move_left", "move_right"}
    assert "6 of 6 videos x 6 views" in capsys.readouterr().out


def test_views_that_are_equal_because_videos_are_short_are_in_the_result(recipe):
    path = recipe(data={"sampling": "dense", "frame_stride": 4, "num_clips": 5, "num_crops": 1})
    assert main(["fit", "--config", path]) == 0
    with pytest.warns(UserWarning, match="24 of 30 views equal others of their videos"):
        cli = run(["test", "--config", path, "--ckpt_path", "last"])
    assert json.loads((cli.run_dir / "result.json").read_text())["repeated_views"] == 24


def test_the_configuration_says_what_the_dataset_and_the_data_decided(recipe):
    path = edit(recipe(), lambda c: c["model"]["init_args"].update(num_classes=None))
    cli = run(["fit", "--config", path, "--data.dataset", "motion", "--trainer.max_epochs", "1"])
    config = yaml.safe_load((cli.run_dir / "config.yaml").read_text())
    assert config["model"]["init_args"]["num_classes"] == 2
    data = config["data"]["init_args"]
    assert (data["test_split"], data["horizontal_flip"], data["scales"]) == (None, False, [1.0, 0.9])
    assert data["root"] != "runs/demo/motion"  # what is given wins
    assert (
        run(["fit", "--config", str(cli.run_dir / "config.yaml"), "--trainer.fast_dev_run", "1"]).model.num_classes == 2
    )


def test_tensorboard_has_curves_and_pictures(recipe):
    path = recipe(max_epochs=1, log_every_n_steps=1)
    stft = {"class_path": "tests.common.training.tiny.SpectralModule", "init_args": {"num_classes": 2}}
    cli = run(["fit", "--config", edit(path, lambda c: c.update(model=stft))])
    log = EventAccumulator(str(cli.run_dir), size_guidance={"images": 0})
    log.Reload()
    scalars = {
        "train_loss",
        "train_loss_step",
        "train_top1",
        "val_top1",
        "val_loss",
        "lr-SGD",
        "clips_per_s",
        "data_wait",
    }
    assert scalars <= set(log.Tags()["scalars"])
    assert 0 <= log.Scalars("data_wait")[0].value <= 1
    assert {"clips", "confusion matrix", "fixed filters/network.0"} <= set(log.Tags()["images"])


def test_runs_never_overwrite_each_other(recipe):
    path = recipe()
    with pytest.warns(
        UserWarning, match="validate without --ckpt_path: the network has its initial, untrained weights"
    ):
        folders = [run(["validate", "--config", path]).run_dir for _ in range(3)]
    assert folders == [Path(f"runs/tiny/version_{k}") for k in range(3)]
    assert run(["validate", "--config", path, "--name", "other"]).run_dir == Path("runs/other/version_0")
    assert json.loads((folders[0] / "result.json").read_text())["stage"] == "validate"


def test_fast_dev_run_writes_nothing(recipe, tmp_path):
    path = recipe()
    for command in ("fit", "validate", "test"):
        assert main([command, "--config", path, "--trainer.fast_dev_run", "true"]) == 0
    assert [p.name for p in tmp_path.iterdir()] == ["tiny.yaml"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["trainer"].update(max_epoch=3), "Did you mean trainer.max_epochs?"),
        (lambda c: c.update(trainr={"max_epochs": 1}), "Did you mean trainer.max_epochs?"),
        (lambda c: c.update(trainr=None), "Did you mean trainer?"),
        (lambda c: c["model"]["init_args"].update(dropuot=0.1), "'dropuot' is not accepted. Did you mean dropout?"),
        (lambda c: c["model"]["init_args"].update(view_per_forward=1), "Did you mean views_per_forward?"),
        (
            lambda c: c["model"]["init_args"].update(qqq=1),
            "It takes: num_classes, width, dropout, lr, views_per_forward, average",
        ),
        (lambda c: c["data"]["init_args"].update(bach_size=1), "Did you mean batch_size?"),
        (lambda c: c["data"].update(initargs={"root": "x"}), "Did you mean init_args?"),
        (
            lambda c: c["data"].update(class_path="common.datamodules.VidoDataModule"),
            "Did you mean common.datamodules.VideoDataModule?",
        ),
        (lambda c: c["model"]["init_args"].update(width="wide"), "Expected a <class 'int'>. Got value: wide"),
    ],
)
def test_a_wrong_key_in_the_recipe_suggests_the_right_one(recipe, capsys, change, message):
    assert main(["fit", "--config", edit(recipe(), change)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("Did you mean") <= 1
    assert "Traceback" not in error


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--trainer.max_epoch", "3"], "Did you mean trainer.max_epochs?"),
        (["--model.init_args.dropuot", "3"], "Did you mean dropout?"),
        (["--nam", "x"], "Did you mean name?"),
    ],
)
def test_a_wrong_key_on_the_command_line_suggests_the_right_one(recipe, capsys, args, message):
    assert main(["fit", "--config", recipe(), *args]) == 2
    assert message in capsys.readouterr().err


def test_a_wrong_command_suggests_the_right_one(capsys):
    assert main(["tets"]) == 2
    assert "Did you mean test?" in capsys.readouterr().err
    assert main(["fit", "--help"]) == 0


def test_help_and_lists_need_no_torch(tmp_path):
    commands = [["--help"], ["--version"], ["runs", str(tmp_path)], ["tets"], []]
    commands += [[name, "--help"] for name in ("predict", "export", "compare", "runs")]
    code = f"""
import sys
from common.training.cli import main
print([main(words) for words in {commands!r}])
print({{"torch", "lightning", "numpy"}} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-2:] == ["[0, 0, 0, 2, 2, 0, 0, 0, 0]", "set()"]
    assert "usage: spectral COMMAND" in done.stdout
    assert "a command is missing; the commands are fit, validate, test" in done.stderr


def test_predict_shows_the_options_of_the_checkpoint(recipe, capsys):
    assert main(["predict", "--help"]) == 0
    printed = capsys.readouterr().out
    assert "--help shows the options of its task too" in " ".join(printed.split())
    assert "--top" not in printed
    assert main(["predict", "some.mp4"]) == 2
    assert "--checkpoint" in capsys.readouterr().err
    assert main(["fit", "--config", edit(recipe(limit_train_batches=1), lambda c: c.update(model=STOCK))]) == 0
    capsys.readouterr()
    assert main(["predict", "--checkpoint", "runs/tiny", "--help"]) == 0
    assert "--top" in capsys.readouterr().out


def test_label_smoothing_and_class_weights_are_options_of_the_model(recipe):
    options = ["--model.label_smoothing", "0.1", "--model.class_weights", "[1.0, 2.0]"]
    module = run(["fit", "--config", recipe(), *options, "--trainer.fast_dev_run", "1"]).model
    assert (module.label_smoothing, module.class_weights.tolist()) == (0.1, [1.0, 2.0])


def test_errors_of_the_user_are_one_message(recipe, capsys, tmp_path):
    for args, message in (
        (["--data.root", "nowhere"], "nowhere"),
        (["--data.manifest", "none.csv"], "none.csv"),
        (["--model.num_classes", "3"], "num_classes is 2 in the data and 3 in the network"),
        (["--ckpt_path", "none.ckpt"], "no checkpoint: none.ckpt does not exist"),
        (["--ckpt_path", "last"], "no checkpoint: runs/tiny does not exist"),
        (["--model.lr", "1e30", "--trainer.max_epochs", "9"], "the training loss is nan in epoch"),
    ):
        assert main(["fit", "--config", recipe(), *args]) == 1
        error = capsys.readouterr().err
        assert error.startswith("error: ") or "\nerror: " in error
        assert message in error
        assert "Traceback" not in error


def test_a_training_that_cannot_begin_says_what_to_do_and_leaves_no_folder(recipe, capsys):
    for args, status, message in (
        (["--model.pretrained", "none.ckpt"], 1, "train the run that it names first; null starts from random weights"),
        (["--trainer.accelerator", "tpu"], 2, "Leave it out to use what this machine has"),
        (["--trainer.logger", "WandbLogger"], 2, "pip install -U 'wandb"),
        (["--model.class_weights", "[1.0]"], 2, "one positive, finite weight for each of the 2 classes"),
    ):
        assert main(["fit", "--config", recipe(), *args]) == status
        error = capsys.readouterr().err.partition("error: ")[2]
        assert message in error
        assert "Expected a <class" not in error
        assert not list(Path("runs").glob("*")), "a folder of a run that did not begin"
    assert main(["fit"]) == 2
    assert "Give a recipe, e.g. --config papers/stft3d/recipes/demo.yaml" in capsys.readouterr().err


def test_warnings_are_one_line(recipe):
    command = [sys.executable, "-m", "common.training.cli", "test", "--config", recipe(limit_test_batches=1)]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert "warning: test without --ckpt_path: the network has its initial, untrained weights" in lines
    assert not [line for line in lines if ".py:" in line]


def with_broken_videos(motion: Path, broken: Path, *names: str) -> dict:
    """Arguments of data that is ``motion`` with files ``names`` that are no videos."""
    for video in motion.parent.rglob("*.*"):
        name = video.relative_to(motion.parent)
        (broken / name).parent.mkdir(parents=True, exist_ok=True)
        (broken / name).write_bytes(b"no video" if str(name) in names else video.read_bytes())
    return {"root": str(broken), "manifest": str(broken / "manifest.csv")}


@pytest.mark.parametrize("num_workers", [0, 1])
def test_an_unreadable_training_video_is_named(recipe, capsys, tmp_path, motion, num_workers):
    data = with_broken_videos(motion, tmp_path / "broken", "train/move_left/0000.mp4")
    assert main(["fit", "--config", recipe(data={**data, "num_workers": num_workers})]) == 1
    error = capsys.readouterr().err
    assert "error: " + str(tmp_path / "broken/train/move_left/0000.mp4") in error
    assert "Traceback" not in error


class KillLoaders(Callback):
    """Kills the processes that load data, as a system without memory does."""

    def on_train_batch_start(self, *_) -> None:
        for child in multiprocessing.active_children():
            child.kill()


def test_a_killed_loader_process_ends_the_training_with_what_to_do(recipe):
    path = recipe(max_epochs=3, data={"num_workers": 1})
    with pytest.raises(LostProcessError, match=r"a loader process was killed.*lower data\.num_workers") as caught:
        run(["fit", "--config", path], [KillLoaders()])
    assert isinstance(caught.value, user_errors())  # one line, no traceback


def test_the_log_of_a_training_fills_the_disk(recipe):
    path = recipe(max_epochs=2, enable_checkpointing=False)
    program = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000)); "
    program += "from common.training.cli import main; sys.exit(main(sys.argv[1:]))"
    command = [sys.executable, "-c", program, "fit", "--config", path]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    assert done.returncode == 1, done.stderr
    assert "File too large; free some space, or write elsewhere: 'runs/tiny/version_0'" in done.stderr
    assert "Traceback" not in done.stderr


def test_scores_without_an_unreadable_video_say_so(recipe, capsys, tmp_path, motion):
    names = ("train/move_left/0000.mp4", "val/move_left/0000.mp4", "test/move_right/0001.mp4")
    data = with_broken_videos(motion, tmp_path / "broken", *names)
    path = recipe(data={**data, "num_workers": 1, "on_read_error": "replace", "eval_batch_size": 1})
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert main(["fit", "--config", path]) == 0
        assert main(["test", "--config", path, "--ckpt_path", "last", "--page", "true"]) == 0
    said = [str(warning.message) for warning in caught]
    for stage, name in (("val", names[1]), ("test", names[2])):
        text = f"{stage}: 1 of 6 videos cannot be read, the scores are without them:\n{tmp_path}/broken/{name}: "
        assert [message for message in said if message.startswith(text)]
    assert [message for message in said if re.search(r"videos that cannot be read were replaced .* \d+ times", message)]
    result = json.loads(Path("runs/tiny/version_1/result.json").read_text())
    assert (result["videos"], result["videos_expected"], len(result["unreadable"])) == (5, 6, 1)
    assert names[2] in result["unreadable"][0]
    assert len(read_csv(Path("runs/tiny/version_1/predictions.csv"))) == 5
    out = capsys.readouterr().out
    assert "5 of 6 videos" in out
    assert "videos not read, not scored" in out
    page = Path("runs/tiny/version_1/page/index.html").read_text()
    assert "5 of 6" in page
    assert "videos not read, not scored" in page


@pytest.mark.parametrize(("count", "size"), [(2, 1), (6, 6)])
def test_a_score_is_refused_where_many_videos_are_unreadable(recipe, capsys, tmp_path, motion, count, size):
    names = [f"test/{name}/{k:04}.mp4" for name in ("move_left", "move_right") for k in range(3)][:count]
    data = with_broken_videos(motion, tmp_path / "broken", *names)
    path = recipe(data={**data, "on_read_error": "replace", "eval_batch_size": size})
    assert main(["test", "--config", path]) == 1
    error = capsys.readouterr().err
    assert f"error: {count} of 6 videos cannot be read, more than can be left out of a score (10%, or one)" in error
    assert str(tmp_path / "broken" / names[0]) in error


def test_debug_shows_where(recipe):
    with pytest.raises(ValueError, match=r"no manifest at .*none"):
        main(["fit", "--config", recipe(), "--data.manifest", "none.csv", "--debug"])


def test_checkpoint_of_another_network(recipe, capsys):
    path = recipe()
    assert main(["fit", "--config", path]) == 0
    assert main(["test", "--config", path, "--ckpt_path", "last", "--model.width", "6"]) == 1
    error = capsys.readouterr().err
    assert "the checkpoint belongs to another network" in error
    assert "network.0.0.weight (4, 3, 3, 3, 3) instead of (6, 3, 3, 3, 3)" in error


def test_pretrained_takes_a_run_folder(recipe, capsys, caplog):
    path = recipe()
    assert main(["fit", "--config", path]) == 0
    with caplog.at_level("INFO"):
        assert main(["fit", "--config", path, "--model.pretrained", "runs/tiny", "--name", "tuned"]) == 0
    assert "runs/tiny: loaded all 5 tensors" in caplog.text


def test_predict_needs_nothing_but_the_checkpoint(recipe, motion, capsys, tmp_path):
    path = edit(recipe(limit_train_batches=1, limit_val_batches=1), lambda c: c.update(model=STOCK))
    assert main(["fit", "--config", path]) == 0
    capsys.readouterr()
    good = motion.parent / "test" / "move_left"
    broken = tmp_path / "broken.mp4"
    broken.write_bytes((good / "0000.mp4").read_bytes()[:300])
    listing = tmp_path / "list.txt"
    listing.write_text(f"{good / '0001.mp4'}\n")
    out = tmp_path / "out.csv"
    args = ["predict", "--checkpoint", "runs/tiny", str(good), str(broken), str(listing), "gone.mp4", "--csv", str(out)]
    assert main(args) == 1
    rows = read_csv(out)
    assert [Path(row["path"]).name for row in rows] == [
        *("0000.mp4", "0001.mp4", "0002.mp4", "broken.mp4", "0001.mp4", "gone.mp4")
    ]
    for row in rows:
        if row["error"]:
            assert Path(row["path"]).name in ("broken.mp4", "gone.mp4")
            assert row["top1"] == ""
        else:
            assert {row["top1"], row["top2"]} == {"move_left", "move_right"}
            assert float(row["p1"]) + float(row["p2"]) == pytest.approx(1, abs=1e-5)
    assert rows[1]["p1"] == rows[4]["p1"]
    printed = capsys.readouterr().out
    assert "error" in printed
    assert "move_left" in printed

    assert main(["predict", "--checkpoint", "runs/tiny", str(good), "--device", "nonsense"]) == 1
    assert "--device nonsense cannot be used" in capsys.readouterr().err
    assert main(args) == 1
    assert "exists; give another name, or --force" in capsys.readouterr().err
    assert main(["predict", "--checkpoint", "runs/tiny", str(good), "--csv", str(out), "--force", "--top", "1"]) == 0
    assert list(read_csv(out)[0]) == ["path", "top1", "p1", "error"]


def test_predictions_of_a_file_are_those_of_the_test(recipe, motion, tmp_path):
    path = edit(recipe(limit_train_batches=1), lambda c: c.update(model=STOCK))
    run(["fit", "--config", path])
    tested = run(["test", "--config", path, "--ckpt_path", "best"])
    assert main(["predict", "--checkpoint", "runs/tiny", str(motion.parent / "test"), "--csv", "out.csv"]) == 0
    ours = {row["path"]: row for row in read_csv(tested.run_dir / "predictions.csv")}
    for row in read_csv(Path("out.csv")):
        other = ours[str(Path(row["path"]).relative_to(motion.parent))]
        assert row["top1"] == other["top1"]
        assert float(row["p1"]) == pytest.approx(float(other["p1"]), abs=2e-5)


def test_the_help_of_a_recipe_shows_its_options_and_values(recipe, capsys):
    path = recipe(data={"batch_size": 3})
    assert main(["fit", "--config", path, "--help"]) == 0
    words = " ".join(capsys.readouterr().out.split())
    assert "--data.batch_size BATCH_SIZE training items per step and process. (type: int, default: 3)" in words
    assert "--model.average {probabilities,logits}" in words


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (
            lambda content: content["model"].update(class_path="papers.nothing.Module"),
            "model.class_path names no class",
        ),
        (lambda content: content["model"].update(class_path="torch.pi"), "model.class_path names no class"),
        (lambda content: content["model"].pop("class_path"), "model.class_path names no class"),
        (lambda content: content.update(model=["a", "b"]), "model.class_path names no class"),
        (lambda content: content["data"]["init_args"].update(no_such_option=3), "data.init_args.no_such_option"),
        (lambda content: content["data"].update(init_args=[1]), "data.init_args"),
        (lambda content: content.clear(), "names no model or data"),
    ],
)
def test_the_help_of_a_damaged_recipe_is_one_message(recipe, capsys, damage, message):
    path = recipe()
    edit(path, damage)
    assert main(["fit", "--config", path, "--help"]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize("content", ["", "3", "- a", "a: ["])
def test_the_help_of_what_is_no_recipe_is_one_message(tmp_path, capsys, content):
    path = tmp_path / "recipe.yaml"
    path.write_text(content)
    assert main(["fit", "--config", str(path), "--help"]) in (1, 2)
    assert str(path) in capsys.readouterr().err


def test_optimizer_and_scheduler_replace_those_of_the_recipe(recipe, capsys):
    options = ["--optimizer", "AdamW", "--optimizer.lr", "0.02"]
    schedule = ["--lr_scheduler", "torch.optim.lr_scheduler.ExponentialLR", "--lr_scheduler.gamma", "0.5"]
    finished = run(["fit", "--config", recipe(max_epochs=2), *options, *schedule])
    (optimizer,) = finished.trainer.optimizers
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 0.005
    assert "torch.optim.AdamW" in (finished.run_dir / "config.yaml").read_text()
    assert main(["fit", "--config", recipe("alone"), *schedule]) == 2
    assert "--lr_scheduler needs --optimizer" in capsys.readouterr().err
    resume = ["fit", "--config", str(finished.run_dir / "config.yaml"), "--ckpt_path", "last"]
    for wrong in (["--optimizer.lr", "0.5"], ["--lr_scheduler.gamma", "0.9"]):
        assert main([*resume, "--trainer.max_epochs", "3", *wrong]) == 2
        error = capsys.readouterr().err
        assert f"{wrong[0][2:].partition('.')[0]} differs from that of {finished.run_dir}" in error
    assert main([*resume, "--trainer.max_epochs", "3"]) == 0
