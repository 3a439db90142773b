"""Networks of other libraries, at small sizes: compressed, trimmed, folded, saved, loaded, and equal throughout."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import fold_batch_norms, trim_producers
from papers.fdc3d.files import load_compact, rebuild, save_compact, set_source
from papers.fdc3d.layers import CompactConv3d

SLOW = pytest.mark.slow
CLIP = (1, 3, 4, 32, 32)
LARGE_CLIP = (1, 3, 4, 64, 64)
VOLUME = (1, 1, 16, 16, 16)
SCAN = {"spatial_dims": 3, "in_channels": 1, "out_channels": 2}
X3D = {"input_clip_length": 4, "input_crop_size": 64}
SLOW_R50 = {"stem_dim_out": 8, "head_pool_kernel_size": (4, 2, 2)}
CSN = {"model_depth": 50, "stem_dim_out": 16, "head_pool_kernel_size": (1, 2, 2), "stage_conv_b_width_per_group": 4}
R2PLUS1D = {"stem_dim_out": 8, "head_pool_kernel_size": (2, 2, 2)}
U = {"channels": (8, 16, 32), "strides": (2, 2)}
DYN = {
    "kernel_size": [3, 3, 3],
    "strides": [1, 2, 2],
    "upsample_kernel_size": [2, 2],
    "filters": [8, 16, 32],
    "norm_name": "batch",
}
#: function or class, arguments, shape of the input, notes of its layers, batch norms that fold
NETWORKS = [
    pytest.param("torchvision.models.video.r3d_18", {}, CLIP, {"reads 3"}, 20, marks=SLOW),
    pytest.param("torchvision.models.video.mc3_18", {}, CLIP, {"reads 3"}, 20, marks=SLOW),
    pytest.param("torchvision.models.video.r2plus1d_18", {}, CLIP, {"reads 3"}, 37, marks=SLOW),
    pytest.param("torchvision.models.video.s3d", {}, (1, 3, 14, 224, 224), {"one frame"}, 77, marks=SLOW),
    pytest.param("pytorchvideo.models.x3d.create_x3d", X3D, LARGE_CLIP, {"216 groups"}, 83, marks=SLOW),
    pytest.param("pytorchvideo.models.resnet.create_resnet", SLOW_R50, LARGE_CLIP, {"one frame"}, 53, marks=SLOW),
    pytest.param("pytorchvideo.models.csn.create_csn", CSN, LARGE_CLIP, {"16 groups"}, 53, marks=SLOW),
    pytest.param(
        "pytorchvideo.models.r2plus1d.create_r2plus1d", R2PLUS1D, (1, 3, 8, 64, 64), {"one frame"}, 69, marks=SLOW
    ),
    ("monai.networks.nets.UNet", {**SCAN, **U, "num_res_units": 2, "norm": "batch"}, VOLUME, {"reads 1"}, 7),
    ("monai.networks.nets.SegResNet", {**SCAN, "init_filters": 8}, VOLUME, {"reads 1"}, 0),
    ("monai.networks.nets.DynUNet", {**SCAN, **DYN}, VOLUME, {"reads 1"}, 10),
    ("monai.networks.nets.BasicUNet", {**SCAN, "features": (8, 8, 16, 32, 32, 8)}, (1, 1, 32, 32, 32), {"reads 1"}, 0),
    (
        "monai.networks.nets.DenseNet",
        {**SCAN, "init_features": 8, "growth_rate": 8, "block_config": (2, 2)},
        (1, 1, 32, 32, 32),
        {"reads 1"},
        5,
    ),
    ("monai.networks.nets.AttentionUnet", {**SCAN, **U}, VOLUME, {"reads 1"}, 12),
]


def build(function: str, arguments: dict[str, Any]) -> nn.Module:
    key = {"torchvision": "num_classes", "pytorchvideo": "model_num_class"}.get(function.partition(".")[0])
    arguments = {**arguments, **({key: 5} if key else {})}
    torch.manual_seed(0)
    network = rebuild({"builder": function, "arguments": arguments, "modules": {}})
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):  # as after training
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
            assert module.running_mean is not None
            nn.init.normal_(module.running_mean, std=0.2)
    return set_source(network, function, arguments)


@torch.no_grad()
def outputs(network: nn.Module, x: Tensor) -> Tensor:
    return torch.cat([leaf.flatten() for leaf in tree_leaves(network(x))])


def assert_close(a: Tensor, b: Tensor) -> None:
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()


@pytest.mark.parametrize(("function", "arguments", "shape", "notes", "norms"), NETWORKS)
def test_networks_of_libraries(function, arguments, shape, notes, norms, tmp_path):
    network, x = build(function, arguments), torch.randn(shape)
    # The pooling of S3D takes large inputs only, so fewer of its layers are pruned here.
    rates = {"temporal_rate": 1 / 3} if "s3d" in function else {"rate": 2}
    result = compress(network, [x], **rates, steps=1, progress=False)
    assert result.report.multiply_adds > 1.15
    assert any(isinstance(module, CompactConv3d) for module in result.network.modules())
    for note in notes:
        assert any(note in layer.note for layer in result.report.layers), note
    expected = outputs(result.network, x)
    assert_close(expected, outputs(result.masked, x))
    assert torch.equal(outputs(load_compact(save_compact(result.network, tmp_path / "a.pt")), x), expected)
    trim_producers(result.network, x)
    assert len(fold_batch_norms(result.network, x)) == norms
    assert_close(outputs(result.network, x), expected)
    smallest = load_compact(save_compact(result.network, tmp_path / "b.pt"))
    assert torch.equal(outputs(smallest, x), outputs(result.network, x))
    assert sum(p.numel() for p in smallest.parameters()) < sum(p.numel() for p in network.parameters())


class ConvNeXtBlock3d(nn.Module):
    """In the style of timm: depthwise convolution, layer norm and linear layers with the channels last, drop path."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv_dw = nn.Conv3d(channels, channels, 7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels)
        self.mlp = nn.Sequential(nn.Linear(channels, 4 * channels), nn.GELU(), nn.Linear(4 * channels, channels))
        self.gamma = nn.Parameter(torch.full((channels,), 0.5))
        self.drop_path = DropPath(0.1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv_dw(x).movedim(1, -1)
        return x + self.drop_path((self.gamma * self.mlp(self.norm(y))).movedim(-1, 1))


class Standardised(nn.Module):
    """The weight of a convolution without its mean."""

    def forward(self, weight: Tensor) -> Tensor:
        return weight - weight.mean(dim=(1, 2, 3, 4), keepdim=True)


class OwnNetwork(nn.Module):
    """A network of nobody's library; its last convolution is held by two names."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(3, 16, (3, 4, 4), (1, 4, 4), (1, 0, 0))
        self.stages = nn.Sequential(ConvNeXtBlock3d(16), ConvNeXtBlock3d(16))
        self.normed = nn.Conv3d(16, 16, 3, padding=1)
        nn.utils.parametrize.register_parametrization(self.normed, "weight", Standardised())
        self.last = nn.Conv3d(16, 16, 3, padding=1)
        self.layers = nn.ModuleList([self.last])

    def forward_features(self, x: Tensor) -> Tensor:
        return self.layers[0](self.normed(self.stages(self.stem(x))))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"logits": self.forward_features(x).mean(dim=(2, 3, 4))}


def test_a_network_of_ones_own(tmp_path):
    torch.manual_seed(0)
    network, x = OwnNetwork().eval(), torch.randn(2, 3, 5, 17, 16)
    result = compress(network, [x], rate=2, steps=1, progress=False)
    notes = {layer.name: layer.note for layer in result.report.layers}
    assert notes["normed"] == "left alone: its weight is computed from other parameters"
    assert notes["stages.0.conv_dw"] == "channels kept: 16 groups"
    assert isinstance(result.network.last, CompactConv3d)
    assert result.network.last is result.network.layers[0]
    assert result.network.stages[0].conv_dw.kept_rows == 4
    assert_close(outputs(result.network, x), outputs(result.masked, x))
    path = save_compact(result.network, tmp_path / "own.pt")
    assert torch.equal(outputs(load_compact(path, OwnNetwork()), x), outputs(result.network, x))
