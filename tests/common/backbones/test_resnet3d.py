"""3D-ResNets: published counts, any input, the public state dicts."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.models import resnet

from common.backbones import ResNet3d, resnet3d_from_state_dict
from common.backbones.imagenet import read_image_weights
from common.evaluation.complexity import count


# Parameters in millions and multiply-adds in billions at 3x16x112x112, shortcut B, 101 classes.
@pytest.mark.parametrize(
    ("depth", "params", "macs"),
    [(18, 33.26, 8.308), (34, 63.57, 12.696), (50, 46.41, 10.068), (101, 85.45, 13.890)],
)
def test_counts(depth: int, params: float, macs: float) -> None:
    with torch.device("meta"):
        found = count(ResNet3d(depth), (1, 3, 16, 112, 112))
    assert found.params / 1e6 == pytest.approx(params, abs=0.005)
    assert found.macs_paper / 1e9 == pytest.approx(macs, abs=0.001)


@pytest.mark.parametrize("depth", [10, 18, 50])
@pytest.mark.parametrize("shortcut", ["A", "B"])
@pytest.mark.parametrize("shape", [(2, 3, 8, 32, 32), (1, 3, 5, 33, 47), (1, 3, 1, 1, 1)])
def test_any_length_and_size(depth: int, shortcut: str, shape: tuple[int, ...]) -> None:
    network = ResNet3d(depth, num_classes=5, width=1 / 16, shortcut=shortcut).eval()
    with torch.no_grad():
        logits = network(torch.randn(shape))
    assert logits.shape == (shape[0], 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize(("depth", "shortcut"), [(18, "A"), (34, "B"), (50, "B")])
@pytest.mark.parametrize("prefix", ["", "module."])
def test_public_state_dicts_load(depth: int, shortcut: str, prefix: str) -> None:
    network = ResNet3d(depth, num_classes=7, width=1 / 16, shortcut=shortcut).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm3d):
            module.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    # Old files lack the counters, and state dicts of a file have no versions.
    state = {f"{prefix}{k}": v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    loaded = resnet3d_from_state_dict(state)
    video = torch.randn(1, 3, 6, 24, 24)
    with torch.no_grad():
        assert torch.equal(loaded(video), network(video))


class PaddedShortcut(nn.Module):
    def __init__(self, channels: int, stride: int) -> None:
        super().__init__()
        self.channels, self.stride = channels, stride

    def forward(self, x: Tensor) -> Tensor:
        x = F.avg_pool3d(x, 1, self.stride)
        return torch.cat([x, x.new_zeros(len(x), self.channels - x.shape[1], *x.shape[2:])], 1)


def public_network(depth: int, shortcut: str, num_classes: int) -> nn.Module:
    """torchvision's ResNet, whose names the public 3D-ResNets have, with every layer in three dimensions."""
    blocks = {10: (resnet.BasicBlock, [1, 1, 1, 1]), 50: (resnet.Bottleneck, [3, 4, 6, 3])}
    network = resnet.ResNet(*blocks[depth], num_classes=num_classes)
    for name, module in list(network.named_modules()):
        if isinstance(module, nn.Conv2d):
            size, stride, padding = (getattr(module, key)[0] for key in ("kernel_size", "stride", "padding"))
            channels = (module.in_channels, module.out_channels)
            stride = (1, 2, 2) if name == "conv1" else stride
            network.set_submodule(name, nn.Conv3d(*channels, size, stride, padding, bias=False))
        elif isinstance(module, nn.BatchNorm2d):
            norm = nn.BatchNorm3d(module.num_features)
            for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)  # type: ignore[arg-type]
            network.set_submodule(name, norm)
    network.maxpool, network.avgpool = nn.MaxPool3d(3, 2, 1), nn.AdaptiveAvgPool3d(1)
    if shortcut == "A":
        for name, module in list(network.named_modules()):
            if name.endswith(".downsample"):
                network.set_submodule(name, PaddedShortcut(module[1].num_features, module[0].stride[0]))
    return network.eval()


@pytest.mark.parametrize(("depth", "shortcut"), [(10, "A"), (10, "B"), (50, "B")])
def test_public_files_give_the_same_outputs(tmp_path: Path, depth: int, shortcut: str) -> None:
    """The files are older than the ZIP format, and hold the state dict of a `DataParallel` without counters."""
    torch.manual_seed(0)
    theirs = public_network(depth, shortcut, num_classes=7)
    state = {f"module.{k}": v for k, v in theirs.state_dict().items() if not k.endswith("num_batches_tracked")}
    checkpoint = {"epoch": 200, "arch": f"resnet-{depth}", "state_dict": state, "optimizer": {"state": {}}}
    torch.save(checkpoint, tmp_path / "public.pth", _use_new_zipfile_serialization=False)
    ours = resnet3d_from_state_dict(read_image_weights(str(tmp_path / "public.pth")))
    assert ours.arguments == {"depth": depth, "num_classes": 7, "width": 1.0, "shortcut": shortcut}
    video = torch.randn(1, 3, 9, 32, 40)
    with torch.no_grad():
        expected = theirs(video)
        torch.testing.assert_close(ours(video), expected, atol=1e-5 * float(expected.abs().max()), rtol=1e-5)


def test_keys_are_the_public_ones() -> None:
    keys = ResNet3d(18, width=1 / 16).state_dict().keys()
    assert {
        "conv1.weight",
        "bn1.running_mean",
        "layer1.0.conv1.weight",
        "layer1.1.bn2.bias",
        "layer2.0.downsample.0.weight",
        "layer2.0.downsample.1.running_var",
        "layer4.1.conv2.weight",
        "fc.bias",
    } <= set(keys)
    assert not any("downsample" in key for key in ResNet3d(18, width=1 / 16, shortcut="A").state_dict())


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="depth 19; choose one of 10, 18"):
        ResNet3d(19)
    with pytest.raises(ValueError, match="shortcut 'C'"):
        ResNet3d(18, shortcut="C")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(batch, 3, frames, height, width\), not \(1, 3, 8, 8\)"):
        ResNet3d(10, width=1 / 16)(torch.zeros(1, 3, 8, 8))
    with pytest.raises(ValueError, match=r"they are a, b, \.\.\. with stages of \(0, 0, 0, 0\) blocks"):
        resnet3d_from_state_dict({"a": torch.zeros(1), "b": torch.zeros(1)})
    state = ResNet3d(18, width=1 / 16).state_dict()
    state["layer1.0.conv1.weight"] = torch.zeros(1)
    with pytest.raises(ValueError, match=r"(?s)3D-ResNet-18.*layer1\.0\.conv1\.weight"):
        resnet3d_from_state_dict(state)
