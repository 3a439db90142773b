"""Comparisons of methods under one protocol."""

RULE = (
    "Learning rates are chosen on validation data with the first seed, out of those of the study unless it gives a "
    "method its own, as it may give it another budget; each training is tested once, with its last weights. A method "
    "whose mean score on its own training data stays below the stated share of what it can reach counts as not trained "
    "and decides nothing. Intervals are of 95 %, not corrected for their number: of a mean, Student's over the seeds; "
    "of a difference, the wider of Student's over the seeds (paired) and the bootstrap over seeds and test files. A "
    "difference holds where its interval lies above the smallest that counts, does not hold where it lies below it, "
    "and is not decided otherwise. Costs are decided by their ratio, without an interval. A claim holds if all of its "
    "comparisons hold, and in part if some do."
)
