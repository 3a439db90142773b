"""Tables and the page of a study, from rows without trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from common.comparison import report
from common.comparison.runs import Place
from common.comparison.study import load
from tests.common.comparison.test_rows import Trainings
from tests.common.comparison.test_study import write

DATA = {"a": {"demo": "digits --size 8", "x": 1.0}, "b": {"demo": "digits --size 16", "x": 10.0}}


def test_scores_over_an_axis_are_plotted(tmp_path: Path) -> None:
    trainings = Trainings(load(write(tmp_path, data=DATA, xlabel="size of the images")), {})
    trainings.finish()
    page = report.write_page(trainings.progress, Place(tmp_path, tmp_path, tmp_path / "rows.csv"))
    assert (page.parent / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_methods_on_different_data_are_not_compared(tmp_path: Path) -> None:
    trainings = Trainings(load(write(tmp_path)), {})
    trainings.finish()
    trainings.rows = [replace(row, data_hash=row.method) for row in trainings.rows]
    progress = trainings.progress
    for outcome in report.outcomes(progress, progress.study.claims[0].comparisons[0]):
        assert outcome.verdict == "not decided"
        assert "the data of the two differ" in outcome.text(progress)
    assert "several versions of the data hash" in " ".join(report.provenance(progress, "a"))
