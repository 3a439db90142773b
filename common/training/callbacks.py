"""Callbacks of every run: seeds, checkpoints, throughput, images in TensorBoard."""

import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import SIGTERMException
from matplotlib.figure import Figure
from rich import get_console
from rich.progress import (
    BarColumn,
    Progress,
    ProgressColumn,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Column
from rich.text import Text

from common.evaluation.figures import kernel_figure
from common.training.task import TaskModule


def checkpoint_callbacks(folder: Path, score: str, every_n_steps: int | None = None) -> list[Callback]:
    """``last.ckpt`` after every epoch, every n steps, and when SIGTERM stops the training; ``best.ckpt`` by a metric of
    the validation."""
    common: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    last = ModelCheckpoint(**common, filename="last", save_on_train_epoch_end=True)
    best = _BestCheckpoint(**common, filename="best", monitor=f"val_{score}", mode="max", save_on_train_epoch_end=False)
    found: list[Callback] = [last, best, SaveWhenStopped(folder / "last.ckpt"), _ResumeAfterEpoch()]
    if every_n_steps is not None:
        found.insert(0, _StepCheckpoint(**common, filename="last", every_n_train_steps=every_n_steps))
    return found


class _StepCheckpoint(ModelCheckpoint):
    """Writes no checkpoint between accumulated batches, whose gradients it would lose, and leaves the last step of an
    epoch to the checkpoint that ends the epoch: Lightning stores of such a step that the epoch is not over, and a run
    that resumed there would train it again.
    """

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not trainer.is_last_batch and (batch_idx + 1) % trainer.accumulate_grad_batches == 0:
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


class SaveWhenStopped(Callback):
    """Writes a checkpoint when SIGTERM stops a training in an epoch, so that it resumes at that step.

    At the end of an epoch, in validation and between accumulated batches the checkpoint before is the one to resume.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        if not isinstance(exception, SIGTERMException) or not trainer.training:
            return
        progress = trainer.fit_loop.epoch_loop.batch_progress
        whole_step = progress.current.completed % trainer.accumulate_grad_batches == 0
        if progress.current.completed and whole_step and not progress.is_last_batch:
            trainer.save_checkpoint(self.path, weights_only=False)


class _ResumeAfterEpoch(Callback):
    """Lets a run of `max_steps` that resumes from the end of an epoch begin the next one.

    Lightning takes every such run for one that stopped within an epoch: it trains another batch of the old epoch and
    counts it twice.
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loop = trainer.fit_loop
        if loop.restarted_on_epoch_end:
            loop.epoch_progress.increment_completed()
            loop._restarting = False  # its setter would keep True
            loop.epoch_loop.restarting = False
            loop.reset_restart_stage()
            loop.epoch_loop.reset_restart_stage()


class _BestCheckpoint(ModelCheckpoint):
    """Remembers the best score when a run is resumed in a folder of its own."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        folder, self.dirpath = self.dirpath, state_dict["dirpath"]  # the parent forgets the score in another folder
        super().load_state_dict(state_dict)
        self.dirpath = folder


class StepSeed(Callback):
    """Seeds torch, numpy and Python anew for every training batch, from (seed, epoch, batch, rank).

    So dropout and the like depend on where in the training a batch is, not on what ran before it: a run that was
    killed and resumed continues with the same random numbers as one that was not. The seed travels in the checkpoint.
    """

    def __init__(self, seed: int | bool = 0) -> None:
        self.seed = int(seed)

    def state_dict(self) -> dict[str, Any]:
        return {"seed": self.seed}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seed = state_dict["seed"]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        entropy = [self.seed, trainer.current_epoch, batch_idx, trainer.global_rank]
        seed = int(np.random.SeedSequence(entropy).generate_state(1)[0])
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)


class Throughput(Callback):
    """Logs ``clips_per_s`` over all processes and ``data_wait``, the share of the time spent waiting for batches.

    Both are averages since the last logged step. ``data_wait`` is also on the progress bar, as ``wait``: near 0 the
    network is the bottleneck, near 1 the videos are read too slowly (raise ``num_workers``).
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a run that resumes within an epoch does not start it

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = self._end_of_batch = time.perf_counter()
        self._waited, self._clips = 0.0, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._end_of_batch
        self._clips += len(batch[f"{pl_module.kind}_index"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            elapsed = now - self._begin
            pl_module.log("clips_per_s", trainer.world_size * self._clips / elapsed)
            pl_module.log("data_wait", self._waited / elapsed, prog_bar=True)
            self._begin, self._waited, self._clips = now, 0.0, 0
        self._end_of_batch = now


class Pictures(Callback):
    """TensorBoard images: fixed filters once, and of every validation what the module draws of its first batch and
    of its result."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        drawn: set[tuple[int, ...]] = set()
        for name, module in pl_module.named_modules():
            kernels = dict(module.named_buffers(recurse=False)).get("kernels")
            if kernels is not None and tuple(kernels.shape) not in drawn:
                drawn.add(tuple(kernels.shape))
                self._add(trainer, f"fixed filters/{name}", kernel_figure(kernels))

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if outputs and not batch_idx and not trainer.sanity_checking and isinstance(pl_module, TaskModule):
            for tag, figure in pl_module.batch_figures(batch, outputs).items():
                self._add(trainer, tag, figure)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if isinstance(pl_module, TaskModule) and not trainer.sanity_checking:
            for tag, figure in pl_module.result_figures().items():
                self._add(trainer, tag, figure)

    @staticmethod
    def _add(trainer: L.Trainer, tag: str, figure: Figure) -> None:
        for logger in trainer.loggers:
            if isinstance(logger, TensorBoardLogger) and trainer.is_global_zero:
                logger.experiment.add_figure(tag, figure, trainer.global_step)


class StepProgress(Callback):
    """Moves a progress bar by the optimiser steps of a training, and by one more for the test."""

    def __init__(self, progress: Progress, task: TaskID) -> None:
        self.progress, self.task = progress, task

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.progress.update(self.task, total=int(trainer.estimated_stepping_batches) + 1)

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        self.progress.update(self.task, completed=trainer.global_step)


class OneLineProgressBar(RichProgressBar):
    """Lightning's progress bar in one line of a terminal of 80 columns, where the parent takes five.

    It shows the time that passed and that is left. Metrics have short names, and what has no room is cut.
    """

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        return [
            TextColumn("{task.description}"),
            BarColumn(get_console().width // 10, table_column=Column(no_wrap=True)),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(table_column=Column(no_wrap=True)),
            TextColumn("•"),
            TimeRemainingColumn(compact=True, table_column=Column(no_wrap=True)),
            _Metrics(),
        ]

    def _update_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the metrics to our own column; that of the parent, which wraps, stays empty."""
        if self.progress is None or self.train_progress_bar_id is None:
            return
        metrics = dict(trainer.progress_bar_metrics)
        if "data_wait" in metrics:
            metrics["wait"] = metrics.pop("data_wait")  # the last one, which is cut first
        shown = [f"{name.removeprefix('train_').removesuffix('_step')} {value:.3f}" for name, value in metrics.items()]
        self.progress.update(self.train_progress_bar_id, metrics=" ".join(shown))


class _Metrics(ProgressColumn):
    """The one column that rich may narrow, because it alone may wrap, with a text that is cut instead."""

    def render(self, task: Task) -> Text:
        return Text(task.fields.get("metrics", ""), style="italic", no_wrap=True, overflow="ellipsis")
