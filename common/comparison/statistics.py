"""Intervals, and the rule by which a claim is decided. The statistics are scipy's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from scipy import stats

CONFIDENCE = 0.95
Verdict = Literal["holds", "holds in part", "does not hold", "not decided"]


@dataclass(frozen=True)
class Interval:
    """An estimate with its 95 % interval; `low` and `high` are NaN where there is none."""

    mean: float
    low: float
    high: float
    p: float | None = None


def mean_interval(values: NDArray[np.float64]) -> Interval:
    """Mean over seeds with Student's interval; without one for a single seed."""
    mean = float(np.mean(values))
    if len(values) < 2 or np.ptp(values) == 0:
        return Interval(mean, *((float("nan"),) * 2 if len(values) < 2 else (mean, mean)))
    found = stats.ttest_1samp(values, 0.0).confidence_interval(CONFIDENCE)
    return Interval(mean, float(found.low), float(found.high))


def paired_difference(
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64],
    our_outcomes: NDArray[np.float64] | None = None,
    their_outcomes: NDArray[np.float64] | None = None,
) -> Interval:
    """Difference of two methods on the same seeds and test files.

    Args:
        ours, theirs: scores, (S,), by seed.
        our_outcomes, their_outcomes: (S, N): whether each test file was right; None where files have no right or wrong.

    Returns:
        With several seeds the wider of the paired Student interval over seeds and, with outcomes, the bootstrap over
        seeds and files. With one seed the bootstrap over files; `p` is then that of the exact McNemar test.
    """
    difference = ours - theirs
    mean, p = float(np.mean(difference)), None
    lows, highs = [], []
    if len(ours) > 1:
        spread = np.ptp(difference)
        found = stats.ttest_rel(ours, theirs).confidence_interval(CONFIDENCE) if spread > 0 else None
        lows.append(mean if found is None else float(found.low))
        highs.append(mean if found is None else float(found.high))
    if our_outcomes is not None and their_outcomes is not None:
        by_file = our_outcomes - their_outcomes
        if len(ours) == 1:
            gained, lost = int((by_file > 0).sum()), int((by_file < 0).sum())
            p = float(stats.binomtest(gained, gained + lost).pvalue) if gained + lost else 1.0
        if np.ptp(by_file) > 0:
            low, high = _bootstrap(by_file)
            lows.append(low)
            highs.append(high)
        elif len(ours) == 1:
            lows.append(mean)
            highs.append(mean)
    if not lows:
        return Interval(mean, float("nan"), float("nan"), p)
    return Interval(mean, min(lows), max(highs), p)


def _bootstrap(by_file: NDArray[np.float64]) -> tuple[float, float]:
    """Interval of the mean of (S, N), where seeds and files are drawn anew independently of each other."""

    def mean(seeds: NDArray[np.int64], files: NDArray[np.int64], axis: int = -1) -> NDArray[np.float64]:
        chosen = by_file[seeds[..., :, None], files[..., None, :]]
        return np.asarray(chosen.mean(axis=(-1, -2)))

    samples = (np.arange(by_file.shape[0]), np.arange(by_file.shape[1]))
    if by_file.shape[0] == 1:
        found = stats.bootstrap((by_file[0],), np.mean, confidence_level=CONFIDENCE, method="percentile", rng=0)
    else:
        found = stats.bootstrap(
            samples,
            mean,
            confidence_level=CONFIDENCE,
            method="percentile",
            n_resamples=4999,
            batch=200,
            vectorized=True,
            rng=0,
        )
    return float(found.confidence_interval.low), float(found.confidence_interval.high)


def decide(found: Interval, by: float) -> Verdict:
    """Whether a difference is larger than the smallest one that counts."""
    if found.low > by:
        return "holds"
    return "does not hold" if found.high < by else "not decided"


def combine(verdicts: list[Verdict]) -> Verdict:
    """The verdict on a claim from those on its comparisons."""
    if verdicts and all(verdict == "holds" for verdict in verdicts):
        return "holds"
    if any(verdict == "holds" for verdict in verdicts):
        return "holds in part"
    return "not decided" if not verdicts or "not decided" in verdicts else "does not hold"
