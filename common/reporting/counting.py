"""Parameters and multiply-adds of the networks of a ledger."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from pathlib import Path
from typing import Any

import torch

from common.evaluation.complexity import Complexity
from common.output_files import written_whole
from common.reporting.ledger import Ledger, RowNetwork
from common.reporting.workers import pool

ROOT = Path(__file__).resolve().parents[2]


def source_hash(paper: Path) -> str:
    """Hash of the Python sources that networks and trainings depend on: those of a paper, and of `common` but for what
    reports and compares."""
    digest = hashlib.sha256()
    for folder in (ROOT / "common", paper):
        for path in sorted(folder.rglob("*.py")):
            if not {ROOT / "common" / "reporting", ROOT / "common" / "comparison"} & set(path.parents):
                digest.update(str(path.relative_to(ROOT) if ROOT in path.parents else path).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


def _counted(ledger: Ledger, spec: RowNetwork) -> dict[str, Any]:
    return ledger.count(spec).to_dict() | {"by_module": {}}


class Counter:
    """Counts networks once; the counts are kept in a file until a source changes."""

    def __init__(self, ledger: Ledger, cache: Path | None = None) -> None:
        self.ledger, self.cache = ledger, cache
        self.key = source_hash(ledger.folder) + torch.__version__
        self.known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            stored = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
            self.known = stored["counts"] if stored["key"] == self.key else {}

    def name(self, spec: RowNetwork) -> str:
        network = self.ledger.network(spec)
        about = [network.function, network.arguments, network.classes]
        return json.dumps([*about, spec.input, spec.counter])

    def count_all(self, specs: Sequence[RowNetwork], jobs: int, counted: Callable[[int, int], None]) -> None:
        """Count what is not known of these networks and of those that they are compared with, in `jobs` processes."""
        parts = [part for spec in specs for part in spec.parts()]
        missing = {name: part for part in parts if (name := self.name(part)) not in self.known}
        jobs = min(jobs, len(missing) // 8)  # starting a process takes as long as counting some networks
        for done, (name, found) in enumerate(self._counts(missing, jobs), 1):
            self.known[name] = found
            counted(done, len(missing))

    def _counts(self, missing: Mapping[str, RowNetwork], jobs: int) -> Iterator[tuple[str, dict[str, Any]]]:
        if jobs < 2:
            for name, part in missing.items():
                yield name, _counted(self.ledger, part)
            return
        with pool(jobs) as workers:
            futures = {workers.submit(_counted, self.ledger, part): name for name, part in missing.items()}
            try:
                for future in as_completed(futures):
                    yield futures[future], future.result()
            except BaseException:
                workers.shutdown(wait=False, cancel_futures=True)
                raise

    def count(self, spec: RowNetwork) -> Complexity:
        """The counts of a network, over those of its baseline if it has one. `count_all` has counted both."""
        return self.ledger.complexity(spec, lambda part: Complexity(**self.known[self.name(part)]))

    def save(self) -> None:
        if self.cache:
            with written_whole(self.cache) as file:
                json.dump({"key": self.key, "counts": self.known}, file)


def count_rows(
    ledger: Ledger,
    ids: Sequence[str],
    cache: Path | None = None,
    counted: Callable[[int, int], None] = lambda *_: None,
    jobs: int = 1,
) -> dict[str, dict[str, Complexity]]:
    """Row id -> label -> complexity, for the rows among `ids` that have networks, counted in `jobs` processes.

    `counted` is called with the number of networks counted so far and that of all that were not known.
    """
    rows = [row for _, row in ledger.rows() if row.id in ids and row.networks]
    counter = Counter(ledger, cache)
    try:
        counter.count_all([spec for row in rows for spec in row.networks.values()], jobs, counted)
    finally:
        counter.save()
    return {row.id: {label: counter.count(spec) for label, spec in row.networks.items()} for row in rows}


def complexity_records(ledger: Ledger, counts: Mapping[str, Mapping[str, Complexity]]) -> list[dict[str, Any]]:
    """One record a row: the numbers of its first network next to the paper's, and those of all its networks."""
    records = []
    for table, row in ledger.rows():
        if row.id not in counts:
            continue
        paper = {m: c.value(row.paper[c.key]) for m in ("params", "macs") if (c := table.column(m))}
        label, first = next(iter(counts[row.id].items()))
        records.append(
            {
                "row": row.id,
                "name": row.name,
                "params": first.params,
                "paper_params": _whole(paper.get("params")),
                "macs_paper_convention": first.macs_paper,
                "macs_full": first.macs_full,
                "paper_macs": _whole(paper.get("macs")),
                "network": label,
                "networks": {
                    label: {
                        "function": ledger.network(row.networks[label]).function,
                        "arguments": ledger.network(row.networks[label]).arguments,
                        "input": row.networks[label].input,
                        "params": c.params,
                        "fixed_values": c.fixed_values,
                        "macs_paper_convention": c.macs_paper,
                        "macs_full": c.macs_full,
                    }
                    for label, c in counts[row.id].items()
                },
            }
        )
    return records


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)
