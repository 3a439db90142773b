"""The page of all papers."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from common.comparison import papers_page
from tests.common.reporting.conftest import LEDGER, RECIPE

ROOT = Path(__file__).resolve().parents[3]


def test_every_paper_with_its_claims_and_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    papers, out = tmp_path / "papers", tmp_path / "runs"
    # One paper with claims, whose networks take long to count, and one with a table.
    shutil.copytree(ROOT / "papers" / "stft2d", papers / "stft2d", ignore=shutil.ignore_patterns("ledger.yaml"))
    (papers / "tiny" / "recipes").mkdir(parents=True)
    (papers / "tiny" / "ledger.yaml").write_text(LEDGER)
    (papers / "tiny" / "recipes" / "demo.yaml").write_text(RECIPE)
    (out / "tiny" / "report").mkdir(parents=True)
    (out / "tiny" / "report" / "index.html").touch()
    readme = tmp_path / "README.md"
    readme.write_text("before\n<!-- counts: begin -->\n<!-- counts: end -->\nafter\n")
    papers_page.main(["--papers", str(papers), "--out", str(out), "--jobs", "1", "--readme"])
    path = out / "report" / "index.html"
    assert str(path) in capsys.readouterr().out
    page = path.read_text(encoding="utf-8")
    for text in (
        "Verdicts",
        "At an equal number of parameters they need fewer multiply-adds and less time.",
        'href="../tiny/report/index.html"',
        "A tiny paper",
        "Counted here, next to the paper",
        "Every row and figure of the paper",
    ):
        assert text in page
    assert "http" not in page.replace("http-equiv", "")  # nothing is loaded from elsewhere
    assert (out / "tiny" / "complexity.json").is_file()
    (line,) = [line for line in readme.read_text().splitlines() if line.startswith("| tiny")]
    assert line == "| tiny | 1 | 2 | 1 | 1 | 1 | 1 |"  # 36 parameters next to 0.04K, and 32 multiply-adds as printed
