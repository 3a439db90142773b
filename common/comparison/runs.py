"""The trainings of a study, in processes of their own, each continued where it was killed."""

from __future__ import annotations

import contextlib
import csv
import itertools
import os
import shlex
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import lightning as L
import torch

from common.command_line import UsageError, first_line, plain_message
from common.comparison.rows import StudyProgress, StudyRow, append_row, pack, read_rows
from common.comparison.study import Study, StudyError
from common.evaluation.complexity import count
from common.evaluation.latency import measure_latency, one_thread, peak_allocated
from common.output_files import locked
from common.provenance import git_state
from common.reporting.results import ReproduceError
from common.reporting.runs import (
    data_arguments,
    fit,
    last_checkpoint,
    load_trained,
    make_demo_data,
    output_to,
)
from common.reporting.workers import pool
from common.training import cli, lightning_cli

Told = Callable[[str], None]


@dataclass(frozen=True)
class Place:
    """Where a study works: `out` for trainings, `demo` for generated data, `rows` for the file of rows."""

    out: Path
    demo: Path
    rows: Path

    def data_options(self, study: Study, data: str) -> list[str]:
        """Options of `spectral` for generated data; none for data that the study names by its own options."""
        return data_arguments(self.demo / study.demo_folder(data)) if study.data[data].demo else []

    def training(self, row: StudyRow) -> Path:
        """The folder of a training. Its fit is shared by the stages `rate` and `score`."""
        return self.out / "trainings" / f"{row.data}_{row.method}_rate-{row.rate:g}_seed-{row.seed}_{row.key}"


def make_data(study: Study, place: Place, tell: Told) -> None:
    """Make the generated data of a study."""
    for data, own in study.data.items():
        if own.demo:
            tell(f"making {data}: python -m data.demo {own.demo}")
            make_demo_data(shlex.split(own.demo), place.demo / study.demo_folder(data))


def run_study(study: Study, place: Place, jobs: int, tell: Told) -> StudyProgress:
    """Do what is left of a study; a row is appended to `place.rows` as each training ends.

    A training that fails is a row with its error. Times and memory are measured at the end, alone.

    Raises:
        StudyError: an option or the score of a method is wrong; nothing is trained before all options are parsed.
    """
    first = StudyProgress(study, read_rows(place.rows)).pending()
    for (data, method), rate in {(item.data, item.method): item.rate for item in first}.items():
        try:
            lightning_cli.check_arguments(["fit", *study.arguments(data, method, rate)])
        except UsageError as error:
            raise StudyError(f"{study.path}:{study.methods[method].line}: {method} on {data}: {error}") from error
    place.out.mkdir(parents=True, exist_ok=True)
    busy = StudyError(f"another run of this study works in {place.out}: wait until it has ended")
    with locked(place.out / "running.lock", busy):
        make_data(study, place, tell)
        for row in _here(study, place) if jobs == 1 else _in_processes(study, place, jobs):
            append_row(place.rows, row)
            score, split = (row.test, "test") if row.stage == "score" else (row.val, "validation")
            result = row.error or f"{study.score_on(row.data)} {score:.3f} ({split})"
            left = StudyProgress(study, read_rows(place.rows)).trainings_left()
            what = f"{row.data} {row.method}, rate {row.rate:g}, seed {row.seed}"
            tell(f"{what}: {result}, {row.seconds:.0f} s; {left} left")
        measure_costs(study, place, tell)
    return StudyProgress(study, read_rows(place.rows))


def _here(study: Study, place: Place) -> Iterator[StudyRow]:
    """Train one after the other in this process. Each row must be in the file before the next is asked for."""
    while items := (progress := StudyProgress(study, read_rows(place.rows))).pending():
        yield train(study, place, items[0], _start_folder(study, place, progress, items[0]))


def _in_processes(study: Study, place: Place, jobs: int) -> Iterator[StudyRow]:
    """Train in several processes, each with its share of the cores; rows in the order in which they end."""
    running: dict[Future[StudyRow], StudyRow] = {}
    with pool(jobs, (os.cpu_count() or 1) // jobs) as workers:
        while True:
            progress = StudyProgress(study, read_rows(place.rows))
            waiting = [item for item in progress.pending() if item not in running.values()]
            for item in waiting[: jobs - len(running)]:
                running[workers.submit(train, study, place, item, _start_folder(study, place, progress, item))] = item
            if not running:
                return
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                running.pop(future)
                yield future.result()


def _start_folder(study: Study, place: Place, progress: StudyProgress, item: StudyRow) -> str:
    """The run folder that a method continues from."""
    before = study.methods[item.method].starts_from
    if before is None:
        return ""
    row = progress.scores(item.data, before)[item.seed]
    return str(last_checkpoint(place.training(row)).parent)


def train(study: Study, place: Place, item: StudyRow, start: str = "") -> StudyRow:
    """Train and test once, in this process; what is printed goes to `log.txt` of the training's folder."""
    folder = place.training(item)
    folder.mkdir(parents=True, exist_ok=True)
    arguments = study.arguments(item.data, item.method, item.rate, start)
    arguments += [*place.data_options(study, item.data), "--seed_everything", str(item.seed)]
    arguments += ["--trainer.default_root_dir", str(folder), "--trainer.enable_progress_bar", "false"]
    began = time.monotonic()
    row = replace(item, **_state())
    try:
        with (folder / "log.txt").open("a", encoding="utf-8") as log, output_to(log):
            facts = fit(arguments, folder)
            found = _scores(study, item, arguments, folder)
    except Exception as error:
        if isinstance(error, UsageError | StudyError | ReproduceError | AssertionError):
            raise
        message = first_line(error, plain_message(error))
        return replace(row, error=message, seconds=round(time.monotonic() - began, 1))
    seconds = facts["seconds"] if item.stage == "score" else time.monotonic() - began
    return replace(row, **found, seconds=round(seconds, 1))


def _state() -> dict[str, Any]:
    """The columns of a row that say with what and when it was made."""
    state, now = git_state(), datetime.now(UTC).isoformat(timespec="seconds")
    return {
        "commit": state["commit"] or "",
        "dirty": str(state["dirty"]),
        "torch": torch.__version__,
        "created": now,
    }


def _scores(study: Study, item: StudyRow, arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """The columns of a row that come from testing."""
    found: dict[str, Any] = {}
    checkpoint = str(last_checkpoint(folder))
    for split in ("val",) if item.stage == "rate" else ("train", "test"):
        words = ["test", *arguments, "--name", f"test-{split}", "--ckpt_path", checkpoint]
        tested = cli.run([*words, "--data.test_split", split])
        assert tested.result is not None
        assert tested.run_dir is not None
        score = study.score_on(item.data)
        if score not in tested.result:
            known = [name for name, value in tested.result.items() if isinstance(value, float)]
            raise StudyError(f"{study.path}: {score!r} is no metric of {item.method}: {', '.join(known)}")
        found[split] = round(float(tested.result[score]), 6)
        found["data_hash"] = str(tested.result["manifest_hash"])[:12]
        if split == "test":
            outcomes = read_outcomes(tested.run_dir)
            found |= {"correct": pack(outcomes), "test_files": len(outcomes)} if outcomes else {}
    complexity = count(tested.model.network, tested.datamodule.spec.input_shape)
    return found | {"params": complexity.params, "macs": round(complexity.macs_full)}


def read_outcomes(run_dir: Path) -> list[bool]:
    """Whether each file of a test run was right, in the order of their names; none without right and wrong."""
    with contextlib.suppress(OSError), (run_dir / "predictions.csv").open(newline="", encoding="utf-8") as file:
        rows = sorted(csv.DictReader(file), key=lambda row: row["path"])
        if rows and "label" in rows[0] and "top1" in rows[0]:
            return [row["label"] == row["top1"] for row in rows]
    return []


def measure_costs(study: Study, place: Place, tell: Told) -> None:
    """Time and memory of the networks of each data, taking turns; a row of the stage `cost` for each.

    They are measured again only if one of them is missing, for ratios hold within one run.
    """
    rows = read_rows(place.rows)
    progress = StudyProgress(study, rows)
    for data in study.data:
        first = {m: next(iter(progress.scores(data, m).values()), None) for m in study.methods_on(data)}
        known = {row.method for row in progress.rows if (row.data, row.stage) == (data, "cost")}
        trained = {}
        for method, row in first.items():
            if row is not None and not row.error and _can_be_built(study, place, row):
                trained[method] = row
            elif row is not None and not row.error and method not in known:
                tell(f"{data}: no times of {method}: the checkpoint of its training was deleted")
        if set(trained) <= known:
            continue
        tell(f"{data}: measuring time and memory of {len(trained)} networks")
        networks, inputs = {}, []
        for method, row in trained.items():
            module = _module(study, place, row)
            networks[method] = module.network
            inputs.append(module.input_shape)
        for method, cost in _costs(networks, inputs).items():
            row = trained[method]
            kept = StudyRow(data, method, "cost", row.seed, row.rate, row.key, data_hash=row.data_hash, **cost)
            append_row(place.rows, replace(kept, **_state()))


def _has_checkpoint(folder: Path) -> bool:
    return any(folder.glob("fit/*/last.ckpt"))


def _can_be_built(study: Study, place: Place, row: StudyRow) -> bool:
    """Whether the network of a row is there or can be made anew: not where it depends on the training it continued."""
    return not study.methods[row.method].starts_from or _has_checkpoint(place.training(row))


def _module(study: Study, place: Place, row: StudyRow) -> Any:
    """The trained module of a row. One whose checkpoint was deleted is built anew, which takes the same time and
    memory.
    """
    folder = place.training(row)
    if _has_checkpoint(folder):
        return load_trained(folder)
    return _fit_without_files(study, place, row.data, row.method, ["--trainer.max_steps", "0"]).model


def _fit_without_files(
    study: Study, place: Place, data: str, method: str, options: Sequence[str], callbacks: Sequence[L.Callback] = ()
) -> lightning_cli.SpectralCLI:
    """Train silently, without a log or a checkpoint."""
    words = [*study.arguments(data, method, study.rates_on(data, method)[0]), *place.data_options(study, data)]
    words += ["--trainer.logger", "false", "--trainer.enable_checkpointing", "false"]
    words += ["--trainer.enable_progress_bar", "false", "--trainer.default_root_dir", str(place.out / "timing")]
    try:
        with open(os.devnull, "w", encoding="utf-8") as log, output_to(log):
            return cli.run(["fit", *words, *options], callbacks)
    finally:
        shutil.rmtree(place.out / "timing", ignore_errors=True)


def _costs(networks: dict[str, Any], shapes: Sequence[tuple[int, ...]]) -> dict[str, dict[str, Any]]:
    """Milliseconds and megabytes by network; those with the same input take turns, on a CPU with one thread."""
    found: dict[str, dict[str, Any]] = {name: {} for name in networks}
    for shape, training in itertools.product(dict.fromkeys(shapes), (False, True)):
        group = {name: network for (name, network), own in zip(networks.items(), shapes, strict=True) if own == shape}
        stage, x = ("train", torch.randn(2, *shape[1:])) if training else ("infer", torch.randn(shape))
        for network in group.values():
            network.train(training)
        with one_thread():
            times = measure_latency(group, x, backward=training)
            for name, network in group.items():
                found[name][f"{stage}_ms"] = round(1e3 * times[name].seconds, 3)
                found[name][f"{stage}_mb"] = round(peak_allocated(network, x, backward=training) / 1e6, 2)
    return found


class _StepTimes(L.Callback):
    """Stops a training after a few steps; how long the last ones took, and how many there would have been."""

    def __init__(self, steps: int = 5) -> None:
        self.steps, self.times, self.total = steps, list[float](), 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.total = int(trainer.estimated_stepping_batches)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.times.append(time.monotonic())
        if len(self.times) > self.steps:
            trainer.should_stop = True
            trainer.limit_val_batches = 0

    def seconds(self) -> float:
        """Of the whole training, by these steps."""
        return self.total * (self.times[-1] - self.times[0]) / max(len(self.times) - 1, 1)


def estimate(study: Study, place: Place, tell: Told) -> Iterator[tuple[str, str, float]]:
    """(data, method, seconds) of one training, from a few of its steps. A method that continues another is taken for
    as long as one from the beginning. The first epoch, which decodes, is left out.
    """
    make_data(study, place, tell)
    for data in study.data:
        for method in study.methods_on(data):
            if study.methods[method].starts_from:
                continue
            steps = _StepTimes()
            _fit_without_files(study, place, data, method, [], [steps])
            yield data, method, steps.seconds()
