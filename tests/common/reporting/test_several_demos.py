"""A paper with two demos: other scores and columns, a training after another."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from matplotlib.figure import Figure

from common.reporting.ledger import LedgerError, load
from common.reporting.reproduce import main
from common.reporting.results import read
from common.reporting.runs import Job

SECOND = """\
  - id: demo-more
    title: The same motions again
    text: A network that goes on from another, scored by its loss.
    data: [motion, --size, "32", --frames, "8", --train, "3", --val, "2", --test, "2", --classes, move_left, move_right]
    recipe: demo.yaml
    score: mean_class
    columns: [{key: top5, name: Top five, measure: top5}, {key: loss, name: Loss, measure: loss}]
    rows:
      - {id: demo-more/first, name: First, table_row: table1/a}
      - {id: demo-more/second, name: Second, table_row: table1/a, starts_from: demo-more/first,
         overrides: [--model.pretrained, "{starts_from}/last.ckpt"]}
"""


@pytest.fixture
def two(paper: Path) -> Path:
    (paper / "ledger.yaml").write_text((paper / "ledger.yaml").read_text() + SECOND)
    return paper


@pytest.mark.slow
@pytest.mark.parametrize("jobs", ["1", "2"])
def test_both_are_trained_and_shown(
    jobs: str, two: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "runs" / "tiny"
    seen: list[Job] = []

    def curve(job: Job | None) -> Figure:
        assert job is not None
        seen.append(job)
        return Figure(figsize=(1, 1))

    monkeypatch.setitem(sys.modules, "drawn", SimpleNamespace(curve=curve))
    assert main(two, "drawn", ["--out", str(out), "--epochs", "1", "--jobs", jobs]) == 0
    entries = [row.entry for row in read(out / "results.csv")]
    assert entries == ["demo/one", "demo/two", "demo-more/first", "demo-more/second"]
    first, second = (next((out / "demo-more" / name).iterdir()) for name in ("first", "second"))
    start = json.loads((second / "result.json").read_text())["config"]["model"]["init_args"]["pretrained"]
    assert Path(start).parent.parent.parent == first
    assert [[run.entry for run in runs.rows] for runs in seen[0].demos] == [entries[:2], entries[2:]]
    assert seen[0].data("demo-more") == seen[0].data() == out.parent / "demo" / "motion"

    page = (out / "report" / "index.html").read_text()
    assert "Demo, measured here: The same motions again" in page
    assert (out / "report" / "demo-more-cost.png").is_file()
    printed = capsys.readouterr().out
    line = next(line for line in printed.splitlines() if "Second" in line)
    metrics = read(out / "results.csv")[-1].metrics
    assert [cell.strip() for cell in line.split("│")[2:4]] == [f"{metrics['top5']:.2f}", f"{metrics['loss']:.2f}"]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("demo-more/second", "demo/second", "the id must begin with demo-more/"),
        ("starts_from: demo-more/first", "starts_from: demo/one", "there is no demo row demo/one before this one"),
        ("{starts_from}/last.ckpt", "x", "must go together"),
    ],
)
def test_mistakes_are_named(two: Path, old: str, new: str, message: str) -> None:
    path = two / "ledger.yaml"
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(LedgerError, match=message):
        load(path)
