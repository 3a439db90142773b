"""Grad-CAM videos of `spectral predict --explain`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from common.datamodules.video_reader import open_video
from common.training.cli import main, run
from common.training.explain import last_map_layer
from papers.dtf import dtf_net
from papers.stft3d import t_stft


def test_every_file_gets_a_video(recipe, motion: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(["fit", "--config", recipe()])
    test = str(motion.parent / "test" / "move_left")
    command = ["predict", "--allow", "tests", "--checkpoint", "runs/tiny", test, "--explain", "seen"]
    assert main(command) == 0
    written = sorted(Path("seen").iterdir())
    assert len(written) == 3
    assert str(written[0]) in capsys.readouterr().out
    with open_video(written[0]) as video:
        frames = video.get_frames(range(video.num_frames))
    assert frames.shape == (4, 240, 480, 3)  # the 24 pixels of a clip ten times, and beside it the map
    left, right = frames[:, :, :240].float(), frames[:, :, 240:].float()
    assert (left - right).abs().mean() > 2
    assert main(command) == 1
    assert "seen is not empty" in capsys.readouterr().err
    assert main([*command, "--force"]) == 0
    assert main([*command, "--force", "--windows", "1"]) == 1
    assert "--explain works with neither" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("build", "size", "path"),
    [
        (lambda: t_stft(5, width=0.125), 64, "features"),
        (lambda: t_stft(5, width=0.125), 32, "features.inception7"),  # behind it maps have 2 x 2 positions
        (lambda: dtf_net(5, 8, depth=18, width=0.25), 128, "layer4"),
        (lambda: dtf_net(5, 8, depth=18, width=0.25), 64, "layer3"),
    ],
)
def test_the_last_map_that_is_large_enough_is_found(build, size: int, path: str) -> None:
    network = build().eval()
    assert last_map_layer(network, torch.randn(1, 3, 8, size, size)) is network.get_submodule(path)


def test_a_network_without_maps_is_refused() -> None:
    network = nn.Sequential(nn.Flatten(), nn.LazyLinear(3))
    with pytest.raises(ValueError, match="no module of Sequential has a feature map"):
        last_map_layer(network, torch.randn(1, 3, 2, 4, 4))
