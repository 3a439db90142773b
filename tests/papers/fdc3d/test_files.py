import pytest
import torch
from torch import nn

from common.backbones.unet3d import ResidualUNet3d
from common.evaluation.complexity import count
from common.training.checkpoints import CheckpointError
from common.training.export import export_network
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import trim_producers
from papers.fdc3d.files import FORMAT, describe, load_compact, rebuild, save_compact, set_source
from papers.fdc3d.layers import CompactConv3d
from papers.fdc3d.methods import CompressionError
from papers.fdc3d.timing import choose_executions
from tests.papers.fdc3d.test_compression import tiny_batches, tiny_network

SOURCE = ("common.backbones.resnet3d.ResNet3d", {"depth": 10, "num_classes": 4, "width": 0.125})


@pytest.fixture(scope="module")
def result():
    network = set_source(tiny_network(), *SOURCE)
    return compress(network, tiny_batches(), rate=2, steps=2, progress=False)


def test_one_file_loads_without_the_original(result, tmp_path):
    x = tiny_batches()[0][0]
    path = save_compact(
        result.network, tmp_path / "small.pt", facts={"report": result.report.to_dict(), "names": ["a"]}
    )
    loaded = load_compact(path)
    with torch.no_grad():
        assert torch.equal(loaded(x), result.network(x))
    assert not loaded.training
    dense = sum(p.numel() for p in tiny_network().parameters())
    assert sum(p.numel() for p in loaded.parameters()) < 0.55 * dense
    stored = torch.load(path, weights_only=True)
    assert stored["facts"]["names"] == ["a"]
    assert stored["facts"]["report"]["method"] == "fdc3d"
    assert sum(v.numel() for v in stored["state_dict"].values()) < 0.6 * dense
    again = save_compact(loaded, tmp_path / "again.pt")  # the source travels along
    with torch.no_grad():
        assert torch.equal(load_compact(again)(x), loaded(x))


def test_chosen_executions_are_saved(result, tmp_path):
    x = tiny_batches()[0][0]
    network = rebuild(describe(result.network))
    network.load_state_dict(result.network.state_dict())
    choose_executions(network, x, repeats=1)
    for layer in network.modules():
        if isinstance(layer, CompactConv3d):
            layer.set_layout("channels_last")
    loaded = load_compact(save_compact(network, tmp_path / "small.pt"))
    for mine, theirs in zip(network.modules(), loaded.modules(), strict=True):
        if isinstance(mine, CompactConv3d):
            assert mine.spec() == theirs.spec()
            assert theirs.layout == "channels_last"
            assert theirs.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), result.network(x), rtol=1e-5, atol=1e-5)


def test_a_compact_network_trains(result):
    network = rebuild(describe(result.network)).train()
    network.load_state_dict(result.network.state_dict())
    optimizer = torch.optim.SGD(network.parameters(), lr=0.05)
    (x, label), losses = tiny_batches()[1], []
    for _ in range(8):
        loss = nn.functional.cross_entropy(network(x), label)
        optimizer.zero_grad()
        loss.backward()
        assert all(p.grad is not None and torch.isfinite(p.grad).all() for p in network.parameters())
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(
    ("builder", "arguments", "message"),
    [
        ("os.system", {}, "not among the builders"),
        ("torch.nn.Conv3d", {}, "not among the builders"),
        ("papers.fdc3d.files.save_compact", {}, "not among the builders"),
        ("common.training.cli.main", {}, "not among the builders"),
        ("common.backbones.imagenet.load_imagenet", {"source": "a.pth"}, "not among the builders"),
        ("common.backbones.resnet3d.torch.load", {"f": "a.pth"}, "not among the builders"),
        ("papers.fdc3d.networks._build", {}, "not among the builders"),
        ("pytorchvideo.models.hub.slow_r50", {"pretrained": True}, "not among the builders"),
        ("torchvision.models.get_model", {"name": "r3d_18", "weights": "DEFAULT"}, "not among the builders"),
        ("papers.fdc3d.networks.torch", {}, "not a network"),
        ("papers.fdc3d.networks.Sequence", {}, "not a network"),
        ("torchvision.models.video.resnet.R3D_18_Weights", {}, "not a network"),
        ("papers.fdc3d.lightning_module.rank_zero_info", {}, "not a network|does not exist"),
        ("common.backbones.resnet3d.ResNet4d", {}, "does not exist"),
        ("common.backbones.nothing.ResNet3d", {}, "does not exist"),
        ("torchvision.models.video.r3d_18", {"weights": "KINETICS400_V1"}, "would load weights"),
        ("torchvision.models.video.r3d_18", {"pretrained": True}, "would load weights"),
        ("monai.networks.nets.EfficientNetBN", {"model_name": "efficientnet-b0"}, "would load weights"),
        (
            "common.training.library_network.build_library_network",
            {"name": "torchvision.models.video.r3d_18", "num_classes": 400, "weights": "DEFAULT"},
            "would load weights",
        ),
        (
            "common.training.library_network.LibraryNetworkModule",
            {
                "num_classes": 400,
                "network": "torchvision.models.video.r3d_18",
                "network_options": {"weights": "DEFAULT"},
            },
            "would load weights",
        ),
        ("papers.fdc3d.lightning_module.FDC3DModule", {"pretrained": "/etc/passwd"}, "would load weights"),
    ],
)
def test_files_build_networks_and_do_nothing_else(result, tmp_path, monkeypatch, builder, arguments, message):
    stored = {FORMAT: 1, **describe(result.network), "state_dict": result.network.state_dict()}
    path = tmp_path / "bad.pt"
    torch.save({**stored, "builder": builder, "arguments": arguments}, path)
    loaded = []
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda *a, **k: loaded.append(a))
    monkeypatch.setattr(nn.Module, "load_state_dict", lambda *a, **k: loaded.append(a))
    with pytest.raises(CheckpointError, match=message):
        load_compact(path)
    assert not loaded


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FORMAT: 2}, "not a compact network"),
        ({"arguments": {"size": 3}}, "does not take these arguments"),
        ({"modules": {"conv1": {"type": "Linear"}}}, "unknown kind of module 'Linear'"),
        ({"modules": {"conv9": {"type": "Conv3d"}}}, "is damaged"),
        ({"modules": {}}, "do not fit"),
        ({"state_dict": {}}, "do not fit"),
    ],
)
def test_damaged_files_are_named(result, tmp_path, change, message):
    path = tmp_path / "bad.pt"
    torch.save({FORMAT: 1, **describe(result.network), "state_dict": result.network.state_dict(), **change}, path)
    with pytest.raises(CheckpointError, match=message):
        load_compact(path)


def test_the_source_must_be_known_and_right(tmp_path):
    network = tiny_network()
    with pytest.raises(CompressionError, match=r"builds another network: conv1\.weight"):
        set_source(network, SOURCE[0], {**SOURCE[1], "width": 0.25})
    with pytest.raises(CompressionError, match="not among the builders"):
        set_source(network, "torch.nn.Conv3d", {})
    result = compress(network, tiny_batches(1), rate=2, steps=1, progress=False)
    path = save_compact(result.network, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match="set_source"):
        load_compact(path)
    x = tiny_batches()[0][0]
    with torch.no_grad():
        assert torch.equal(load_compact(path, tiny_network(5))(x), result.network(x))
    with pytest.raises(CheckpointError, match="do not fit"):
        load_compact(path, tiny_network(width=0.25))


# -- other formats


@pytest.mark.parametrize("layout", ["lee", "isotropic"])
def test_unet(layout):
    torch.manual_seed(0)
    network = ResidualUNet3d(layout, width=0.25 if layout == "lee" else 0.125).eval()
    x = torch.randn(1, 4, 6, 12, 10)
    result = compress(network, [{"volume": x}], rate=2, steps=1, progress=False)
    with torch.no_grad():
        a, b = result.network(x), result.masked(x)
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert result.report.multiply_adds > 1.4
    trim_producers(result.network, x)
    assert count(result.network, x.shape).macs_paper < result.report.macs_compact


@pytest.mark.parametrize("trimmed", [pytest.param(False, marks=pytest.mark.slow), True])
def test_onnx_computes_the_same(result, tmp_path, trimmed):
    x = tiny_batches()[0][0]
    network = rebuild(describe(result.network))
    network.load_state_dict(result.network.state_dict())
    if trimmed:
        trim_producers(network, x)
        choose_executions(network, x, repeats=1)
    assert export_network(network, x, tmp_path / "small.onnx") < 1e-4
