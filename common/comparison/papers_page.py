"""`make report`: one page with the claims, counts and tables of all papers; trains nothing.

    python -m common.comparison.papers_page [--papers DIR] [--out DIR] [--readme]

Networks are counted, unless `reproduce` has done it before. What the demos gave stands in the report of each paper.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from common.comparison import report
from common.comparison.command import finished_studies, study_of_operators
from common.evaluation.complexity import Complexity
from common.reporting import plots, tables
from common.reporting.counting import ROOT, count_rows
from common.reporting.ledger import Ledger, load
from common.reporting.page import EXPLANATION, Report
from common.reporting.results import read, replace_section


def write_papers_page(papers: Path, out: Path, jobs: int = 1, readme: Path | None = None) -> Path:
    """Write the page of the papers' folders below `papers` to `out/report/index.html`; returns its path.

    Args:
        papers: folder of the papers' folders.
        out: folder that `reproduce` writes to, `<out>/<paper>`; counts are read and kept there.
        jobs: processes that count.
        readme: file that gets the overview of the counts, between its markers `counts`.
    """
    ledgers = [load(path) for path in sorted(papers.glob("*/ledger.yaml"))]
    page = Report(
        "Video networks in the frequency domain",
        "The claims of the papers as they were tested here, and every row of their tables next to what was counted.",
    )
    studies = finished_studies(papers)
    page.section("Claims")
    findings = {name: report.findings(progress) for name, progress in studies.items()}
    page.table(report.overview(findings))
    caption = "Every difference that the claims compare, with its 95 % interval; the tick is the smallest that counts."
    page.picture(plots.differences(report.differences(findings), report.XLABEL), "claims", caption)
    page.table(report.methods_table(study_of_operators()))
    counts = {
        ledger.paper: (ledger, count_rows(ledger, ledger.select([]), out / ledger.paper / "complexity.json", jobs=jobs))
        for ledger in ledgers
    }
    page.section("Counts")
    overview = tables.counts_overview(counts)
    page.table(overview)
    if readme is not None:
        replace_section(readme, "counts", tables.to_markdown(overview))
    for ledger in ledgers:
        tested = report.all_tables(studies[ledger.paper])[1:] if ledger.paper in studies else []
        _add_paper(page, ledger, tested, counts[ledger.paper][1], out)
    return page.write(out / "report")


def _add_paper(
    page: Report,
    ledger: Ledger,
    tested: Sequence[tables.RenderedTable],
    counts: Mapping[str, Mapping[str, Complexity]],
    out: Path,
) -> None:
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
    parser.add_argument("--readme", action="store_true", help="also write the overview of the counts to README.md")
    options = parser.parse_args(argv)
    readme = options.papers.parent / "README.md" if options.readme else None
    print(f"Report: {write_papers_page(options.papers, options.out, options.jobs, readme).resolve()}")


if __name__ == "__main__":
    main()
