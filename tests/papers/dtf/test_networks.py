"""DTF-Net, DTF-Transformer and what they are compared with: counts, blocks, weights, clip lengths, export."""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from common.backbones import load_imagenet
from common.evaluation.complexity import count
from papers.dtf.networks import (
    BLOCKS,
    convert_author_weights,
    dtf_blocks,
    dtf_net,
    dtf_transformer,
    grad_cam_layer,
    resample_frames,
)

TINY_SWIN: dict[str, Any] = {"size": "t", "embed_dim": 16, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4)}


def tiny(**options: Any) -> nn.Module:
    return dtf_net(**{"num_classes": 5, "width": 0.25, "layers": (1, 1, 2, 1), "dropout": 0.0, **options})


def tiny_swin(**options: Any) -> nn.Module:
    return dtf_transformer(**{"num_classes": 5, "num_frames": 16, "dropout": 0.0, **TINY_SWIN, **options})


def awake(network: nn.Module, frames: int = 16) -> nn.Module:
    """In evaluation mode, with blocks that do something and with running statistics of the network as it is."""
    for name, parameter in network.named_parameters():
        if name.endswith((".alpha", ".mid.bias")):
            nn.init.normal_(parameter, std=0.1)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = None
    with torch.no_grad():
        network.train()(torch.randn(4, 3, frames, 48, 48))
    return network.eval()


@pytest.mark.parametrize(
    ("options", "frames", "gmacs", "millions"),
    [
        ({"block": "2d"}, 16, 23.20, 24.36),
        ({"block": "temporal-shift"}, 16, 23.20, 24.36),
        ({"block": "dtf-f", "stages": (5,)}, 16, 23.36, None),
        ({"stages": (5,), "aggregation": False, "correlation": False}, 16, 23.43, None),
        ({"stages": (5,)}, 16, 23.44, None),
        ({"stages": (4, 5)}, 16, 23.94, None),
        ({"stages": (3, 4, 5)}, 16, 24.30, None),
        ({}, 16, 24.62, 28.82),
        ({}, 32, 49.6, 33.34),
        ({}, 64, 101.2, 50.12),
        ({"block": "temporal-conv"}, 16, 33.00, None),
        ({"block": "dtf-1d", "stages": (5,)}, 16, 25.35, None),
        ({"block": "dtf-1d+", "stages": (5,)}, 16, 28.77, None),
    ],
    ids=str,
)
def test_published_counts(options: dict[str, Any], frames: int, gmacs: float, millions: float | None) -> None:
    """The released code's choices at 256 x 256; the derivation also counts the transforms, up to 0.4 %, as products."""
    complexity = count(dtf_net(num_frames=frames, preset="author", **options), (1, 3, frames, 256, 256))
    assert complexity.macs_paper / 1e9 == pytest.approx(gmacs, rel=0.004)
    if millions is not None:
        assert complexity.params / 1e6 == pytest.approx(millions, abs=0.006)


def test_published_counts_of_the_transformer() -> None:
    network = dtf_transformer(preset="author")
    assert len(dtf_blocks(network)) == 13
    complexity = count(network, (1, 3, 64, 224, 224))
    assert complexity.macs_paper / 1e9 == pytest.approx(266.1, rel=0.002)
    assert complexity.params / 1e6 == pytest.approx(179.09, abs=0.006)


@pytest.mark.parametrize(("frames", "millions"), [(16, 51.77), (64, 92.11)])
def test_published_parameters_of_resnet101(frames: int, millions: float) -> None:
    with torch.device("meta"):
        network = dtf_net(depth=101, num_frames=frames, preset="author")
    assert sum(p.numel() for p in network.parameters()) / 1e6 == pytest.approx(millions, abs=0.006)


@pytest.mark.parametrize("block", BLOCKS)
def test_every_block_trains(block: str) -> None:
    torch.manual_seed(0)
    network = tiny(block=block)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.01)
    video = torch.randn(2, 3, 16, 50, 65)
    for _ in range(2):
        optimizer.zero_grad()
        logits = network(video)
        nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
        optimizer.step()
    assert logits.shape == (2, 5)
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("block", ["2d", "dtf", "dtf-f", "correlation", "temporal-difference"])
def test_blocks_of_the_transformer(block: str) -> None:
    network = tiny_swin(block=block, preset="author", num_blocks=2)
    network(torch.randn(1, 3, 16, 64, 64)).sum().backward()
    assert len(dtf_blocks(network)) == (2 if block.startswith("dtf") else 0)


@pytest.mark.parametrize("depth", [18, 50])
def test_only_temporal_blocks_see_the_order_of_frames(depth: int) -> None:
    """Steps of four frames each in another order: all but the 2D network tell the difference."""
    torch.manual_seed(0)
    video = torch.randn(1, 3, 16, 40, 40)
    shuffled = video.unflatten(2, (4, 4))[:, :, [2, 0, 3, 1]].flatten(2, 3)
    for block in BLOCKS:
        network = awake(tiny(block=block, depth=depth))
        for module in network.modules():
            if type(module).__name__ in ("CorrelationBlock", "TemporalDifferenceBlock"):
                for parameter in module.parameters():
                    nn.init.normal_(parameter)
        with torch.no_grad():
            same = torch.allclose(network(video), network(shuffled), atol=1e-6)
        assert same == (block == "2d"), block


def test_long_range_in_one_block() -> None:
    """One block, last frame to first position in time: a kernel of three frames cannot, the filter does."""
    reach = {}
    for block in ("dtf", "dtf-1d"):
        network = awake(tiny(block=block, num_blocks=1, num_frames=32), 32)
        features: list[Tensor] = []
        grad_cam_layer(network).register_forward_hook(lambda m, i, o, f=features: f.append(o))
        video = torch.randn(1, 3, 32, 33, 33, requires_grad=True)
        network(video)
        features[0][:, :, 0].sum().backward()
        reach[block] = video.grad.abs().sum(dim=(0, 1, 3, 4)).unflatten(0, (8, 4)).sum(1) > 0
    assert reach["dtf"].all()
    assert reach["dtf-1d"].tolist() == [True, True] + [False] * 6


def test_places_of_the_block() -> None:
    assert list(dtf_blocks(tiny(stages=(3, 5)))) == ["layer2.0.mid", "layer4.0.mid"]
    assert list(dtf_blocks(tiny(num_blocks=2))) == ["layer3.1.mid", "layer4.0.mid"]
    assert list(dtf_blocks(tiny(num_blocks=0))) == []
    assert len(dtf_blocks(dtf_net(layers=None, width=0.25))) == 16
    block = dtf_blocks(tiny(preset="author", kernel_size=5, share=8))["layer1.0.mid"]
    assert (block.frames, block.options.kernel_size, block.options.share, block.options.expand) == (4, 5, 8, "author")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"block": "3d"}, "block '3d' is not known"),
        ({"stages": (1,)}, "stages names some of"),
        ({"num_frames": 18}, "num_frames=18 is no multiple of stem_stride=4"),
        ({"num_blocks": 6}, "num_blocks=6, but there are 5 places"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny(**options)


def test_wrong_arguments_of_the_transformer_are_named() -> None:
    with pytest.raises(ValueError, match="replaces a convolution"):
        tiny_swin(block="temporal-conv")
    with pytest.raises(ValueError, match="some of"):
        tiny_swin(stages=(5,))


def test_a_clip_of_another_length_is_refused_and_the_network_can_be_resampled() -> None:
    network = awake(tiny(num_frames=16))
    with pytest.raises(ValueError, match=r"not \(1, 16, 8, "):
        network(torch.randn(1, 3, 32, 33, 33))
    assert resample_frames(network, 32) is network
    assert network(torch.randn(1, 3, 32, 33, 33)).shape == (1, 5)
    assert {block.frames for block in dtf_blocks(network).values()} == {8}
    resample_frames(tiny_swin(), 8)(torch.randn(1, 3, 8, 32, 32))
    with pytest.raises(ValueError, match="no multiple"):
        resample_frames(network, 30)


def test_grad_cam_layers() -> None:
    for network, channels in ((tiny(), 512), (tiny_swin(), 128)):
        seen: list[Tensor] = []
        grad_cam_layer(network).register_forward_hook(lambda m, i, o, s=seen: s.append(o))
        network(torch.randn(1, 3, 16, 64, 64))
        assert seen[0].shape == (1, channels, 4, 2, 2)
    with pytest.raises(ValueError, match="not known"):
        grad_cam_layer(nn.Linear(1, 1))


@pytest.mark.parametrize("block", ["dtf", "dtf-1d+", "temporal-conv", "temporal-shift"])
def test_image_weights_start_as_the_image_network(tmp_path: Path, block: str) -> None:
    image = tiny(block="2d", stem_stride=1, num_frames=1).eval()
    torch.save(image.state_dict(), tmp_path / "image.pth")
    network = tiny(block=block, preset="author", num_classes=7).eval()
    load_imagenet(network, str(tmp_path / "image.pth"))
    picture = torch.randn(1, 3, 40, 40)
    with torch.no_grad():
        clip = picture.unsqueeze(2).expand(-1, -1, 16, -1, -1)
        found, expected = (n.stages(x)[-1] for n, x in ((network, clip), (image, picture)))
    middle = found[:, :, 1]
    if block != "temporal-shift":  # which takes channels from other frames, zero at both ends
        torch.testing.assert_close(middle, expected, atol=1e-4, rtol=1e-4)


def microsoft_name(name: str) -> str:
    """The name in the original Swin of a tensor of torchvision's."""
    path = name.split(".")
    if path[0] != "features":
        return name
    if path[1] == "0":
        return f"patch_embed.{'proj' if path[2] == '0' else 'norm'}.{path[-1]}"
    if int(path[1]) % 2 == 0:
        return ".".join(["layers", str(int(path[1]) // 2 - 1), "downsample", *path[2:]])
    name = ".".join(["layers", str(int(path[1]) // 2), "blocks", *path[2:]])
    return name.replace("mlp.0", "mlp.fc1").replace("mlp.3", "mlp.fc2")


@pytest.mark.parametrize("preset", ["paper", "author"])
@pytest.mark.parametrize("source", ["torchvision", "microsoft"])
def test_public_swin_weights_start_as_the_image_network(tmp_path: Path, source: str, preset: str) -> None:
    """A clip of one repeated frame gives the logits of the image; the released code ignores the norm of the patches."""
    torch.manual_seed(0)
    image = SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [7, 7], num_classes=5).eval()
    state = image.state_dict()
    if source == "microsoft":
        state = {microsoft_name(n): v for n, v in state.items() if not n.endswith("relative_position_index")}
        state["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49, dtype=torch.int64)
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(4, 49, 49)
        state = {"model": state}
    torch.save(state, tmp_path / "swin.pth")
    network = tiny_swin(preset=preset, aggregation=False, share=8).eval()
    load_imagenet(network, str(tmp_path / "swin.pth"))
    if preset == "author":
        image.features[0][2] = nn.Identity()
    pixels = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        expected = image(pixels)
        torch.testing.assert_close(
            network(pixels.unsqueeze(2).expand(-1, -1, 16, -1, -1)), expected, atol=1e-5, rtol=1e-5
        )


def released_names(network: nn.Module, swin: bool) -> dict[str, Tensor]:
    """A state dict as the released code has it, of our parameters' shapes."""
    state: dict[str, Tensor] = {}
    for name, value in network.state_dict().items():
        if name.endswith("relative_position_index"):
            continue
        if swin:
            name = microsoft_name(name).replace("head.", "fc.").replace(".mid.", ".dtf_block.")
        elif value.dim() == 4 and ".mid." not in name:
            value = value.unsqueeze(2)
        name = name.replace(".mid.", ".dtf_blk.")
        if name.endswith("predict.weight"):
            name, value = name.replace("predict", "filter_g"), value.unflatten(1, (4, -1)).transpose(1, 2).flatten(1, 2)
        if ".dtf_bl" in name:
            if name.endswith(".mix"):
                name, value = name.replace("mix", "linear1.complex_weight"), value.movedim(0, -1)
            if name.endswith((".alpha", ".bias")):
                name, value = name.replace("alpha", "alpha1"), value[None, :, :, :, None]
            name = name.replace(".norm.", ".norm1.norm.")
            state[re.sub(r"(\.dtf_bl\w+)\..*", r"\1.weights_cor", name)] = torch.zeros(1)
        state[name] = value
    if swin:
        state["layers.0.blocks.1.dtf_block.alpha1"] = torch.zeros(1)
        state["layers.0.blocks.1.conv.weight"] = torch.zeros(1)
        state["layers.0.blocks.1.attn_mask"] = torch.zeros(1)
    return state


@pytest.mark.parametrize("kind", ["resnet", "swin"])
def test_released_weights_are_converted(kind: str) -> None:
    torch.manual_seed(0)
    build = tiny if kind == "resnet" else tiny_swin
    make = partial(build, preset="author", share=8)
    network = awake(make())
    state = released_names(network, swin=kind == "swin")
    other = make().eval()
    other.load_state_dict(convert_author_weights(state, other))
    video = torch.randn(1, 3, 16, 64, 64)
    with torch.no_grad():
        assert other(video).equal(network(video))
    missing = {name: value for name, value in state.items() if name != "fc.bias"}
    with pytest.raises(ValueError, match="1 tensors are missing, unknown or of another shape"):
        convert_author_weights(missing, other)
    with pytest.raises(ValueError, match="make it with preset='author'"):
        convert_author_weights(state, build())
