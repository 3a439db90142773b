"""Several seeds of one training are one row; curves show rows for several values of an option."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from common.reporting import plots
from common.reporting.ledger import Ledger, LedgerError, load
from common.reporting.results import _FACTS, Result, append, read
from common.reporting.runs import Trained, by_entry
from common.reporting.tables import curve_points, curve_table, mean_text

LEDGER = """
paper: p
title: T
authors: A
networks: {}
tables:
  - id: table1
    title: T
    columns: [{key: a, name: A}]
    rows: [{id: x, name: X, statuses: [demo], values: ["1"]}]
figures: []
demos:
  - id: demo
    title: D
    text: D
    data: [digits]
    recipe: demo.yaml
    seeds: 2
    rows:
      - {id: demo/x, name: X, table_row: table1/x, overrides: [--model.b, "2"]}
      - {id: demo/y, name: Y, table_row: table1/x}
    curves:
      - {id: demo/few, title: Few, x: images per class, option: --data.train_per_class, values: ["5", "20"],
         rows: [demo/x]}
"""


def ledger(folder: Path, text: str = LEDGER) -> Ledger:
    (folder / "recipes").mkdir(exist_ok=True)
    (folder / "recipes" / "demo.yaml").touch()
    (folder / "ledger.yaml").write_text(text)
    return load(folder / "ledger.yaml")


def trained(entry: str, seed: int, top1: float) -> Trained:
    facts = {"kind": "image", "seed": seed, "videos": 4, "videos_expected": 5}
    return Trained(entry, "X", Result(f"{entry}{seed}", entry, "", {"top1": top1}, facts), Path())


def test_a_curve_trains_its_rows_with_every_value(tmp_path):
    (demo,) = ledger(tmp_path).demos
    [curve] = demo.curves
    assert [row.id for row in demo.rows_of(curve)] == ["demo/x"]
    row = curve.row(demo.rows[0], "20")
    assert (row.id, row.name) == ("demo/few/x/20", "X, 20 images per class")
    assert row.overrides == ["--model.b", "2", "--data.train_per_class", "20"]
    assert ledger(tmp_path).select(["demo/few"]) == ["demo/few"]


def test_mean_and_deviation(tmp_path):
    (demo,) = ledger(tmp_path).demos
    runs = [trained("demo/few/x/5", seed, top1) for seed, top1 in ((0, 0.5), (1, 0.7))]
    runs += [trained("demo/few/x/20", 0, 0.9)]
    points = curve_points(demo.curves[0], demo, runs)
    assert points == {"X": {5.0: [0.5, 0.7], 20.0: [0.9]}}
    assert curve_table(demo.curves[0], demo, runs).cells == [["X", "60.00 ± 14.14", "90.00"]]
    assert [len(group) for group in by_entry(runs).values()] == [2, 1]
    assert mean_text([], 1, 2) == "–"
    figure = plots.mean_curves(points, "t", "x", "y")
    assert [tick.get_text() for tick in figure.axes[0].get_xticklabels()] == ["5", "20"]
    assert runs[0].result.videos == "4 of 5 images"


def test_results_without_a_kind_are_of_videos(tmp_path):
    path = tmp_path / "results.csv"
    facts = dict.fromkeys((*_FACTS, "duration_s")) | {"videos": 3, "videos_expected": 3}
    append(path, [Result("a", "demo/x", "", {"top1": 0.5}, facts)])
    with path.open(newline="") as file:
        rows = [[cell for name, cell in row.items() if name != "kind"] for row in csv.DictReader(file)]
        names = [name for name in path.read_text().splitlines()[0].split(",") if name != "kind"]
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([names, *rows])
    assert [row.videos for row in read(path)] == ["3 of 3 videos"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("rows: [demo/x]", "rows: [demo/z]", "demo/few: there is no demo row demo/z"),
        ('["5", "20"]', '["5", "all"]', "values are numbers; 'all' is none"),
        ("seeds: 2", "seeds: 0", "seeds is 0"),
    ],
)
def test_wrong_curves_are_named(tmp_path, old, new, message):
    with pytest.raises(LedgerError, match=message):
        ledger(tmp_path, LEDGER.replace(old, new))
