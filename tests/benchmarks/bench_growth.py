"""How the cost of a training step of each paper's block grows with frames, size, channels and batch.

    python -m tests.benchmarks.bench_growth [--quick] [--json] [--out FOLDER]

One block at a time is changed along one axis from a common input. Blocks with the same input take turns. Time is of
forward and backward with one thread; memory is the most that is held at once of the tensors that PyTorch makes, beside
input and weights. The exponent is the slope of a line through the logarithms of the larger half of the sizes: 1 is
linear, 2 is quadratic. An input is left out where the block would hold more than a limit.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import nn

from common.evaluation.latency import measure_latency, one_thread, peak_allocated
from common.reporting.plots import COLOURS, MARKERS, style
from papers.dtf import DTFBlock
from papers.srl import SRLBlock
from papers.srl.layers import NonLocalBlock
from papers.stft3d import st_stft
from papers.stft3d.layers import SSTFTBlock, STSTFTBlock, TSTFTBlock
from tests.benchmarks.bench_networks import machine

Growth = dict[str, dict[str, dict[int, tuple[float, float]]]]  # axis, block, size -> milliseconds and MB
LIMIT = 2**30  # bytes
PREAMBLE = """\
# How cost grows

Measured by `python -m tests.benchmarks.bench_growth --out FOLDER`: a training step of one block, forward and backward,
in float32 with one thread. One axis is changed at a time, from {base}. Memory: tensors held at once, beside input and
weights. Exponents are of the larger half of the sizes; 1 is linear, 2 quadratic; for the side, 2 is linear in the
number of pixels. Inputs at which a block would hold more than 1 GiB are left out.

![Time and memory against frames, size, channels and batch](growth.png)
"""


class Shape(NamedTuple):
    """Of an input (B,C,T,H,W) with H = W."""

    batch: int = 1
    channels: int = 64
    frames: int = 8
    side: int = 28

    def __str__(self) -> str:
        return f"{self.batch} x {self.channels} x {self.frames} x {self.side} x {self.side}"


AXES = {
    "frames": (4, 8, 16, 32, 64, 128),
    "side": (14, 28, 56, 112),
    "channels": (16, 32, 64, 128, 256),
    "batch": (1, 2, 4, 8),
}
LABELS = {"frames": "frames", "side": "height = width", "channels": "channels", "batch": "clips"}
BLOCKS: dict[str, Callable[[Shape], nn.Module]] = {
    "3x3x3 convolution": lambda s: nn.Conv3d(s.channels, s.channels, 3, padding=1),
    "ST-STFT": lambda s: STSTFTBlock(s.channels, s.channels // 4, s.channels),
    "S-STFT": lambda s: SSTFTBlock(s.channels, s.channels // 4, s.channels),
    "T-STFT": lambda s: TSTFTBlock(s.channels, s.channels // 2, s.channels),
    "DTF": lambda s: DTFBlock(s.channels, s.frames),
    "SRL-FFT": lambda s: SRLBlock(s.channels, (s.side, s.side), s.frames),
    "non-local": lambda s: NonLocalBlock(s.channels, fused=False),
}


def measure(sizes: Mapping[str, Sequence[int]], repeats: int, tell: Callable[[str], None]) -> Growth:
    """Milliseconds and MB by axis, block and size."""
    found: Growth = {axis: {name: {} for name in BLOCKS} for axis in sizes}
    known: dict[Shape, dict[str, tuple[float, float]]] = {}
    for axis, values in sizes.items():
        for size in values:
            shape = Shape()._replace(**{axis: size})
            if shape not in known:
                tell(f"{axis} {size}")
                known[shape] = _step(shape, repeats)
            for name, cost in known[shape].items():
                found[axis][name][size] = cost
    return found


def _step(shape: Shape, repeats: int) -> dict[str, tuple[float, float]]:
    """Milliseconds and MB of the blocks that hold no more than the limit."""
    torch.manual_seed(0)
    size = (shape.batch, shape.channels, shape.frames, shape.side, shape.side)
    blocks = {}
    for name, make in BLOCKS.items():
        with torch.device("meta"):  # computes nothing, and holds nothing
            if peak_allocated(make(shape), torch.empty(size, requires_grad=True), backward=True) > LIMIT:
                continue
        blocks[name] = make(shape)
        for parameter in blocks[name].parameters():  # a branch that a zero switches off would cost less
            nn.init.normal_(parameter, std=0.05)
    x = torch.randn(size, requires_grad=True)
    with one_thread():
        times = measure_latency(blocks, x, repeats, warmup=1, backward=True)
        memory = {name: peak_allocated(block, x, backward=True) for name, block in blocks.items()}
    return {name: (1000 * times[name].seconds, memory[name] / 1e6) for name in blocks}


def long_clip() -> str:
    """What a training step of ST-STFT on one clip of 64 frames of 224 x 224 holds, counted without computing it."""
    held = []
    for efficient in (False, True):
        with torch.device("meta"):
            network = st_stft(num_classes=174, memory_efficient=efficient)
            held.append(peak_allocated(network, torch.empty(1, 3, 64, 224, 224), backward=True) / 2**30)
    return (
        f"A training step of the whole ST-STFT on one clip of 64 x 224 x 224 holds {held[0]:.1f} GiB by count of its "
        f"tensors, and {held[1]:.1f} GiB with `memory_efficient`; it was not run."
    )


def exponent(costs: Mapping[int, float]) -> float | None:
    """Slope over the larger half of the sizes; None for fewer than two."""
    points = sorted(costs.items())[len(costs) // 2 - 1 :] if len(costs) > 2 else sorted(costs.items())
    if len(points) < 2:
        return None
    x, y = np.log(np.array(points, dtype=float)).T
    return float(np.polyfit(x, y, 1)[0])


def plot(found: Growth) -> Figure:
    """Time above, memory below, a column for each axis."""
    with style():
        figure = Figure(figsize=(3.6 * len(found), 8), layout="constrained")
        grid = figure.subplots(2, len(found), squeeze=False)
        for column, (axis, blocks) in enumerate(found.items()):
            for row, label in enumerate(("milliseconds", "MB")):
                axes = grid[row][column]
                for (name, points), colour, marker in zip(blocks.items(), COLOURS, MARKERS, strict=False):
                    x = sorted(points)
                    slope = exponent({size: points[size][row] for size in x})
                    shown = name if slope is None else f"{name} ({slope:.1f})"
                    axes.plot(x, [points[k][row] for k in x], color=colour, marker=marker, markersize=4, label=shown)
                sizes = sorted({size for points in blocks.values() for size in points})
                axes.set(xscale="log", yscale="log", xlabel=LABELS[axis], ylabel=label)
                axes.set_xticks(sizes, [str(size) for size in sizes])
                axes.minorticks_off()
                axes.legend(fontsize=7, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.2))
    return figure


def markdown(found: Growth) -> str:
    """The exponents of time and memory as a table, with the machine."""
    lines = [
        f"| block | {' | '.join(f'{axis}, time | {axis}, memory' for axis in found)} |",
        "|---|" + "--:|" * 2 * len(found),
    ]
    for name in BLOCKS:
        cells = []
        for blocks in found.values():
            for which in (0, 1):
                slope = exponent({size: cost[which] for size, cost in blocks[name].items()})
                cells.append("–" if slope is None else f"{slope:.2f}")
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join([PREAMBLE.format(base=Shape()), f"{machine()}.", "", *lines, ""])


def main(argv: Sequence[str] | None = None) -> None:
    """Print the exponents; `--out` also writes growth.md and growth.png."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two small sizes an axis")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    parser.add_argument("--out", type=Path, help="folder for growth.md and growth.png")
    args = parser.parse_args(argv)
    sizes: dict[str, Any] = {axis: values[:2] if args.quick else values for axis, values in AXES.items()}
    found = measure(
        sizes, 2 if args.quick else 5, (lambda _: None) if args.json else lambda text: print(text, flush=True)
    )
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "growth.md").write_text(f"{markdown(found)}\n{long_clip()}\n", encoding="utf-8")
        plot(found).savefig(args.out / "growth.png")
    print(json.dumps({"machine": machine(), "growth": found}, indent=2) if args.json else markdown(found))


if __name__ == "__main__":
    main()
