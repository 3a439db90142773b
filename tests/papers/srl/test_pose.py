"""Pose: published state dicts, the recipes of Tables 2 to 6 on files of COCO, and the demo through the real command."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

from common.backbones import load_imagenet
from common.training.checkpoints import CheckpointError
from common.training.cli import main
from common.training.task import load_module, load_pretrained
from data.demo.figures import generate_figures
from papers.srl import SRLPoseModule, pose_resnet
from papers.srl.networks import PoseOptions
from tests.coco import two_persons
from tests.datasets import read_recipe

FOLDER = Path(__file__).resolve().parents[3] / "papers/srl/recipes"
RECIPES = sorted(FOLDER.glob("*_coco.yaml"))
SMALL = ["--model.network.width", "0.125", "--model.network.layers", "[1, 1, 1, 1]", "--model.imagenet", "null"]
SMALL += ["--data.height", "64", "--data.width", "64", "--data.batch_size", "2", "--data.num_workers", "0"]


class SimpleBaseline(torchvision.models.ResNet):
    """The published network: torchvision's ResNet-50 or 101 with a decoder, as its names say."""

    def __init__(self, num_joints: int, depth: int = 50) -> None:
        super().__init__(torchvision.models.resnet.Bottleneck, [3, 4, {50: 6, 101: 23}[depth], 3])
        del self.avgpool, self.fc
        steps: list[nn.Module] = []
        for channels in (2048, 256, 256):
            deconv = nn.ConvTranspose2d(channels, 256, kernel_size=4, stride=2, padding=1, bias=False)
            steps += [deconv, nn.BatchNorm2d(256), nn.ReLU()]
        self.deconv_layers = nn.Sequential(*steps)
        self.final_layer = nn.Conv2d(256, num_joints, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        return self.final_layer(self.deconv_layers(self.layer4(self.layer3(self.layer2(self.layer1(x))))))


@pytest.mark.parametrize(
    ("depth", "prefix"), [(50, ""), (50, "module."), pytest.param(101, "", marks=pytest.mark.slow)]
)
def test_published_state_dicts_load(tmp_path: Path, depth: int, prefix: str) -> None:
    state = {name: value + 1 for name, value in SimpleBaseline(17, depth).state_dict().items()}
    path = tmp_path / f"pose_resnet_{depth}_256x192.pth.tar"
    torch.save({prefix + name: value for name, value in state.items()}, path)
    network = pose_resnet(depth=depth, block="none")
    assert f"loaded all {len(state)} tensors" in load_pretrained(network, path)
    own = network.state_dict()
    assert own.keys() == state.keys()
    assert all(torch.equal(own[name], value) for name, value in state.items())
    with torch.inference_mode():
        assert network.eval()(torch.randn(1, 3, 96, 64)).shape == (1, 17, 24, 16)


@pytest.mark.parametrize("block", [pytest.param("none", marks=pytest.mark.slow), "srl-fft"])
def test_published_weights_give_the_same_heatmaps(tmp_path: Path, block: Any) -> None:
    """New blocks change nothing at first; the last layer is new for other joints."""
    torch.manual_seed(0)
    theirs = SimpleBaseline(16).eval()
    torch.save(theirs.state_dict(), tmp_path / "pose_resnet_50_256x192.pth.tar")
    ours = pose_resnet(16, (64, 48), block=block).eval()
    assert {name for name in ours.state_dict() if not name.startswith("blocks.")} == set(theirs.state_dict())
    load_imagenet(ours, str(tmp_path / "pose_resnet_50_256x192.pth.tar"))
    images = torch.randn(1, 3, 64, 48)
    with torch.no_grad():
        expected = theirs(images)
        torch.testing.assert_close(ours(images), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)
    other = pose_resnet(17, (64, 48), block=block)
    assert "the classifier is new" in load_imagenet(other, str(tmp_path / "pose_resnet_50_256x192.pth.tar"))
    assert torch.equal(other.deconv_layers[6].weight, theirs.deconv_layers[6].weight)


def test_a_network_with_blocks_says_what_a_published_state_dict_lacks(tmp_path: Path) -> None:
    torch.save(SimpleBaseline(17).state_dict(), tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match=r"missing in the checkpoint: blocks.d1.alpha"):
        load_pretrained(pose_resnet(block="srl-fft"), tmp_path / "a.pth")


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("coco")
    two_persons(root)
    return root


def test_the_recipes_say_what_the_paper_says() -> None:
    assert len(RECIPES) == 3
    for recipe in RECIPES:
        model, data, trainer = read_recipe(recipe)
        height, width = (int(n) for n in recipe.stem.split("_")[2].split("x"))
        assert [height, width] == [data["height"], data["width"]]
        assert data["batch_size"] == 32
        assert trainer["max_epochs"] == 210
        assert model["network"].get("short_receptive_field", False) == ("short" in recipe.stem)
    module = SRLPoseModule(PoseOptions(block="none", width=0.125, layers=[1, 1, 1, 1]), 17, (64, 64))
    config = module.configure_optimizers()
    optimizer, schedule = config["optimizer"], config["lr_scheduler"]["scheduler"]
    assert isinstance(optimizer, torch.optim.Adam)
    rates = []
    for _ in range(210):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    torch.testing.assert_close(torch.tensor(rates), torch.tensor([1e-3] * 170 + [1e-4] * 30 + [1e-5] * 10))


@pytest.mark.parametrize(
    ("recipe", "block"),
    [(RECIPES[0], block) for block in ("none", "srl-lo")] + [(r, "srl-fft") for r in RECIPES],
    ids=lambda value: getattr(value, "stem", value),
)
def test_a_recipe_runs_on_files_of_coco(recipe: Path, block: str, coco: Path) -> None:
    arguments = ["--config", str(recipe), "--data.root", str(coco), *SMALL, "--model.network.block", block]
    arguments += ["--trainer.accelerator", "cpu", "--trainer.devices", "1", "--trainer.fast_dev_run", "1"]
    assert main(["fit", *arguments]) == 0
    assert main(["test", *arguments]) == 0


def test_the_demo_trains_and_draws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    figures = generate_figures(tmp_path / "figures", train=3, val=1, test=1)
    recipe = ["--config", str(FOLDER / "demo_pose.yaml"), "--data.root", str(figures), "--trainer.max_epochs", "1"]
    recipe += ["--trainer.check_val_every_n_epoch", "1", "--trainer.enable_progress_bar", "false"]
    assert main(["fit", *recipe, "--model.network.block", "srl-lo"]) == 0
    module = load_module("runs/demo_pose")
    for name, matrix in module.network.named_parameters():
        if matrix.ndim == 2 and matrix.shape[0] == matrix.shape[1]:  # the learnable transforms stayed orthogonal
            torch.testing.assert_close(matrix @ matrix.T, torch.eye(len(matrix)), atol=1e-5, rtol=0, msg=name)
    assert main(["predict", "--checkpoint", "runs/demo_pose", str(figures / "test")]) == 0
    assert sorted(path.name for path in Path("poses").iterdir()) == ["000000000000.png", "keypoints.json"]


def test_crops_of_another_size_are_an_error(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = [
        "fit",
        "--config",
        str(RECIPES[0]),
        "--data.root",
        str(coco),
        *SMALL,
        "--data.height",
        "128",
        "--model.input_size",
        "[64, 64]",
    ]
    assert main([*arguments, "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1"]) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "input_size is (128, 64) in the data and (64, 64) in the network" in error


def test_crops_that_the_network_does_not_divide_are_an_error(coco: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--data.width", "48", "--model.network.block", "none"]
    arguments = ["fit", "--config", str(RECIPES[1]), "--data.root", str(coco), *SMALL, *size]
    assert main([*arguments, "--trainer.accelerator", "cpu", "--trainer.fast_dev_run", "1"]) == 1
    assert "the network's heatmaps have 16 x 16 pixels, those of the data 16 x 12" in capsys.readouterr().err


def test_the_base_of_the_demo_does_not_see_the_head_from_the_ankle() -> None:
    options = read_recipe(FOLDER / "demo_pose.yaml")[0]["network"]
    for block, expected in (("none", False), ("srl-fft", True), ("srl-lo", True), ("nl", True)):
        torch.manual_seed(0)
        network = pose_resnet(17, (96, 72), PoseOptions(**{**options, "block": block})).eval()
        for name, parameter in network.named_parameters():
            if "after" in name:  # blocks start as the identity
                torch.nn.init.normal_(parameter, std=0.3)
        crop = torch.randn(1, 3, 96, 72, requires_grad=True)
        network(crop)[0, :, 20, 6:12].sum().backward()  # where ankles are; a head is within the upper quarter
        assert crop.grad is not None
        assert bool(crop.grad[0, :, :24].abs().sum() > 0) == expected
