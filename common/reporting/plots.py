"""The plots of the reports: one style, colours that colour-blind readers can tell apart, no display needed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from common.evaluation.fonts import find_fonts

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


#: a context inside which figures have the reports' style
style = partial(matplotlib.rc_context, STYLE)


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


def accuracy_against_cost(
    points: Sequence[Point], title: str, accuracy: str = "top-1 accuracy (%)", highlight: Sequence[str] = ()
) -> Figure:
    """Accuracy against multiply-adds; areas are parameters, a dotted line is the Pareto front.

    Every series has its colour and marker. Where there are more than eight, the first eight of those in `highlight`
    have, and the others are grey with their names next to them.
    """
    names = list(dict.fromkeys(p.series for p in points))
    coloured = names if len(names) <= len(COLOURS) else [name for name in names if name in highlight][: len(COLOURS)]
    unit, letter = (1e9, "G") if max(p.cost for p in points) >= 1e9 else (1e6, "M")
    largest = max((p.size for p in points if p.size), default=1.0)
    with style():
        figure = Figure(figsize=(7.6, 4.6), layout="constrained")
        axes = figure.subplots()
        for name in names:
            own = sorted((p for p in points if p.series == name), key=lambda p: p.cost)
            x, y = [p.cost / unit for p in own], [100 * p.accuracy for p in own]
            sizes = [40 + 160 * p.size / largest if p.size else 60 for p in own]
            i = coloured.index(name) if name in coloured else None
            colour = "#b5b5b5" if i is None else COLOURS[i]
            axes.plot(x, y, color=colour, linewidth=0.9, alpha=0.6, zorder=1 if i is None else 2)
            axes.scatter(
                x,
                y,
                s=sizes,
                color=colour,
                marker="o" if i is None else MARKERS[i],
                label=name if i is not None else None,
                edgecolor="white",
                zorder=2 if i is None else 3,
            )
            for point, px, py in zip(own, x, y, strict=True):
                label = point.label if i is not None else f"{name} {point.label}".strip()
                axes.annotate(
                    label, (px, py), textcoords="offset points", xytext=(6, 4), fontsize=7, color="#666666", zorder=4
                )
        front = pareto_front(points)
        axes.step(
            [p.cost / unit for p in front],
            [100 * p.accuracy for p in front],
            where="post",
            color="#888888",
            linestyle=":",
            linewidth=1.2,
            label="Pareto front",
            zorder=1,
        )
        axes.margins(x=0.12, y=0.1)
        if max(p.cost for p in points) > 20 * min(p.cost for p in points):
            axes.set_xscale("log")
        axes.set(title=title, xlabel=f"multiply-adds per clip ({letter})", ylabel=accuracy)
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def confusion_matrices(matrices: Mapping[str, ArrayLike], names: Sequence[str], columns: int = 3) -> Figure:
    """One matrix (true class, predicted class) of counts for every network.

    Shade and number are the share of the true class in per cent.
    """
    columns = min(columns, len(matrices))
    rows = -(-len(matrices) // columns)
    side = 1.2 + 0.32 * (len(names) or 15)
    font: Any = {"fontsize": 8, "fontfamily": list(find_fonts("".join(names)))}
    with style():
        figure = Figure(figsize=(1.6 + columns * side, 1.1 + rows * side), layout="constrained")
        grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axes in grid.flat[len(matrices) :]:
            axes.set_axis_off()
        for axes, (title, matrix) in zip(grid.flat, matrices.items(), strict=False):
            counts = np.asarray(matrix, dtype=float)
            share = 100 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
            image = axes.imshow(share, vmin=0, vmax=100, cmap="Blues")
            axes.grid(False)
            axes.set_xticks(range(len(names)), names, rotation=45, ha="right", rotation_mode="anchor", **font)
            axes.set_yticks(range(len(names)), names, **font)
            axes.set_title(title)
            if len(counts) <= 16:
                for i, j in zip(*np.nonzero(share >= 0.5), strict=True):
                    colour = "white" if share[i, j] > 55 else "#333333"
                    axes.text(j, i, f"{share[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
        figure.supxlabel("predicted", fontsize=10)
        figure.supylabel("true", fontsize=10)
        figure.colorbar(image, ax=grid, shrink=0.5, label="% of the true class")
    return figure


@dataclass(frozen=True)
class Difference:
    """A difference in points with its interval, and whether it is larger than `needed`."""

    group: str
    label: str
    mean: float
    low: float
    high: float
    needed: float
    verdict: str


#: colours of the verdicts on differences, in the order of the legend
VERDICTS = {"holds": COLOURS[2], "does not hold": COLOURS[1], "not decided": "#8c8c8c", "not trained": "#8c8c8c"}


def differences(found: Sequence[Difference], xlabel: str) -> Figure:
    """A line for each difference, under the name of its group; the smallest that counts is a tick, open circles are
    differences to methods that were not trained."""
    groups = list(dict.fromkeys(each.group for each in found))
    with style():
        figure = Figure(figsize=(9.5, 0.9 + 0.235 * (len(found) + 1.3 * len(groups))), layout="constrained")
        axes = figure.subplots()
        y, ticks, names = 0.0, [], []
        for group in groups:
            y += 1.3
            axes.text(0.0, y + 0.3, f"{group} ", transform=axes.get_yaxis_transform(), weight="bold", ha="right")
            for each in (each for each in found if each.group == group):
                y += 1
                colour, open_circle = VERDICTS[each.verdict], each.verdict == "not trained"
                axes.plot([each.low, each.high], [y, y], color=colour, linewidth=2, alpha=0.6 if open_circle else 1)
                axes.plot(
                    each.mean, y, "o", markersize=6, color=colour, markerfacecolor="white" if open_circle else colour
                )
                axes.plot([each.needed] * 2, [y - 0.4, y + 0.4], color="black", linewidth=1)
                ticks.append(y)
                names.append(each.label)
        axes.axvline(0, color="black", linewidth=0.8, zorder=0)
        axes.set_yticks(ticks, names, fontsize=8)
        axes.set_ylim(y + 0.8, 0.4)
        axes.grid(axis="y", visible=False)
        axes.set_xlabel(xlabel)
        handles = [
            Line2D([], [], color=colour, marker="o", markerfacecolor="white" if name == "not trained" else colour)
            for name, colour in VERDICTS.items()
        ]
        figure.legend(handles, list(VERDICTS), loc="outside upper center", ncols=4)
    return figure


def learning_curves(curves: Mapping[str, Sequence[tuple[float, float]]], title: str, ylabel: str) -> Figure:
    """One line for every network: `(epoch, value)` pairs."""
    with style():
        figure = Figure(figsize=(7.2, 3.8), layout="constrained")
        axes = figure.subplots()
        for i, (name, points) in enumerate(curves.items()):
            x, y = zip(*points, strict=True)
            axes.plot(x, y, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], markersize=4, label=name)
        axes.set(title=title, xlabel="epoch", ylabel=ylabel)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure


def frequency_use(found: Mapping[str, Mapping[str, Mapping[str, float]]], files: int) -> Figure:
    """What `common.evaluation.frequency_use.accuracies` found: a panel for each group, a line for each network."""
    panels = {
        "order": ("Frames changed", ""),
        "temporal": ("One temporal frequency removed", "cycles per clip"),
        "spatial": ("A band of spatial frequencies removed", "cycles per pixel"),
    }
    with style():
        figure = Figure(figsize=(12, 3.6), layout="constrained")
        for axes, (group, (title, xlabel)) in zip(figure.subplots(1, 3, sharey=True), panels.items(), strict=True):
            for i, (name, groups) in enumerate(found.items()):
                marker, colour = MARKERS[i % len(MARKERS)], COLOURS[i % len(COLOURS)]
                line = "" if group == "order" else "-"
                names, values = list(groups[group]), [100 * v for v in groups[group].values()]
                axes.plot(names, values, color=colour, marker=marker, linestyle=line, label=name)
                axes.axhline(100 * groups["order"]["as it is"], color=colour, linewidth=0.6, linestyle=":")
            axes.set(title=title, xlabel=xlabel)
            axes.tick_params(axis="x", labelsize=8)
        figure.axes[0].set(ylabel=f"accuracy (%), {files} clips", ylim=(0, 102))
        figure.axes[-1].legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=9)
    return figure
