"""Dice of segmented volumes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from monai.metrics import compute_dice
from torch import Tensor

from common.evaluation.item_scores import ItemScores


def dice_per_case(predicted: Tensor, true: Tensor) -> Tensor:
    """Dice 2|P and T| / (|P| + |T|) of regions, bool (N, R, D, H, W) each: float32 (N, R) in [0, 1].

    Where a case lacks a region, the value is 1 if none is predicted and 0 otherwise, as in the scores of BraTS.
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


class VolumeScores(ItemScores):
    """Collects the scores of cases; :meth:`compute` returns a :class:`VolumeResult`."""

    def __init__(self, region_names: Sequence[str], **kwargs: Any) -> None:
        rows = {"dice": torch.empty(0, len(region_names)), "loss": torch.empty(0)}
        super().__init__(rows, kind="volume", **kwargs)
        self.region_names = list(region_names)

    def update(self, dice: Tensor, loss: Tensor, index: Tensor) -> None:
        """Add cases: dice (N, regions), loss (N,), index (N,)."""
        self.add(dice=dice, loss=loss, index=index)

    def compute(self) -> VolumeResult:
        """The result over all cases of all processes. Raises ValueError if no case was added."""
        return VolumeResult(**self.gather(), region_names=self.region_names)
