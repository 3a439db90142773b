"""Every recipe runs on a tiny copy of its dataset: dense training, compression with fine-tuning, test, prediction."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nibabel as nib
import pytest
import torch

from common.backbones import ResNet3d
from common.training.cli import main, run
from common.training.task import load_module, load_pretrained
from papers.fdc3d import CompactConv3d, FDC3DModule
from papers.fdc3d.methods import METHODS
from papers.fdc3d.networks import ResNetOptions
from tests.datasets import read_recipe, write_dataset

FOLDER = Path(__file__).resolve().parents[3] / "papers/fdc3d/recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
VIDEO, VOLUME = "3d-resnet18_16f_ucf101", "unet_brats2018"
QUICK = ["--data.num_workers", "0", "--trainer.accelerator", "cpu", "--trainer.enable_progress_bar", "false"]
SMALL_WORDS = {
    VIDEO: "--model.network.width 0.0625 --model.network.depth 10 --data.crop_size 32 --data.batch_size 2 "
    "--data.num_frames 8 --data.num_clips 1",
    VOLUME: "--model.network.width 0.1 --data.patch_size [8,16,16]",
}
SMALL = {kind: words.split() for kind, words in SMALL_WORDS.items()}
COMPRESS = ["--model.compression.steps", "2", "--model.compression.batch_size", "2", "--model.compression.repeats", "2"]


@pytest.fixture(scope="session")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """Recipe stem without method -> the arguments that point it at a tiny copy of its dataset."""
    return {
        VIDEO: write_dataset("ucf101", tmp_path_factory.mktemp("ucf101")),
        VOLUME: write_dataset("brats2018", tmp_path_factory.mktemp("brats2018")),
    }


@pytest.fixture(scope="session")
def dense(arguments: dict[str, list[str]], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The checkpoint of a dense network, an epoch old."""
    made: dict[str, Path] = {}

    def make(kind: str) -> Path:
        if kind not in made:
            recipe = ["--config", str(FOLDER / f"dense_{kind}.yaml"), *arguments[kind], *SMALL[kind], *QUICK]
            runs = str(tmp_path_factory.mktemp("runs"))
            cli = run(["fit", *recipe, "--trainer.max_epochs", "1", "--trainer.default_root_dir", runs])
            assert cli.run_dir is not None
            made[kind] = cli.run_dir / "best.ckpt"
        return made[kind]

    return make


def compressing(kind: str, arguments: dict[str, list[str]], start: Path, *more: str) -> list[str]:
    recipe = ["--config", str(FOLDER / f"fdc3d_{kind}.yaml"), *arguments[kind], *SMALL[kind], *QUICK, *COMPRESS]
    return [*recipe, "--model.compression.start", str(start), *more]


def test_recipes_say_what_the_paper_says() -> None:
    for path in RECIPES:
        if path.stem.startswith("demo"):
            continue
        model, data, trainer = read_recipe(path)
        assert model["weight_decay"] == 1e-5, path.stem
        assert trainer["max_epochs"] == 300
        assert ("compression" in model) == path.stem.startswith("fdc3d")
        if "ucf101" in path.stem:
            assert model["learning_rate"] == 0.005
            assert (data["num_frames"], data["crop_size"], data["sampling"]) == (16, 112, "dense")
            values = [255 * value for value in data["mean"]]
            assert values == pytest.approx([114.7748, 107.7354, 99.475], abs=1e-3)
        else:
            assert model["learning_rate"] == 0.001
            assert sorted(data["patch_size"]) == [128, 160, 192]
            assert data["batch_size"] == 1
        if "compression" in model:
            assert model["compression"]["rate"] == 2
            assert model["compression"]["start"] == f"runs/{path.stem.replace('fdc3d_', 'dense_')}"


def test_optimiser_and_schedule() -> None:
    module = FDC3DModule(ResNetOptions(depth=10, width=1 / 16), num_classes=3, patience=0)
    module.trainer = type("T", (), {"check_val_every_n_epoch": 2})()  # type: ignore[assignment]
    config: Any = module.configure_optimizers()
    group = config["optimizer"].param_groups[0]
    assert (group["lr"], group["momentum"], group["weight_decay"]) == (0.005, 0.9, 1e-5)
    assert config["lr_scheduler"]["monitor"] == "val_loss"
    assert config["lr_scheduler"]["frequency"] == 2
    for loss in (1.0, 0.5, 0.6):
        config["lr_scheduler"]["scheduler"].step(loss)
    assert group["lr"] == pytest.approx(0.0005)


def test_a_public_state_dict_is_a_starting_point(tmp_path: Path) -> None:
    """The form of the public files: a dict with the state dict of a `DataParallel`, without counters of batches."""
    state = ResNet3d(10, num_classes=400, width=1 / 16, shortcut="A").state_dict()
    stored = {f"module.{name}": value for name, value in state.items() if not name.endswith("num_batches_tracked")}
    torch.save({"epoch": 200, "arch": "resnet-10", "state_dict": stored}, tmp_path / "public.pth")
    module = FDC3DModule(ResNetOptions(depth=10, width=1 / 16, shortcut="A"), num_classes=3)
    load_pretrained(module.network, tmp_path / "public.pth")
    for name, value in module.network.state_dict().items():
        assert torch.equal(value, state[name]) != name.startswith("fc."), name


@pytest.mark.parametrize("kind", [VIDEO, pytest.param(VOLUME, marks=pytest.mark.slow)])
def test_dense_compressed_tested_and_predicted(
    kind: str,
    arguments: dict[str, list[str]],
    dense: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The whole way of a row of the ledger; then the compact checkpoint alone, without the dense one."""
    monkeypatch.chdir(tmp_path)
    start = tmp_path / "start.ckpt"
    start.write_bytes(dense(kind).read_bytes())
    recipe = compressing(kind, arguments, start, "--trainer.max_epochs", "1", "--name", "compact")
    trained = run(["fit", *recipe])
    assert trained.run_dir is not None
    assert any(isinstance(module, CompactConv3d) for module in trained.model.network.modules())
    tested = run(["test", *recipe, "--ckpt_path", "last"])
    assert tested.result is not None
    score = "top1" if kind == VIDEO else "dice"
    facts = {key: tested.result[key] for key in (score, f"dense_{score}", f"lost_{score}")}
    assert facts[f"lost_{score}"] == pytest.approx(facts[f"dense_{score}"] - facts[score])
    config = ["--config", str(FOLDER / f"dense_{kind}.yaml"), *arguments[kind], *SMALL[kind], *QUICK]
    dense_alone = run(["test", *config, "--ckpt_path", str(start)])
    assert dense_alone.result is not None
    assert dense_alone.result[score] == facts[f"dense_{score}"]
    for key in ("speedup_formula", "speedup_macs", "speedup_measured", "milliseconds", "dense_milliseconds"):
        assert tested.result[key] > 0
    assert tested.result["speedup_formula"] > 1.2
    assert json.loads((tested.run_dir / "result.json").read_text())["params"] < dense_alone.result["params"]  # type: ignore[operator]

    start.unlink()
    checkpoint = trained.run_dir / "last.ckpt"
    module = load_module(checkpoint)
    for name, value in trained.model.state_dict().items():
        assert torch.equal(module.state_dict()[name], value), name
    capsys.readouterr()
    paths = [arguments[kind][1]]
    assert main(["predict", "--checkpoint", str(checkpoint), *paths]) == 0
    if kind == VOLUME:
        written = sorted((tmp_path / "predictions").glob("*.nii.gz"))
        assert len(written) == 5
        assert nib.load(written[0]).shape == (14, 16, 12)
    else:
        assert "HandstandPushups" in capsys.readouterr().out


def test_an_interrupted_run_goes_on_with_its_compact_network(
    arguments: dict[str, list[str]], dense: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = compressing(VIDEO, arguments, dense(VIDEO), "--name", "one")
    whole = run(["fit", *recipe, "--trainer.max_epochs", "2"]).model.state_dict()
    recipe = compressing(VIDEO, arguments, dense(VIDEO), "--name", "two")
    run(["fit", *recipe, "--trainer.max_epochs", "1"])
    # The dense network is not asked for again.
    recipe[recipe.index("--model.compression.start") + 1] = "gone.ckpt"
    resumed = run(["fit", *recipe, "--trainer.max_epochs", "2", "--ckpt_path", "last"]).model.state_dict()
    assert whole.keys() == resumed.keys()
    for name, value in whole.items():
        torch.testing.assert_close(resumed[name], value, msg=name)


@pytest.mark.parametrize(
    ("kind", "method"),
    [(VIDEO, method) for method in METHODS]
    + [pytest.param(VOLUME, method, marks=pytest.mark.slow) for method in METHODS],
)
def test_every_method_runs(
    kind: str, method: str, arguments: dict[str, list[str]], dense: Callable[[str], Path]
) -> None:
    more = ["--model.compression.method", method, "--model.compression.rate", "4", "--trainer.fast_dev_run", "true"]
    assert main(["fit", *compressing(kind, arguments, dense(kind), *more)]) == 0


def test_unread_filters_can_go(arguments: dict[str, list[str]], dense: Callable[[str], Path], tmp_path: Path) -> None:
    more = [
        "--model.compression.trim",
        "true",
        "--trainer.max_epochs",
        "1",
        "--trainer.default_root_dir",
        str(tmp_path),
    ]
    trained = run(["fit", *compressing(VIDEO, arguments, dense(VIDEO), *more)])
    block = trained.model.network.layer2[0]
    assert block.conv1.out_channels == block.bn1.num_features == 6  # of 8
    assert trained.run_dir is not None
    loaded = load_module(trained.run_dir / "last.ckpt")
    assert loaded.network.layer2[0].conv1.out_channels == 6  # type: ignore[union-attr]


def test_wrong_choices_are_named(
    arguments: dict[str, list[str]],
    dense: Callable[[str], Path],
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fast = ["--trainer.fast_dev_run", "true"]
    start = dense(VIDEO)
    monkeypatch.chdir(tmp_path)
    assert main(["fit", *compressing(VIDEO, arguments, start, *fast, "--model.compression.method", "dtc")]) == 2
    assert "dct" in capsys.readouterr().err
    assert main(["fit", *compressing(VIDEO, arguments, start, *fast, "--model.compression.rate", "0.5")]) == 1
    assert "at least 1" in capsys.readouterr().err
    assert main(["fit", *compressing(VIDEO, arguments, Path("none.ckpt"), *fast)]) == 1
    assert "none.ckpt does not exist" in capsys.readouterr().err
    assert main(["fit", *compressing(VIDEO, arguments, start, *fast, "--model.network.depth", "18")]) == 1
    assert "weights of another network" in capsys.readouterr().err
    config = ["--config", str(FOLDER / f"dense_{VIDEO}.yaml"), *arguments[VIDEO], *SMALL[VIDEO], *QUICK, *fast]
    assert main(["fit", *config, "--model.compression.rate", "2"]) == 1
    assert "compression needs start" in capsys.readouterr().err
    assert not os.path.exists("runs")


@pytest.mark.slow
def test_volumes_score_the_same_on_two_processes(
    arguments: dict[str, list[str]], dense: Callable[[str], Path], tmp_path: Path
) -> None:
    """Three cases on two processes: one of them has to repeat a case, which counts once."""
    config = ["--config", str(FOLDER / f"fdc3d_{VOLUME}.yaml"), *arguments[VOLUME], *SMALL[VOLUME], *QUICK, *COMPRESS]
    config += ["--data.val_fraction", "0.6", "--model.compression.start", str(dense(VOLUME))]
    config += ["--trainer.default_root_dir", str(tmp_path), "--model.compression.repeats", "0"]
    trained = run(["fit", *config, "--trainer.max_epochs", "1", "--name", "fit"]).run_dir
    environment = {**os.environ, "PYTHONPATH": str(FOLDER.parents[2]), "OMP_NUM_THREADS": "1"}
    results = []
    for processes in (1, 2):
        command = [sys.executable, "-m", "common.training.cli", "test", *config, "--name", f"test{processes}"]
        command += ["--ckpt_path", str(trained / "last.ckpt"), "--trainer.devices", str(processes)]  # type: ignore[operator]
        command += ["--trainer.strategy", "ddp"] if processes > 1 else []
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=180)
        assert done.returncode == 0, done.stderr
        results.append(json.loads((tmp_path / f"test{processes}" / "version_0" / "result.json").read_text()))
    keys = ("dice", "dice_et", "dice_wt", "dice_tc", "loss", "dense_dice", "lost_dice", "videos", "videos_expected")
    assert [results[0][key] for key in keys] == [results[1][key] for key in keys]
    assert results[0]["videos"] == 3
