"""The plots of the reports: one style, colours that colour-blind readers can tell apart, no display needed."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

#: the palette of Okabe and Ito
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000", "#F0E442")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
STYLE: Any = {
    "figure.dpi": 100,
    "savefig.dpi": 160,
    "figure.facecolor": "white",
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#dddddd",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
    "legend.frameon": False,
}


@contextmanager
def style() -> Iterator[None]:
    """Inside this context figures have the reports' style."""
    with matplotlib.rc_context(STYLE):
        yield


@dataclass(frozen=True)
class Point:
    """A network in a plot of accuracy against cost: `cost` multiply-adds, `accuracy` a fraction, `size` parameters."""

    series: str
    cost: float
    accuracy: float
    label: str = ""
    size: float | None = None


def pareto_front(points: Sequence[Point]) -> list[Point]:
    """The points that no other beats in both cost and accuracy, cheapest first."""
    front: list[Point] = []
    for point in sorted(points, key=lambda p: (p.cost, -p.accuracy)):
        if not front or point.accuracy > front[-1].accuracy:
            front.append(point)
    return front


def accuracy_against_cost(points: Sequence[Point], title: str, xlabel: str, ylabel: str) -> Figure:
    """Every series in its colour and marker, areas by parameters, the Pareto front as a line."""
    with style():
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        largest = max((p.size for p in points if p.size), default=1.0)
        for i, name in enumerate(dict.fromkeys(p.series for p in points)):
            own = sorted((p for p in points if p.series == name), key=lambda p: p.cost)
            x, y = [p.cost / 1e9 for p in own], [100 * p.accuracy for p in own]
            sizes = [40 + 160 * p.size / largest if p.size else 60 for p in own]
            colour = COLOURS[i % len(COLOURS)]
            axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.6)
            axes.scatter(
                x, y, s=sizes, color=colour, marker=MARKERS[i % len(MARKERS)], label=name, edgecolor="white", zorder=3
            )
            for point, px, py in zip(own, x, y, strict=True):
                axes.annotate(
                    point.label, (px, py), textcoords="offset points", xytext=(7, 5), fontsize=8, color="#444444"
                )
        front = pareto_front(points)
        axes.step(
            [p.cost / 1e9 for p in front],
            [100 * p.accuracy for p in front],
            where="post",
            color="#888888",
            linestyle=":",
            linewidth=1.2,
            label="Pareto front",
        )
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def confusion_matrix(matrix: ArrayLike, names: Sequence[str], title: str) -> Figure:
    """Rows are true classes, columns predictions; shade and number are the share of the row in per cent."""
    counts = np.asarray(matrix, dtype=float)
    share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    with style():
        size = 1.9 + 0.42 * len(names)
        figure = Figure(figsize=(size + 0.6, size), layout="constrained")
        axes = figure.subplots()
        image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
        axes.grid(False)
        axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(len(names)), names)
        if len(names) <= 16:
            for i, j in np.ndindex(share.shape):
                if share[i, j] >= 0.5:
                    colour = "white" if share[i, j] > 55 else "#333333"
                    axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=8, color=colour)
        axes.set(title=title, xlabel="predicted", ylabel="true")
        figure.colorbar(image, ax=axes, shrink=0.75, label="% of the true class")
    return figure


def mean_curves(curves: Mapping[str, Mapping[float, Sequence[float]]], title: str, xlabel: str, ylabel: str) -> Figure:
    """One line for every network through the means of several fractions at each x, in per cent, with their deviation
    as bars; x is logarithmic."""
    with style():
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(curves.items()):
            x = sorted(points)
            mean = [100 * float(np.mean(points[k])) for k in x]
            bars = [100 * deviation(points[k]) for k in x]
            marker, colour = MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]
            axes.errorbar(x, mean, bars, color=colour, marker=marker, markersize=5, capsize=3, label=name)
        ticks = sorted({k for points in curves.values() for k in points})
        axes.set_xscale("log")
        axes.set_xticks(ticks, [f"{k:g}" for k in ticks])
        axes.minorticks_off()
        axes.set(title=title, xlabel=xlabel, ylabel=ylabel)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def deviation(values: Sequence[float]) -> float:
    """Standard deviation of a sample (n - 1); 0 for one value."""
    return float(np.std(values, ddof=1)) if len(values) > 1 else 0.0


def learning_curves(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, ylabel: str) -> Figure:
    """One line for every network: `(epoch, value)` pairs."""
    with style():
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(curves.items()):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=4, label=name)
        axes.set(title=title, xlabel="epoch", ylabel=ylabel)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure
