"""Rows are appended whole, and say what is still to be done."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from common.comparison.rows import StudyProgress, StudyRow, append_row, pack, read_rows
from common.comparison.study import Study, StudyError, load
from tests.common.comparison.test_study import write


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    correct = np.random.default_rng(0).random(13) < 0.5
    first = StudyRow("a", "one", "score", 0, 0.1, "k", 0.9, None, 0.75, 12, correct=pack(correct), test_files=13)
    second = replace(first, error='a comma, a\nline and a "quote"', test=None, correct="")
    for row in (first, second):
        append_row(tmp_path / "rows.csv", row)
    read = read_rows(tmp_path / "rows.csv")
    assert read == [first, replace(second, error='a comma, a line and a "quote"')]
    assert read[0].outcomes() is not None
    np.testing.assert_array_equal(read[0].outcomes(), correct)
    assert read[1].outcomes() is None


def test_a_line_that_a_kill_cut_off_is_left_out_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    row = StudyRow("a", "one", "rate", 0, 0.1, "k", val=0.5)
    append_row(path, row)
    with path.open("a") as file:
        file.write("a,two,ra")
    assert read_rows(path) == [row]
    append_row(path, row)
    assert read_rows(path) == [row, row]
    path.write_text("data,me")
    append_row(path, row)
    assert read_rows(path) == [row]


def test_a_damaged_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    append_row(path, StudyRow("a", "one", "rate", 0, 0.1, "k"))
    good = path.read_bytes()
    for damage in (b"a,b\n", b"x" * 200_000 + b"\n", good.splitlines()[1].replace(b"0.1", b"inf") + b"\n", b"\xff\n"):
        path.write_bytes(good + damage)
        with pytest.raises(StudyError, match=r"rows\.csv:[23]: not a row"):
            read_rows(path)
    path.unlink()
    append_row(path, StudyRow("a", "one", "score", 0, 0.1, "k", test_files=9, correct="zz"))
    with pytest.raises(StudyError, match=r"rows\.csv:2: not a row"):
        read_rows(path)


class Trainings:
    """Stands for the trainings of a study: does what is pending, in the order in which a study does it."""

    def __init__(self, study: Study, validation: dict[Any, float]) -> None:
        self.study, self.validation = study, validation
        self.rows: list[StudyRow] = []

    def item(self, data: str, method: str, stage: str, seed: int, rate: float) -> StudyRow:
        return StudyRow(data, method, stage, seed, rate, self.study.key(data, method, rate))

    def do(self, item: StudyRow, **changes: Any) -> None:
        row = replace(item, train=1.0)
        if item.stage == "rate":
            row = replace(row, val=self.validation.get((item.method, item.rate), 0.5))
        else:
            row = replace(row, test=0.5)
        self.rows.append(replace(row, **changes))

    @property
    def progress(self) -> StudyProgress:
        return StudyProgress(self.study, self.rows)

    def finish(self) -> int:
        steps = 0
        while items := self.progress.pending():
            self.do(items[0])
            steps += 1
        return steps


def test_rates_are_tried_once_then_every_seed_is_scored(tmp_path: Path) -> None:
    study = load(write(tmp_path))
    trainings = Trainings(study, {("one", 0.1): 0.6, ("one", 0.01): 0.7})
    before = trainings.progress.trainings_left()
    first = trainings.progress.pending()
    assert first[:2] == [trainings.item("a", "one", "rate", 0, 0.1), trainings.item("a", "one", "rate", 0, 0.01)]
    assert not any(item.method == "three" for item in first), "what it continues from is not trained"
    assert trainings.finish() == before
    progress = trainings.progress
    assert progress.trainings_left() == 0
    assert progress.rate("a", "one") == 0.01
    assert progress.rate("a", "two") == 0.01, "of equal rates the smaller"
    assert list(progress.scores("a", "three")) == [0, 1]


def test_a_rate_that_failed_is_not_chosen_and_a_method_without_a_rate_ends(tmp_path: Path) -> None:
    study = load(write(tmp_path))
    trainings = Trainings(study, {})
    trainings.do(trainings.item("a", "one", "rate", 0, 0.01), error="the loss is NaN", val=None)
    trainings.do(trainings.item("a", "one", "rate", 0, 0.1))
    assert trainings.progress.rate("a", "one") == 0.1
    for rate in study.rates:
        trainings.do(trainings.item("a", "two", "rate", 0, rate), error="the loss is NaN", val=None)
    trainings.finish()
    progress = trainings.progress
    assert list(progress.scores("a", "one")) == [0, 1]
    assert progress.scores("a", "two") == {}
    assert progress.scores("a", "three") == {}, "there is nothing that it can continue from"


@pytest.mark.parametrize(
    ("widen", "validation", "tried", "chosen", "edge"),
    [
        (0, {0.01: 0.7, 0.1: 0.6}, [0.01, 0.1], 0.01, True),
        (2, {0.01: 0.7, 0.1: 0.6, 0.001: 0.65}, [0.001, 0.01, 0.1], 0.01, False),
        (2, {0.01: 0.7, 0.1: 0.6, 0.001: 0.7}, [0.001, 0.01, 0.1], 0.001, False),
        (1, {0.01: 0.7, 0.1: 0.6, 0.001: 0.8}, [0.001, 0.01, 0.1], 0.001, True),
        (2, {0.01: 0.6, 0.1: 0.7, 1.0: 0.8, 10.0: 0.9}, [0.01, 0.1, 1.0, 10.0], 10.0, True),
        (3, {0.01: 0.6, 0.1: 0.7, 1.0: None}, [0.01, 0.1, 1.0], 0.1, False),
        (2, {0.01: 0.7, 0.1: 0.7}, [0.01, 0.1], 0.01, False),
    ],
)
def test_the_rates_are_widened_while_the_best_is_at_their_edge(
    tmp_path: Path,
    widen: int,
    validation: dict[float, float | None],
    tried: list[float],
    chosen: float,
    edge: bool,
) -> None:
    study = load(write(tmp_path, widen=widen, rates=[0.1, 0.01]))
    trainings = Trainings(study, {("one", rate): value for rate, value in validation.items()})
    while items := [item for item in trainings.progress.pending() if item.method == "one"]:
        failed = items[0].stage == "rate" and validation[items[0].rate] is None
        trainings.do(items[0], **({"error": "the loss is NaN", "val": None} if failed else {}))
    progress = trainings.progress
    assert sorted(row.rate for row in trainings.rows if (row.data, row.stage) == ("a", "rate")) == tried
    assert (progress.rate("a", "one"), progress.at_edge("a", "one")) == (chosen, edge)
    assert list(progress.scores("a", "one")) == study.seeds


def test_seeds_of_one_data(tmp_path: Path) -> None:
    data = {"a": {"demo": "digits", "seeds": [3, 4, 5]}, "b": {"demo": "digits --size 8"}}
    trainings = Trainings(load(write(tmp_path, data=data)), {})
    left = trainings.progress.trainings_left()
    assert trainings.finish() == left
    progress = trainings.progress
    assert (list(progress.scores("a", "one")), list(progress.scores("b", "two"))) == ([3, 4, 5], [0, 1])
    assert {row.seed for row in trainings.rows if (row.data, row.stage) == ("a", "rate")} == {3}


def test_rows_of_another_study_are_left_out(tmp_path: Path) -> None:
    trainings = Trainings(load(write(tmp_path)), {})
    trainings.finish()
    longer = load(write(tmp_path, epochs=3))
    progress = StudyProgress(longer, trainings.rows)
    assert not progress.rows
    assert len(progress.left_out) == len(trainings.rows)
    assert progress.pending()


def test_rates_of_other_data_are_taken_over(tmp_path: Path) -> None:
    data = {"a": {"demo": "digits"}, "b": {"demo": "digits --size 8", "rates_of": "a"}}
    trainings = Trainings(load(write(tmp_path, data=data)), {("two", 0.1): 0.9})
    assert trainings.finish() == trainings.study.rates.__len__() * 3 + 2 * 5
    assert not [row for row in trainings.rows if (row.data, row.stage) == ("b", "rate")]
    assert trainings.progress.rate("b", "two") == 0.1


def test_a_method_below_what_it_can_reach_is_not_trained(tmp_path: Path) -> None:
    trainings = Trainings(load(write(tmp_path)), {})
    trainings.do(trainings.item("a", "two", "rate", 0, 0.1))
    trainings.do(trainings.item("a", "two", "rate", 0, 0.01))
    assert trainings.progress.is_trained("a", "two") is None
    trainings.do(trainings.item("a", "two", "score", 0, 0.01), train=0.46)  # of 0.5
    trainings.do(trainings.item("b", "two", "rate", 0, 0.1))
    trainings.do(trainings.item("b", "two", "rate", 0, 0.01))
    trainings.do(trainings.item("b", "two", "score", 0, 0.01), train=0.46)  # of 1
    assert trainings.progress.is_trained("a", "two") is True
    assert trainings.progress.is_trained("b", "two") is False
