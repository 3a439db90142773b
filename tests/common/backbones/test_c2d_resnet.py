"""C2D ResNets against torchvision's, the places for other modules, and starting from image weights."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torchvision
from torch import Tensor, nn

from common.backbones import C2DBody, C2DResNet, load_imagenet
from common.backbones.imagenet import ImageNetError
from common.evaluation.complexity import count


class Recorder(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.channels, self.seen = channels, ()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[1] == self.channels
        self.seen = tuple(x.shape)
        return x * self.scale


class Centre(nn.Conv3d):
    """The 1x1 convolution over three frames; what looks across time leaves constant clips as they are."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(conv.in_channels, conv.out_channels, (3, 1, 1), padding=(1, 0, 0), bias=False)


def small(**options: object) -> C2DResNet:
    return C2DResNet(50, num_classes=5, width=0.125, layers=(1, 2, 1, 1), **options)


@pytest.mark.parametrize(
    ("library", "depth"), [("torchvision", 18), ("torchvision", 34), ("torchvision", 50), ("timm", 50)]
)
def test_equals_the_image_network_on_frames(tmp_path: Path, library: str, depth: int) -> None:
    models = torchvision.models if library == "torchvision" else pytest.importorskip("timm").models
    torch.manual_seed(0)
    theirs = getattr(models, f"resnet{depth}")(num_classes=7).eval()
    ours = C2DResNet(depth, num_classes=7).eval()
    torch.save(theirs.state_dict(), tmp_path / "image.pth")
    load_imagenet(ours, str(tmp_path / "image.pth"))
    ours, theirs = ours.double(), theirs.double()
    pictures = torch.randn(2, 3, 70, 65, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(pictures)
        torch.testing.assert_close(ours(pictures), expected, atol=1e-10, rtol=1e-10)
        torch.testing.assert_close(ours(pictures.unsqueeze(2)), expected, atol=1e-10, rtol=1e-10)
        clip = pictures.transpose(0, 1).unsqueeze(0)  # two frames: their features are averaged
        torch.testing.assert_close(ours(clip), expected.mean(0, keepdim=True), atol=1e-10, rtol=1e-10)


def test_strides_and_dilations_equal_torchvision() -> None:
    theirs = torchvision.models.resnet50(replace_stride_with_dilation=[False, True, True]).eval()
    ours = C2DBody(50, strides=(1, 2, 1, 1)).eval()
    ours.load_state_dict(theirs.state_dict(), strict=False)
    shapes = [tuple(y.shape[1:]) for y in ours.stages(torch.zeros(1, 3, 64, 64))]
    assert shapes == [(256, 16, 16), (512, 8, 8), (1024, 8, 8), (2048, 8, 8)]
    dilated = C2DBody(50, strides=(1, 2, 1, 1), dilations=(1, 1, 2, 4))
    assert dilated.layer4[1].conv2.dilation == theirs.layer4[1].conv2.dilation == (4, 4)
    assert dilated.stages(torch.zeros(1, 3, 64, 64))[-1].shape == (1, 2048, 8, 8)


def test_parameters_and_cost_of_the_published_network() -> None:
    complexity = count(C2DResNet(50, num_classes=400, stem_stride=4), (1, 3, 16, 256, 256))
    assert complexity.macs_paper / 1e9 == pytest.approx(23.20, abs=0.005)
    assert complexity.params / 1e6 == pytest.approx(24.36, abs=0.005)


def test_stages_and_temporal_pool() -> None:
    body = C2DBody(18, width=0.125, temporal_pool_after_stage=(2,))
    shapes = [tuple(y.shape) for y in body.stages(torch.randn(2, 3, 5, 33, 40))]
    assert shapes == [(2, 8, 5, 9, 10), (2, 16, 3, 5, 5), (2, 32, 3, 3, 3), (2, 64, 3, 2, 2)]
    assert [tuple(y.shape) for y in body.stages(torch.randn(2, 3, 33, 40))][-1] == (2, 64, 2, 2)


def test_modules_stand_where_they_are_put() -> None:
    network = small(
        mid_block=lambda channels, stage, index: Recorder(channels) if stage == 5 else None,
        after_block=lambda channels, stage, index: Recorder(channels) if (stage, index) == (3, 1) else None,
        first_conv=lambda conv, stage, index: Centre(conv) if stage == 4 else None,
    )
    network(torch.randn(2, 3, 4, 64, 48))
    recorders = {name: m for name, m in network.named_modules() if isinstance(m, Recorder)}
    assert recorders.keys() == {"layer2.1.after", "layer4.0.mid"}
    assert recorders["layer2.1.after"].seen == (2, 64, 4, 8, 6)
    assert recorders["layer4.0.mid"].seen == (2, 64, 4, 2, 2)
    assert isinstance(network.layer3[0].conv1, Centre)


def test_temporal_stem_is_the_strided_convolution() -> None:
    network = C2DBody(18, width=0.125, stem_stride=4).double()
    video = torch.randn(2, 3, 11, 17, 16, dtype=torch.float64)
    stem = network.conv1
    expected = torch.nn.functional.conv3d(video, stem.weight, None, (4, 2, 2), (0, 3, 3))
    torch.testing.assert_close(stem(video), expected)
    with pytest.raises(ValueError, match="at least 4 frames, but the clip has 3"):
        network(video[:, :, :3])


def test_wrong_arguments_are_named() -> None:
    with pytest.raises(ValueError, match="no ResNet-20"):
        C2DBody(20)
    with pytest.raises(ValueError, match="layers takes a number"):
        C2DBody(18, layers=(1, 1, 1))
    with pytest.raises(ValueError, match="stages 2 to 5"):
        C2DBody(18, temporal_pool_after_stage=(1,))
    with pytest.raises(ValueError, match="not \\(1, 4, 8, 8\\)"):
        C2DBody(18, width=0.125)(torch.zeros(1, 4, 8, 8))


def test_image_weights_from_a_file(tmp_path: Path) -> None:
    torch.manual_seed(0)
    image = C2DResNet(50, num_classes=9, width=0.125, layers=(1, 2, 1, 1))
    torch.save({"state_dict": {f"module.{k}": v for k, v in image.state_dict().items()}}, tmp_path / "image.pth")
    network = small(
        stem_stride=4,
        first_conv=lambda conv, stage, index: Centre(conv),
        mid_block=lambda channels, stage, index: Recorder(channels),
    )
    report = load_imagenet(network, str(tmp_path / "image.pth"))
    assert "the classifier is new" in report
    assert "inflated over time: conv1, layer1.0.conv1" in report
    assert network.conv1.weight[:, :, 2].equal(image.conv1.weight)
    assert not network.conv1.weight[:, :, [0, 1, 3]].any()
    # A clip whose frames are all alike is seen as the image network sees the frame.
    picture = torch.randn(2, 3, 48, 48)
    with torch.no_grad():
        expected = image.eval().stages(picture)[-1]
        found = network.eval().stages(picture.unsqueeze(2).expand(-1, -1, 8, -1, -1))[-1]
    torch.testing.assert_close(found, expected.unsqueeze(2).expand_as(found), atol=1e-5, rtol=1e-5)


def test_weights_of_another_network_change_nothing(tmp_path: Path) -> None:
    torch.save(C2DResNet(18, width=0.125).state_dict(), tmp_path / "other.pth")
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(ImageNetError, match="not those of C2DResNet"):
        load_imagenet(network, str(tmp_path / "other.pth"))
    assert all(value.equal(before[name]) for name, value in network.state_dict().items())


def test_weights_that_cannot_be_had(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    network = small()
    with pytest.raises(ImageNetError, match="there is no file"):
        load_imagenet(network, str(tmp_path / "none.pth"))
    (tmp_path / "text.pth").write_text("hello")
    with pytest.raises(ImageNetError, match="cannot be read as weights"):
        load_imagenet(network, str(tmp_path / "text.pth"))
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ImageNetError, match="holds no state dict"):
        load_imagenet(network, str(tmp_path / "list.pth"))
    with pytest.raises(ImageNetError, match="torchvision/resnet49 are not available"):
        load_imagenet(network, "torchvision/resnet49")

    def offline(*args: object, **kwargs: object) -> None:
        raise OSError("no connection")

    monkeypatch.setattr("torch.hub.download_url_to_file", offline)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    with pytest.raises(ImageNetError, match=r"no connection\. Without a connection, download them elsewhere"):
        load_imagenet(network, "torchvision/resnet50.IMAGENET1K_V1")
