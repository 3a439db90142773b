"""Every recipe runs through the real command on tiny data in its own format, and says what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.training.cli import run
from data.demo.digits import generate_digits
from tests.datasets import read_recipe

RECIPES = Path(__file__).resolve().parents[3] / "papers/stft2d/recipes"
NAMES = sorted(path.name for path in RECIPES.glob("stft_*.yaml"))
SMALL = ["--model.network.b", "2", "--model.network.f", "4", "--data.num_workers", "0", "--trainer.accelerator", "cpu"]
QUIET = ["--trainer.enable_progress_bar", "false"]


@pytest.mark.parametrize("name", NAMES)
def test_recipe_says_what_section_4_says(name: str) -> None:
    model, data, trainer = read_recipe(RECIPES / name)
    assert f"_{data['dataset']}.yaml" in name
    assert (model["network"], model["learning_rate"]) == ({"b": 64, "f": 128}, 0.01)
    assert (data["batch_size"], data["batch_size_by_epoch"]) == (64, {300: 128})
    assert trainer["max_epochs"] == 400
    assert data["horizontal_flip"]
    if data["dataset"].startswith("cifar"):
        assert data["rotation"] == 20


def test_the_demo_trains_on_few_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    generate_digits("digits", size=8)
    args = ["--config", str(RECIPES / "demo.yaml"), "--data.root", "digits", *SMALL, *QUIET]
    few = ["--data.train_per_class", "2", "--data.batch_size_by_epoch", "{1: 20}", "--data.batch_size", "10"]
    fitted = run(["fit", *args, *few, "--trainer.max_epochs", "2", "--trainer.log_every_n_steps", "1"])
    assert fitted.trainer.global_step == 3  # two steps of ten images, one of twenty
    tested = run(["test", *args, *few, "--ckpt_path", "last"])
    assert tested.result is not None
    assert (tested.result["videos"], tested.result["videos_expected"]) == (535, 535)
