"""Video recipes run through the real command on tiny data in the dataset's own format, and say what the paper says."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from common.spectral import LearnableTransform2d
from common.training.cli import main, run
from common.training.task import load_module
from papers.srl import SRLVideoModule
from papers.srl.layers import SRLBlock
from papers.srl.networks import VideoOptions
from tests.datasets import read_recipe, write_dataset

FOLDER = Path(__file__).resolve().parents[3] / "papers/srl/recipes"
RECIPES = sorted(FOLDER.glob("srl-fft_c2d-*.yaml"))
SMALL = ["--model.network.width", "0.125", "--model.imagenet", "null", "--data.crop_size", "64"]
SMALL += ["--data.resize", "64", "--data.frame_stride", "1", "--data.num_clips", "2", "--data.batch_size", "2"]
SMALL += ["--data.num_workers", "0", "--trainer.accelerator", "cpu"]


@pytest.fixture(scope="module")
def kinetics(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The arguments that point a recipe at a tiny copy of Kinetics-400."""
    return write_dataset("kinetics400", tmp_path_factory.mktemp("kinetics400"))


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_recipe_says_what_section_4_2_says(recipe: Path) -> None:
    model, data, _ = read_recipe(recipe)
    assert (data["dataset"], data["num_frames"], data["crop_size"]) == ("kinetics400", 8, 224)
    assert (model["weight_decay"], model["network"]["dropout"]) == (5e-4, 0.5)
    assert data["num_clips"] == 25
    assert data["horizontal_flip"]
    assert model["imagenet"].startswith(f"torchvision/resnet{model['network']['depth']}.")
    assert data["batch_size"] == {18: 128, 50: 64}[model["network"]["depth"]]


def test_optimiser_and_schedule() -> None:
    module = SRLVideoModule(VideoOptions(width=0.125), num_classes=3, num_frames=8, input_size=64)
    config = module.configure_optimizers()
    group = config["optimizer"].param_groups[0]
    assert (group["momentum"], group["weight_decay"], group["lr"]) == (0.9, 5e-4, 0.01)
    assert len(group["params"]) == len(list(module.network.parameters()))


@pytest.mark.parametrize(
    ("recipe", "options"),
    [
        ("srl-fft_c2d-r18_8f_kinetics400", ["--model.network.positions", "res4", "--model.network.phi", "time"]),
        ("srl-fft_c2d-r18_8f_kinetics400", ["--trainer.precision", "bf16-mixed"]),
        ("srl-fft_c2d-r50_8f_kinetics400", ["--model.network.groups", "1", "--model.compile", "false"]),
    ],
)
def test_recipe_runs(recipe: str, options: list[str], kinetics: list[str]) -> None:
    arguments = ["--config", str(FOLDER / f"{recipe}.yaml"), *SMALL, *kinetics, *options]
    assert main(["fit", *arguments, "--trainer.fast_dev_run", "true"]) == 0


def test_training_from_imagenet_keeps_learnable_matrices_orthogonal(kinetics: list[str], tmp_path: Path) -> None:
    """Two steps of SRL-LO at full width from image weights; the checkpoint alone rebuilds the network."""
    torch.save(torchvision.models.resnet18(weights=None).state_dict(), tmp_path / "image.pth")
    arguments = [
        "--config",
        str(RECIPES[0]),
        *SMALL,
        *kinetics,
        "--model.network.block",
        "srl-lo",
        "--model.network.width",
        "1",
    ]
    arguments += ["--model.imagenet", str(tmp_path / "image.pth"), "--model.learning_rate", "0.5"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_val_batches", "1"]
    cli = run(["fit", *arguments, "--trainer.default_root_dir", str(tmp_path)])
    transforms = [m for m in cli.model.modules() if isinstance(m, LearnableTransform2d)]
    assert len(transforms) == 4
    assert all(transform.orthogonality_error() < 1e-5 for transform in transforms)
    (tmp_path / "image.pth").unlink()  # the checkpoint does not need it any more
    assert cli.run_dir is not None
    module = load_module(cli.run_dir / "last.ckpt")
    for ours, theirs in zip(module.network.parameters(), cli.model.network.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_without_the_callback_the_matrices_drift() -> None:
    """What the callback prevents: the same steps without the QR decomposition."""
    errors = {}
    for callback in (False, True):
        torch.manual_seed(0)
        network = VideoOptions(block="srl-lo", width=0.125)
        module = SRLVideoModule(network, num_classes=3, num_frames=8, input_size=64, learning_rate=0.5)
        (after_each_step,) = module.configure_callbacks()
        optimizer = module.configure_optimizers()["optimizer"]
        for block in (m for m in module.modules() if isinstance(m, SRLBlock)):
            nn.init.ones_(block.alpha)
        for _ in range(5):
            optimizer.zero_grad()
            module(torch.randn(4, 3, 8, 64, 64)).square().mean().backward()
            optimizer.step()
            if callback:
                after_each_step.on_train_batch_end(None, module)  # type: ignore[arg-type]
        errors[callback] = max(m.orthogonality_error() for m in module.modules() if isinstance(m, LearnableTransform2d))
    assert errors[False] > 1e-2
    assert errors[True] < 1e-5


def test_wrong_choices_are_named(kinetics: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["fit", "--config", str(RECIPES[0]), *SMALL, *kinetics, "--trainer.fast_dev_run", "true"]
    assert main([*arguments, "--model.network.block", "a2", "--model.network.groups", "2"]) == 2
    assert "groups: options of SRL blocks, not of a2" in capsys.readouterr().err
    assert main([*arguments, "--data.crop_size", "56", "--model.input_size", "64"]) == 1
    assert "input_size is 56 in the data and 64 in the network" in capsys.readouterr().err
