"""What a damaged or hostile checkpoint, or a changed option, may do: nothing but end the command with its name."""

from __future__ import annotations

import csv
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from common.limits import limit
from common.output_files import write_rows
from common.training.checkpoints import CheckpointError
from common.training.cli import main, run
from common.training.library_network import LibraryNetworkModule
from common.training.task import load_module
from tests.media import write_video


@pytest.fixture
def trained(recipe: Any) -> tuple[str, Path]:
    path = recipe(max_epochs=2)
    folder = run(["fit", "--config", path, "--name", "run"]).run_dir
    assert folder is not None
    return path, folder / "last.ckpt"


def changed(checkpoint: Path, change: Any) -> Path:
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    out = checkpoint.with_name("changed.ckpt")
    torch.save(content, out)
    return out


LIBRARY = "common.training.library_network.LibraryNetworkModule"


def test_weights_that_are_nan_predict_nothing(trained, motion, capsys, monkeypatch) -> None:
    def spoil(content: dict[str, Any]) -> None:
        content["spectral"]["class_path"] = LIBRARY
        content["hyper_parameters"] = {"num_classes": 2, "network": "torchvision.models.video.r3d_18"}
        weights = LibraryNetworkModule(**content["hyper_parameters"]).network.state_dict()
        spoiled = {key: value * torch.nan if value.is_floating_point() else value for key, value in weights.items()}
        content["state_dict"] = {f"network.{key}": value for key, value in spoiled.items()}

    bad = changed(trained[1], spoil)
    video = next(motion.parent.rglob("*.mp4"))
    assert main(["predict", "--checkpoint", str(bad), str(video), "--csv", "out.csv"]) == 1
    assert f"{video}: the network's output is NaN" in capsys.readouterr().err
    assert not Path("out.csv").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"network": "torchvision.models.video.s3d", "network_options": {"weights": "DEFAULT"}}, "download"),
        ({"network": "os.system"}, "is not below"),
        ({"network": "pytorchvideo.models.resnet.create_resnet", "network_options": {"stem_dim_out": 10**5}}, "claims"),
    ],
)
def test_what_a_checkpoint_says_builds_a_network_and_nothing_else(trained, arguments, message) -> None:
    def claim(content: dict[str, Any]) -> None:
        content["spectral"]["class_path"] = LIBRARY
        content["hyper_parameters"] = {"num_classes": 2, **arguments}

    began = time.monotonic()
    with pytest.raises(CheckpointError, match=message):
        load_module(changed(trained[1], claim))
    assert time.monotonic() - began < 60


def test_a_training_that_resumes_follows_the_options_it_began_with(trained) -> None:
    path, checkpoint = trained
    with pytest.raises(CheckpointError, match=r"lr is 0\.1 in the checkpoint and 0\.001 now.*--model\.pretrained"):
        run(["fit", "--config", path, "--name", "run", "--ckpt_path", "last", "--model.lr", "0.001"])
    tested = run(["test", "--config", path, "--ckpt_path", str(checkpoint), "--model.lr", "0.001"])  # no training
    assert tested.result is not None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.pop("loops"), "no training can resume from it, since it lacks loops;"),
        (lambda state: state.update(epoch=None, callbacks=[1]), "since it lacks epoch, callbacks;"),
        (lambda state: state["loops"].update(fit_loop={}), r"lacks loops\.fit_loop;"),
        (lambda state: state.update(optimizer_states=[1]), r"did not resume from .*changed\.ckpt \(AttributeError: "),
        (
            lambda state: state["optimizer_states"][0].update(param_groups=[]),
            r"did not resume from .*changed\.ckpt \(ValueError: loaded state dict has a different number",
        ),
        (
            lambda state: [
                x.update(momentum_buffer=torch.zeros(3)) for x in state["optimizer_states"][0]["state"].values()
            ],
            r"did not resume from .*changed\.ckpt \(RuntimeError: ",
        ),
    ],
)
def test_a_training_does_not_resume_from_a_spoiled_state(trained, change, message) -> None:
    path, checkpoint = trained
    spoiled = changed(checkpoint, change)
    with pytest.raises(CheckpointError, match=message):
        run(["fit", "--config", path, "--ckpt_path", str(spoiled), "--trainer.max_epochs", "3"])


def test_limits_are_raised_by_the_environment(monkeypatch, capfd) -> None:
    monkeypatch.setenv("SPECTRAL_LIMITS", "4")
    assert limit(100) == 400
    size = "from common.datamodules.brats import MAX_VOXELS; print(MAX_VOXELS)"
    subprocess.run([sys.executable, "-c", size], check=True)
    assert capfd.readouterr().out == f"{4 * 2**28}\n"
    monkeypatch.setenv("SPECTRAL_LIMITS", "four")
    recipe = "papers/stft3d/recipes/demo.yaml"
    assert subprocess.run([sys.executable, "-m", "common.training.cli", "fit", "--config", recipe]).returncode == 1
    assert capfd.readouterr().err == "error: SPECTRAL_LIMITS is 'four'; it must be a whole number from 1 to 999999999\n"


def test_names_of_files_are_neither_markup_nor_commands_of_the_terminal(predict, capsys) -> None:
    write_video(Path("[/b]\x1b[2J\u202e.mp4"), num_frames=4)
    Path("bad\x1b[2J.mp4").write_bytes(b"x")
    assert predict("[/b]\x1b[2J\u202e.mp4", "bad\x1b[2J.mp4") == 1
    assert predict("[/b]\x1b[2J\u202e.mp4", "--csv", "no\x1b[2J/x.csv") == 1
    assert predict("x" * 5000 + ".mp4") == 1
    out, err = capsys.readouterr()
    assert "[/b]\\x1b[2J\\u202e.mp4" in out
    assert "error: bad\\x1b[2J.mp4: not a readable video" in out
    assert "there is no folder no\\x1b[2J" in err
    assert not {"\x1b", "\u202e"} & set(out + err)


@pytest.mark.parametrize("name", ["two\nlines", "x" * 10**7, "\ud800", ""], ids=["lines", "long", "no UTF-8", "empty"])
def test_what_is_no_name_of_a_class_is_refused(predict, capsys, name) -> None:
    content = torch.load("net/best.ckpt", weights_only=True)
    content["spectral"]["output_names"] = ["a", "b", name]
    torch.save(content, "net/best.ckpt")
    assert predict("clip.mp4") == 1
    assert "names are not a list of texts of one line" in capsys.readouterr().err


def test_cells_that_a_spreadsheet_would_run_are_text(tmp_path: Path) -> None:
    names = ["=cmd|' /C calc'!A0", "@SUM(1)", "+1", "-1", "plain", "a=b"]
    write_rows(tmp_path / "x.csv", [{"path": name, "p1": -0.5} for name in names])
    rows = list(csv.DictReader((tmp_path / "x.csv").open()))
    assert [row["path"] for row in rows] == [f"'{name}" for name in names[:4]] + names[4:]
    assert {row["p1"] for row in rows} == {"-0.5"}
