"""Tables and the page of a study, from rows without trainings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from common.comparison import report
from common.comparison.runs import Place
from common.comparison.study import load
from tests.common.comparison.test_rows import Trainings
from tests.common.comparison.test_study import write


def test_the_page_shows_what_was_found(tmp_path: Path) -> None:
    trainings = Trainings(load(write(tmp_path)), {})
    trainings.finish()
    page = report.write_page(trainings.progress, Place(tmp_path, tmp_path, tmp_path / "rows.csv")).read_text()
    for text in ("One is better.", "<strong>not decided</strong>", "50.0 [50.0, 50.0]", "spectral compare"):
        assert text in page


def test_methods_on_different_data_are_not_compared(tmp_path: Path) -> None:
    trainings = Trainings(load(write(tmp_path)), {})
    trainings.finish()
    trainings.rows = [replace(row, data_hash=row.method) for row in trainings.rows]
    progress = trainings.progress
    for outcome in report.outcomes(progress, progress.study.claims[0].comparisons[0]):
        assert outcome.verdict == "not decided"
        assert "the data of the two differ" in outcome.text(progress)
    assert "several versions of the manifest hash" in " ".join(report.provenance(progress, "a"))


@pytest.mark.parametrize(
    ("measure", "ratio", "by", "verdict"),
    [
        ("train_ms", 0.8, 0.0, "holds"),
        ("train_ms", 0.9, 0.0, "not decided"),
        ("infer_ms", 1.1, 0.0, "not decided"),
        ("infer_ms", 1.2, 0.0, "does not hold"),
        ("train_ms", 0.8, 0.3, "does not hold"),
        ("macs", 0.97, 0.0, "holds"),
        ("macs", 0.97, 0.05, "does not hold"),
        ("params", 1.01, 0.0, "does not hold"),
    ],
)
def test_times_that_are_about_equal_decide_nothing(
    tmp_path: Path, measure: str, ratio: float, by: float, verdict: str
) -> None:
    comparison = {"better": "one", "than": ["two"], "measure": measure, "by": by, "data": ["a"]}
    claims = [{"id": "x", "claim": "x", "comparisons": [comparison]}]
    trainings = Trainings(load(write(tmp_path, claims=claims)), {})
    trainings.finish()
    values = {"one": 10 * ratio, "two": 10.0}
    trainings.rows = [replace(row, **{measure: values.get(row.method)}) for row in trainings.rows]
    progress = trainings.progress
    (outcome,) = report.outcomes(progress, progress.study.claims[0].comparisons[0])
    assert outcome.verdict == verdict
    assert f"{ratio:.2f}" in outcome.text(progress)
