"""The figures of the SRL paper: functions that the ledger names, each for `common.reporting.main_job`."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from common.datamodules.manifest import Manifest
from common.datamodules.video_reader import open_video
from common.evaluation.latency import measure_latency, one_thread, peak_allocated
from common.reporting.plots import COLOURS, MARKERS, style
from common.reporting.runs import Job, make_demo_data
from papers.srl.layers import (
    CompactNonLocalBlock,
    DoubleAttentionBlock,
    NonLocalBlock,
    RecurrentCrissCrossBlock,
    SRLBlock,
)

SIZES = (14, 20, 28, 40, 56)
CHANNELS = 256


def blocks(size: int, channels: int = CHANNELS) -> dict[str, nn.Module]:
    """The blocks of Table 1 for features of images (B,`channels`,`size`,`size`), by name, as in training."""
    torch.manual_seed(0)
    made: dict[str, nn.Module] = {
        "NL": NonLocalBlock(channels, fused=False),
        "NL, fused attention": NonLocalBlock(channels),
        "A²": DoubleAttentionBlock(channels),
        "CGNL": CompactNonLocalBlock(channels),
        "RCCA": RecurrentCrissCrossBlock(channels),
        "SRL-LO": SRLBlock(channels, (size, size), transform="orthogonal"),
        "SRL-FFT": SRLBlock(channels, (size, size)),
    }
    for block in made.values():
        for parameter in block.parameters():  # a branch that is switched off by a zero would still cost the same
            torch.nn.init.normal_(parameter, std=0.1)
    return made


def complexities(job: Job | None = None, sizes: Sequence[int] = SIZES, repeats: int = 3) -> Figure:
    """Table 1 measured: forward and backward time, and the tensors held at once, of each block over H x W."""
    times: dict[str, list[float]] = {}
    memory: dict[str, list[float]] = {}
    for size in sizes:
        x = torch.randn(1, CHANNELS, size, size, requires_grad=True)
        networks = blocks(size)
        with one_thread():
            measured = measure_latency(networks, x, repeats=repeats, warmup=1, backward=True)
        for name, network in networks.items():
            times.setdefault(name, []).append(1000 * measured[name].fastest)
            memory.setdefault(name, []).append(peak_allocated(network, x, backward=True) / 2**20)
    positions = [size**2 for size in sizes]
    with style():
        figure = Figure(figsize=(10.5, 4.4), layout="constrained")
        for axes, title, label, values in zip(
            figure.subplots(1, 2),
            (f"time of one step, {CHANNELS} channels, one thread", "memory of one step"),
            ("milliseconds, forward + backward", "MiB of tensors at once, beside the input"),
            (times, memory),
            strict=True,
        ):
            for (name, line), colour, marker in zip(values.items(), COLOURS, MARKERS, strict=False):
                axes.plot(positions, line, color=colour, marker=marker, markersize=5, label=name)
            axes.set(xscale="log", yscale="log", title=title, xlabel="H x W", ylabel=label)
            axes.set_xticks(positions, [f"{size}²" for size in sizes])
            axes.minorticks_off()
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def figure5(job: Job | None = None) -> Figure:
    """Test clips of the demo, one frame of each beat, with the likeliest classes that C2D and SRL-FFT name."""
    data = job.data("demo-video") if job else None
    runs = [run for run in job.trained() if run.entry in ("demo-video/c2d", "demo-video/srl-fft")] if job else []
    answers = {run.name: {row["path"]: row for row in run.predictions()} for run in runs}
    with tempfile.TemporaryDirectory() as folder:
        if data is None:  # the demo was not asked for: the same first scene, made for this figure alone
            data = Path(folder) / "lamps"
            make_demo_data(["lamps", "--train", "1", "--val", "1", "--test", "1"], data)
        entries = Manifest.read(data / "manifest.csv", data).split("test").entries
        first = Path(entries[0].path).name
        clips: list[tuple[str, str, np.ndarray]] = []  # path, class, frames
        for entry in (e for e in entries if Path(e.path).name == first):
            with open_video(data / entry.path) as video:
                clips.append((entry.path, entry.label_name, video.get_frames(range(video.num_frames)).numpy()))
    with style():
        figure = Figure(figsize=(10, 1.45 * len(clips)), layout="constrained")
        grid = figure.subplots(len(clips), 5, width_ratios=[1, 1, 1, 1, 2.8], squeeze=False)
        for line, (path, truth, frames) in zip(grid, clips, strict=True):
            for beat, axes in enumerate(line[:4]):
                axes.imshow(frames[beat * len(frames) // 4])
                axes.set_axis_off()
            text = line[4]
            text.set_axis_off()
            text.text(0.02, 0.92, truth.replace("_", ", "), color=COLOURS[2], weight="bold", va="top")
            for i, (name, answer) in enumerate(answers.items()):
                text.text(0.02 + 0.5 * i, 0.7, name, weight="bold", va="top", fontsize=9)
                for k in (1, 2, 3):
                    guess, probability = answer[path][f"top{k}"], float(answer[path][f"p{k}"])
                    colour = COLOURS[2] if guess == truth else "#777777"
                    label = f"{guess.replace('_', ', ')}  {100 * probability:.0f} %"
                    text.text(0.02 + 0.5 * i, 0.67 - 0.17 * k, label, color=colour, va="top", fontsize=8)
            if not answers:
                text.text(0.02, 0.6, "the demo shows what networks answer", va="top", fontsize=8)
    return figure
