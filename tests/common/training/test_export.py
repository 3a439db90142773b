"""`spectral export`: the file agrees with the network, predicts alone, and appears only when it does."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from common.datamodules.image_dataset import ImageSpec
from common.datamodules.manifest import Manifest
from common.datamodules.pose_geometry import KeypointSpec
from common.datamodules.video_clips import ClipSpec
from common.datamodules.volumes import VolumeSpec
from common.training import export as exporting
from common.training.checkpoints import CheckpointError
from common.training.cli import main
from common.training.export import ENTRY, ExportError, OnnxNetwork, export, load_onnx
from common.training.task import TaskModule
from data.demo.digits import generate_digits
from papers.dtf import DTFModule
from papers.dtf.networks import DTFNetOptions
from papers.fdc3d import FDC3DModule, FDC3DVolumeModule, compress
from papers.fdc3d.networks import ResNetOptions, UNetOptions
from papers.srl import SRLPoseModule
from papers.srl.networks import PoseOptions
from papers.stft2d import STFT2DModule
from papers.stft2d.networks import STFT2DOptions
from papers.stft3d import STFT3DModule
from papers.stft3d.networks import STFT3DOptions
from tests.common.training.tiny import TinyModule

ROOT = Path(__file__).resolve().parents[3]
SMALL_POSE = PoseOptions(depth=50, layers=(1, 1, 1, 1), width=0.125, deconv_channels=512)
CLIP = ClipSpec(num_frames=8, crop_size=32)


def compressed() -> TaskModule:
    module = FDC3DModule(ResNetOptions(10, width=0.125), 3)
    module.network = compress(module.network.eval(), [torch.randn(2, 3, 8, 32, 32)], rate=2, steps=1).network
    return module


MODULES: dict[str, Any] = {
    "stft3d": (lambda: STFT3DModule("t-stft", STFT3DOptions(width=0.125), 3), CLIP),
    "dtf": (lambda: DTFModule(DTFNetOptions(depth=18, width=0.25, layers=(1, 1, 1, 1), stem_stride=1), 3, 8), CLIP),
    "stft2d": (lambda: STFT2DModule("stft", STFT2DOptions(b=2, f=4), 3), ImageSpec(16, 16, (0.5,) * 3, (0.5,) * 3)),
    "srl": (
        lambda: SRLPoseModule(SMALL_POSE, 17, (64, 64)),
        KeypointSpec(64, 64),
    ),
    "fdc3d-volume": (lambda: FDC3DVolumeModule(UNetOptions("lee", 0.125), 4), VolumeSpec((16, 16, 16))),
    "fdc3d-compressed": (compressed, CLIP),
    "tiny": (TinyModule, CLIP),
}


def module_of(name: str) -> TaskModule:
    torch.manual_seed(0)
    make, spec = MODULES[name]
    module: TaskModule = make().eval()
    module.spec, module.output_names = spec.to_dict(), [f"output {i}" for i in range(3)]
    for network in module.network.modules():  # untrained networks may answer zero
        if isinstance(network, nn.BatchNorm2d | nn.BatchNorm3d):
            nn.init.uniform_(network.weight, 0.5, 1.5)
    return module


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["onnx", "torch-export", "safetensors"])
@pytest.mark.parametrize("name", MODULES)
def test_every_task_and_paper(name: str, kind: str, tmp_path: Path) -> None:
    out = tmp_path / f"network{exporting.EXPORT_SUFFIXES[kind]}"
    assert export(module_of(name), out, kind) <= 1e-4
    assert [path.name for path in tmp_path.iterdir()] == [out.name]


def test_half_precision(tmp_path: Path) -> None:
    assert export(module_of("tiny"), tmp_path / "x.pt2", "torch-export", half=True) <= 2e-2
    weights = torch.export.load(tmp_path / "x.pt2").state_dict.values()
    assert {weight.dtype for weight in weights if weight.is_floating_point()} == {torch.float16}
    module = module_of("tiny")
    x = torch.randn(module.input_shape)
    expected = module(x)
    assert export(module, tmp_path / "x.onnx", half=True) <= 2e-2
    restored = load_onnx(tmp_path / "x.onnx", ("tests",))
    torch.testing.assert_close(restored(x), expected, rtol=2e-2, atol=2e-2)


def test_a_file_that_differs_is_not_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Wrong(OnnxNetwork):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) * 1.001

    monkeypatch.setattr(exporting, "OnnxNetwork", Wrong)
    with pytest.raises(ExportError, match=r"differs from the network by 1\.0e-03"):
        export(module_of("tiny"), tmp_path / "x.onnx")
    assert list(tmp_path.iterdir()) == []


def test_from_training_to_predictions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    root = generate_digits(tmp_path / "digits", size=8)
    words = ["--config", str(ROOT / "papers/stft2d/recipes/demo.yaml"), "--data.root", str(root), "--name", "run"]
    assert main(["fit", *words, "--trainer.max_steps", "3"]) == 0
    checkpoint = "runs/run/version_0/last.ckpt"
    image = next((root / "test").rglob("*.png"))
    assert main(["export", checkpoint, "--input", str(image)]) == 0
    assert "largest difference" in capsys.readouterr().out
    assert main(["export", checkpoint]) == 1
    assert "last.onnx exists" in capsys.readouterr().err
    assert main(["export", checkpoint, "--format", "safetensors"]) == 0
    assert f"Compared on {root}/" in capsys.readouterr().out
    rows = []
    for file in (checkpoint, checkpoint.replace(".ckpt", ".onnx")):
        assert main(["predict", "--checkpoint", file, str(root / "test" / "one"), "--csv", "out.csv", "--force"]) == 0
        rows.append(list(csv.DictReader(Path("out.csv").read_text().splitlines())))
    assert [row["top1"] for row in rows[0]] == [row["top1"] for row in rows[1]]
    assert [float(row["p1"]) for row in rows[0]] == pytest.approx([float(row["p1"]) for row in rows[1]], abs=1e-4)
    about = json.loads(OnnxNetwork(checkpoint.replace(".ckpt", ".onnx")).about or "")
    assert about["output_names"][0] == "zero"
    assert len(about["manifest_hash"]) == 64
    assert about["recipe"] == Path("runs/run/version_0/config.yaml").read_text()


def test_a_file_of_the_training_is_compared_if_it_is_still_there(
    recipe: Any, motion: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "clips"
    shutil.copytree(motion.parent, copy)
    path = recipe(data={"root": str(copy), "manifest": str(copy / motion.name)})
    assert main(["fit", "--config", path]) == 0
    command = ["export", "runs/tiny/version_0/last.ckpt", "--format", "safetensors", "--allow", "tests", "--force"]
    first, second, third = (copy / entry.path for entry in Manifest.read(motion, motion.parent).entries[:3])
    assert main(command) == 0
    assert f"Compared on {first}" in capsys.readouterr().out
    first.write_bytes(b"no video")
    second.unlink()
    assert main(command) == 0
    assert f"Compared on {third}" in capsys.readouterr().out
    shutil.rmtree(copy)
    assert main(command) == 0
    assert "Compared on random numbers" in capsys.readouterr().out
    for damaged in ("[1]", "data: text", "data: {init_args: {root: [1]}}", 'data: {init_args: {manifest: "a\\0b"}}'):
        Path("runs/tiny/version_0/config.yaml").write_text(damaged)
        assert main([*command, "--out", "x.safetensors"]) == 0
        assert "Compared on random numbers" in capsys.readouterr().out


def test_persons_are_compared_on_random_numbers(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="--input is for videos and images"):
        export(module_of("srl"), tmp_path / "x.onnx", example="image.png")
    assert list(tmp_path.iterdir()) == []


def test_an_onnx_file_of_another_program(tmp_path: Path) -> None:
    import onnx

    export(module_of("tiny"), tmp_path / "x.onnx")
    model = onnx.load(tmp_path / "x.onnx")
    for content, message in (
        ("", "not an ONNX file of `spectral export`"),
        ('{"class_path": "os.path", "arguments": {}}', "lies outside"),
        ('{"class_path": "papers.stft2d.STFT2DModule", "arguments": {"no": 1}}', "not an ONNX file of"),
    ):
        del model.metadata_props[:]
        model.metadata_props.add(key=ENTRY, value=content)
        onnx.save(model, tmp_path / "y.onnx")
        with pytest.raises(CheckpointError, match=message):
            load_onnx(tmp_path / "y.onnx")
    endless = {"network": "pytorchvideo.models.x3d.create_x3d", "network_options": {"depth_factor": 1e9}}
    for class_path, options, message in (
        ("papers.stft2d.STFT2DModule", {"network": {"b": 2, "f": 10**5}}, "its arguments claim"),
        ("papers.fdc3d.FDC3DModule", {"network": {"depth": 10, "width": 1e9}}, "size calculation overflowed"),
        ("common.training.library_network.LibraryNetworkModule", endless, "of more than 5,000 modules"),
    ):
        about = {"class_path": class_path, "arguments": {"num_classes": 3, **options}}
        model.metadata_props[0].value = json.dumps(about)
        onnx.save(model, tmp_path / "y.onnx")
        with pytest.raises(CheckpointError, match=rf"y\.onnx: .*{message}"):
            load_onnx(tmp_path / "y.onnx")
    (tmp_path / "z.onnx").write_bytes(b"not one")
    with pytest.raises(CheckpointError, match=r"z\.onnx: not an ONNX file"):
        load_onnx(tmp_path / "z.onnx")
