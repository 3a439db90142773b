"""Recipes say what the paper says, and train with the options that matter, through the real command."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import IMAGES, EventAccumulator

from common.training.cli import main, run
from papers.dtf import DTFModule, DTFTransformerModule, dtf_net
from papers.dtf.figures import moving_picture, with_active_blocks
from papers.dtf.networks import DTFNetOptions, DTFTransformerOptions
from tests.datasets import read_recipe

RECIPES = sorted((Path(__file__).resolve().parents[3] / "papers/dtf/recipes").glob("dtf-*.yaml"))
DEMOS = sorted((Path(__file__).resolve().parents[3] / "papers/dtf/recipes").glob("demo*.yaml"))
DATA = ["--data.crop_size", "32", "--data.train_crop_size", "24", "--data.resize_range", "[32, 40]"]
DATA += ["--data.resize", "32", "--data.batch_size", "2", "--data.num_workers", "0"]
SMALL = {
    "dtf-net": ["--model.network.width", "0.25", "--model.network.layers", "[1, 1, 1, 1]"],
    "dtf-transformer": ["--model.network.size", "t"],
}


def parts(recipe: Path) -> tuple[str, str, int, str]:
    method, backbone, frames, dataset = recipe.stem.split("_")
    return method, backbone, int(frames.removesuffix("f")), dataset


def small(recipe: Path, frames: int = 4) -> list[str]:
    options = [*DATA, *SMALL[parts(recipe)[0]], "--model.imagenet", "null"]
    return [*options, "--data.num_frames", str(frames)]


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_the_paper_says(recipe: Path) -> None:
    model, data, trainer = read_recipe(recipe)
    method, backbone, frames, name = parts(recipe)
    kinetics, swin = name == "kinetics400", method == "dtf-transformer"
    assert model["network"] == ({"size": backbone[-1]} if swin else {"depth": int(backbone.split("-")[1])})
    assert (data["dataset"], data["num_frames"]) == (name, frames)
    assert data["horizontal_flip"] == kinetics
    assert data["resize_range"] == [256, 340]
    assert data.get("train_crop_size", data["crop_size"]) == 224
    assert data["crop_size"] == data["resize"] == (224 if swin else 256)
    assert data.get("num_clips", 1) == (1 if not kinetics else 4 if swin else 10)
    assert data["num_crops"] == 3
    assert data["batch_size"] * trainer["accumulate_grad_batches"] == 256
    assert trainer["max_epochs"] == (128 if kinetics else 64)
    assert trainer["gradient_clip_val"] == 40
    options = {"size": "t", "embed_dim": 16, "heads": [1, 1, 1, 1]} if swin else {"depth": 18, "width": 0.25}
    kind, network = (
        (DTFTransformerModule, DTFTransformerOptions(**options)) if swin else (DTFModule, DTFNetOptions(**options))
    )
    defaults = kind(network, num_classes=2, num_frames=16).hparams
    assert (defaults["learning_rate"], defaults["weight_decay"]) == (0.01 if swin else 0.04, 1e-4)
    assert defaults["network"]["dropout"] == 0.5


KINETICS = next(recipe for recipe in RECIPES if recipe.stem == "dtf-net_resnet-50_16f_kinetics400")


TRAINING_OPTIONS = {
    "author": ["--model.network.preset", "author", "--model.network.num_blocks", "2"],
    "stages": ["--model.network.stages", "[4, 5]", "--model.network.aggregation", "false"],
    "bf16": ["--trainer.precision", "bf16-mixed"],
    "compile": ["--model.compile", "true", "--model.network.num_blocks", "1"],
    "ddp": ["--trainer.devices", "2", "--trainer.strategy", "ddp_spawn"],
}


@pytest.mark.parametrize(
    "option", [pytest.param(o, marks=pytest.mark.slow if o in ("compile", "ddp") else ()) for o in TRAINING_OPTIONS]
)
def test_recipe_runs_with_options(option: str, datasets: Callable[[str], list[str]]) -> None:
    arguments = ["--config", str(KINETICS), *small(KINETICS, 8), *datasets("kinetics400")]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1", *TRAINING_OPTIONS[option]]
    assert main(["fit", *arguments]) == 0


def test_a_run_from_image_weights_shows_filters_and_goes_on(
    datasets: Callable[[str], list[str]], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = tmp_path / "image.pt"
    torch.manual_seed(0)
    image_network = dtf_net(1000, block="2d", width=0.25, layers=[1, 1, 1, 1], stem_stride=1)
    torch.save(with_active_blocks(image_network, moving_picture(8, 96)[None]).state_dict(), weights)
    arguments = ["--config", str(KINETICS), *small(KINETICS, 8), *datasets("kinetics400")]
    arguments += ["--model.imagenet", str(weights), "--trainer.default_root_dir", str(tmp_path / "runs")]
    arguments += ["--data.num_clips", "1", "--trainer.enable_progress_bar", "false", "--trainer.log_every_n_steps", "1"]
    first = run(["fit", *arguments, "--trainer.max_epochs", "1"])
    assert first.run_dir is not None
    events = EventAccumulator(str(first.run_dir), size_guidance={IMAGES: 0}).Reload()
    assert "filter response" in events.Tags()["images"]
    assert "lr-SGD" in events.Tags()["scalars"]
    weights.unlink()  # neither going on nor predicting needs it
    more = run(["fit", *arguments, "--trainer.max_epochs", "2", "--ckpt_path", "last"])
    assert more.trainer.current_epoch == 2
    video = next((Path(datasets("kinetics400")[1])).rglob("*.mp4"))
    assert more.run_dir is not None
    assert main(["predict", "--checkpoint", str(more.run_dir / "last.ckpt"), str(video)]) == 0


def test_image_weights_that_cannot_be_had(datasets: Callable[[str], list[str]], capsys: pytest.CaptureFixture) -> None:
    arguments = ["fit", "--config", str(KINETICS), *small(KINETICS), *datasets("kinetics400")]
    assert main([*arguments, "--model.imagenet", "nowhere.pt", "--trainer.fast_dev_run", "true"]) == 1
    assert "nowhere.pt" in capsys.readouterr().err


def test_wrong_choices_are_named(datasets: Callable[[str], list[str]], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", str(KINETICS), *small(KINETICS), *datasets("kinetics400")]
    assert main([*arguments, "--model.num_frames", "8", "--trainer.fast_dev_run", "true"]) == 1
    assert "num_frames is 4 in the data and 8 in the network" in capsys.readouterr().err
    assert main([*arguments, "--model.network.block", "dft"]) == 2
    assert "dtf" in capsys.readouterr().err
    assert main([*arguments, "--model.network.stages", "[1]"]) != 0
    assert "stages names some of [2, 3, 4, 5], not [1]" in capsys.readouterr().err


def test_optimiser_of_section_4_1() -> None:
    module = DTFModule(DTFNetOptions(depth=18, width=0.25), num_classes=3, num_frames=16)

    loop = SimpleNamespace(setup_data=lambda: None)
    lengths = {"estimated_stepping_batches": 1280, "num_training_batches": 10, "accumulate_grad_batches": 1}
    module._trainer = SimpleNamespace(fit_loop=loop, **lengths)  # type: ignore[assignment]
    config: Any = module.configure_optimizers()
    group = config["optimizer"].param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["nesterov"]) == (0.9, 1e-4, True)
    assert len(group["params"]) == len(list(module.network.parameters()))
    rates = []
    for _ in range(1280):
        rates.append(group["lr"])
        config["optimizer"].step()
        config["lr_scheduler"]["scheduler"].step()
    assert rates[0] == pytest.approx(0.0004)  # one epoch of ten steps from a hundredth
    assert rates[10] == max(rates) == pytest.approx(0.04)
    assert rates[10 + 635] == pytest.approx(0.02)
    assert rates[-1] < 1e-6
