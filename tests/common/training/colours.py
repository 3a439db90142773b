"""Videos of known colours and a network that knows the colours."""

from __future__ import annotations

import csv
from pathlib import Path

import av
import numpy as np
from torch import nn

from common.datamodules.video_clips import ClipSpec
from common.training.classification import VideoClassificationModule

COLOURS = ["red", "green", "blue"]
SPEC = ClipSpec(num_frames=4, crop_size=16)


class MeanColour(VideoClassificationModule):
    """The class is the strongest colour."""

    def build_network(self) -> nn.Module:
        network = nn.Sequential(nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(3, 3, bias=False))
        nn.init.eye_(network[2].weight)
        return network


def write_colours(path: Path, names: list[str], seconds: int = 2, size: tuple[int, int] = (48, 64)) -> Path:
    """A video of 10 frames per second with ``seconds`` of every colour."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx-vp9" if path.suffix == ".webm" else "libx264", rate=10)
        stream.height, stream.width = size
        stream.pix_fmt, stream.gop_size = "yuv444p" if size[0] % 2 or size[1] % 2 else "yuv420p", 5
        for name in names:
            image = np.zeros((*size, 3), np.uint8)
            image[..., COLOURS.index(name)] = 255
            for _ in range(10 * seconds):
                container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode())
    return path


def rows_of(path: str) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))
