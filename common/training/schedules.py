"""Optimisers and learning-rate schedules that papers share, as values for `configure_optimizers`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, MultiStepLR, StepLR


def sgd(module: L.LightningModule) -> torch.optim.SGD:
    """SGD over all parameters of a module, with what its hyperparameters say of `learning_rate`, `momentum`,
    `dampening`, `nesterov` and `weight_decay`."""
    names = ("momentum", "dampening", "nesterov", "weight_decay")
    options = {name: module.hparams[name] for name in names if name in module.hparams}
    return torch.optim.SGD(module.parameters(), lr=module.hparams["learning_rate"], **options)


def adamw(module: L.LightningModule) -> torch.optim.AdamW:
    """AdamW over all parameters of a module, with its hyperparameters `learning_rate` and `weight_decay`."""
    hparams = module.hparams
    return torch.optim.AdamW(module.parameters(), lr=hparams["learning_rate"], weight_decay=hparams["weight_decay"])


#: by the name that a module's hyperparameter `optimizer` gives
OPTIMIZERS: dict[str, Callable[[L.LightningModule], Optimizer]] = {"sgd": sgd, "adamw": adamw}


def divided_every(optimizer: Optimizer, epochs: int) -> OptimizerLRSchedulerConfig:
    """An optimiser whose learning rate is divided by 10 every `epochs` epochs."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": StepLR(optimizer, epochs, gamma=0.1)}}


def divided_at(optimizer: Optimizer, milestones: Sequence[int]) -> OptimizerLRSchedulerConfig:
    """An optimiser whose learning rate is divided by 10 at each of some epochs."""
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": MultiStepLR(optimizer, list(milestones), gamma=0.1)}}


def cosine_with_warmup(optimizer: Optimizer, steps: int, warmup_steps: int = 0) -> LambdaLR:
    """A linear warm-up to the optimiser's learning rate from a hundredth, then a cosine to zero after `steps` steps.

    The rate is a closed form of the step, counted in optimiser steps, so that accumulation and the number of processes
    change nothing and a resumed training may have another length.

    Args:
        optimizer: its learning rates are the peaks.
        steps: optimiser steps of the whole training, warm-up included.
        warmup_steps: steps of the warm-up; at least one step is left for the cosine.

    Raises:
        ValueError: fewer than 0 warm-up steps.
    """
    if warmup_steps < 0:
        raise ValueError(f"a warm-up of {warmup_steps} steps: give 0 or more")
    warmup_steps = min(warmup_steps, steps - 1)

    def factor(step: int) -> float:
        if step < warmup_steps:
            return 0.01 + 0.99 * step / warmup_steps
        return 0.5 * (1 + math.cos(math.pi * min((step - warmup_steps) / max(steps - warmup_steps, 1), 1.0)))

    return LambdaLR(optimizer, factor)


def cosine_over_training(
    module: L.LightningModule, optimizer: Optimizer, warmup_epochs: float = 0.0
) -> OptimizerLRSchedulerConfig:
    """:func:`cosine_with_warmup` over the whole training of `module`, whose number of steps its trainer knows.

    Raises:
        ValueError: the length of the training is not limited.
    """
    steps = module.trainer.estimated_stepping_batches
    if steps == float("inf"):
        raise ValueError("a cosine schedule needs the length of the training: set trainer.max_epochs or max_steps")
    module.trainer.fit_loop.setup_data()  # with a length in steps, the batches have not been counted yet
    per_epoch = math.ceil(module.trainer.num_training_batches / module.trainer.accumulate_grad_batches)
    schedule = cosine_with_warmup(optimizer, int(steps), round(warmup_epochs * per_epoch))
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}
