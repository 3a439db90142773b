"""The networks by name: `torch.hub` from another folder, and the files of the Hugging Face Hub."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import papers
from papers.fdc3d import FDC3DModule
from papers.fdc3d.networks import ResNetOptions

ROOT = Path(__file__).resolve().parent.parent
SCRIPT = """
import sys, torch
root, checkpoint = sys.argv[1:]
network = torch.hub.load(root, "t_stft", source="local", num_classes=27, width=0.125)
print(tuple(network(torch.zeros(1, 3, 4, 16, 16)).shape))
trained = torch.hub.load(root, "checkpoint", source="local", path=checkpoint)
torch.save(trained(torch.ones(1, 3, 4, 16, 16)).detach(), "logits.pt")
"""


@pytest.mark.slow
def test_torch_hub_in_another_folder(tmp_path: Path) -> None:
    module = FDC3DModule(ResNetOptions(depth=10, width=1 / 16), num_classes=3).eval()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [sys.executable, "-c", SCRIPT, str(ROOT), "best.ckpt"]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "(1, 27)"
    expected = module.network(torch.ones(1, 3, 4, 16, 16))
    assert torch.equal(torch.load(tmp_path / "logits.pt", weights_only=True), expected)


def test_the_entry_points_are_the_networks_and_checkpoints() -> None:
    spec = importlib.util.spec_from_file_location("hubconf", ROOT / "hubconf.py")
    assert spec is not None
    assert spec.loader is not None
    hubconf = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(hubconf)
    entries = {name for name, value in vars(hubconf).items() if callable(value) and not name.startswith("_")}
    assert entries == {*papers.networks(), "checkpoint"}


def test_every_paper_has_networks() -> None:
    modules = {function.__module__ for function in papers.networks().values()}
    assert modules == {f"papers.{path.parent.name}.networks" for path in ROOT.glob("papers/*/networks.py")}


@pytest.mark.parametrize(
    ("name", "arguments", "shape"),
    [
        ("t_stft", {"num_classes": 5, "width": 0.125}, (1, 3, 4, 16, 16)),
        ("stft", {"num_classes": 5, "b": 2, "f": 4}, (1, 3, 16, 16)),
        ("dtf_net", {"num_classes": 5, "depth": 18, "width": 0.25, "layers": (1, 1, 1, 1)}, (1, 3, 16, 32, 32)),
        ("pose_resnet", {"num_joints": 5, "input_size": (64, 48), "depth": 18, "width": 0.125}, (1, 3, 64, 48)),
        ("resnet", {"num_classes": 5, "depth": 10, "width": 0.125}, (1, 3, 4, 16, 16)),
    ],
)
def test_files_of_the_hugging_face_hub(
    tmp_path: Path, name: str, arguments: dict[str, Any], shape: tuple[int, ...]
) -> None:
    pytest.importorskip("huggingface_hub")
    pytest.importorskip("safetensors")
    from papers.hub import HubNetwork

    network = HubNetwork(name, **arguments).eval()
    network.save_pretrained(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.equal(HubNetwork.from_pretrained(tmp_path)(x), network(x))


def test_what_cannot_be_saved_or_loaded(tmp_path: Path) -> None:
    pytest.importorskip("huggingface_hub")
    safetensors = pytest.importorskip("safetensors.torch")
    from papers.hub import HubNetwork

    with pytest.raises(ValueError, match="no network 'os'; choose one of depthwise_separable, dtf_net"):
        HubNetwork("os")
    with pytest.raises(TypeError, match="not JSON serializable"):
        HubNetwork("resnet", options=ResNetOptions(depth=10))
    HubNetwork("resnet", depth=10, width=1 / 16).save_pretrained(tmp_path)
    state = safetensors.load_file(tmp_path / "model.safetensors")
    del state["network.fc.bias"]
    safetensors.save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(RuntimeError, match=r"network\.fc\.bias"):
        HubNetwork.from_pretrained(tmp_path)
