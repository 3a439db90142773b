import csv
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from torch import nn

from common.training.classification import ImageClassificationModule
from common.training.cli import main, run
from tests.common.training.test_resume import state
from tests.images import write_folders

LOG = "SPECTRAL_TEST_LOG"


class TinyImageModule(ImageClassificationModule):
    """One convolution; writes the images of every batch it trains on into the file named by SPECTRAL_TEST_LOG."""

    free_to_change = ImageClassificationModule.free_to_change | {"kill_at"}

    def __init__(self, num_classes: int = 2, kill_at: int | None = None, **kwargs: Any) -> None:
        super().__init__(num_classes, **kwargs)
        self.validations = 0

    def on_validation_epoch_end(self) -> None:
        super().on_validation_epoch_end()
        self.validations += not self.trainer.sanity_checking

    def build_network(self) -> nn.Module:
        body = [nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(0.2)]
        return nn.Sequential(*body, nn.Linear(4, self.hparams["num_classes"]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9)

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        if LOG in os.environ:
            with open(os.environ[LOG], "a") as log:
                indices = ",".join(map(str, batch["image_index"].tolist()))
                log.write(f"{self.current_epoch} {indices} {batch['image'].sum():.4f}\n")
        if self.global_step == self.hparams["kill_at"]:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().training_step(batch, batch_idx)


@pytest.fixture
def recipe(tmp_path, monkeypatch):
    """A recipe for ten bright and ten dark pictures; the working directory is a fresh folder."""
    monkeypatch.chdir(tmp_path)
    write_folders(tmp_path / "data", train=10, val=3, test=4)

    def write(data: dict | None = None, **trainer: Any) -> str:
        content = {
            "model": {"class_path": f"{__name__}.TinyImageModule", "init_args": {}},
            "data": {
                "class_path": "common.datamodules.ImageDataModule",
                "init_args": {
                    **{"root": str(tmp_path / "data"), "batch_size": 4, "num_workers": 0},
                    **{"shift": 0.1, **(data or {})},
                },
            },
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, **trainer},
        }
        Path("tiny.yaml").write_text(yaml.safe_dump(content))
        return "tiny.yaml"

    return write


def lines(path: str) -> list[str]:
    return Path(path).read_text().splitlines()


def test_fit_test_and_predict_png_files(recipe, capsys, monkeypatch, tmp_path):
    path = recipe(max_epochs=2, log_every_n_steps=1)
    # the class of this file as a checkpoint of the project would name it
    monkeypatch.setattr(TinyImageModule, "__module__", "common.training.classification")
    monkeypatch.setattr("common.training.classification.TinyImageModule", TinyImageModule, raising=False)
    assert main(["fit", "--config", path]) == 0
    stored = torch.load("runs/tiny/version_0/last.ckpt", weights_only=True)["spectral"]
    assert stored["output_names"] == ["class0", "class1"]
    assert stored["spec"]["height"] == 12
    tested = run(["test", "--config", path, "--ckpt_path", "best"])
    assert tested.result is not None
    assert (tested.result["kind"], tested.result["videos"], tested.result["videos_expected"]) == ("image", 8, 8)
    assert "8 of 8 images x 1 view" in capsys.readouterr().out
    broken = tmp_path / "broken.png"
    broken.write_bytes((tmp_path / "data/test/class0/0.png").read_bytes()[:60])
    assert main(["predict", "--checkpoint", "runs/tiny", "data/test", "broken.png", "no.png", "--csv", "out.csv"]) == 1
    with open("out.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    with open(tested.run_dir / "predictions.csv", newline="") as file:
        ours = {row["path"]: row for row in csv.DictReader(file)}
    assert len(rows) == 10
    for row in rows[:8]:
        other = ours[str(Path(row["path"]).relative_to("data"))]
        assert row["top1"] == other["top1"]
        assert float(row["p1"]) == pytest.approx(float(other["p1"]), abs=2e-5)
    assert "not a readable image" in rows[8]["error"]
    assert "no.png does not exist: give image files" in rows[9]["error"]
    assert "image" in capsys.readouterr().out


def test_a_loss_that_is_not_finite_names_the_images(recipe, capsys):
    assert main(["fit", "--config", recipe({"std": [1e-38] * 3, "mean": [0.0] * 3}, num_sanity_val_steps=0)]) == 1
    assert "images: train/class" in capsys.readouterr().err


def test_the_batch_grows_and_every_image_is_seen(recipe, monkeypatch):
    monkeypatch.setenv(LOG, "log.txt")
    done = run(["fit", "--config", recipe({"batch_size_by_epoch": {1: 8, 3: 20}}, max_epochs=4)])
    steps = [line.split() for line in lines("log.txt")]
    sizes = [[len(indices.split(",")) for epoch, indices, _ in steps if epoch == str(e)] for e in range(4)]
    assert sizes == [[4] * 5, [8, 8, 4], [8, 8, 4], [20]]
    for epoch in range(4):
        seen = [int(n) for e, indices, _ in steps if e == str(epoch) for n in indices.split(",")]
        assert sorted(seen) == list(range(20))
    assert done.trainer.global_step == 12
    # validated after every epoch, the shorter ones too
    assert torch.load(done.run_dir / "best.ckpt", weights_only=True)["spectral"]
    assert done.model.validations == 4


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "every"),
    [
        (3, 1),  # before the switch
        (5, 1),  # on the first step behind it
        (6, 2),  # the last checkpoint was within the epoch of the switch
        (7, None),  # the last checkpoint was the end of the epoch before the switch
        (9, None),
    ],
)
def test_a_run_killed_around_the_switch_ends_as_if_it_had_not_been(recipe, monkeypatch, recwarn, kill, every):
    path = recipe({"batch_size_by_epoch": {1: 8}}, max_epochs=4)
    often = [] if every is None else ["--checkpoint_every_n_steps", str(every)]
    monkeypatch.setenv(LOG, "whole.txt")
    whole = run(["fit", "--config", path, "--name", "whole", *often])
    command = [sys.executable, "-m", "common.training.cli", "fit", "--config", path, "--name", "killed", *often]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), LOG: "killed.txt"}
    killed = subprocess.run([*command, "--model.kill_at", str(kill)], env=environment, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    monkeypatch.setenv(LOG, "resumed.txt")
    resumed = run(["fit", "--config", path, "--name", "killed", "--ckpt_path", "last", *often])
    expected, before, after = lines("whole.txt"), lines("killed.txt"), lines("resumed.txt")
    assert before == expected[: len(before)]
    assert after == expected[len(expected) - len(after) :]
    assert len(after) >= len(expected) - len(before)
    ours, theirs = state(whole.run_dir), state(resumed.run_dir)
    assert [key for key in ours if not torch.equal(ours[key], theirs[key])] == []
    assert not [w for w in recwarn if "continues with other data" in str(w.message)]
