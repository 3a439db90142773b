"""Comparisons of methods under one protocol."""

#: the same two networks measured at another time have a ratio of times that is different by up to this much
SCATTER = 0.15

RULE = (
    "Learning rates are chosen on validation data with the first seed, out of those of the study unless it gives a "
    "method its own, as it may give it another budget; while the best rate is the smallest or the largest tried, a "
    "study may try more beyond it. Each training is tested once, with its last weights. A method whose mean score on "
    "its own training data stays below the stated share of what it can reach counts as not trained and decides "
    "nothing. Intervals are of 95 %, not corrected for their number: of a mean, Student's over the seeds; "
    "of a difference, the wider of Student's over the seeds (paired) and the bootstrap over seeds and test files. A "
    "comparison holds where the interval of its difference lies above the smallest that counts, does not hold where it "
    "lies below it, and is not decided otherwise. Costs are decided by their ratio, without an interval; a time within "
    f"{100 * SCATTER:g} % of another's is not decided. A claim holds if all of its comparisons hold, holds in part if "
    "some do, does not hold if none does and none is undecided, and is not decided otherwise."
)
