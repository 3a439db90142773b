"""Recipes say what the paper says, and train with the options that matter, through the real command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from common.training.cli import main, run
from papers.stft3d import STFT3DModule
from papers.stft3d.networks import STFT3DOptions
from tests.datasets import read_recipe

RECIPES = sorted((Path(__file__).resolve().parents[3] / "papers/stft3d/recipes").glob("t-stft_*.yaml"))
WITH_FLIP = {"kinetics400", "ucf101", "hmdb51", "diving48"}  # Section 5.2
SMALL = [
    "--model.network.width",
    "0.125",
    "--data.crop_size",
    "32",
    "--data.batch_size",
    "2",
    "--data.num_workers",
    "0",
]


def dataset_of(recipe: Path) -> str:
    return recipe.stem.split("_")[3]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_the_paper_says(recipe: Path) -> None:
    (model, data, trainer), name = read_recipe(recipe), dataset_of(recipe)
    finetuning = recipe.stem.endswith("_from-kinetics")
    assert data["dataset"] == name
    assert data["horizontal_flip"] == (name in WITH_FLIP)
    assert data["batch_size"] == 32
    assert data["crop_size"] == 112
    assert f"_{data['num_frames']}f_" in recipe.stem
    assert trainer["max_epochs"] == (60 if finetuning else 160)
    assert model.get("learning_rate", 0.1) == (0.01 if finetuning else 0.1)
    assert model.get("decay_every", 40) == (20 if finetuning else 40)
    assert ("pretrained" in model) == finetuning


def test_optimiser_and_schedule_of_section_5_2() -> None:
    module = STFT3DModule(num_classes=3, network=STFT3DOptions(width=0.125))
    config = module.configure_optimizers()
    optimizer, schedule = config["optimizer"], config["lr_scheduler"]["scheduler"]
    group = optimizer.param_groups[0]
    assert (group["momentum"], group["dampening"], group["weight_decay"]) == (0.9, 0.9, 1e-3)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(module.network.parameters()))
    rates = []
    for _ in range(160):
        rates.append(group["lr"])
        optimizer.step()
        schedule.step()
    expected = [0.1] * 40 + [0.01] * 40 + [0.001] * 40 + [0.0001] * 40
    torch.testing.assert_close(torch.tensor(rates), torch.tensor(expected))


def test_fine_tuning_starts_from_a_checkpoint(datasets: Callable[[str], list[str]], pretrained: Path) -> None:
    recipe = next(path for path in RECIPES if path.stem.endswith("_from-kinetics"))
    arguments = ["--config", str(recipe), *SMALL, *datasets(dataset_of(recipe)), "--trainer.fast_dev_run", "true"]
    arguments += ["--model.pretrained", str(pretrained)]
    assert main(["fit", *arguments]) == 0
    assert main(["test", *arguments]) == 0


@pytest.fixture(scope="session")
def pretrained(datasets: Callable[[str], list[str]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the Kinetics recipe, one step old, with another number of classes than any other dataset."""
    recipe = next(path for path in RECIPES if path.stem == "t-stft_bn-inception_64f_kinetics400")
    runs = tmp_path_factory.mktemp("runs")
    arguments = ["--config", str(recipe), *SMALL, *datasets("kinetics400"), "--data.num_frames", "4"]
    cli = run(["fit", *arguments, "--trainer.max_epochs", "1", "--trainer.default_root_dir", str(runs)])
    assert cli.run_dir is not None
    return cli.run_dir / "last.ckpt"


TRAINING_OPTIONS = {
    "accumulation": ["--trainer.accumulate_grad_batches", "2"],
    "bf16": ["--trainer.precision", "bf16-mixed"],
    "memory-efficient": ["--model.network.memory_efficient", "true"],
    "compile": ["--model.compile", "true"],
    "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"],
}
QUICK = [("t-stft", "accumulation"), ("st-stft", "bf16"), ("s-stft", "memory-efficient")]


@pytest.mark.parametrize(
    ("method", "option"),
    [
        pytest.param(method, option, marks=[] if (method, option) in QUICK else pytest.mark.slow)
        for method in ("t-stft", "st-stft", "s-stft")
        for option in list(TRAINING_OPTIONS)[:3]
    ]
    + [pytest.param("t-stft", option, marks=pytest.mark.slow) for option in ("compile", "ddp")],
)
def test_recipe_runs_with_options(method: str, option: str, datasets: Callable[[str], list[str]]) -> None:
    recipe = next(path for path in RECIPES if path.stem == "t-stft_bn-inception_16f_something-v1")
    arguments = ["--config", str(recipe), *SMALL, *datasets("something-v1"), "--model.method", method]
    arguments += ["--data.num_frames", "4", "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "2"]
    assert main(["fit", *arguments, *TRAINING_OPTIONS[option]]) == 0


def test_wrong_choices_are_named(
    datasets: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    arguments = ["fit", "--config", str(RECIPES[0]), *SMALL, *datasets("jester")]
    assert main([*arguments, "--model.method", "i3d", "--model.network.memory_efficient", "true"]) != 0
    assert "memory_efficient is for networks with fixed transforms, which I3D lacks" in capsys.readouterr().err
    typo = tmp_path / "typo.yaml"
    typo.write_text("model: {init_args: {network: {widht: 0.5}}}")
    assert main([*arguments, "--config", str(typo)]) == 2
    assert "'network' does not accept option 'widht'. Did you mean width?" in capsys.readouterr().err
    assert main([*arguments, "--model.method", "t-sfft"]) == 2
    assert "t-stft" in capsys.readouterr().err
