import csv
import json

import pytest
import torch

from common.backbones.resnet3d import ResNet3d
from common.datamodules.brats import REGIONS
from common.datamodules.video_clips import ClipSpec, load_views
from common.datamodules.volumes import VolumeSpec
from common.training.cli import main as spectral
from common.training.task import load_module
from papers.fdc3d import compress, load_compact, save_compact
from papers.fdc3d.__main__ import ACTIVITYNET_MEAN, ACTIVITYNET_STD, load_batches, load_network, main
from papers.fdc3d.files import set_source
from papers.fdc3d.lightning_module import FDC3DModule, FDC3DVolumeModule
from papers.fdc3d.networks import ResNetOptions, UNetOptions
from tests.media import write_video
from tests.volumes import write_brats


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for k in range(3):
        write_video(folder / f"{k}.mp4", 12 + k)
    return folder


@pytest.fixture
def public(tmp_path):
    """A checkpoint with the keys and entries of the public 3D-ResNets, trained on several GPUs."""
    torch.manual_seed(0)
    network = ResNet3d(18, num_classes=5, width=0.125, shortcut="A")
    state = {f"module.{k}": v for k, v in network.state_dict().items() if "num_batches" not in k}
    path = tmp_path / "resnet-18-ucf101.pth"
    torch.save({"epoch": 200, "arch": "resnet-18", "state_dict": state, "optimizer": {"param_groups": []}}, path)
    return path, network.eval()


SMALL = ["--frames", "8", "--size", "32", "--steps", "2"]


@pytest.mark.slow
def test_public_checkpoint_to_compact_file(public, videos, tmp_path, capsys):
    path, _ = public
    out, report = tmp_path / "small.pt", tmp_path / "report.json"
    arguments = [str(path), "--data", str(videos), "--out", str(out), "--report", str(report)]
    assert main([*arguments, *SMALL, "--repeats", "1", "--trim", "--device", "cpu"]) == 0
    shown = capsys.readouterr().out
    assert "layer4.1.conv2" in shown
    assert "lose unread filters" in shown
    small = load_compact(out)
    values = json.loads(report.read_text())
    assert values["multiply_adds"] == torch.load(out, weights_only=True)["facts"]["report"]["multiply_adds"] > 1.5
    assert values["measured"] > 0
    assert sum(p.numel() for p in small.parameters()) == values["params_compact"] < 0.6 * values["params"]
    assert spectral(["export", str(out)]) == 0
    assert small(torch.randn(1, 3, 8, 32, 32)).shape == (1, 5)
    # nothing is overwritten unasked
    assert main([*arguments, *SMALL]) == 1
    assert "--force" in capsys.readouterr().err


def test_public_inputs_are_as_they_were_trained(public, videos):
    source = load_network(public[0])
    clip = load_batches([videos / "0.mp4"], ClipSpec.from_dict(source.spec), 1, 1)[0]
    plain = load_views(videos / "0.mp4", ClipSpec(sampling="dense", mean=(0, 0, 0), std=(1, 1, 1)))
    mean = torch.tensor(ACTIVITYNET_MEAN).view(3, 1, 1, 1)
    torch.testing.assert_close(clip, 255 * (plain - mean), rtol=1e-4, atol=1e-3)
    x = torch.randn(1, 3, 8, 32, 32)
    assert torch.equal(source.network(x), public[1](x))


def test_a_checkpoint_of_this_project(videos, tmp_path, capsys):
    torch.manual_seed(0)
    module = FDC3DModule(ResNetOptions(depth=10, width=0.125), num_classes=3)
    module.output_names, module.spec = ["a", "b", "c"], ClipSpec(num_frames=8, crop_size=32).to_dict()
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    arguments = [str(tmp_path), "--data", str(videos), "--steps", "2", "--repeats", "0"]
    assert main([*arguments, "--out", str(tmp_path / "a.pt"), "--speedup", "1.5", "--method", "channels"]) == 1
    assert "cannot be reached" in capsys.readouterr().err
    assert main([*arguments, "--out", str(tmp_path / "a.pt"), "--rate", "4", "--importance", "energy"]) == 0
    assert load_module(tmp_path / "a.pt").output_names == ["a", "b", "c"]
    assert load_compact(tmp_path / "a.pt").layer1[0].conv2.kept_channels == 3
    assert main([*arguments, "--out", str(tmp_path / "b.pt"), "--size", "16", "--mean", "0", "0", "0"]) == 0

    source = set_source(module.network, "papers.fdc3d.networks.resnet", module.source()[1])
    result = compress(source, [torch.randn(1, 3, 8, 32, 32)], rate=2, steps=1)
    module.network, module.report = result.network, result.report
    checkpoint["state_dict"] = module.state_dict()
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    assert main([*arguments, "--out", str(tmp_path / "c.pt")]) == 1
    assert "compressed already" in capsys.readouterr().err
    network = load_module(tmp_path / "best.ckpt").network
    x = torch.randn(1, 3, 8, 32, 32)
    assert torch.equal(load_compact(save_compact(network, tmp_path / "c.pt"))(x), result.network(x))


def test_the_file_predicts(public, videos, tmp_path, capsys):
    """`spectral predict` takes it, with the inputs of the original; classes without names are numbered."""
    out = tmp_path / "small.pt"
    assert main([str(public[0]), "--data", str(videos), "--out", str(out), *SMALL, "--repeats", "0", "--fold"]) == 0
    assert "17 batch norms folded" in capsys.readouterr().out
    assert not any(isinstance(m, torch.nn.BatchNorm3d) for m in load_compact(out).modules())
    assert spectral(["predict", "--checkpoint", str(out), str(videos), "--csv", str(tmp_path / "p.csv")]) == 0
    rows = list(csv.DictReader((tmp_path / "p.csv").open()))
    assert len(rows) == 3
    spec = ClipSpec(sampling="dense", num_frames=8, crop_size=32, mean=ACTIVITYNET_MEAN, std=ACTIVITYNET_STD)
    with torch.no_grad():
        scores = load_compact(out)(load_views(videos / "0.mp4", spec)).softmax(dim=1).mean(dim=0)
    row = next(row for row in rows if row["path"].endswith("0.mp4"))
    assert row["top1"] == str(int(scores.argmax()))
    assert float(row["p1"]) == pytest.approx(float(scores.max()), abs=1e-4)
    assert main([str(out), "--data", str(videos), "--out", str(tmp_path / "b.pt")]) == 1
    assert "compressed already" in capsys.readouterr().err


def test_a_volume_network_to_segmentations(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scans = write_brats(tmp_path / "scans")
    module = FDC3DVolumeModule(UNetOptions(width=0.1), in_channels=4)
    module.output_names, module.spec = list(REGIONS), VolumeSpec(patch_size=(8, 16, 16)).to_dict()
    checkpoint = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    torch.save(checkpoint, tmp_path / "best.ckpt")
    arguments = [str(tmp_path / "best.ckpt"), "--data", str(scans), "--steps", "1", "--repeats", "0"]
    assert main([*arguments, "--out", "small.pt", "--frames", "8"]) == 1
    assert "this network reads volumes" in capsys.readouterr().err
    assert main([*arguments, "--out", "small.pt"]) == 0
    assert spectral(["predict", "--checkpoint", "small.pt", str(scans)]) == 0
    assert len(list((tmp_path / "predictions").glob("*.nii.gz"))) == 5


def test_library_checkpoint(videos, tmp_path, capsys):
    path = tmp_path / "weights.pt"
    torch.save({"a.weight": torch.zeros(1)}, path)
    arguments = [str(path), "--data", str(videos), "--out", str(tmp_path / "a.pt")]
    for extra, message in (
        ([], "--network"),
        (["--network", "torchvision.models.video.r3d_18"], "--num_classes"),
        (["--network", "torchvision.models.video.mc3_18", "--num_classes", "4"], "weights of another network"),
        (["--network", "os.system", "--num_classes", "4"], "not below"),
    ):
        assert main([*arguments, *extra]) == 1
        assert message in capsys.readouterr().err


def test_what_is_missing_is_named(public, tmp_path, capsys):
    path, _ = public
    assert main([str(tmp_path / "no.pt"), "--data", str(tmp_path), "--out", str(tmp_path / "a.pt")]) == 1
    assert "does not exist" in capsys.readouterr().err
    empty = tmp_path / "empty"
    empty.mkdir()
    assert main([str(path), "--data", str(empty), "--out", str(tmp_path / "a.pt")]) == 1
    assert "empty" in capsys.readouterr().err
    (empty / "broken.mp4").write_bytes(b"no video")
    assert main([str(path), "--data", str(empty), "--out", str(tmp_path / "a.pt")]) == 1
    assert "broken.mp4" in capsys.readouterr().err
    assert not (tmp_path / "a.pt").exists()


def test_help_names_the_three_ways_to_ask_for_a_rate(capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["fdc3d", "--help"])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 0
    shown = capsys.readouterr().out
    assert all(option in shown for option in ("--rate", "--speedup", "--channel_rate"))
