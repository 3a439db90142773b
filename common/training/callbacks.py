"""Callbacks of every run: seeds, checkpoints, throughput, pictures in TensorBoard."""

import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint


def checkpoint_callbacks(folder: Path, every_n_steps: int | None = None) -> list[Callback]:
    """``last.ckpt`` after every epoch (and every n steps), and ``best.ckpt`` by validation top-1."""
    common: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    last = ModelCheckpoint(**common, filename="last", save_on_train_epoch_end=True)
    best = ModelCheckpoint(**common, filename="best", monitor="val_top1", mode="max")
    if every_n_steps is None:
        return [last, best]
    return [ModelCheckpoint(**common, filename="last", every_n_train_steps=every_n_steps), last, best]


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

    Both are averages since the last logged step. ``data_wait`` is also on the progress bar: near 0 the network is the
    bottleneck, near 1 the videos are read too slowly (raise ``num_workers``).
    """

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._begin = self._end_of_batch = time.perf_counter()
        self._waited, self._clips = 0.0, 0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self._waited += time.perf_counter() - self._end_of_batch
        self._clips += len(batch["label"])

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        if (batch_idx + 1) % trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            elapsed = now - self._begin
            self.log("clips_per_s", trainer.world_size * self._clips / elapsed)
            self.log("data_wait", self._waited / elapsed, prog_bar=True)
            self._begin, self._waited, self._clips = now, 0.0, 0
        self._end_of_batch = now


class Pictures(Callback):
    """TensorBoard pictures of every validation: clips with predictions, the confusion matrix, fixed filters."""
