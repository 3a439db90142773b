"""``spectral compare STUDY.yaml``: compare methods by one protocol, and decide claims.

In Python and in notebooks: :func:`compare`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from rich.console import Console

from common.comparison import report
from common.comparison.rows import StudyProgress, read_rows
from common.comparison.runs import Place, estimate, run_study
from common.comparison.study import Study, StudyError, load
from common.reporting import plots, tables
from common.reporting.counting import ROOT
from common.reporting.results import replace_section
from common.training.arguments import compare_parser


def compare(
    study: str | Path | Study,
    out: str | Path | None = None,
    rows: str | Path | None = None,
    jobs: int = 1,
    tell: Callable[[str], None] = print,
) -> StudyProgress:
    """Run what is left of a study.

    Args:
        study: YAML file, see :mod:`common.comparison.study`, or what `load` made of it.
        out: folder of the trainings and of the report; `runs/compare/<folder>_<name>` by default.
        rows: CSV file that every finished training appends a row to; `rows.csv` in `out` by default.
        jobs: trainings at once, each in a process with its share of the cores.
        tell: is called with a line when something has ended.

    Returns:
        The rows, the chosen rates, and what :mod:`common.comparison.report` makes tables of; see `frame`.

    Raises:
        StudyError: the study is wrong.
    """
    study = study if isinstance(study, Study) else load(study)
    return run_study(study, _place(study, out, rows), jobs, tell)


def frame(progress: StudyProgress) -> pd.DataFrame:
    """The rows of a study as a table of pandas."""
    return pd.DataFrame([vars(row) for row in progress.rows])


def _place(study: Study, out: str | Path | None, rows: str | Path | None) -> Place:
    name = f"{study.path.resolve().parent.name}_{study.path.stem}"
    folder = Path("runs") / "compare" / name if out is None else Path(out)
    return Place(folder.resolve(), Path("runs/demo").resolve(), Path(rows) if rows else folder / "rows.csv")


def main(argv: list[str]) -> int:
    """The command; returns 0, or 1 if a training failed."""
    options = compare_parser().parse_args(argv)
    if options.jobs is None:
        options.jobs = 1 if torch.cuda.is_available() else os.cpu_count() or 1
    if options.jobs < 1:
        raise StudyError(f"--jobs is {options.jobs}; it must be at least 1")
    study = load(options.study, options.size)
    place = _place(study, options.out, options.rows)
    if options.dry_run:
        _print_plan(study, place, options.jobs)
        return 0
    if options.show:
        progress = StudyProgress(study, read_rows(place.rows))
    else:
        progress = run_study(study, place, options.jobs, lambda line: print(line, flush=True))
    console = Console() if sys.stdout.isatty() else Console(width=200)
    for table in report.all_tables(progress):
        console.print(tables.to_terminal(table))
    page = report.write_page(progress, place)
    console.print(f"Rows: {place.rows}\nReport: {page}", soft_wrap=True, markup=False, highlight=False)
    if options.readme:
        write_readme(progress, study.path.parent / "README.md")
        if study.path.resolve().is_relative_to(ROOT):
            write_overview(ROOT / "README.md", ROOT / "papers")
    return 1 if any(row.error and row.stage == "score" for row in progress.rows) else 0


def _print_plan(study: Study, place: Place, jobs: int) -> None:
    """What would run, and about how long."""
    progress = StudyProgress(study, read_rows(place.rows))
    left = progress.trainings_left()
    print(f"{left} trainings left, {len(progress.rows)} rows are there ({place.rows})")
    seconds = {}
    for data, method, each in estimate(study, place, print):
        seconds[data, method] = each
        print(f"  {data} {method}: about {each:.0f} s a training")
    if seconds:
        mean = sum(seconds.values()) / len(seconds)
        print(f"about {left * mean / jobs / 60:.0f} minutes with {jobs} at once, without testing")


def write_readme(progress: StudyProgress, path: Path) -> None:
    """Put the tables between the markers `claims: begin` and `claims: end` of a README.

    Raises ResultError if it has none.
    """
    replace_section(path, "claims", "\n\n".join(tables.to_markdown(table) for table in report.all_tables(progress)))


def write_overview(readme: Path, papers: Path) -> None:
    """Put the verdicts on the claims of all folders below `papers` between the markers `evidence` of a README, and the
    study across papers between those named `operators`. The picture `claims.png` in `papers` shows the differences.
    """
    findings = {name: report.findings(progress) for name, progress in finished_studies(papers).items()}
    replace_section(readme, "evidence", tables.to_markdown(report.overview(findings)))
    found = report.differences(findings)
    figure = plots.differences(found, report.XLABEL)
    figure.savefig(papers / "claims.png", dpi=110, metadata={"Description": report.as_text(found)})
    replace_section(readme, "operators", tables.to_markdown(report.methods_table(study_of_operators())))


def study_of_operators() -> StudyProgress:
    """The study of the papers' operators in one network, with its stored rows."""
    folder = Path(__file__).parent / "operators"
    return StudyProgress(load(folder / "study.yaml"), read_rows(folder / "results.csv"))


def finished_studies(papers: Path) -> dict[str, StudyProgress]:
    """Folder name -> study, of the folders below `papers` that have a `claims.csv`."""
    files = sorted(papers.glob("*/claims.csv"))
    return {path.parent.name: StudyProgress(load(path.with_suffix(".yaml")), read_rows(path)) for path in files}
