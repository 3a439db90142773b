"""The rows of a study: one for each finished training, appended to a CSV file as it ends."""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from common.comparison.study import Study, StudyError


@dataclass(frozen=True)
class StudyRow:
    """A finished training, or one that is to be done, whose results are empty.

    Attributes:
        data, method: of the study.
        stage: `rate` for a training that a learning rate is chosen by, scored on the validation data; `score` for one
            that is tested; `cost` for times and memory.
        seed, rate: of the training.
        train, val, test: scores; train and test with the last weights, on the data without augmentation.
        params, macs: of the network; all multiply-adds of one input.
        infer_ms, train_ms: time of one input, and of a training step with two, with the methods taking turns.
        infer_mb, train_mb: most memory that they take.
        seconds: of training and testing.
        error: why the training failed; empty if it did not.
        correct: for every test file in the order of their names whether it was right, in hexadecimal.
        test_files: their number.
        key: of what the study says of the training, see `Study.key`.
        data_hash: of the manifest: files, labels and splits, not what is in the files.
        commit, dirty, torch, created: of the program.
    """

    data: str
    method: str
    stage: str
    seed: int
    rate: float
    key: str
    train: float | None = None
    val: float | None = None
    test: float | None = None
    params: int | None = None
    macs: int | None = None
    infer_ms: float | None = None
    train_ms: float | None = None
    infer_mb: float | None = None
    train_mb: float | None = None
    seconds: float | None = None
    test_files: int | None = None
    data_hash: str = ""
    commit: str = ""
    dirty: str = ""
    torch: str = ""
    created: str = ""
    error: str = ""
    correct: str = ""

    def outcomes(self) -> np.ndarray | None:
        """Whether each test file was right, (N,) of 0 and 1; None where files have no right or wrong."""
        if not self.correct or not self.test_files:
            return None
        bits = np.unpackbits(np.frombuffer(bytes.fromhex(self.correct), dtype=np.uint8))
        if not 0 <= len(bits) - self.test_files < 8:
            raise ValueError(f"correct has {len(bits)} bits for {self.test_files} files")
        return bits[: self.test_files].astype(float)


def pack(correct: Sequence[bool]) -> str:
    """Outcomes as `StudyRow.correct`."""
    return np.packbits(np.asarray(correct, dtype=np.uint8)).tobytes().hex()


_NAMES = [field.name for field in fields(StudyRow)]
_KINDS: dict[str, Any] = {field.name: str(field.type).partition(" ")[0] for field in fields(StudyRow)}


def read_rows(path: str | Path) -> list[StudyRow]:
    """Rows of a file, oldest first; none if there is no file. A last line that a kill cut off is left out.

    Raises StudyError for a line that is not a row.
    """
    path = Path(path)
    if not path.exists():
        return []
    rows: list[StudyRow] = []
    try:
        text = path.read_text(encoding="utf-8")
        lines = text[: text.rfind("\n") + 1].splitlines()
        for values in csv.reader(lines[1:]):
            pairs = dict(zip(lines[0].split(","), values, strict=True))
            row = StudyRow(**{name: _parse(name, value) for name, value in pairs.items() if value or name in _TEXT})
            row.outcomes()
            rows.append(row)
    except (ValueError, TypeError, KeyError, csv.Error) as error:
        raise StudyError(f"{path}:{len(rows) + 2}: not a row of a study ({error})") from error
    return rows


_TEXT = {name for name, kind in _KINDS.items() if kind == "str"}


def _parse(name: str, value: str) -> Any:
    parsed = {"str": str, "int": int, "float": float}[_KINDS[name]](value)
    if isinstance(parsed, float) and not math.isfinite(parsed):
        raise ValueError(f"{name} is {value}")
    return parsed


def append_row(path: Path, row: StudyRow) -> None:
    """Append a row, whole: a line that a kill cut off is removed first."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        text = file.read()
        whole = text[: text.rfind("\n") + 1]
        if whole != text:
            file.truncate(len(whole.encode()))
        writer = csv.writer(file, lineterminator="\n")
        if not whole:
            writer.writerow(_NAMES)
        values = asdict(row)
        writer.writerow(["" if values[name] is None else str(values[name]).replace("\n", " ") for name in _NAMES])
        file.flush()
        os.fsync(file.fileno())


class StudyProgress:
    """What the rows of a study say: chosen rates, finished trainings, and what is next."""

    def __init__(self, study: Study, rows: Sequence[StudyRow]) -> None:
        self.study = study
        belongs = [self._belongs(row) for row in rows]
        self.rows = [row for row, own in zip(rows, belongs, strict=True) if own]
        self.left_out = [row for row, own in zip(rows, belongs, strict=True) if not own]

    def _belongs(self, row: StudyRow) -> bool:
        known = row.data in self.study.data and row.method in self.study.methods_on(row.data)
        return known and row.key == self.study.key(row.data, row.method, row.rate)

    def tried(self, data: str, method: str) -> dict[float, StudyRow]:
        """Learning rate -> the row that it was tried in."""
        data = self.study.data[data].rates_of or data
        return {r.rate: r for r in self.rows if (r.data, r.method, r.stage) == (data, method, "rate")}

    def rates(self, data: str, method: str) -> list[float]:
        """The learning rates to choose from: the study's, and those by which they are widened so far."""
        rates, found = list(self.study.rates_on(data, method)), self._validation(data, method)
        for _ in range(self.study.widen_on(method)):
            if (beyond := self._beyond(rates, found)) is None:
                break
            rates.append(beyond)
        return rates

    def _validation(self, data: str, method: str) -> dict[float, float]:
        """Learning rate -> validation score, minus infinity where the training failed."""
        tried = self.tried(data, method).items()
        return {rate: -math.inf if row.error or row.val is None else row.val for rate, row in tried}

    @staticmethod
    def _beyond(rates: list[float], found: Mapping[float, float]) -> float | None:
        """The rate next to the smallest or the largest, to one digit, if that one is better than its neighbour; None if
        it is not, or if that rate is among them."""
        if len(rates) == 1 or not set(rates) <= set(found):
            return None
        best = max(found[rate] for rate in rates)
        rates = sorted(rates)
        for edge, neighbour in (rates[:2], rates[:-3:-1]):
            if found[edge] == best > found[neighbour]:
                beyond = float(f"{edge * edge / neighbour:.0e}")
                return None if beyond in rates else beyond
        return None

    def at_edge(self, data: str, method: str) -> bool:
        """Whether a better rate may lie beyond those that were tried."""
        return self._beyond(self.rates(data, method), self._validation(data, method)) is not None

    def rate(self, data: str, method: str) -> float | None:
        """The learning rate with the best validation score, the smaller of equal ones.

        None if some were not tried; NaN if every training failed.
        """
        rates = self.rates(data, method)
        if len(rates) == 1:
            return rates[0]
        found = self._validation(data, method)
        if not set(rates) <= set(found):
            return None
        best = max(rates, key=lambda rate: (found[rate], -rate))
        return best if found[best] > -math.inf else math.nan

    def scores(self, data: str, method: str) -> dict[int, StudyRow]:
        """Seed -> the tested training with the chosen rate, of those that did not fail."""
        rate = self.rate(data, method)
        found = {r.seed: r for r in self.rows if (r.data, r.method, r.stage, r.rate) == (data, method, "score", rate)}
        return {seed: found[seed] for seed in self.study.seeds_on(data) if seed in found}

    def tests(self, data: str, method: str) -> NDArray[np.float64]:
        """The test scores of `scores`, (S,)."""
        return np.array([r.test for r in self.scores(data, method).values() if r.test is not None], dtype=float)

    def pending(self) -> list[StudyRow]:
        """Trainings that can begin now, one data after the other: all rates, then the seeds of what has a rate."""
        found: list[StudyRow] = []
        for data in self.study.data:
            seeds = self.study.seeds_on(data)
            first, then = [], []
            for method in self.study.methods_on(data):
                start = self.study.methods[method].starts_from
                parents = self.scores(data, start) if start else dict.fromkeys(seeds)
                parents = {seed: row for seed, row in parents.items() if row is None or not row.error}
                rate = self.rate(data, method)
                if rate is None:
                    if self.study.data[data].rates_of is None and seeds[0] in parents:
                        tried = self.tried(data, method)
                        missing = [r for r in self.rates(data, method) if r not in tried]
                        first += [self._item(data, method, "rate", seeds[0], r) for r in missing]
                elif rate == rate:
                    done = self.scores(data, method)
                    then += [
                        self._item(data, method, "score", seed, rate)
                        for seed in seeds
                        if seed not in done and seed in parents
                    ]
            found += first + then
        return found

    def _item(self, data: str, method: str, stage: str, seed: int, rate: float) -> StudyRow:
        return StudyRow(data, method, stage, seed, rate, self.study.key(data, method, rate))

    def trainings_left(self) -> int:
        """Trainings still to do, as far as is known before the rates are widened."""
        total = 0
        for data, own in self.study.data.items():
            for method in self.study.methods_on(data):
                rates = self.rates(data, method)
                tried = len(self.tried(data, method))
                total += max(0, len(rates) - tried) if len(rates) > 1 and own.rates_of is None else 0
                total += len(self.study.seeds_on(data)) - len(self.scores(data, method))
        return total

    def is_trained(self, data: str, method: str) -> bool | None:
        """Whether the method has fitted its training set; None if no training was tested."""
        rows = [row.train for row in self.scores(data, method).values() if row.train is not None]
        if not rows:
            return None
        return float(np.mean(rows)) >= self.study.fitted_on(data, method)

    def cost(self, data: str, method: str, measure: str) -> float | None:
        """Parameters, multiply-adds, milliseconds or megabytes of a method's network."""
        values = [getattr(r, measure) for r in self.rows if (r.data, r.method) == (data, method)]
        values = [value for value in values if value is not None]
        return values[-1] if values else None
