"""Swin over frames against torchvision's and timm's, the place for other modules, and image weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torchvision.models.swin_transformer import SwinTransformer

from common.backbones import C2DSwin, load_imagenet

TINY = {"embed_dim": 16, "depths": (2, 2, 2, 2), "heads": (1, 2, 2, 4)}


def torchvision_tiny(num_classes: int = 5) -> SwinTransformer:
    return SwinTransformer([4, 4], 16, [2, 2, 2, 2], [1, 2, 2, 4], [7, 7], num_classes=num_classes)


class Scale(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels, 1, 1, 1))
        self.seen: tuple[int, ...] = ()

    def forward(self, x: Tensor) -> Tensor:
        self.seen = tuple(x.shape)
        return x * self.weight


@pytest.mark.parametrize("size", [(64, 64), (70, 101)])
def test_equals_torchvision_on_frames(size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    theirs = torchvision_tiny().eval()
    ours = C2DSwin("t", 5, **TINY).eval()
    ours.load_state_dict(theirs.state_dict())
    pictures = torch.randn(2, 3, *size)
    with torch.no_grad():
        expected = theirs(pictures)
        torch.testing.assert_close(ours(pictures), expected, atol=1e-5, rtol=1e-5)
        clip = pictures.transpose(0, 1).unsqueeze(0)
        torch.testing.assert_close(ours(clip), expected.mean(0, keepdim=True), atol=1e-5, rtol=1e-5)


def test_weights_of_timm(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    theirs = timm.models.swin_transformer.SwinTransformer(
        embed_dim=16, depths=(2, 2, 2, 2), num_heads=(1, 2, 2, 4), num_classes=5
    ).eval()
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    ours = C2DSwin("t", 5, **TINY).eval()
    load_imagenet(ours, str(tmp_path / "timm.pth"))
    picture = torch.randn(1, 3, 224, 224)
    with torch.no_grad():
        torch.testing.assert_close(ours(picture), theirs(picture), atol=1e-5, rtol=1e-5)


def test_weights_of_the_original_code() -> None:
    """It ends a stage with the patch merging that timm begins the next one with, and keeps masks."""
    ours = C2DSwin("t", 5, **TINY)
    state = {
        "patch_embed.proj.weight": torch.zeros(1),
        "layers.0.blocks.1.attn_mask": torch.zeros(1),
        "layers.0.downsample.norm.weight": torch.zeros(1),
        "layers.1.blocks.0.mlp.fc2.bias": torch.zeros(1),
        "head.weight": torch.zeros(1),
    }
    renamed = {name for name in ours.rename_image_weights(state) if not name.endswith("relative_position_index")}
    assert renamed == {"features.0.0.weight", "features.2.norm.weight", "features.3.0.mlp.3.bias", "head.weight"}


def test_modules_stand_behind_regular_windows(tmp_path: Path) -> None:
    torch.save(torchvision_tiny(9).state_dict(), tmp_path / "image.pth")
    network = C2DSwin("t", 5, stem_stride=2, mid_block=lambda channels, stage, index: Scale(channels), **TINY)
    scales = {name: m for name, m in network.named_modules() if isinstance(m, Scale)}
    # At 224 x 224 the last stage is one window: no block of it shifts.
    assert list(scales) == [f"features.{i}.mid" for i in ("1.0", "3.0", "5.0", "7.0", "7.1")]
    network(torch.randn(2, 3, 6, 64, 64)).sum().backward()
    assert scales["features.3.0.mid"].seen == (2, 32, 3, 8, 8)
    assert all(p.grad is not None for p in network.parameters())
    report = load_imagenet(network, str(tmp_path / "image.pth"))
    assert "inflated over time: features.0.0\n" in report
    assert "5 tensors of modules that image networks lack are new" in report
    assert not network.features[0].get_submodule("0").weight[:, :, 0].any()


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="no Swin of size 'x'"):
        C2DSwin("x")
    with pytest.raises(ValueError, match=r"not \(1, 3, 64\)"):
        C2DSwin("t", **TINY)(torch.zeros(1, 3, 64))
