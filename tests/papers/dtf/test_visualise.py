"""Figure 7 for any checkpoint and video: positions, filters, kernels, pictures, messages."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from matplotlib.figure import Figure
from torch import nn

from common.reporting.page import png
from common.training.cli import run
from papers.dtf import dtf_net, dtf_transformer, visualise
from papers.dtf.figures import moving_picture, with_active_blocks
from papers.dtf.networks import dtf_blocks
from tests import media

RECIPE = Path(__file__).resolve().parents[3] / "papers/dtf/recipes/demo.yaml"


def network(frames: int = 8, **options) -> nn.Module:
    torch.manual_seed(0)
    net = dtf_net(5, depth=18, layers=[1, 1, 1, 1], num_frames=frames, width=0.5, **{"stem_stride": 1, **options})
    return with_active_blocks(net, moving_picture(frames, 96)[None])


def test_positions_are_the_extremes_of_grad_cam() -> None:
    heat = torch.rand(5, 7)
    heat[3, 2], heat[1, 6] = 2.0, -1.0
    assert visualise.extremes(heat) == [(3, 2), (1, 6)]


@pytest.mark.parametrize(("frames", "stride"), [(8, 1), (8, 4), (9, 1), (16, 4)])
def test_filters_and_kernels_are_those_of_the_block_at_the_positions(frames: int, stride: int) -> None:
    net, clip = network(frames, stem_stride=stride), moving_picture(frames, 96)
    view = visualise.inspect_clip(net, clip, positions=[(0, 0), (2, 1)])
    seen = frames // stride
    assert view.grid == (3, 3)
    assert view.heat.shape == (seen, 3, 3)
    assert view.filters is not None
    assert view.kernels is not None
    assert view.filters.shape == (2, 256 // 16, seen // 2 + 1)
    assert view.kernels.shape == (2, 256 // 16, seen)
    torch.testing.assert_close(torch.fft.irfft(view.filters, n=seen), view.kernels)
    inputs = []
    block = dtf_blocks(net)["layer4.0.mid"]
    block.register_forward_pre_hook(lambda _, given: inputs.append(given[0]))
    logits = net(clip[None])[0].detach()  # with gradients, as Grad-CAM runs it
    torch.testing.assert_close(view.logits, logits)
    with torch.no_grad():
        torch.testing.assert_close(net(clip[None])[0], logits)
    torch.testing.assert_close(view.filters[1], block.filter_spectrum(inputs[0])[0, :, :, 2, 1])
    assert not torch.allclose(view.filters[0], view.filters[1])


def test_another_block_layer_and_class() -> None:
    net, clip = network(), moving_picture(8, 96)
    view = visualise.inspect_clip(net, clip, block="layer1.0.mid", layer="layer2.0", target=3)
    assert view.grid == (24, 24)
    assert view.heat.shape == (8, 12, 12)
    assert all(0 <= value < 24 for place in view.positions for value in place)


def test_networks_without_filters_have_grad_cam() -> None:
    net = network(block="dtf-1d")
    view = visualise.inspect_clip(net, moving_picture(8, 96))
    assert view.filters is view.kernels is None
    assert isinstance(visualise.figure7({"DTF_1d": view}), Figure)
    assert visualise.mean_responses(net, moving_picture(8, 96)[None]) == {}


def test_static_filters_and_a_swin_have_views_too() -> None:
    view = visualise.inspect_clip(network(block="dtf-f"), moving_picture(8, 96))
    assert view.filters is not None
    assert torch.equal(view.filters[0], view.filters[1])
    torch.manual_seed(0)
    swin = dtf_transformer(5, 8, size="t", embed_dim=32, depths=[1, 1, 1, 1], heads=[1, 1, 2, 2]).eval()
    view = visualise.inspect_clip(swin, moving_picture(8, 96))
    assert view.heat.shape == (2, 3, 3)
    assert view.filters is not None
    assert set(visualise.mean_responses(swin, moving_picture(8, 96)[None]))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"positions": [(3, 0)]}, "no position 3 0 in the grid of 3 x 3"),
        ({"block": "layer9"}, "no DTF block 'layer9'; there are layer1.0.mid"),
        ({"layer": "layer9"}, "no module 'layer9'"),
        ({"target": 5}, "no class 5"),
    ],
)
def test_wrong_choices_are_named(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        visualise.inspect_clip(network(), moving_picture(8, 96), **options)


def test_figure_has_a_row_for_every_clip() -> None:
    clip = moving_picture(8, 96)
    views = {"two": visualise.inspect_clip(network(), clip), "one": visualise.inspect_clip(network(), clip, [(1, 1)])}
    figure = visualise.figure7(views, frames=3)
    assert len(figure.axes) == 2 * (3 + 4)
    assert png(figure).startswith(b"\x89PNG")


def test_mean_responses_are_averages_over_everything_but_stage_and_frequency() -> None:
    net, clips = network(), torch.stack([moving_picture(8, 96), -moving_picture(8, 96)])
    inputs = {}
    for name, block in dtf_blocks(net).items():
        block.register_forward_pre_hook(lambda _, given, name=name: inputs.update({name: given[0]}))
    found = visualise.mean_responses(net.train(), clips)
    assert net.training
    assert list(found) == ["layer1", "layer2", "layer3", "layer4"]
    for name, response in found.items():
        block = dtf_blocks(net)[f"{name}.0.mid"]
        sizes = block.filter_spectrum(inputs[f"{name}.0.mid"]).abs()
        torch.testing.assert_close(response, sizes.mean((0, 1, 3, 4)))
    assert png(visualise.response_figure(found)).startswith(b"\x89PNG")


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a short run on videos in class folders."""
    folder = tmp_path_factory.mktemp("runs")
    for split in ("train", "val"):
        for number, name in enumerate(("run", "sit")):
            media.write_video(folder / "videos" / split / name / "a.mp4", num_frames=12, first=40 * number)
    arguments = ["--config", str(RECIPE), "--data.root", str(folder / "videos"), "--data.dataset", "null"]
    arguments += ["--trainer.max_epochs", "1", "--trainer.check_val_every_n_epoch", "1"]
    done = run(["fit", *arguments, "--trainer.default_root_dir", str(folder), "--trainer.logger", "false"])
    assert done.run_dir is not None
    return done.run_dir


def test_command(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    videos = [
        str(media.write_video(tmp_path / name, num_frames=n, width=80)) for name, n in (("a.mp4", 9), ("b.mp4", 3))
    ]
    out = tmp_path / "pictures" / "figure7.png"
    arguments = ["--checkpoint", str(trained), "--out", str(out)]
    assert visualise.main([*videos, *arguments]) == 0
    assert out.read_bytes().startswith(b"\x89PNG")
    printed = capsys.readouterr().out
    assert "a.mp4: " in printed
    assert "of 4 x 4" in printed
    assert visualise.main([*videos, *arguments]) == 1
    assert "--force" in capsys.readouterr().err
    more = ["--force", "--target", "sit", "--block", "layer2.0.mid", "--layer", "layer1", "--position", "0", "0"]
    assert visualise.main([videos[0], *arguments, *more]) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--target", "jump"], "no class 'jump'; there are run, sit"),
        (["--position", "4", "0"], "no position 4 0"),
        (["--frames", "0"], "--frames is at least 1"),
        (["--block", "layer1"], "no DTF block"),
    ],
)
def test_command_names_what_is_wrong(trained: Path, tmp_path: Path, capsys, options: list[str], message: str) -> None:
    video = media.write_video(tmp_path / "a.mp4", num_frames=8)
    assert visualise.main([str(video), "--checkpoint", str(trained), "--out", str(tmp_path / "x.png"), *options]) == 1
    assert message in capsys.readouterr().err


def test_broken_files_are_named(trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(b"not a video")
    assert visualise.main([str(broken), "--checkpoint", str(trained), "--out", str(tmp_path / "x.png")]) == 1
    assert "broken.mp4" in capsys.readouterr().err
    assert visualise.main([str(broken), "--checkpoint", str(broken), "--out", str(tmp_path / "x.png")]) == 1
    assert not (tmp_path / "x.png").exists()
