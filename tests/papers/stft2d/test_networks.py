"""The networks of stft2d: counts of Table 2, any size, orthogonal weights, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from papers.stft2d import STFT2DModule, networks
from papers.stft2d.lightning_module import SIXTEEN_BLOCKS, Method
from papers.stft2d.networks import STFT2DOptions
from tests.networks import assert_orthogonal

OPTIONS = STFT2DOptions(b=2, f=8, block="fit")

SMALL: dict[str, dict[str, object]] = {
    "stft": {"b": 2, "f": 8},
    "relpu": {"f": 8},
    "depthwise_separable": {"b": 2, "f": 8},
    "mobilenet": {},
    "mobilenet_v2": {},
    "shufflenet": {},
    "shufflenet_v2": {},
}
OWN = [(name, block) for name in ("stft", "relpu") for block in ("text", "fit")]
ALL = [*OWN, *((name, None) for name in SMALL if name not in ("stft", "relpu"))]
_built: dict[tuple[str, str | None], nn.Module] = {}


def build(name: str, block: str | None) -> nn.Module:
    key = (name, block)
    if key not in _built:  # orthogonal weights of the large networks take a second
        torch.manual_seed(0)
        _built[key] = getattr(networks, name)(5, **SMALL[name], **({"block": block} if block else {}))
    return copy.deepcopy(_built[key])


def count(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


# (b, f), published millions, the text's and the fitted count for 10 classes. Deviations of the fit: README.
@pytest.mark.parametrize(
    ("b", "f", "published", "text", "fit", "deviation"),
    [
        (8, 128, 0.90, 282_914, 897_314, 0.01),
        (16, 128, 1.30, 560_442, 1_297_722, 0.01),
        (32, 128, 2.21, 1_115_498, 2_098_538, 0.055),
        (64, 128, 3.69, 2_225_610, 3_700_170, 0.01),
        (64, 256, 8.21, 4_451_018, 8_383_178, 0.025),
        (64, 384, 14.06, 6_676_426, 14_049_226, 0.01),
    ],
)
def test_parameters_of_table2(b: int, f: int, published: float, text: int, fit: int, deviation: float) -> None:
    with torch.device("meta"):
        literal, fitted = networks.stft(10, b=b, f=f), networks.stft(10, b=b, f=f, block="fit")
    norm_and_head = 16 * 2 * f + 10 * f + 10
    assert count(literal) == text == (271 * f + 3) * b + norm_and_head
    assert count(fitted) == fit == (391 * f + 3) * b + 30 * f**2 + norm_and_head
    assert fit / 1e6 == pytest.approx(published, rel=deviation)
    assert text / 1e6 < 0.7 * published


@pytest.mark.parametrize(
    ("name", "published", "deviation"),
    [
        ("mobilenet", 3.31, 0.001),
        ("mobilenet_v2", 2.36, 0.01),
        ("shufflenet", 1.05, 0.04),
        ("shufflenet_v2", 1.35, 0.01),
    ],
)
def test_parameters_of_the_baselines(name: str, published: float, deviation: float) -> None:
    with torch.device("meta"):
        network = getattr(networks, name)(100)
    assert count(network) / 1e6 == pytest.approx(published, rel=deviation)


@pytest.mark.parametrize(("b", "f"), [(4, 16), (8, 128), (64, 128), (64, 384)])
def test_the_trainable_rival_is_as_large_as_the_paper_s_network(b: int, f: int) -> None:
    with torch.device("meta"):
        rival, paper = networks.depthwise_separable(10, b=b, f=f), networks.stft(10, b=b, f=f)
    assert count(rival) == pytest.approx(count(paper), rel=0.03)


def test_mobilenet_is_timms_with_plain_relus_and_a_first_layer_of_stride_1() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs, ours = timm.create_model("mobilenetv1_100", num_classes=5, act_layer=nn.ReLU), networks.mobilenet(5)
    theirs.conv_stem.stride = (1, 1)
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_var, 0.1, 1)
            nn.init.normal_(module.bias, std=0.2)
    ours.load_state_dict(dict(zip(ours.state_dict(), theirs.state_dict().values(), strict=True)))
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    with torch.no_grad():
        torch.testing.assert_close(ours.double().eval()(x), theirs.double().eval()(x))


def test_parameters_of_relpu() -> None:
    with torch.device("meta"):
        fitted, text = networks.relpu(100, block="fit"), networks.relpu(100)
    assert count(fitted) / 1e6 == pytest.approx(3.08, rel=0.01)
    assert count(text) == 107_114


@pytest.mark.parametrize(
    ("name", "features"),
    [
        ("stft", 8),
        ("relpu", 8),
        ("depthwise_separable", 8),
        ("mobilenet", 1024),
        ("mobilenet_v2", 1280),
        ("shufflenet", 800),
        ("shufflenet_v2", 1024),
    ],
)
def test_features_of_table2(name: str, features: int) -> None:
    network = build(name, "text" if name in ("stft", "relpu") else None).eval()
    with torch.no_grad():
        maps = network.features(torch.randn(1, 3, 32, 32))
    # Three or four halvings of 32 pixels.
    assert maps.shape == (1, features, *((4, 4) if "mobilenet" not in name else (2, 2)))


@pytest.mark.parametrize(("name", "block"), ALL)
@pytest.mark.parametrize("size", [(32, 32), (33, 47), (1, 7)])
def test_any_size(name: str, block: str | None, size: tuple[int, int]) -> None:
    network = build(name, block).eval()
    with torch.no_grad():
        logits = network(torch.randn(2, 3, *size))
    assert logits.shape == (2, 5)
    assert logits.isfinite().all()


def test_every_parameter_of_the_rival_gets_a_gradient() -> None:
    network = build("depthwise_separable", None).train()
    network(torch.randn(4, 3, 32, 32)).square().mean().backward()
    for key, parameter in network.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize(("name", "block"), ALL)
def test_weights_start_orthogonal(name: str, block: str | None) -> None:
    assert_orthogonal(build(name, block))


def test_fixed_filters_are_neither_parameters_nor_saved() -> None:
    network = build("stft", "text")
    assert not any("transforms" in key for key in network.state_dict())


@pytest.mark.parametrize("method", ["stft", "depthwise-separable", "relpu", "shufflenet-v2"])
def test_module_trains_as_section_4_says(method: Method) -> None:
    module = STFT2DModule(method, OPTIONS if method in SIXTEEN_BLOCKS else STFT2DOptions(), num_classes=3)
    optimizer = module.configure_optimizers()
    assert type(optimizer) is torch.optim.Adam
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"]) == (0.01, 0)
    assert len(group["params"]) == len(list(module.network.parameters()))
    assert module(torch.randn(2, 3, 16, 16)).shape == (2, 3)


def test_module_passes_its_options_on() -> None:
    module = STFT2DModule("stft", OPTIONS, num_classes=3)
    assert count(module.network) == count(networks.stft(3, OPTIONS))
    assert count(STFT2DModule("relpu", STFT2DOptions(f=8), 3).network) == count(networks.relpu(3, f=8))


@pytest.mark.parametrize("name", list(SMALL))
def test_errors_name_what_came(name: str) -> None:
    network = build(name, "text" if name in ("stft", "relpu") else None)
    with pytest.raises(ValueError, match=r"\(batch, 3, height, width\), not \(1, 4, 32, 32\)"):
        network(torch.zeros(1, 4, 32, 32))


def test_errors_name_the_choice() -> None:
    with pytest.raises(ValueError, match="block 'literal' is not known; choose text or fit"):
        networks.stft(block="literal")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="groups must be one of 1, 2, 3, 4, 8, but is 5"):
        networks.shufflenet(groups=5)
