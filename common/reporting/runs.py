"""Trainings of a ledger: recipes on real data, and the demos on generated data.

A demo network is trained anew when its recipe file, its overrides, the seed, the data (manifest and parameters), the
training that it starts from, or the sources of the paper or of `common` (see `source_hash`) have changed.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import json
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import yaml
from rich.progress import Progress, TaskID
from torch import Tensor

from common.datamodules.manifest import Manifest
from common.evaluation.complexity import Complexity, count
from common.evaluation.frequency_use import accuracies
from common.output_files import cell, locked, written_whole
from common.reporting.counting import ROOT, source_hash
from common.reporting.ledger import Demo, DemoRow, Ledger, Recipe, Row
from common.reporting.results import ReproduceError, Result, from_json
from common.reporting.workers import pool

if TYPE_CHECKING:
    from lightning.pytorch.callbacks import Callback


@dataclass
class Trained:
    """A finished run: its folder with `result.json`, and what else `run_recipe` writes."""

    entry: str
    name: str
    result: Result
    folder: Path
    reused: bool = False

    def seconds(self) -> float:
        """What training and testing took, whenever that was."""
        return float(json.loads((self.folder / "seconds.json").read_text(encoding="utf-8")))

    def complexity(self) -> Complexity:
        stored = json.loads((self.folder / "complexity.json").read_text(encoding="utf-8"))
        stored.pop("complex_weight", None)  # older runs have it
        return Complexity(**stored)

    def curve(self, tag: str) -> list[tuple[float, float]]:
        """`(epoch, value)` of a logged value."""
        curves = json.loads((self.folder / "curves.json").read_text(encoding="utf-8"))
        return [(epoch, value) for epoch, value in curves.get(tag, [])]

    def class_names(self) -> list[str] | None:
        """Names by label; None where nothing is classified."""
        names: list[str] | None = json.loads((self.folder / "classes.json").read_text(encoding="utf-8"))
        return names

    def predictions(self) -> list[dict[str, str]]:
        """What the network answered for each test file."""
        with (self.folder / "predictions.csv").open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def confusion(self) -> np.ndarray:
        """Counts (true class, predicted class) in the order of `class_names`; none without classes."""
        place = {cell(name): i for i, name in enumerate(self.class_names() or [])}
        matrix = np.zeros((len(place), len(place)), dtype=int)
        for row in self.predictions():
            matrix[place[row["label"]], place[row["top1"]]] += 1
        return matrix


def run_recipe(arguments: Sequence[str], folder: Path, seed: int, bar: tuple[Progress, TaskID] | None = None) -> None:
    """Train and test through the command line `spectral`, in this process; its output goes to `folder/log.txt`.

    A training that was interrupted in `folder` is resumed. Raises ReproduceError if another process trains there.
    Afterwards `folder` holds `result.json`, the predictions,
    `complexity.json` (of one input), `curves.json`, `classes.json` (where there are classes) and `seconds.json`, beside
    the run folders of `spectral`.
    The last checkpoint is tested, not the best, which would be chosen by the scores that are reported. A progress
    `bar` moves by the optimiser steps of the training, and by one more for the test.
    """
    from common.training import cli
    from common.training.callbacks import StepProgress  # it imports Lightning

    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    common = [*arguments, "--seed_everything", str(seed), "--trainer.default_root_dir", str(folder)]
    common += ["--trainer.enable_progress_bar", "false"]
    busy = ReproduceError(f"another command trains in {folder}: wait until it has ended")
    with locked(folder / "log.txt", busy) as log, output_to(log):
        try:
            fitted = fit(common, folder, [StepProgress(*bar)] if bar else [])
            tested = cli.run(["test", *common, "--name", "test", "--ckpt_path", str(last_checkpoint(folder))])
        except Exception:
            traceback.print_exc(file=log)
            raise
    assert tested.run_dir is not None
    complexity = count(tested.model.network, tested.datamodule.spec.input_shape)
    extra = {
        "complexity.json": complexity.to_dict() | {"by_module": {}},
        "curves.json": fitted["curves"],
        "classes.json": getattr(tested.datamodule, "class_names", None),
        "seconds.json": time.monotonic() - began,
    }
    for name, content in extra.items():
        with written_whole(folder / name) as file:
            json.dump(content, file)
    for path in (
        *tested.run_dir.glob("predictions.*"),
        tested.run_dir / "result.json",
    ):  # the result last: then all is there
        with written_whole(folder / path.name) as file:
            file.write(path.read_text(encoding="utf-8"))


def fit(arguments: Sequence[str], folder: Path, callbacks: Sequence[Callback] = ()) -> dict[str, Any]:
    """Train into `folder/fit`, resume what was interrupted there, or find it finished; its `seconds` and `curves`."""
    from common.training import cli

    finished = folder / "fit.json"
    if not finished.is_file():
        began = time.monotonic()
        words = ["fit", *arguments, "--name", "fit"]
        words += ["--ckpt_path", "last"] if list(folder.glob("fit/*/last.ckpt")) else []
        try:
            cli.run(words, callbacks)
        except SystemExit as stop:  # Lightning's way of passing an interruption on
            raise KeyboardInterrupt from stop
        with written_whole(finished) as file:
            json.dump({"seconds": time.monotonic() - began, "curves": read_curves(folder / "fit")}, file)
    facts: dict[str, Any] = json.loads(finished.read_text(encoding="utf-8"))
    return facts


def last_checkpoint(folder: Path) -> Path:
    """The last checkpoint of the training in `folder/fit`. Raises ReproduceError if there is none."""
    found = sorted(folder.glob("fit/*/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    if not found:
        raise ReproduceError(
            f"{folder} has no checkpoint; it was deleted. Delete the folder, and the rows of a study, to train it again"
        )
    return found[-1]


def load_trained(folder: Path) -> Any:
    """The module of the training in `folder/fit` with its last weights. The package of its recipe is trusted."""
    from common.training.task import TRUSTED, load_module

    checkpoint = last_checkpoint(folder)
    recipe = yaml.safe_load((checkpoint.parent / "config.yaml").read_text(encoding="utf-8"))
    return load_module(checkpoint, (*TRUSTED, recipe["model"]["class_path"].partition(".")[0]))


@contextlib.contextmanager
def output_to(log: Any) -> Iterator[None]:
    """Send everything that is printed or logged to a file."""
    before = {handler: handler.stream for handler in _stream_handlers()}
    for handler in before:
        _set_stream(handler, log)
    try:
        with contextlib.redirect_stdout(log), contextlib.redirect_stderr(log):
            yield
    finally:
        # A handler that was made meanwhile, by a library's first import, has the file, too, which is closed after this.
        for handler in _stream_handlers():
            if handler.stream is log:
                _set_stream(handler, before.get(handler, sys.stderr))


def _set_stream(handler: logging.StreamHandler, stream: Any) -> None:
    if getattr(handler.stream, "closed", False):  # nothing to flush, which is the first thing that setStream does
        handler.stream = stream
    else:
        handler.setStream(stream)


def _stream_handlers() -> set[logging.StreamHandler]:
    """Handlers of all loggers that write to the terminal."""
    loggers = [logging.root, *(x for x in logging.root.manager.loggerDict.values() if isinstance(x, logging.Logger))]
    return {h for logger in loggers for h in logger.handlers if type(h) is logging.StreamHandler}


def read_curves(runs: Path) -> dict[str, list[tuple[float, float]]]:
    """Logged values, as `(epoch, mean of the epoch)`, from the TensorBoard files below a folder."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logged: dict[str, dict[int, float]] = {}
    for path in sorted({file.parent for file in runs.rglob("events.out.tfevents.*")}):
        events = EventAccumulator(str(path)).Reload()
        for tag in events.Tags()["scalars"]:
            logged.setdefault(tag, {}).update({event.step: event.value for event in events.Scalars(tag)})
    epochs = {step: round(value) for step, value in logged.get("epoch", {}).items()}
    curves: dict[str, list[tuple[float, float]]] = {}
    for tag, values in logged.items():
        if tag != "epoch" and not tag.endswith("_step"):
            of_epoch: dict[int, list[float]] = {}
            for step in values.keys() & epochs.keys():
                of_epoch.setdefault(epochs[step] + 1, []).append(values[step])
            curves[tag] = [(epoch, float(np.mean(own))) for epoch, own in sorted(of_epoch.items())]
    return curves


def make_demo_data(arguments: Sequence[str], out: Path) -> None:
    """Make the generated data as `python -m data.demo` does; it reuses what it made before."""
    command = [sys.executable, "-m", "data.demo", arguments[0], "--out", str(out), *arguments[1:]]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode in (130, -signal.SIGINT):
        raise KeyboardInterrupt
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise ReproduceError(f"python -m data.demo {shlex.join(arguments)}: {reason.partition('error: ')[2] or reason}")


def load_clips(data: Path, module: Any, split: str, most: int | None = None) -> tuple[Tensor, Tensor]:
    """Views (N,3,T,S,S) and labels (N,) of the clips of a split, as `module` is tested on them; at most so many files,
    evenly from the list."""
    entries = Manifest.read(data / "manifest.csv", data).split(split).entries
    step = 1 if most is None else max(1, -(-len(entries) // most))
    views = [module.load_views(data / entry.path) for entry in entries[::step]]
    labels = [entry.label for entry, own in zip(entries[::step], views, strict=True) for _ in own]
    return torch.cat(views), torch.tensor(labels)


def data_arguments(data: Path) -> list[str]:
    """The command line's name for the data in a folder; data of known files (CIFAR, image folders) has no manifest."""
    manifest = data / "manifest.csv"
    return ["--data.root", str(data), *(["--data.manifest", str(manifest)] if manifest.is_file() else [])]


@dataclass(frozen=True)
class DemoJob:
    """A network of a demo that is trained and tested on the demo's data.

    Attributes:
        ledger, demo, row: what is trained.
        data: folder of the demo's data.
        out: the training goes to a folder below it.
        seed: of the training.
        epochs: in place of the recipe's.
    """

    ledger: Ledger
    demo: Demo
    row: DemoRow
    data: Path
    out: Path
    seed: int
    epochs: int | None = None

    def before(self) -> DemoJob | None:
        """The training that this one continues."""
        start = self.row.starts_from
        return None if start is None else replace(self, row=self.demo.row(start))

    def key(self) -> str:
        """Hash of everything that the result depends on."""
        before = self.before()
        after = None if before is None else before.key()
        digest = hashlib.sha256()
        digest.update((self.ledger.folder / "recipes" / self.demo.recipe).read_bytes())
        digest.update(json.dumps([self.row.overrides, self.seed, self.epochs, after, torch.__version__]).encode())
        for file in sorted(path for path in self.data.iterdir() if path.is_file()):
            digest.update(file.name.encode() + file.read_bytes())
        digest.update(source_hash(self.ledger.folder).encode())
        return digest.hexdigest()[:12]

    def folder(self) -> Path:
        """Where the training goes; it is finished if `result.json` is there."""
        return self.out / self.row.id / self.key()

    def train(self, progress: Progress) -> Trained:
        """Train and test the network, and first the one that it continues; finished ones are reused."""
        folder = self.folder()
        reused = (folder / "result.json").is_file()
        if not reused:
            before = self.before()
            start = "" if before is None else str(last_checkpoint(before.train(progress).folder).parent)
            overrides = [word.replace("{starts_from}", start) for word in self.row.overrides]
            arguments = [*Recipe(self.demo.recipe, overrides).arguments(self.ledger.folder), *data_arguments(self.data)]
            if self.epochs is not None:
                arguments += ["--trainer.max_epochs", str(self.epochs)]
            _run(arguments, folder, self.seed, progress, self.row.name)
        return Trained(self.row.id, self.row.name, from_json(folder / "result.json", self.row.id), folder, reused)


def _run(arguments: Sequence[str], folder: Path, seed: int, progress: Progress, name: str) -> None:
    """`run_recipe` with a bar of its own."""
    task = progress.add_task(f"  {name}", total=None)
    run_recipe(arguments, folder, seed, (progress, task))
    progress.update(task, total=1, completed=1)


def train_all(
    jobs: Sequence[DemoJob], progress: Progress, processes: int = 1
) -> Iterator[tuple[int, Trained | BaseException]]:
    """Train and test network after network in several processes.

    With several processes each has its share of the machine's cores: small networks gain little from more threads.
    Networks that others continue come first.

    Yields:
        Position among the jobs, and the training or what went wrong, as they end.
    """
    waiting: dict[str, DemoJob] = {}
    positions = {job.row.id: position for position, job in enumerate(jobs)}
    for position, job in enumerate(jobs):
        if processes > 1 and not (job.folder() / "result.json").is_file():
            waiting[job.row.id] = job
            continue
        try:
            yield position, job.train(progress)
        except Exception as error:
            yield position, error
    if not waiting:
        return
    for job in list(waiting.values()):
        while (before := job.before()) is not None:
            job = waiting.setdefault(before.row.id, before)
    running: dict[Future[Trained], str] = {}
    with pool(min(processes, len(waiting)), (os.cpu_count() or 1) // processes) as workers:
        while waiting or running:
            # No more than run at once, so that an interruption finds none in a queue.
            unfinished = {*waiting, *running.values()}
            ready = [key for key, job in waiting.items() if job.row.starts_from not in unfinished]
            ready.sort(key=lambda key: waiting[key].row.starts_from is not None)
            for key in ready[: processes - len(running)]:
                running[workers.submit(_train_in_worker, waiting.pop(key))] = key
            for future in wait(running, return_when=FIRST_COMPLETED).done:
                key = running.pop(future)
                if key in positions:
                    yield positions[key], future.exception() or future.result()


def _train_in_worker(job: DemoJob) -> Trained:
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        return job.train(Progress(disable=True))
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def train_row(
    ledger: Ledger, row: Row, dataset: str, data: Path, out: Path, seed: int, epochs: int | None, progress: Progress
) -> list[Trained]:
    """Train and test the recipe of a row on real data; interrupted runs are resumed."""
    finished = []
    recipe = row.recipes[dataset]
    content = (ledger.folder / "recipes" / recipe.file).read_bytes()
    for i, run in enumerate(recipe.runs or [[]]):
        arguments = ledger.training(recipe, run)
        arguments[2:2] = ["--data.root", str(data)]
        if epochs is not None:
            arguments += ["--trainer.max_epochs", str(epochs)]
        key = hashlib.sha256(content + json.dumps([arguments, seed]).encode()).hexdigest()[:12]
        folder = out / "recipes" / row.id / dataset / f"{i + 1}-{key}"
        reused = (folder / "result.json").is_file()
        if not reused:
            _run(arguments, folder, seed, progress, f"{row.id} {dataset}")
        result = from_json(folder / "result.json", row.id, dataset)
        finished.append(Trained(row.id, row.name, result, folder, reused))
    return finished


@dataclass
class DemoRuns:
    """A demo with the folder of its data, its finished trainings, and what `frequency_uses` found."""

    demo: Demo
    data: Path
    rows: list[Trained] = field(default_factory=list)
    frequencies: list[tuple[dict[str, Any], int]] = field(default_factory=list)


def frequency_uses(runs: DemoRuns, files: int = 60) -> list[tuple[dict[str, Any], int]]:
    """`frequency_use.accuracies` of the video networks of a demo on test clips, and their number; networks with the
    same input together."""
    if not runs.rows or runs.rows[0].result.facts["kind"] != "video":
        return []
    modules: dict[str, Any] = {run.name: load_trained(run.folder) for run in runs.rows}
    found: list[tuple[dict[str, Any], int]] = []
    for shape in dict.fromkeys(module.input_shape for module in modules.values()):
        own = {name: module for name, module in modules.items() if module.input_shape == shape}
        clips, labels = load_clips(runs.data, next(iter(own.values())), "test", files)
        found.append((accuracies({name: module.network for name, module in own.items()}, clips, labels), len(labels)))
    return found


@dataclass
class Job:
    """What the main job has counted, trained and drawn so far."""

    ledger: Ledger
    counts: dict[str, dict[str, Complexity]] = field(default_factory=dict)
    demos: list[DemoRuns] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def data(self, demo: str = "demo") -> Path | None:
        """The folder of a demo's data; None if it was not made."""
        return next((d.data for d in self.demos if d.demo.id == demo and d.data.is_dir()), None)

    def find(self, entry: str) -> tuple[Trained, Path] | None:
        """The training of a demo row, with the folder of its data."""
        return next(((run, runs.data) for runs in self.demos for run in runs.rows if run.entry == entry), None)

    def trained(self) -> list[Trained]:
        """Every demo training."""
        return [run for runs in self.demos for run in runs.rows]
