"""A network small enough for tests, as a paper's module would write it."""

import os
import signal
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from common.spectral import DepthwiseSTFT
from common.training.classification import VideoClassificationModule
from common.training.cli import run


class TinyModule(VideoClassificationModule):
    """One convolution with batch normalisation and dropout, trained with SGD."""

    def __init__(
        self, num_classes: int | None = 3, width: int = 4, dropout: float = 0.0, lr: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        h = self.hparams
        body = nn.Sequential(
            nn.Conv3d(3, h["width"], 3, padding=1, bias=False),
            nn.GroupNorm(2, h["width"]),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Dropout(h["dropout"]),
        )
        return nn.Sequential(body, nn.Linear(h["width"], h["num_classes"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]


class SignalAt(Callback):
    """Sends a signal after a training step, or at the end of an epoch before its checkpoint is written.

    SIGKILL ends a process as a power cut would.

    Args:
        step: the step of the optimiser.
        epoch: the epoch.
        number: the signal.
        rank: the process that sends it to itself; all of them if None.
        to_parent: send it to the process that started this one, such as torchrun.
    """

    def __init__(
        self,
        step: int | None = None,
        epoch: int | None = None,
        number: int = int(signal.SIGKILL),
        rank: int | None = None,
        to_parent: bool = False,
    ) -> None:
        self.step, self.epoch, self.number, self.rank, self.to_parent = step, epoch, number, rank, to_parent

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            self.send(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            self.send(trainer)

    def send(self, trainer: L.Trainer) -> None:
        if self.rank in (None, trainer.global_rank):
            os.kill(os.getppid() if self.to_parent else os.getpid(), self.number)
            time.sleep(2 * self.to_parent)  # so that the training does not end before the parent has passed it on


class PowerCutError(BaseException):
    """Ends a training at once, with what is on the disk, in the process of the test."""


class CutAt(Callback):
    """Cuts the power after a training step, or at the end of an epoch before its checkpoint is written."""

    def __init__(self, step: int | None = None, epoch: int | None = None) -> None:
        self.step, self.epoch = step, epoch

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
        if trainer.global_step == self.step:
            raise PowerCutError

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.current_epoch == self.epoch:
            raise PowerCutError


def state(folder: Path) -> dict[str, torch.Tensor]:
    """What a training has come to at the end of a run: weights, state of the optimisers, steps, rates."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    found = {**content["state_dict"], "step": torch.tensor(content["global_step"])}
    for n, optimizer in enumerate(content["optimizer_states"]):
        found |= {f"rate {n} {k}": torch.tensor(group["lr"]) for k, group in enumerate(optimizer["param_groups"])}
        for k, values in optimizer["state"].items():
            found |= {f"{key} {n} {k}": torch.as_tensor(v) for key, v in values.items() if v is not None}
    return found


def assert_equal_states(expected: Path, got: Path) -> None:
    """Both runs ended with the same numbers, to the last bit."""
    one, other = state(expected), state(got)
    assert sorted(one) == sorted(other)
    assert [key for key in one if not torch.equal(one[key], other[key])] == []


def cut_and_resume(name: str, cuts: list[CutAt], *words: str) -> Path:
    """Train with a power cut at each of the places, resuming after each; the folder of the run that ended."""
    while True:
        found = list(Path(f"runs/{name}").glob("version_*/last.ckpt"))
        cut = cuts.pop(0) if cuts else CutAt()
        try:
            ended = run(["fit", *words, "--name", name, *(["--ckpt_path", "last"] if found else [])], [cut])
        except PowerCutError:
            continue
        assert ended.run_dir is not None  # a cut before the place where the run resumed is not reached
        return ended.run_dir


class SpectralModule(TinyModule):
    """With a layer of fixed filters."""

    def build_network(self) -> nn.Module:
        stft = DepthwiseSTFT(3, (3, 3, 3))
        pool = [nn.AdaptiveAvgPool3d(1), nn.Flatten()]
        return nn.Sequential(stft, *pool, nn.Linear(stft.out_channels, self.hparams["num_classes"]))
