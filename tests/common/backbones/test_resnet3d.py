"""3D-ResNets: published counts, any input, the public state dicts."""

from __future__ import annotations

import pytest
import torch

from common.backbones import ResNet3d, resnet3d_from_state_dict
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


def test_every_parameter_gets_a_gradient() -> None:
    network = ResNet3d(50, num_classes=5, width=1 / 16).double()
    network(torch.randn(2, 3, 8, 32, 32, dtype=torch.float64)).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


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
