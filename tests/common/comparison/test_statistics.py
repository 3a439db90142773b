"""Intervals cover what they should, and verdicts follow from them alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from common.comparison.statistics import Interval, combine, decide, mean_interval, paired_difference


def test_the_interval_of_a_mean_is_student_s() -> None:
    values = np.array([0.1, 0.2, 0.4, 0.5, 0.3])
    found = mean_interval(values)
    half = stats.t.ppf(0.975, 4) * values.std(ddof=1) / math.sqrt(5)
    assert found.mean == pytest.approx(0.3)
    assert (found.low, found.high) == pytest.approx((0.3 - half, 0.3 + half))
    assert math.isnan(mean_interval(values[:1]).low)
    assert mean_interval(np.array([0.5, 0.5])) == Interval(0.5, 0.5, 0.5)


def test_a_paired_difference_contains_the_paired_student_interval() -> None:
    rng = np.random.default_rng(0)
    ours = (rng.random((5, 200)) < 0.8).astype(float)
    theirs = (rng.random((5, 200)) < 0.7).astype(float)
    difference = ours.mean(1) - theirs.mean(1)
    found = paired_difference(ours.mean(1), theirs.mean(1), ours, theirs)
    alone = paired_difference(ours.mean(1), theirs.mean(1))
    half = stats.t.ppf(0.975, 4) * difference.std(ddof=1) / math.sqrt(5)
    assert (alone.low, alone.high) == pytest.approx((difference.mean() - half, difference.mean() + half))
    assert found.low <= alone.low <= found.mean <= alone.high <= found.high
    assert paired_difference(theirs.mean(1), ours.mean(1)).high == pytest.approx(-alone.low)


def test_intervals_cover_a_known_difference() -> None:
    """Of 60 experiments with a difference of 0.1, at most a few intervals of 95 % miss it."""
    rng = np.random.default_rng(1)
    missed = 0
    for _ in range(60):
        hard = rng.random(150)  # the same test files for both methods and all seeds
        ours = (rng.random((5, 150)) < np.clip(0.35 + 0.5 * hard + 0.1, 0, 1)).astype(float)
        theirs = (rng.random((5, 150)) < 0.35 + 0.5 * hard).astype(float)
        found = paired_difference(ours.mean(1), theirs.mean(1), ours, theirs)
        missed += not found.low <= 0.1 <= found.high
    assert missed <= 7


def test_one_seed_has_the_exact_mcnemar_test() -> None:
    ours, theirs = np.zeros((1, 40)), np.zeros((1, 40))
    ours[0, :9] = 1
    theirs[0, 8:10] = 1  # 8 files gained, 1 lost
    found = paired_difference(ours.mean(1), theirs.mean(1), ours, theirs)
    assert found.p == pytest.approx(2 * (1 + 9) / 2**9)
    assert found.mean == pytest.approx(7 / 40)
    assert 0 < found.low < found.mean < found.high
    same = paired_difference(ours.mean(1), ours.mean(1), ours, ours)
    assert (same.p, same.low, same.high) == (1.0, 0.0, 0.0)


def test_one_seed_without_outcomes_has_no_interval_and_decides_nothing() -> None:
    found = paired_difference(np.array([0.9]), np.array([0.1]))
    assert math.isnan(found.low)
    assert decide(found, 0.0) == "not decided"


@pytest.mark.parametrize(
    ("low", "high", "by", "verdict"),
    [
        (0.01, 0.05, 0.0, "holds"),
        (0.01, 0.05, 0.02, "not decided"),
        (-0.05, -0.01, 0.0, "does not hold"),
        (0.001, 0.01, 0.02, "does not hold"),
        (-0.01, 0.05, 0.0, "not decided"),
        (-0.01, 0.05, -0.02, "holds"),
    ],
)
def test_a_difference_is_decided_by_its_interval(low: float, high: float, by: float, verdict: str) -> None:
    assert decide(Interval((low + high) / 2, low, high), by) == verdict


def test_a_claim_is_decided_by_its_comparisons() -> None:
    assert combine(["holds", "holds"]) == "holds"
    assert combine(["holds", "does not hold"]) == "holds in part"
    assert combine(["holds", "not decided"]) == "holds in part"
    assert combine(["does not hold", "not decided"]) == "not decided"
    assert combine(["does not hold", "does not hold"]) == "does not hold"
    assert combine([]) == "not decided"
