"""The networks of stft3d: published counts, any input, order of frames."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.video import s3d
from torchvision.models.video.s3d import SepInceptionBlock3D, TemporalSeparableConv
from torchvision.ops import Conv3dNormActivation

from papers.stft3d import layers, networks
from tests.networks import assert_orthogonal

X_STFT = ("st_stft", "s_stft", "t_stft", "relpv")
ALL = (*X_STFT, "fact_dw", "i3d", "i2d", "s3d", "s3d_g")


def build(name: str, **options: object) -> nn.Module:
    torch.manual_seed(0)
    builder: Callable[..., nn.Module] = getattr(networks, name)
    return builder(**{"num_classes": 5, "width": 0.125, **options})


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# Published parameters of Table 2 in millions, and our deviation from them in per cent with the fitted head;
# the text's head lies a constant 3.05 M below (README).
@pytest.mark.parametrize(
    ("name", "published"),
    [("relpv", 4.78), ("st_stft", 5.84), ("s_stft", 6.03), ("t_stft", 6.27), ("fact_dw", 6.28)],
)
def test_parameters_of_table2(name: str, published: float) -> None:
    with torch.device("meta"):
        fitted = getattr(networks, name)(174, head="mlp")
        text = getattr(networks, name)(174)
    assert count(fitted) / 1e6 == pytest.approx(published, rel=0.01)
    assert published - count(text) / 1e6 == pytest.approx(3.06, abs=0.06)


def test_parameters_of_known_networks() -> None:
    with torch.device("meta"):
        s3d, i3d = networks.s3d(400), networks.i3d(400)
    assert count(s3d) == 8_320_048  # torchvision.models.video.s3d
    assert count(i3d) == pytest.approx(12.697e6, rel=1e-4)


def test_weights_of_torchvisions_s3d_give_the_same_logits() -> None:
    torch.manual_seed(0)
    theirs, ours = s3d(num_classes=11).eval(), networks.s3d(11).eval()
    for module in theirs.modules():  # statistics so small that the eps of the normalisation matters
        if isinstance(module, nn.BatchNorm3d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
            nn.init.uniform_(module.running_var, 0.001, 1.0)
            nn.init.uniform_(module.weight, 0.2, 1.0)
            nn.init.uniform_(module.bias, -0.2, 0.2)
    ours.load_state_dict(networks.convert_torchvision_weights(theirs.state_dict(), ours))
    video = torch.randn(1, 3, 16, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(video), theirs(video), rtol=1e-4, atol=1e-4)
    with pytest.raises(ValueError, match="their number of classes"):
        networks.convert_torchvision_weights(theirs.state_dict(), networks.s3d(5))
    norms = [[m for m in network.modules() if isinstance(m, nn.BatchNorm3d)] for network in (ours, theirs)]
    assert {(m.eps, m.momentum) for m in norms[0]} == {(m.eps, m.momentum) for m in norms[1]}
    assert {
        m.momentum for m in networks.s3d(2, width=0.125, norm_momentum=0.1).modules() if hasattr(m, "momentum")
    } == {0.1}


class Gate(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bcthw,bc->bcthw", x, super().forward(x.mean(dim=(2, 3, 4))).sigmoid())


@pytest.mark.parametrize("name", ["i3d", "s3d_g"])
def test_i3d_and_s3d_g_are_changes_of_torchvisions_s3d(name: str) -> None:
    """I3D has whole kernels where S3D splits them; S3D-G gates the second block and every branch of the modules."""
    torch.manual_seed(0)
    theirs, ours = s3d(num_classes=11), getattr(networks, name)(11)
    for path, module in list(theirs.named_modules()):
        if name == "i3d" and isinstance(module, TemporalSeparableConv):
            space, time = module[0][0], module[1][0]
            size, stride, padding = (
                (getattr(time, key)[0], *getattr(space, key)[1:]) for key in ("kernel_size", "stride", "padding")
            )
            channels, options = (space.in_channels, space.out_channels), {"norm_layer": nn.BatchNorm3d}
            theirs.set_submodule(path, Conv3dNormActivation(*channels, size, stride, padding, **options))
        elif name == "s3d_g" and isinstance(module, SepInceptionBlock3D):
            for key, branch in list(module.named_children()):
                last = [m for m in branch.modules() if isinstance(m, nn.BatchNorm3d)][-1].num_features
                setattr(module, key, nn.Sequential(branch, Gate(last, last)))
    if name == "s3d_g":
        theirs.features[3] = nn.Sequential(theirs.features[3], Gate(192, 192))
    theirs.avgpool = nn.AdaptiveAvgPool3d(1)  # for small clips
    eps = {m.eps for m in ours.modules() if isinstance(m, nn.BatchNorm3d)}.pop()
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm3d):
            module.eps = eps
            nn.init.uniform_(module.running_var, 0.01, 0.1)
            nn.init.normal_(module.bias, std=0.2)
    ours.load_state_dict(networks.convert_torchvision_weights(theirs.state_dict(), ours))
    video = torch.randn(1, 3, 8, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double().eval()(video), theirs.double().eval()(video))


def test_an_unknown_option_is_named() -> None:
    with pytest.raises(TypeError, match="there is no option 'widht'; did you mean 'width'"):
        networks.t_stft(5, widht=0.5)
    with pytest.raises(TypeError, match="the options are width, activation, head, dropout, memory_efficient"):
        networks.i3d(5, frames=8)


# Section 3.3: trainable weights of one block without normalisation.
@pytest.mark.parametrize(
    ("block", "formula"),
    [
        (layers.STSTFTBlock, lambda c, b, f: (c + 26 * f) * b),
        (layers.SSTFTBlock, lambda c, b, f: (c + 8 * 3 + 8 * f) * b),
        (layers.TSTFTBlock, lambda c, b, f: (c + 9 + 2 * f) * b),
    ],
)
def test_block_parameters_follow_section_3_3(block: type[nn.Module], formula: Callable[[int, int, int], int]) -> None:
    module = block(10, 6, 14)
    weights = sum(p.numel() for m in module.modules() if isinstance(m, nn.Conv3d) for p in m.parameters())
    assert weights == formula(10, 6, 14)


@pytest.mark.parametrize("name", ALL)
@pytest.mark.parametrize("shape", [(2, 3, 4, 32, 32), (1, 3, 5, 33, 47), (1, 3, 1, 16, 16), (1, 3, 3, 1, 7)])
def test_any_length_and_size(name: str, shape: tuple[int, ...]) -> None:
    network = build(name).eval()
    with torch.no_grad():
        logits = network(torch.randn(shape))
    assert logits.shape == (shape[0], 5)
    assert logits.isfinite().all()


@pytest.mark.parametrize("slices", [None, 4, 7, 11])
@pytest.mark.parametrize("name", ALL)
def test_evaluation_folds_and_slices_to_the_same_logits(
    name: str, slices: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = build(name).double().eval()
    for norm in (m for m in network.modules() if isinstance(m, nn.BatchNorm3d)):
        nn.init.normal_(norm.running_mean, 0, 0.1)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    clips = torch.randn(3, 3, 9, 21, 18, dtype=torch.float64)
    if slices is not None:  # of this many frames
        bytes_per_frame = 8 * 21 * 18 * networks.scale_width(64, 0.125)
        monkeypatch.setattr("common.backbones.bn_inception._MAP_BYTES", slices * bytes_per_frame)
    expected = network(clips.requires_grad_()).detach()
    with torch.no_grad():
        torch.testing.assert_close(network(clips), expected, rtol=1e-10, atol=1e-10)
        torch.testing.assert_close(network(clips[1:2]), expected[1:2], rtol=1e-10, atol=1e-10)


def test_slices_of_frames_are_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    network, seen = build("t_stft").eval(), []
    monkeypatch.setattr("common.backbones.bn_inception._MAP_BYTES", 7 * 4 * 16 * 16 * 8)
    first = type(network.features.first).forward
    monkeypatch.setattr(
        type(network.features.first), "forward", lambda self, x: seen.append(x.shape[2]) or first(self, x)
    )
    with torch.no_grad():
        network(torch.randn(1, 3, 9, 16, 16))
    assert seen[:2] == [6, 5]  # 5 and 4 frames, and their neighbours
    network.features.first.reduce.register_forward_hook(lambda *_: None)
    seen.clear()
    with torch.no_grad():
        network(torch.randn(1, 3, 9, 16, 16))
    assert seen[0] == 9  # a hook sees the whole clip


@pytest.mark.parametrize("name", ALL)
def test_weights_start_orthogonal(name: str) -> None:
    assert_orthogonal(build(name))


@pytest.mark.parametrize("name", ALL)
def test_only_i2d_ignores_the_order_of_frames(name: str) -> None:
    network = build(name).double().train()  # batch statistics keep the signal from fading at random weights
    video = torch.randn(2, 3, 6, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        forward, backward = network(video), network(video.flip(2))
    assert torch.allclose(forward, backward, rtol=0, atol=1e-9) == (name == "i2d")


@pytest.mark.parametrize("name", X_STFT)
def test_memory_efficient_training_has_equal_gradients(name: str) -> None:
    plain, efficient = build(name).double(), build(name, memory_efficient=True).double()
    efficient.load_state_dict(plain.state_dict())
    video = torch.randn(2, 3, 4, 24, 24, dtype=torch.float64)
    for network in (plain, efficient):
        network.train()(video).square().sum().backward()
    for (key, expected), actual in zip(plain.named_parameters(), efficient.parameters(), strict=True):
        torch.testing.assert_close(actual.grad, expected.grad, msg=lambda m, key=key: f"{key}: {m}")
    for (key, expected), actual in zip(plain.named_buffers(), efficient.buffers(), strict=True):
        torch.testing.assert_close(actual, expected, msg=lambda m, key=key: f"{key}: {m}")


@pytest.mark.parametrize("activation", ["relu", "leaky_relu", "selu", "elu"])
def test_activations_of_table4(activation: networks.Activation) -> None:
    network = build("st_stft", activation=activation)
    kinds = {type(m).__name__.lower() for m in network.features.modules() if "LU" in type(m).__name__}
    assert kinds == {activation.replace("_", "")}


def test_errors_name_the_choice() -> None:
    with pytest.raises(ValueError, match=r"\(batch, 3, frames, height, width\), not \(1, 4, 4, 32, 32\)"):
        build("t_stft")(torch.zeros(1, 4, 4, 32, 32))
    with pytest.raises(ValueError, match="activation 'gelu' is not known; choose one of relu"):
        build("t_stft", activation="gelu")
    with pytest.raises(ValueError, match="head 'conv' is not known; choose linear or mlp"):
        build("t_stft", head="conv")
