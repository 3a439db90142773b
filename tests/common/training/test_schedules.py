"""Learning rates by step, with accumulation and over a whole training."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader

from common.training.schedules import cosine_over_training, cosine_with_warmup


def rates(schedule: Any, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    return found


def sgd(lr: float = 0.5) -> torch.optim.SGD:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


@pytest.mark.parametrize(("steps", "warmup"), [(20, 0), (20, 5), (1, 0), (1, 3), (2, 1)])
def test_every_rate_is_the_formula(steps: int, warmup: int) -> None:
    optimizer = sgd()
    schedule = cosine_with_warmup(optimizer, steps, warmup)
    found = rates(schedule, optimizer, steps)
    assert abs(optimizer.param_groups[0]["lr"]) < 1e-12
    schedule.step()  # one more does no harm
    assert abs(optimizer.param_groups[0]["lr"]) < 1e-12
    warmup = min(warmup, steps - 1)
    expected = [0.5 * (0.01 + 0.99 * step / warmup) for step in range(warmup)]
    rest = steps - warmup
    expected += [0.25 * (1 + math.cos(math.pi * step / rest)) for step in range(rest)]
    assert found == pytest.approx(expected)


def test_wrong_warmup_is_named() -> None:
    with pytest.raises(ValueError, match="warm-up of -1 steps"):
        cosine_with_warmup(sgd(), 10, -1)


def test_a_training_can_go_on_longer() -> None:
    optimizer = sgd()
    short = cosine_with_warmup(optimizer, 1)
    state = short.state_dict()
    schedule = cosine_with_warmup(optimizer, 20, 5)
    schedule.load_state_dict(state)
    optimizer.step()
    schedule.step()
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * (0.01 + 0.99 / 5))


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(1, 1)
        self.rates: list[float] = []

    def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
        return self.layer(batch).sum()

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        self.rates.append(optimizer.param_groups[0]["lr"])

    def configure_optimizers(self) -> Any:
        return cosine_over_training(self, torch.optim.SGD(self.parameters(), lr=1.0), warmup_epochs=1.0)


@pytest.mark.parametrize("limit", ["epochs", "steps"])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_accumulation_makes_steps_rarer_and_keeps_the_curve(accumulate: int, limit: str, tmp_path: Any) -> None:
    module = Module()
    options: dict[str, Any] = {"enable_checkpointing": False, "enable_progress_bar": False, "logger": False}
    per_epoch = 8 // accumulate
    options |= {"max_epochs": 4} if limit == "epochs" else {"max_epochs": -1, "max_steps": 4 * per_epoch}
    trainer = L.Trainer(accumulate_grad_batches=accumulate, accelerator="cpu", default_root_dir=tmp_path, **options)
    trainer.fit(module, DataLoader(torch.zeros(8, 1), batch_size=1))
    assert len(module.rates) == 4 * per_epoch
    assert module.rates[0] == pytest.approx(0.01)
    assert module.rates[per_epoch] == pytest.approx(1.0)  # after the first epoch, the warm-up
    middle = per_epoch + 3 * per_epoch // 2
    if 3 * per_epoch % 2 == 0:
        assert module.rates[middle] == pytest.approx(0.5)
    assert module.rates[per_epoch:] == sorted(module.rates[per_epoch:], reverse=True)


def test_endless_training_is_an_error() -> None:
    module = Module()
    module._trainer = SimpleNamespace(estimated_stepping_batches=float("inf"))  # type: ignore[assignment]
    module._fabric = None
    with pytest.raises(ValueError, match="max_epochs"):
        module.configure_optimizers()
