"""Measured rows: one per tested network, made from the `result.json` that `spectral test` writes.

They live in `results.csv`, which only programs write: a file is replaced as a whole, so it is never half-written, and
a result that is in it already is not added again.
"""

from __future__ import annotations

import csv
import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.output_files import written_whole

_FACTS = ("kind", "params", "videos", "videos_expected", "views", "seed", "commit", "dirty", "manifest_hash", "created")
_NOT_METRICS = {*_FACTS, "duration_s", "clips_per_s", "repeated_views"}


class ResultError(ValueError):
    """A result file cannot be read; the message names it."""


class ReproduceError(ValueError):
    """A row could not be computed, trained or tested."""


@dataclass(frozen=True)
class Result:
    """A measured row.

    Attributes:
        run_id: hash of the result file.
        entry: ledger id, e.g. `table2/t-stft-16f`.
        dataset: the recipe's data set, as in the ledger; "" for the demo.
        metrics: by name, e.g. `top1`; accuracies are fractions.
        facts: kind (video or image), parameters, videos, seed, commit, ... as in `result.json`; None where unknown.
        config: the resolved recipe.
    """

    run_id: str
    entry: str
    dataset: str
    metrics: dict[str, float]
    facts: dict[str, Any]
    config: dict[str, Any] = field(default_factory=dict, compare=False)

    @property
    def videos(self) -> str:
        """`160 of 160 videos`, or images."""
        return f"{self.facts['videos']} of {self.facts['videos_expected']} {self.facts['kind']}s"


def from_json(path: str | Path, entry: str, dataset: str = "") -> Result:
    """Read the `result.json` of a test run. Raises ResultError if it is not one."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        content = json.loads(text)
        metrics = {
            key: float(value)
            for key, value in content.items()
            if key not in _NOT_METRICS and isinstance(value, int | float) and not isinstance(value, bool)
        }
    except (OSError, ValueError, AttributeError) as error:
        raise ResultError(f"{path}: not a result file ({error})") from error
    facts = {key: content.get(key) for key in (*_FACTS, "duration_s")}
    run_id = hashlib.sha256(text.encode()).hexdigest()[:16]
    return Result(run_id, entry, dataset, metrics, facts, content.get("config") or {})


def read(path: str | Path) -> list[Result]:
    """All rows of a `results.csv`, oldest first; none if there is no such file. Raises ResultError for a bad row."""
    path = Path(path)
    if not path.exists():
        return []
    results = []
    with path.open(newline="", encoding="utf-8") as file:
        reader = csv.DictReader(file)
        for row in reader:
            row.setdefault("kind", '"video"')  # a column younger than some files
            try:
                metrics = {k.removeprefix("metric_"): float(v) for k, v in row.items() if k.startswith("metric_") and v}
                facts = {key: json.loads(row[key]) for key in (*_FACTS, "duration_s")}
                config = json.loads(row["config"])
                results.append(Result(row["run_id"], row["entry"], row["dataset"], metrics, facts, config))
            except (KeyError, ValueError, TypeError, AttributeError) as error:
                raise ResultError(f"{path}:{reader.line_num}: not a result row ({error!r})") from error
    return results


def append(path: str | Path, results: Iterable[Result]) -> list[Result]:
    """Add results to a `results.csv` unless they are in it; returns all its rows."""
    rows = {(r.run_id, r.entry, r.dataset): r for r in [*read(path), *results]}
    metrics = sorted({name for r in rows.values() for name in r.metrics})
    columns = ["run_id", "entry", "dataset", *(f"metric_{m}" for m in metrics), *_FACTS, "duration_s", "config"]
    with written_whole(path) as file:
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        for r in rows.values():
            writer.writerow(
                {"run_id": r.run_id, "entry": r.entry, "dataset": r.dataset}
                | {f"metric_{k}": repr(v) for k, v in r.metrics.items()}
                | {k: json.dumps(v) for k, v in r.facts.items()}
                | {"config": json.dumps(r.config)}
            )
    return list(rows.values())


def replace_section(path: Path, name: str, content: str) -> None:
    """Put text between the lines `<!-- name: begin ... -->` and `<!-- name: end -->` of a Markdown file.

    Raises ResultError if it has no such lines.
    """
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(f"<!-- {name}: begin")
    marker, _, rest = rest.partition("\n")
    _, end, after = rest.partition(f"<!-- {name}: end -->")
    if not begin or not end:
        raise ResultError(f"{path}: no lines '<!-- {name}: begin ... -->' and '<!-- {name}: end -->'")
    with written_whole(path) as file:
        file.write(f"{before}{begin}{marker}\n\n{content}\n\n{end}{after}")
