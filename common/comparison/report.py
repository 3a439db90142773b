"""Tables, plots and the page of a study."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from common.comparison import RULE, SCATTER
from common.comparison.rows import StudyProgress
from common.comparison.runs import Place
from common.comparison.statistics import Interval, Verdict, combine, decide, mean_interval, paired_difference
from common.comparison.study import COSTS, TIMES, Claim, Comparison, pairs
from common.reporting import plots
from common.reporting.ledger import DASH
from common.reporting.page import Report
from common.reporting.tables import ColumnHeader, RenderedTable

XLABEL = "difference of the test scores in points;\nright of the tick: as the claim says"
DIFFERENCES = (
    "Differences in points of the test score, which is accuracy unless a name says otherwise, with 95 % intervals."
)


@dataclass(frozen=True)
class Outcome:
    """One difference of a comparison: of `better` against `than` on `data`."""

    data: str
    better: str
    than: str
    measure: str
    by: float
    found: Interval | None
    verdict: Verdict
    reason: str = ""
    trained: bool = True

    def label(self, progress: StudyProgress) -> str:
        """What is compared with what."""
        names = {name: method.title for name, method in progress.study.methods.items()}
        where = f" on {self.data}" if len(progress.study.data) > 1 else ""
        what = f"{names[self.better]} − {names[self.than]}{where}"
        if self.measure != "score":
            what = f"{COSTS[self.measure]}, {names[self.better]} / {names[self.than]}{where}"
        return what

    def text(self, progress: StudyProgress) -> str:
        """In words, with the interval."""
        what = self.label(progress)
        if self.found is None:
            return f"{what}: {self.reason}"
        if self.measure != "score":
            text, needed = f"{what}: {self.found.mean:.2f}", f"needs ≤ {1 - self.by:g}"
        else:
            text, needed = f"{what}: {signed(self.found)}", f"needs > {100 * self.by:+g}"
            text += f", McNemar p = {self.found.p:.2g}" if self.found.p is not None else ""
        said = [self.reason, needed if self.by else ""]
        return f"{text} ({'; '.join(filter(None, said))})" if any(said) else text


def signed(found: Interval) -> str:
    """`+3.1 [1.2, 5.0]`, in points."""
    text = f"{100 * found.mean:+.1f}"
    return text if found.low != found.low else f"{text} [{100 * found.low:.1f}, {100 * found.high:.1f}]"


@dataclass(frozen=True)
class Finding:
    """A claim of a study with its differences and the verdict."""

    progress: StudyProgress
    claim: Claim
    outcomes: list[Outcome]
    verdict: Verdict

    def verdict_text(self) -> str:
        """The verdict in Markdown; of one in part, how many comparisons hold and how many do not."""
        if self.verdict != "holds in part":
            return f"**{self.verdict}**"
        held, failed = (sum(o.verdict == verdict for o in self.outcomes) for verdict in ("holds", "does not hold"))
        failing = f"; {failed} {'does' if failed == 1 else 'do'} not" if failed else ""
        return f"**holds in part** ({held} of {len(self.outcomes)}{failing})"

    def text(self, most: int | None = None) -> str:
        """The differences in words, the first `most` of them, and how many more there are."""
        shown = "; ".join(outcome.text(self.progress) for outcome in self.outcomes[:most])
        left = 0 if most is None else len(self.outcomes) - most
        return f"{shown}; {left} more" if left > 0 else shown


def findings(progress: StudyProgress) -> list[Finding]:
    """Every claim of a study with what was found of it."""
    found = []
    for claim in progress.study.claims:
        own = [outcome for comparison in claim.comparisons for outcome in outcomes(progress, comparison)]
        found.append(Finding(progress, claim, own, combine([outcome.verdict for outcome in own])))
    return found


def outcomes(progress: StudyProgress, comparison: Comparison) -> list[Outcome]:
    """Every difference of a comparison with the verdict on it."""
    return [
        _outcome(progress, comparison, data, better, than) for data, better, than in pairs(progress.study, comparison)
    ]


def _outcome(progress: StudyProgress, comparison: Comparison, data: str, better: str, than: str) -> Outcome:
    measure, by = comparison.measure, comparison.by

    def undecided(reason: str, found: Interval | None = None) -> Outcome:
        return Outcome(data, better, than, measure, by, found, "not decided", reason)

    if measure != "score":
        ours, theirs = (progress.cost(data, method, measure) for method in (better, than))
        if ours is None or theirs is None:
            return undecided("not measured")
        ratio = Interval(ours / theirs, ours / theirs, ours / theirs)
        if measure in TIMES and abs(ratio.mean - 1) <= SCATTER:
            return undecided(f"equal within {100 * SCATTER:g} %", ratio)
        verdict: Verdict = "holds" if ratio.mean <= 1 - by else "does not hold"
        return Outcome(data, better, than, measure, by, ratio, verdict)
    both = [progress.scores(data, method) for method in (better, than)]
    seeds = [s for s in progress.study.seeds_on(data) if all(s in rows and not rows[s].error for rows in both)]
    if not seeds:
        return undecided("not run, or failed")
    hashes = {rows[seed].data_hash for rows in both for seed in seeds}
    if len(hashes) > 1:
        return undecided(f"the data of the two differ ({', '.join(sorted(hashes))})")
    scores = [np.array([rows[seed].test for seed in seeds], dtype=float) for rows in both]
    found_outcomes = [[rows[seed].outcomes() for seed in seeds] for rows in both]
    if all(o is not None for group in found_outcomes for o in group):
        found = paired_difference(*scores, *(np.stack(group) for group in found_outcomes))  # type: ignore[arg-type]
    else:
        found = paired_difference(*scores)
    if untrained := [m for m in (better, than) if not progress.is_trained(data, m)]:
        names = ", ".join(progress.study.methods[m].title for m in untrained)
        return replace(undecided(f"{names} not trained", found), trained=False)
    if len(seeds) < (wanted := len(progress.study.seeds_on(data))):
        return undecided(f"{len(seeds)} of {wanted} seeds", found)
    same = len(set(np.concatenate(scores))) == 1
    return Outcome(
        data, better, than, measure, by, found, decide(found, by), f"both {100 * scores[0][0]:g} %" if same else ""
    )


def claims_table(progress: StudyProgress) -> RenderedTable:
    """Every claim with the paper's evidence, ours, and the verdict."""
    heads = [ColumnHeader("Claim"), ColumnHeader("Verdict"), ColumnHeader("Measured here"), ColumnHeader("Paper")]
    cells = []
    for found in findings(progress):
        cells.append([found.claim.claim, found.verdict_text(), found.text(), found.claim.paper or DASH])
    return RenderedTable("Claims", heads, cells, [DIFFERENCES], "claims")


def score_table(progress: StudyProgress, data: str) -> RenderedTable:
    """The methods on some data: scores with intervals, the chosen rate, sizes and times."""
    study = progress.study
    names = ["train", "seeds", "learning rate", "parameters", "multiply-adds, full count", "inference, ms"]
    names += ["training step, ms", "memory in training, MB"]
    heads = [ColumnHeader("Method"), ColumnHeader("test", kind="ours")]
    heads += [ColumnHeader(name, kind="other") for name in names]
    cells, notes = [], ["Mean test score over the seeds with its 95 % interval, and mean training score; in per cent."]
    for name in study.methods_on(data):
        rows = {s: r for s, r in progress.scores(data, name).items() if not r.error}
        failed = [r.error for r in progress.rows if (r.data, r.method) == (data, name) and r.error]
        title = study.methods[name].title
        if failed:
            notes.append(f"{title}: {len(failed)} trainings failed: {failed[-1]}")
        train = np.array([r.train for r in rows.values()], dtype=float)
        rate, edge = progress.rate(data, name), progress.at_edge(data, name)
        cells.append(
            [
                title,
                _score(progress, data, name),
                f"{100 * train.mean():.1f}" if len(train) else DASH,
                f"{len(rows)}{_fitted(train, study.fitted_on(data, name))}",
                DASH if rate is None or rate != rate else f"{rate:g}{' (edge)' if edge else ''}",
                *(_count(progress.cost(data, name, measure)) for measure in ("params", "macs")),
                *(_number(progress.cost(data, name, measure)) for measure in ("infer_ms", "train_ms", "train_mb")),
            ]
        )
    if any("(edge)" in line[4] for line in cells):
        notes.append(
            "(edge): the best rate is the smallest or the largest that was tried; a better one may lie beyond."
        )
    if any(study.fitted_on(data, name) <= 0 for name in study.methods_on(data)):
        notes.append(
            "Where no number of fitted seeds is given, none is asked for: that the method cannot fit is a result."
        )
    if any(progress.cost(data, name, "infer_ms") for name in study.methods_on(data)):
        notes.append(
            "Time and memory of one input in inference and of two in a training step; on a CPU with one thread."
        )
    if _has_untrained(progress, data):
        notes.append(_not_trained(progress, data))
    return RenderedTable(study.data[data].title, heads, cells, [*notes, *provenance(progress, data)], f"scores-{data}")


def _fitted(train: NDArray[np.float64], needed: float) -> str:
    """How many seeds fitted their training data; nothing where it is not asked for."""
    return f" ({sum(value >= needed for value in train)} fitted)" if len(train) and needed > 0 else ""


def _has_untrained(progress: StudyProgress, data: str) -> bool:
    return any(progress.is_trained(data, name) is False for name in progress.study.methods_on(data))


def _not_trained(progress: StudyProgress, data: str) -> str:
    """What `not trained` means on some data."""
    share = 100 * progress.study.share_on(data)
    return f"not trained: the mean training score is below {share:g} % of what the method can reach."


def _score(progress: StudyProgress, data: str, method: str) -> str:
    """`71.2 [68.0, 74.4]`, with what is to be said of its training; a dash without scores."""
    test = progress.tests(data, method)
    state = "" if progress.is_trained(data, method) is not False else " not trained"
    return f"{plain(mean_interval(test))}{state}" if len(test) else DASH


def plain(found: Interval) -> str:
    """`71.2 [68.0, 74.4]`, in per cent."""
    text = f"{100 * found.mean:.1f}"
    low, high = 100 * max(found.low, 0), 100 * min(found.high, 1)
    return text if found.low != found.low else f"{text} [{low:.1f}, {high:.1f}]"


def _count(value: float | None) -> str:
    return DASH if value is None else f"{value / 1e6:.3g} M" if value >= 1e6 else f"{value:,.0f}"


def _number(value: float | None) -> str:
    return DASH if value is None else f"{value:.3g}"


def provenance(progress: StudyProgress, data: str) -> list[str]:
    """Where the rows of some data come from; what is mixed is said."""
    rows = [row for row in progress.rows if row.data == data and row.stage != "cost"]
    files = {row.test_files for row in rows if row.test_files}
    notes = [f"Tested on {files.pop()} files."] if len(files) == 1 else []
    for what, values in (
        ("commit", {row.commit[:10] + (" with changes" if row.dirty == "True" else "") for row in rows}),
        ("manifest hash", {row.data_hash for row in rows if row.data_hash}),
        ("torch", {row.torch for row in rows}),
    ):
        if len(values) > 1:
            notes.append(f"The rows are of several versions of the {what}: {', '.join(sorted(values))}.")
        else:
            notes += [f"{what}: {value}." for value in values if value]
    if left_out := sum(row.data == data for row in progress.left_out):
        notes.append(f"{left_out} rows of other trainings, before the study or a recipe changed, are left out.")
    return notes


def overview(papers: Mapping[str, Sequence[Finding]]) -> RenderedTable:
    """The claims of several studies with their verdicts, one line each."""
    heads = [ColumnHeader("Paper"), ColumnHeader("Claim"), ColumnHeader("Verdict"), ColumnHeader("Measured here")]
    cells = [
        [paper, found.claim.claim, found.verdict_text(), found.text(most=2)]
        for paper, own in papers.items()
        for found in own
    ]
    counts = Counter(found.verdict for own in papers.values() for found in own)
    totals = ", ".join(f"{verdict}: {counts[verdict]}" for verdict in get_args(Verdict) if counts[verdict])
    return RenderedTable("Verdicts", heads, cells, [f"{len(cells)} claims. {totals}.", DIFFERENCES])


def differences(papers: Mapping[str, Sequence[Finding]]) -> list[plots.Difference]:
    """Every difference in scores that the claims of several studies compare, in points."""
    shown = []
    for paper, found in ((paper, found) for paper, own in papers.items() for found in own):
        for outcome in found.outcomes:
            if outcome.measure == "score" and outcome.found is not None:
                verdict = outcome.verdict if outcome.trained else "not trained"
                mean, low, high = (100 * value for value in (outcome.found.mean, outcome.found.low, outcome.found.high))
                label = outcome.label(found.progress)
                shown.append(plots.Difference(paper, label, mean, low, high, 100 * outcome.by, verdict))
    return shown


def as_text(found: Sequence[plots.Difference]) -> str:
    """The differences as text, a line for each; it is stored in the picture that shows them."""
    return "\n".join(f"{d.group}: {d.label}: {d.mean:+.1f} [{d.low:.1f}, {d.high:.1f}], {d.verdict}" for d in found)


def methods_table(progress: StudyProgress) -> RenderedTable:
    """Test scores with intervals, a row for each method and a column for each data."""
    study = progress.study
    heads = [
        ColumnHeader("Method"),
        *(ColumnHeader(own.title, kind="ours") for own in study.data.values()),
    ]
    cells = [
        [own.title, *(_score(progress, data, method) for data in study.data)] for method, own in study.methods.items()
    ]
    numbers = " or ".join(str(number) for number in sorted({len(study.seeds_on(data)) for data in study.data}))
    notes = [f"Test accuracy in per cent: mean of {numbers} seeds with its 95 % interval."]
    if any(_has_untrained(progress, data) for data in study.data):
        notes += dict.fromkeys(_not_trained(progress, data) for data in study.data)
    return RenderedTable(study.title, heads, cells, notes, "methods")


def all_tables(progress: StudyProgress) -> list[RenderedTable]:
    """The claims, the methods on all data where some are on several, and on each."""
    study = progress.study
    first = [claims_table(progress)] if study.claims else []
    shared = any(sum(name in study.methods_on(data) for data in study.data) > 1 for name in study.methods)
    first += [methods_table(progress)] if shared else []
    return [*first, *(score_table(progress, data) for data in study.data)]


def write_page(progress: StudyProgress, place: Place) -> Path:
    """Write `report/index.html` with plots below `place.out`; its path."""
    study = progress.study
    report = Report(study.title, study.text)
    report.section("Results")
    report.text(RULE)
    for table in all_tables(progress):
        report.table(table)
    report.section("Plots")
    for data in study.data:
        _plot_cost(report, progress, data)
        _plot_learning(report, progress, place, data)
    report.section("Reproduce")
    report.code(f"spectral compare {study.path}")
    return report.write(place.out / "report")


def _plot_cost(report: Report, progress: StudyProgress, data: str) -> None:
    points = []
    for name in progress.study.methods_on(data):
        scores = progress.tests(data, name)
        macs = progress.cost(data, name, "macs")
        if len(scores) and macs and progress.is_trained(data, name):
            title = progress.study.methods[name].title
            points.append(plots.Point(title, macs, float(scores.mean()), size=progress.cost(data, name, "params")))
    if points:
        figure = plots.accuracy_against_cost(points, f"{data}: test score against cost", "test score (%)")
        report.picture(figure, f"{data}-cost", "Methods that are trained; areas are parameters.")


def _plot_learning(report: Report, progress: StudyProgress, place: Place, data: str) -> None:
    curves = {}
    for name in progress.study.methods_on(data):
        for row in list(progress.scores(data, name).values())[:1]:
            file = place.training(row) / "fit.json"
            if file.is_file():
                points = json.loads(file.read_text(encoding="utf-8"))["curves"].get("train_loss", [])
                curves[progress.study.methods[name].title] = [(epoch, value) for epoch, value in points]
    curves = {name: points for name, points in curves.items() if points}
    if curves and len(curves) <= len(plots.COLOURS):
        figure = plots.learning_curves(curves, f"{data}: training loss", "loss")
        report.picture(figure, f"{data}-loss", "Mean training loss of every epoch with the chosen rate, first seed.")
