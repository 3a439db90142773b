"""The figures of the X-STFT paper: functions that the ledger names, each for `common.reporting.main_job`."""

from __future__ import annotations

from itertools import product
from pathlib import Path

import numpy as np
import skimage.data
import torch
from matplotlib.figure import Figure
from torch import Tensor

from common.datamodules.manifest import Manifest
from common.datamodules.video_reader import open_video
from common.reporting.plots import COLOURS, style
from common.reporting.runs import Job
from common.spectral import ST_FREQUENCIES, DepthwiseSTFT, lowest_frequencies, stft_kernels

KERNEL = (3, 3, 3)


def _clip(data: Path | None) -> Tensor:
    """A grey clip (T,H,W) in [0,1]: the first test clip of the demo, or an image that moves by a pixel a frame."""
    if data is None:
        picture = torch.from_numpy(skimage.data.camera()[64:256:2, 160:352:2].copy()).float() / 255
        return torch.stack([picture[16:80, t : t + 64] for t in range(8)])
    entry = Manifest.read(data / "manifest.csv", data).split("test").entries[0]
    video = open_video(data / entry.path)
    return video.get_frames(range(min(8, video.num_frames))).float().mean(dim=-1) / 255


def figure2(job: Job | None = None) -> Figure:
    """The 26 filters as three 3x3 slices each, and the response of the middle frame of a clip to each of them."""
    clip = _clip(job.data() if job else None)
    middle = len(clip) // 2
    responses = DepthwiseSTFT(1, KERNEL)(clip[None, None])[0, :, middle]
    kernels = stft_kernels(KERNEL)
    with style():
        figure = Figure(figsize=(13.5, 8.4), layout="constrained")
        parts = figure.add_gridspec(1, 2, width_ratios=[1, 3.6])
        left, right = figure.add_subfigure(parts[0]), figure.add_subfigure(parts[1])
        left.suptitle("a clip (middle frame)")
        axes = left.subplots()
        axes.imshow(clip[middle].numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_axis_off()
        right.suptitle("filters: frames t-1, t, t+1 (red positive, blue negative), and what they make of the clip")
        grid = right.subplots(8, 7, height_ratios=[1, 2.4] * 4)
        for axes in grid.flat:
            axes.set_axis_off()
        for i in range(2 * len(ST_FREQUENCIES)):
            row, column = divmod(i, 7)
            part = "Im" if i % 2 else "Re"
            above, below = grid[2 * row, column], grid[2 * row + 1, column]
            slices = np.pad(kernels[i].numpy(), ((0, 0), (0, 0), (0, 1)), constant_values=np.nan)
            above.imshow(np.concatenate(list(slices), axis=1)[:, :-1], cmap="RdBu_r", vmin=-1, vmax=1)
            above.set_title(rf"{part} $v_{{{i // 2 + 1}}}$", fontsize=8, fontweight="normal", pad=2)
            bound = float(responses[i].abs().quantile(0.99)) or 1.0
            below.imshow(responses[i].numpy(), cmap="RdBu_r", vmin=-bound, vmax=bound)
    return figure


def figure3(job: Job | None = None) -> Figure:
    """The frequency variables as the table of the paper, from the code's own list."""
    signs = {0: "0", 1: "k", -1: "-k"}
    cells = [
        f"$v_{{{i + 1}}} = [{', '.join(signs[m] for m in v)}]^T$" for i, v in enumerate(lowest_frequencies(KERNEL))
    ]
    cells += ["where $k = 1/n$", ""]
    with style():
        figure = Figure(figsize=(6.4, 2.6), layout="constrained")
        axes = figure.subplots()
        axes.set_axis_off()
        table = axes.table(
            [cells[i : i + 3] for i in range(0, 15, 3)], loc="center", cellLoc="left", edges="horizontal"
        )
        table.set_fontsize(11)
        table.scale(1, 1.7)
    return figure


def figure4(job: Job | None = None) -> Figure:
    """All 27 frequency points: the selected ones red, their complex conjugates green, zero grey."""
    chosen = set(lowest_frequencies(KERNEL))
    conjugates = {tuple(-m for m in v) for v in chosen}
    groups = [
        ("selected", sorted(chosen), COLOURS[1], "o"),
        ("complex conjugate, left out", sorted(conjugates), COLOURS[2], "^"),
        ("zero, left out", [v for v in product((-1, 0, 1), repeat=3) if v not in chosen | conjugates], "#999999", "s"),
    ]
    with style():
        figure = Figure(figsize=(6.4, 5.2), layout="constrained")
        axes = figure.add_subplot(projection="3d")
        for name, points, colour, marker in groups:
            t, h, w = zip(*points, strict=True)
            axes.scatter(w, h, t, color=colour, marker=marker, s=55, depthshade=False, label=f"{name} ({len(points)})")
        for a, b in product((-1, 0, 1), repeat=2):
            for line in (((-1, 1), (a, a), (b, b)), ((a, a), (-1, 1), (b, b)), ((a, a), (b, b), (-1, 1))):
                axes.plot(*line, color="#cccccc", linewidth=0.7, zorder=0)
        ticks = [-1, 0, 1]
        names = ["-k", "0", "k"]
        axes.set_xticks(ticks, names)
        axes.set_yticks(ticks, names)
        axes.set_zticks(ticks, names)
        axes.set(xlabel="width", ylabel="height", zlabel="time")
        axes.view_init(elev=18, azim=-62)
        axes.legend(loc="upper left", bbox_to_anchor=(0, 1.05), fontsize=9)
    return figure
