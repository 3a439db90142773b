"""The plots draw what they are given."""

from __future__ import annotations

import numpy as np

from common.reporting.page import png
from common.reporting.plots import Point, accuracy_against_cost, confusion_matrices, learning_curves, pareto_front

POINTS = [Point("A", 1e9, 0.5), Point("A", 2e9, 0.6), Point("B", 2e9, 0.4), Point("B", 3e9, 0.6, "64", 5e6)]


def test_pareto_front() -> None:
    assert pareto_front(POINTS) == POINTS[:2]


def test_accuracy_against_cost() -> None:
    figure = accuracy_against_cost(POINTS, "title")
    (axes,) = figure.axes
    assert axes.get_xlabel() == "multiply-adds per clip (G)"
    drawn = [tuple(p) for c in axes.collections for p in np.asarray(c.get_offsets())]
    assert drawn == [(1.0, 50.0), (2.0, 60.0), (2.0, 40.0), (3.0, 60.0)]
    assert png(figure).startswith(b"\x89PNG")
    small = accuracy_against_cost([Point("A", 1e6, 0.5), Point("A", 9e7, 0.6)], "t").axes[0]
    assert small.get_xlabel() == "multiply-adds per clip (M)"
    assert small.get_xscale() == "log"


def test_many_series_are_named_at_their_points() -> None:
    points = [Point(f"N{i}", i * 1e9, 0.1 * i, "8") for i in range(1, 10)]
    axes = accuracy_against_cost(points, "title", highlight=["N3"]).axes[0]
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["N3", "Pareto front"]
    assert "N4 8" in [text.get_text() for text in axes.texts]
    axes = accuracy_against_cost(points, "title", highlight=[point.series for point in points]).axes[0]
    assert "N9 8" in [text.get_text() for text in axes.texts], "there is no ninth colour"


def test_confusion_matrices_show_shares_of_the_true_class() -> None:
    figure = confusion_matrices({"a": [[3, 1], [0, 0]], "b": [[1, 0], [0, 1]]}, ["x", "y"])
    image = figure.axes[0].images[0].get_array()
    assert image is not None
    assert image.tolist() == [[75.0, 25.0], [0.0, 0.0]]
    assert [t.get_text() for t in figure.axes[0].texts] == ["75", "25"]


def test_learning_curves() -> None:
    axes = learning_curves({"a": [(1, 0.5), (2, 0.25)]}, "title", "loss").axes[0]
    assert axes.lines[0].get_ydata().tolist() == [0.5, 0.25]  # type: ignore[union-attr]
