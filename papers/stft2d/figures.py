"""The figures of the 2D STFT paper: functions that the ledger names, each for `common.reporting.main_job`."""

from __future__ import annotations

import skimage.data
import torch
from matplotlib.figure import Figure
from torch import nn

from common.reporting.plots import style
from common.reporting.runs import Job
from papers.stft2d.layers import DepthwiseSTFTSeparable

SIZE = 7


def figure2(job: Job | None = None) -> Figure:
    """The layer for one channel and n = 7: an image, the eight filters, what they make of it, and one combination."""
    picture = torch.from_numpy(skimage.data.camera()[64:256, 160:352].copy()).float() / 255
    torch.manual_seed(0)
    layer = DepthwiseSTFTSeparable(1, 1, SIZE)
    nn.init.orthogonal_(layer.pointwise.weight)
    with torch.no_grad():
        maps = layer.stft(picture[None, None])
        combined = layer.pointwise(maps)[0, 0]
    with style():
        figure = Figure(figsize=(13.5, 3.4), layout="constrained")
        grid = figure.subplots(2, 10)
        for axes in grid.flat:
            axes.set_axis_off()
        grid[1, 0].imshow(picture.numpy(), cmap="gray", vmin=0, vmax=1)
        grid[1, 0].set_title("input")
        for i in range(8):
            top, bottom = grid[0, i + 1], grid[1, i + 1]
            top.imshow(layer.stft.kernels[i, 0].numpy(), cmap="RdBu_r", vmin=-1, vmax=1)
            v = ", ".join({0: "0", 1: f"1/{SIZE}", -1: f"-1/{SIZE}"}[int(m)] for m in layer.stft.frequencies[i // 2])
            top.set_title(f"{'Im' if i % 2 else 'Re'} [{v}]", fontsize=9)
            bound = float(maps[0, i].abs().quantile(0.99))
            bottom.imshow(maps[0, i].numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
            bottom.set_title(f"$w_{{{i + 1}}} = {layer.pointwise.weight[0, i].item():.2f}$", fontsize=9)
        grid[1, 9].imshow(combined.numpy(), cmap="gray")
        grid[1, 9].set_title("output")
    return figure
