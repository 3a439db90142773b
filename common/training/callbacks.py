"""Callbacks of every run: seeds, checkpoints, throughput, pictures in TensorBoard."""

import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import Callback, ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

from common.training.task import TaskModule


def checkpoint_callbacks(folder: Path, score: str, every_n_steps: int | None = None) -> list[Callback]:
    """``last.ckpt`` after every epoch (and every n steps), and ``best.ckpt`` by a metric of the validation."""
    common: dict[str, Any] = {"dirpath": folder, "auto_insert_metric_name": False, "enable_version_counter": False}
    last = ModelCheckpoint(**common, filename="last", save_on_train_epoch_end=True)
    best = _BestCheckpoint(**common, filename="best", monitor=f"val_{score}", mode="max", save_on_train_epoch_end=False)
    if every_n_steps is None:
        return [last, best]
    return [ModelCheckpoint(**common, filename="last", every_n_train_steps=every_n_steps), last, best]


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

    Both are averages since the last logged step. ``data_wait`` is also on the progress bar: near 0 the network is the
    bottleneck, near 1 the videos are read too slowly (raise ``num_workers``).
    """

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_train_epoch_start(trainer, pl_module)  # a run that goes on in the middle of an epoch does not start it

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
    """TensorBoard pictures: fixed filters once, and of every validation what the module draws of its first batch and
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
        if not batch_idx and not trainer.sanity_checking and isinstance(pl_module, TaskModule):
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


def clip_figure(clips: Tensor, captions: list[str], frames: int = 8) -> Figure:
    """One row per clip: up to ``frames`` equidistant frames under the clip's caption.

    Args:
        clips: (N, C, T, H, W), or (N, C, H, W) for images; each clip is stretched to the full range of brightness.
        captions: N strings.
    """
    clips = clips.unsqueeze(2) if clips.ndim == 4 else clips
    shown = torch.linspace(0, clips.shape[2] - 1, min(frames, clips.shape[2])).round().long()
    figure = Figure(figsize=(1.5 * len(shown), 1.8 * len(clips)), layout="constrained")
    axes = figure.subplots(len(clips), 1, squeeze=False)[:, 0]
    for ax, clip, caption in zip(axes, clips.float().cpu(), captions, strict=True):
        low, high = clip.min(), clip.max()
        strip = ((clip[:3, shown] - low) / (high - low).clamp_min(1e-12)).permute(2, 1, 3, 0).flatten(1, 2)
        ax.imshow(strip.numpy())
        ax.set_title(caption, fontsize=8, loc="left")
        ax.axis("off")
    return figure


def confusion_figure(confusion: Tensor, class_names: list[str] | None) -> Figure:
    """Confusion matrix (classes, classes), each row divided by its number of videos."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    ax = figure.subplots()
    ax.imshow((confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)).numpy(), vmin=0, vmax=1, cmap="Blues")
    ax.set_xlabel("prediction")
    ax.set_ylabel("label")
    if class_names is not None:
        ax.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=6)
        ax.set_yticks(range(len(class_names)), class_names, fontsize=6)
    return figure


def kernel_figure(kernels: Tensor) -> Figure:
    """One row per filter (filters, 1, [[T,] H,] W), one column per time step."""
    n = kernels.shape[2:]
    volume = kernels.float().cpu().reshape(len(kernels), *[1] * (3 - len(n)), *n)
    bound = volume.abs().max().clamp_min(1e-12).item()
    figure = Figure(figsize=(1 + 0.6 * volume.shape[1], 0.6 * len(volume)), layout="constrained")
    axes = figure.subplots(len(volume), volume.shape[1], squeeze=False)
    for row, filter_ in zip(axes, volume, strict=True):
        for ax, plane in zip(row, filter_, strict=True):
            ax.imshow(plane.numpy(), vmin=-bound, vmax=bound, cmap="RdBu")
            ax.set_xticks([])
            ax.set_yticks([])
    return figure


#: colours of the labels of BraTS in Figure 4 of the FDC3D paper: 1 core green, 2 oedema yellow, 4 enhancing blue
LABEL_COLOURS = {1: "#2ca02c", 2: "#ffdd33", 4: "#1f77ff"}


def slice_figure(image: Tensor, labels: dict[str, Tensor]) -> Figure:
    """The slice with the largest area of the first labels: the image alone, then each of the labels over it.

    Args:
        image: (D, H, W).
        labels: title -> (D, H, W) with 0, 1, 2 and 4.
    """
    first = next(iter(labels.values()))
    middle = int((first > 0).sum(dim=(1, 2)).argmax()) if (first > 0).any() else len(image) // 2
    figure = Figure(figsize=(2.6 * (1 + len(labels)), 2.9), layout="constrained")
    axes = figure.subplots(1, 1 + len(labels))
    for ax, (title, label) in zip(axes, {"image": None, **labels}.items(), strict=True):
        overlay(ax, image[middle], None if label is None else label[middle])
        ax.set_title(title, fontsize=8)
    return figure


def overlay(axes: Axes, image: Tensor, label: Tensor | None) -> None:
    """Draw a slice (H, W) in grey, zero in black, and labels (H, W) with 0, 1, 2 and 4 over it."""
    axes.imshow(image.where(image != 0, image.min()).float().numpy(), cmap="gray", origin="lower")
    if label is not None:
        colours = np.zeros((*label.shape, 4))
        for value, colour in LABEL_COLOURS.items():
            colours[(label == value).numpy()] = to_rgba(colour, 0.75)
        axes.imshow(colours, origin="lower", interpolation="nearest")
    axes.grid(False)
    axes.set_axis_off()
