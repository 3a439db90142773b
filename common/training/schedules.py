"""Learning rate schedules that are counted in optimiser steps, so that accumulation and processes change nothing."""

from __future__ import annotations

import math

import lightning as L
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR


def cosine_with_warmup(optimizer: Optimizer, steps: int, warmup_steps: int = 0, warmup_start: float = 0.01) -> LambdaLR:
    """A cosine from the optimiser's learning rate to zero after `steps` steps, behind a linear warm-up.

    One closed form of the step, so that a training may go on with another length or warm-up.

    Args:
        optimizer: its learning rates are the highest ones.
        steps: optimiser steps of the whole training, warm-up included.
        warmup_steps: steps of the warm-up; at least one step is left for the cosine.
        warmup_start: share of the learning rate that the warm-up begins with, above 0.

    Raises:
        ValueError: fewer than 0 warm-up steps, or a start outside of (0, 1].
    """
    if warmup_steps < 0 or not 0 < warmup_start <= 1:
        raise ValueError(f"warm-up of {warmup_steps} steps from {warmup_start}: give 0 or more, and a share in (0, 1]")
    warmup_steps = min(warmup_steps, steps - 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return warmup_start + (1 - warmup_start) * step / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)))

    return LambdaLR(optimizer, factor)


def cosine_over_training(
    module: L.LightningModule, optimizer: Optimizer, warmup_epochs: float = 0.0, warmup_start: float = 0.01
) -> OptimizerLRSchedulerConfig:
    """What `configure_optimizers` returns for :func:`cosine_with_warmup` over the whole training of `module`.

    The number of steps is the trainer's: it knows the epochs, the batches of a process and their accumulation.

    Raises:
        ValueError: the training has no end.
    """
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError("a cosine schedule needs the length of the training: set trainer.max_epochs or max_steps")
    epochs = module.trainer.max_epochs
    per_epoch = (
        steps / epochs
        if epochs and epochs > 0
        else module.trainer.num_training_batches / module.trainer.accumulate_grad_batches
    )
    schedule = cosine_with_warmup(optimizer, int(steps), round(warmup_epochs * per_epoch), warmup_start)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
