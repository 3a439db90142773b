import pytest
import torch
from torch import nn

from common.backbones.unet3d import ResidualUNet3d
from common.evaluation.complexity import count
from common.training.checkpoints import CheckpointError
from common.training.library_network import build_library_network
from papers.fdc3d.command_line import export_onnx
from papers.fdc3d.compression import CompressionError, choose_executions, compress, update_report
from papers.fdc3d.files import FORMAT, describe, load_compact, load_facts, rebuild, save_compact, set_source
from papers.fdc3d.layers import CompactConv3d
from papers.fdc3d.trimming import trim_producers
from tests.papers.fdc3d.test_compression import tiny_batches, tiny_network

SOURCE = ("common.backbones.resnet3d.ResNet3d", {"depth": 10, "num_classes": 4, "width": 0.125})


@pytest.fixture(scope="module")
def found():
    network = set_source(tiny_network(), *SOURCE)
    return compress(network, tiny_batches(), rate=2, steps=2, progress=False)


def test_one_file_loads_without_the_original(found, tmp_path):
    x = tiny_batches()[0][0]
    path = save_compact(found.network, tmp_path / "small.pt", facts={"report": found.report.to_dict(), "names": ["a"]})
    loaded = load_compact(path)
    with torch.no_grad():
        assert torch.equal(loaded(x), found.network(x))
    assert not loaded.training
    assert load_facts(path)["names"] == ["a"]
    assert load_facts(path)["report"]["method"] == "fdc3d"
    dense = sum(p.numel() for p in tiny_network().parameters())
    assert sum(p.numel() for p in loaded.parameters()) < 0.55 * dense
    stored = torch.load(path, weights_only=True)
    assert sum(v.numel() for v in stored["state_dict"].values()) < 0.6 * dense
    again = save_compact(loaded, tmp_path / "again.pt")  # the source travels along
    with torch.no_grad():
        assert torch.equal(load_compact(again)(x), loaded(x))


def test_chosen_executions_are_saved(found, tmp_path):
    x = tiny_batches()[0][0]
    network = choose_executions(rebuild(describe(found.network)), x, layouts=("channels_last",), repeats=1)
    network.load_state_dict(found.network.state_dict())
    loaded = load_compact(save_compact(network, tmp_path / "small.pt"))
    for mine, theirs in zip(network.modules(), loaded.modules(), strict=True):
        if isinstance(mine, CompactConv3d):
            assert mine.spec() == theirs.spec()
            assert theirs.layout == "channels_last"
            assert theirs.weight.is_contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        torch.testing.assert_close(loaded(x), found.network(x), rtol=1e-5, atol=1e-5)


def test_a_compact_network_trains(found):
    network = rebuild(describe(found.network)).train()
    network.load_state_dict(found.network.state_dict())
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


def test_files_name_no_code_but_networks(found, tmp_path):
    stored = {FORMAT: 1, **describe(found.network), "state_dict": found.network.state_dict()}
    for builder, message in (
        ("os.system", "lies outside"),
        ("papers.fdc3d.files.save_compact", "not a network"),
        ("papers.fdc3d.files.AtomicCheckpointIO", "not a network"),
        ("common.training.cli.main", "not a network"),
        ("common.backbones.resnet3d.ResNet4d", "does not exist"),
        ("common.backbones.nothing.ResNet3d", "does not exist"),
    ):
        torch.save({**stored, "builder": builder}, tmp_path / "bad.pt")
        with pytest.raises(CheckpointError, match=message):
            load_compact(tmp_path / "bad.pt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({FORMAT: 2}, "not a compact network"),
        ({"arguments": {"size": 3}}, "does not take these arguments"),
        ({"modules": {"conv1": {"type": "Linear"}}}, "not known, 'Linear'"),
        ({"modules": {"conv9": {"type": "Conv3d"}}}, "is damaged"),
        ({"modules": {}}, "do not fit"),
        ({"state_dict": {}}, "do not fit"),
    ],
)
def test_damaged_files_are_named(found, tmp_path, change, message):
    path = tmp_path / "bad.pt"
    torch.save({FORMAT: 1, **describe(found.network), "state_dict": found.network.state_dict(), **change}, path)
    with pytest.raises(CheckpointError, match=message):
        load_compact(path)


def test_the_source_must_be_known_and_right(tmp_path):
    network = tiny_network()
    with pytest.raises(CompressionError, match=r"builds another network: conv1\.weight"):
        set_source(network, SOURCE[0], {**SOURCE[1], "width": 0.25})
    with pytest.raises(CompressionError, match="lies outside"):
        set_source(network, "torch.nn.Conv3d", {})
    with pytest.raises(CompressionError, match="set_source"):
        save_compact(compress(network, tiny_batches(1), rate=2, steps=1, progress=False).network, tmp_path / "a.pt")


# -- filters that nothing reads


def test_unread_filters_go(found, tmp_path):
    x = tiny_batches()[0][0]
    network = rebuild(describe(found.network))
    network.load_state_dict(found.network.state_dict())
    report = trim_producers(network, x)
    assert report.trimmed == {f"layer{i}.0.conv1": (8 * 2 ** (i - 1), 6 * 2 ** (i - 1)) for i in (1, 2, 3, 4)}
    assert report.kept["layer1.0.conv1"] == "more than this layer reads conv1"  # the first shortcut reads it too
    assert "sum" in report.kept["layer2.0.conv1"]
    assert "8 > 6 filters" in str(report)
    assert network.layer1[0].bn1.num_features == 6
    assert network.layer1[0].conv2.in_channels == network.layer1[0].conv2.kept_channels == 6
    with torch.no_grad():
        torch.testing.assert_close(network(x), found.network(x), rtol=1e-5, atol=1e-5)
    before = found.report.macs_compact
    counted = found.report.from_dict(found.report.to_dict())
    update_report(counted, network)
    assert counted.macs_compact < before
    assert counted.macs_compact == count(network, (1, *x.shape[1:])).macs_paper
    loaded = load_compact(save_compact(network, tmp_path / "trimmed.pt"))
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


def test_plain_producers_and_what_lies_between():
    class Chain(nn.Module):
        def __init__(self, between):
            super().__init__()
            self.first = nn.Conv3d(3, 8, 1)
            self.between = between
            self.second = nn.Conv3d(8, 4, 3, padding=1)
            self.third = nn.Conv3d(4, 4, 1)  # four channels: not pruned

        def forward(self, x):
            return self.third(self.second(self.between(self.first(x))))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, 6)
    for between, trims in (
        (nn.Sequential(nn.BatchNorm3d(8), nn.ReLU(inplace=True), nn.MaxPool3d(2), nn.Dropout3d()), True),
        (nn.BatchNorm3d(8, affine=False, track_running_stats=False), True),
        (nn.GroupNorm(2, 8), False),
        (nn.Upsample(scale_factor=2), False),
    ):
        network = compress(Chain(between).eval(), [x], rate=2, steps=1, progress=False, method="dct").network
        expected = network(x)
        report = trim_producers(network, x)
        assert (report.trimmed == {"first": (8, 6)}) is trims
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        assert network.first.out_channels == (6 if trims else 8)


# -- other networks, other formats


@pytest.mark.parametrize("layout", ["lee", "isotropic"])
def test_unet(layout):
    torch.manual_seed(0)
    network = ResidualUNet3d(layout, width=0.25 if layout == "lee" else 0.125).eval()
    x = torch.randn(1, 4, 6, 12, 10)
    found = compress(network, [{"volume": x}], rate=2, steps=1, progress=False)
    with torch.no_grad():
        a, b = found.network(x), found.masked(x)
    assert (a - b).abs().max() <= 1e-5 * b.abs().max()
    assert found.report.multiply_adds > 1.4
    trim_producers(found.network, x)
    assert count(found.network, x.shape).macs_paper < found.report.macs_compact


X3D = {"input_clip_length": 4, "input_crop_size": 64}
CSN = {"model_depth": 50, "stem_dim_out": 16, "head_pool_kernel_size": (1, 2, 2), "stage_conv_b_width_per_group": 4}


@pytest.mark.parametrize(
    ("function", "options"),
    [pytest.param("x3d.create_x3d", X3D, marks=pytest.mark.slow), ("csn.create_csn", CSN)],
)
def test_library_networks(function, options, tmp_path):
    torch.manual_seed(0)
    name = f"pytorchvideo.models.{function}"
    network = build_library_network(name, 5, **options).eval()
    arguments = {"name": name, "num_classes": 5, **options}
    set_source(network, "common.training.library_network.build_library_network", arguments)
    x = torch.randn(1, 3, 4, 64, 64)
    found = compress(network, [x], rate=2, steps=1, progress=False, method="dct")
    with torch.no_grad():
        torch.testing.assert_close(found.network(x), found.masked(x), rtol=1e-4, atol=1e-5)
        loaded = load_compact(save_compact(found.network, tmp_path / "small.pt"))
        assert torch.equal(loaded(x), found.network(x))
    assert any("groups" in layer.note for layer in found.report.layers)


@pytest.mark.slow
def test_torchvision_networks():
    for function in ("r3d_18", "r2plus1d_18"):
        torch.manual_seed(0)
        network = build_library_network(f"torchvision.models.video.{function}", 5).eval()
        x = torch.randn(1, 3, 4, 32, 32)
        found = compress(network, [x], rate=2, steps=1, progress=False, method="dct")
        with torch.no_grad():
            torch.testing.assert_close(found.network(x), found.masked(x), rtol=1e-4, atol=1e-5)
        assert found.report.formula > 1.3


@pytest.mark.parametrize("trimmed", [False, True])
def test_onnx_computes_the_same(found, tmp_path, trimmed):
    pytest.importorskip("onnx")
    pytest.importorskip("onnxscript")
    runtime = pytest.importorskip("onnxruntime")
    x = tiny_batches()[0][0]
    network = rebuild(describe(found.network))
    network.load_state_dict(found.network.state_dict())
    if trimmed:
        trim_producers(network, x)
        choose_executions(network, x, repeats=1)
    path = tmp_path / "small.onnx"
    export_onnx(network, x, path)
    (output,) = runtime.InferenceSession(str(path)).run(None, {"video": x.numpy()})
    with torch.no_grad():
        assert (torch.from_numpy(output) - network(x)).abs().max() < 1e-4
