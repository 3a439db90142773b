"""The pages of a training and of a test, and what stands on them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import pytest
from torch.utils.tensorboard import SummaryWriter

from common.reporting.page import Report
from common.reporting.runs import read_curves
from common.training.cli import main
from common.training.run_page import add_mistakes


def test_a_training_and_a_test_have_pages(recipe: Any, capsys: pytest.CaptureFixture[str]) -> None:
    config = ["--config", recipe(), "--page", "true"]
    assert main(["fit", *config]) == 0
    assert main(["test", *config, "--ckpt_path", "last"]) == 0
    printed = capsys.readouterr().out
    pages = [Path(found) for found in re.findall(r"\S+page/index\.html", printed)]
    assert len(pages) == 2
    curves, test = (page.read_text(encoding="utf-8") for page in pages)
    assert "Learning curves" in curves
    assert 'alt="loss by epoch"' in curves
    assert "hp_metric" not in curves
    for section in ("Scores", "Classes", "Mistakes", "Confusion matrix"):
        assert f">{section}</" in test
    assert "http" not in re.sub(r"http://www\.w3\.org\S*", "", test), "nothing is loaded from elsewhere"
    links = re.findall(r'href="(file:[^"]+)"', test)
    assert all(Path(unquote(urlparse(link).path)).is_file() for link in links)


def test_mistakes_are_ranked_linked_and_escaped(tmp_path: Path) -> None:
    rows = [{"path": f"a {i}.mp4", "label": "<b>", "top1": "run", "p1": i / 10} for i in range(7)]
    rows += [{"path": "b.mp4", "label": "run", "top1": "<b>", "p1": 0.9}]
    rows += [{"path": "good.mp4", "label": "run", "top1": "run", "p1": 0.9}]
    report = Report("Test")
    add_mistakes(report, rows, tmp_path)
    page = report.write(tmp_path / "page").read_text(encoding="utf-8")
    assert "<b>" not in page
    assert page.index("&lt;b&gt;</strong> taken for <strong>run</strong>: 7") < page.index(": 1</p>")
    assert [int(found) for found in re.findall(r">a (\d)\.mp4", page)] == [6, 5, 4, 3, 2]
    assert f'href="{(tmp_path / "a 6.mp4").as_uri()}"' in page
    assert "good.mp4" not in page
    empty = Report("Test")
    add_mistakes(empty, rows[-1:], None)
    assert "There are none." in empty.write(tmp_path / "none").read_text(encoding="utf-8")


def test_curves_have_one_value_an_epoch(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(6):
            writer.add_scalar("epoch", step // 3, step)
            writer.add_scalar("clips_per_s", 10.0 * step, step)
    assert read_curves(tmp_path) == {"clips_per_s": [(1, 10.0), (2, 40.0)]}
