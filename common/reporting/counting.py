"""Parameters and multiply-adds of the networks of a ledger."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from common.evaluation.complexity import Complexity
from common.reporting.ledger import Ledger, RowNetwork
from common.reporting.results import written_whole

ROOT = Path(__file__).resolve().parents[2]


def source_hash(*folders: Path, exclude: Path | None = None) -> str:
    """Hash of all Python sources below the folders, except those below `exclude`."""
    digest = hashlib.sha256()
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if exclude is None or exclude not in path.parents:
                digest.update(str(path.relative_to(ROOT) if ROOT in path.parents else path).encode())
                digest.update(path.read_bytes())
    return digest.hexdigest()


class Counter:
    """Counts networks once; the counts are kept in a file until a source changes."""

    def __init__(self, ledger: Ledger, cache: Path | None = None) -> None:
        self.ledger, self.cache = ledger, cache
        self.key = (
            source_hash(ROOT / "common", ledger.folder, exclude=ROOT / "common" / "reporting") + torch.__version__
        )
        self.known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            stored = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
            self.known = stored["counts"] if stored["key"] == self.key else {}

    def name(self, spec: RowNetwork) -> str:
        network = self.ledger.network(spec)
        about = [network.function, network.arguments, network.classes]
        return json.dumps([*about, spec.input, spec.complex_weight, spec.counter])

    def count(self, spec: RowNetwork) -> Complexity:
        if spec.baseline:  # the base of many rows is counted once
            return self.count(replace(spec, baseline=None)).over(
                self.count(replace(spec, network=spec.baseline, baseline=None))
            )
        name = self.name(spec)
        if name not in self.known:
            self.known[name] = self.ledger.complexity(spec).to_dict() | {"by_module": {}}
        return Complexity(**self.known[name])

    def save(self) -> None:
        if self.cache:
            with written_whole(self.cache) as file:
                json.dump({"key": self.key, "counts": self.known}, file)


def count_rows(
    ledger: Ledger, ids: Sequence[str], cache: Path | None = None, counted: Callable[[int, int], None] = lambda *_: None
) -> dict[str, dict[str, Complexity]]:
    """Row id -> label -> complexity, for the rows among `ids` that have networks.

    `counted` is called with the number of networks counted so far and that of all.
    """
    rows = [row for _, row in ledger.rows() if row.id in ids and row.networks]
    counter = Counter(ledger, cache)
    total, done = sum(len(row.networks) for row in rows), 0
    counts: dict[str, dict[str, Complexity]] = {}
    try:
        for row in rows:
            counts[row.id] = {}
            for label, spec in row.networks.items():
                counts[row.id][label] = counter.count(spec)
                done += 1
                counted(done, total)
    finally:
        counter.save()
    return counts


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
