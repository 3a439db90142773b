"""Dice of segmented volumes, every case once whatever the number of processes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import compute_dice
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


def dice_per_case(predicted: Tensor, true: Tensor) -> Tensor:
    """Dice 2|P and T| / (|P| + |T|) of regions, bool (N, R, D, H, W) each: float32 (N, R) in [0, 1].

    Where a case does not have a region, the value is 1 if none is predicted and 0 otherwise, as BraTS scores it.
    """
    return compute_dice(predicted.float(), true.float(), include_background=True, ignore_empty=False).float()


class VolumeResult:
    """Scores of a set of volumes.

    Args:
        dice: (cases, regions).
        loss: (cases,).
        index: (cases,) int64.
        region_names: name of each region.

    Attributes:
        dice, loss, index: as given.
        videos: number of cases.
    """

    def __init__(self, dice: Tensor, loss: Tensor, index: Tensor, region_names: Sequence[str]) -> None:
        self.dice, self.loss, self.index, self.region_names = dice, loss, index, list(region_names)
        self.videos = len(index)

    def metrics(self) -> dict[str, float]:
        """``dice_<region>`` and ``loss``, means over the cases; ``dice``, the mean over the regions."""
        means = self.dice.double().mean(dim=0)
        regions = {f"dice_{name.lower()}": float(value) for name, value in zip(self.region_names, means, strict=True)}
        return {"dice": float(means.mean()), **regions, "loss": float(self.loss.double().mean())}


class VolumeScores(Metric):
    """Collects the scores of one case each; :meth:`compute` returns a :class:`VolumeResult`."""

    full_state_update = False
    dice: list[Tensor]
    loss: list[Tensor]
    index: list[Tensor]

    def __init__(self, region_names: Sequence[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.region_names = list(region_names)
        for name in ("dice", "loss", "index"):
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, dice: Tensor, loss: Tensor, index: Tensor) -> None:
        """Add cases: dice (N, regions), loss (N,), index (N,); a case added twice counts once."""
        self.dice.append(dice.detach().float())
        self.loss.append(loss.detach().float())
        self.index.append(index.long())

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over the processes; one that saw no case takes part with empty tensors of the right shape."""
        if not self.index:
            self.dice.append(torch.empty(0, len(self.region_names), device=self.device))
            self.loss.append(torch.empty(0, device=self.device))
            self.index.append(torch.empty(0, dtype=torch.int64, device=self.device))
        super().sync(*args, **kwargs)

    def compute(self) -> VolumeResult:
        """The result over all cases of all processes, in the order of their index.

        Raises:
            ValueError: no case was added.
        """
        if not len(self.index) or not len(dim_zero_cat(self.index)):
            raise ValueError("no case was scored: the data set is empty, or the loader gave no batch")
        index = dim_zero_cat(self.index).cpu()
        order = torch.argsort(index, stable=True)
        index = index[order]
        keep = torch.cat([torch.ones(1, dtype=torch.bool), index[1:] != index[:-1]])
        dice, loss = dim_zero_cat(self.dice).cpu()[order][keep], dim_zero_cat(self.loss).cpu()[order][keep]
        return VolumeResult(dice, loss, index[keep], self.region_names)
