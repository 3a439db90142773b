"""Result rows: read from result.json, kept in results.csv."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from common.output_files import written_whole
from common.reporting.results import Result, ResultError, append, from_json, read

CONTENT = {
    "top1": 0.75,
    "loss": 0.5,
    "kind": "video",
    "videos": 8,
    "videos_expected": 8,
    "views": 1,
    "average": "probabilities",
    "params": 123,
    "seed": 3,
    "commit": None,
    "dirty": False,
    "manifest_hash": "abc",
    "config": {"model": {"init_args": {"width": 0.25}}},
    "created": "2026-11-21T00:00:00+00:00",
    "duration_s": 1.5,
    "clips_per_s": 5.3,
    "versions": {"torch": "2.15"},
    "stage": "test",
}


def result(folder: Path, entry: str = "demo/a", dataset: str = "", **changes: object) -> Result:
    path = folder / "result.json"
    path.write_text(json.dumps(CONTENT | changes))
    return from_json(path, entry, dataset)


def test_round_trip(tmp_path: Path) -> None:
    first = result(tmp_path)
    assert first.metrics == {"top1": 0.75, "loss": 0.5}
    assert first.facts["seed"] == 3
    assert first.facts["commit"] is None
    assert first.videos == "8 of 8 videos"
    path = tmp_path / "deep" / "results.csv"
    assert read(path) == []
    append(path, [first])
    (stored,) = read(path)
    assert stored == first
    assert stored.config == CONTENT["config"]


def test_a_result_is_added_once(tmp_path: Path) -> None:
    path = tmp_path / "results.csv"
    first, second = result(tmp_path), result(tmp_path, "table1/a", "real", top1=0.5, mean_class=0.4)
    append(path, [first])
    assert len(append(path, [first, second, second])) == 2
    assert [r.entry for r in read(path)] == ["demo/a", "table1/a"]
    assert "mean_class" not in read(path)[0].metrics  # missing, not zero
    assert read(path)[1].metrics["mean_class"] == 0.4
    assert len(append(path, [first])) == 2


def test_nothing_is_half_written(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    path.write_text("old")

    def write() -> None:
        with written_whole(path) as file:
            file.write("new, but not all of it")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_what_is_no_result(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("[1, 2")
    with pytest.raises(ResultError, match=r"result\.json: not a result file"):
        from_json(tmp_path / "result.json", "demo/a")
    (tmp_path / "results.csv").write_text("run_id,entry\n1,2\n")
    with pytest.raises(ResultError, match=r"results\.csv:2: not a result row"):
        read(tmp_path / "results.csv")
