"""`make report`: one page with the claims, counts and tables of all papers; trains nothing.

    python -m common.comparison.papers_page [--papers DIR] [--out DIR]

Networks are counted, unless `reproduce` has done it before. What the demos gave stands in the report of each paper.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from common.comparison import report
from common.comparison.command import finished_studies, study_of_operators
from common.reporting import tables
from common.reporting.counting import ROOT, count_rows
from common.reporting.ledger import Ledger, load
from common.reporting.page import EXPLANATION, Report
from common.reporting.results import read


def write_papers_page(papers: Path, out: Path, jobs: int = 1) -> Path:
    """Write the page of the papers' folders below `papers` to `out/report/index.html`; returns its path.

    Args:
        papers: folder of the papers' folders.
        out: folder that `reproduce` writes to, `<out>/<paper>`; counts are read and kept there.
        jobs: processes that count.
    """
    ledgers = [load(path) for path in sorted(papers.glob("*/ledger.yaml"))]
    page = Report(
        "Video networks in the frequency domain",
        "The claims of the papers as they were tested here, and every row of their tables next to what was counted.",
    )
    studies = finished_studies(papers)
    page.section("Claims")
    page.table(report.overview(studies))
    page.table(report.methods_table(study_of_operators()))
    for ledger in ledgers:
        tested = report.all_tables(studies[ledger.paper])[1:] if ledger.paper in studies else []
        _add_paper(page, ledger, tested, out, jobs)
    return page.write(out / "report")


def _add_paper(page: Report, ledger: Ledger, tested: Sequence[tables.RenderedTable], out: Path, jobs: int) -> None:
    page.section(f"{ledger.paper}: {ledger.title}")
    own = out / ledger.paper / "report" / "index.html"
    if own.is_file():
        page.link(
            "The report of this paper, with its figures and what its demo gave", os.path.relpath(own, out / "report")
        )
    else:
        page.text(f"Figures and demo: `make reproduce PAPER={ledger.paper}`.")
    for table in tested:
        page.table(table)
    ids = [row.id for _, row in ledger.rows()]
    counts = count_rows(ledger, ids, out / ledger.paper / "complexity.json", jobs=jobs)
    page.table(tables.summary_table(ledger, counts))
    page.text(EXPLANATION)
    results = read(ledger.folder / "results.csv")
    for own_table in ledger.tables:
        page.table(tables.paper_table(ledger, own_table, counts, results))
    page.table(tables.status_table(ledger))


def main(argv: Sequence[str] | None = None) -> None:
    """Write the page and print where it is."""
    parser = argparse.ArgumentParser(prog="python -m common.comparison.papers_page", description=__doc__)
    parser.add_argument("--papers", type=Path, default=ROOT / "papers", help="default: %(default)s")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes that count (default: %(default)s)"
    )
    options = parser.parse_args(argv)
    print(f"Report: {write_papers_page(options.papers, options.out, options.jobs).resolve()}")


if __name__ == "__main__":
    main()
