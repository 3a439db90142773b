"""One HTML page about a run, with ``--page true``: the learning curves of a training, the mistakes of a test."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from common.reporting import plots
from common.reporting.page import Report
from common.reporting.runs import read_curves
from common.reporting.tables import ColumnHeader, RenderedTable

PAIRS = 10  # of classes taken for one another that are shown
FILES = 5  # of a pair that are linked


def training_page(run: Path) -> Path | None:
    """The curves that a training logged, a plot for each quantity; None if it logged nothing."""
    curves = {name: points for name, points in read_curves(run).items() if points}
    if not curves:
        return None
    report = Report(f"Training of {run.parent.name}", str(run))
    report.section("Learning curves")
    groups: dict[str, dict[str, Any]] = {}
    for name, points in curves.items():
        groups.setdefault(name.removeprefix("train_").removeprefix("val_"), {})[name] = points
    for quantity, group in sorted(groups.items(), key=lambda item: (item[0] != "loss", item[0].startswith("lr"))):
        title = quantity.replace("_per_s", " per second").replace("_", " ")
        report.picture(plots.learning_curves(group, title, title), f"curve-{quantity}", f"{title} by epoch")
    return report.write(run / "page")


def result_page(
    run: Path, result: Mapping[str, Any], scores: Sequence[tuple[str, str]], module: Any, root: Any
) -> Path:
    """The scores of a test or validation and what its task adds.

    Args:
        run: folder of the run, in which the folder `page` is made.
        result: content of result.json.
        scores: names and values as they are printed.
        module: the tested module; its `describe_result` adds to the page.
        root: folder of the files, for links; None: there are none.
    """
    facts = {
        "Checkpoint": str(result["checkpoint"]),
        "Files": f"{result['videos']} of {result['videos_expected']}",
        "Views of each": str(result["views"]),
        "Commit": f"{result['commit']}{' with changes' if result['dirty'] else ''}",
        "Created": str(result["created"]),
    }
    report = Report(f"{str(result['stage']).capitalize()} of {run.parent.name}", str(run), facts)
    report.section("Scores")
    heads = [ColumnHeader("Score"), ColumnHeader("Value", kind="ours")]
    report.table(RenderedTable("All files", heads, [list(pair) for pair in scores]))
    module.describe_result(report, None if root is None else Path(root))
    return report.write(run / "page")


def add_files(report: Report, files: Sequence[tuple[str, str]], root: Path | None) -> None:
    """Files, each a path and a text; links to the paths below `root`, unless it is None."""
    for path, text in files:
        if root is None:
            report.text(text)
        else:
            report.link(text, (root / path).resolve().as_uri())


def add_figures(report: Report, figures: Mapping[str, Any]) -> None:
    """A section for each figure."""
    for name, figure in figures.items():
        report.section(name.capitalize())
        report.picture(figure, name.replace(" ", "-"), name.capitalize())


def add_classes(report: Report, classes: Sequence[Mapping[str, Any]], kind: str) -> None:
    """Accuracy by class, and the pairs of classes that are confused most; rows of `VideoResult.class_table`."""
    report.section("Classes")
    heads = [ColumnHeader("Class"), *(ColumnHeader(name, kind="ours") for name in (f"{kind}s", "top 1 (%)"))]
    heads += [ColumnHeader("most often taken for"), ColumnHeader("times", kind="ours")]
    ranked = sorted(classes, key=lambda row: row["top1"] if row["videos"] else 2.0)
    cells = []
    for row in ranked:
        top1 = f"{100 * row['top1']:.1f}" if row["videos"] else "–"
        cells.append([row["class"], str(row["videos"]), top1, row["mistaken_for"] or "–", str(row["times"])])
    report.table(RenderedTable("From the worst to the best", heads, cells))


def add_mistakes(report: Report, rows: Sequence[Mapping[str, Any]], root: Path | None) -> None:
    """The pairs of classes that are confused most, with links to the files of which the network was surest.

    Args:
        rows: predictions, with `path`, `label`, `top1` and `p1`.
        root: folder of the files; None: no links.
    """
    pairs: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["label"] != row["top1"]:
            pairs.setdefault((row["label"], row["top1"]), []).append(row)
    report.section("Mistakes")
    if not pairs:
        report.text("There are none.")
    ranked = sorted(pairs.items(), key=lambda pair: (-len(pair[1]), pair[0]))
    for (label, taken), wrong in ranked[:PAIRS]:
        report.text(f"**{label}** taken for **{taken}**: {len(wrong)}")
        surest = sorted(wrong, key=lambda row: -row["p1"])[:FILES]
        add_files(report, [(row["path"], f"{row['path']} ({100 * row['p1']:.0f} %)") for row in surest], root)
    if len(ranked) > PAIRS:
        report.text(f"{len(ranked) - PAIRS} more pairs are in predictions.csv.")
