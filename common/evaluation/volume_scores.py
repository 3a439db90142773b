"""Dice and Hausdorff distance of segmented volumes."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass

from monai.metrics import compute_dice, compute_hausdorff_distance
from torch import Tensor

MISSED_MM = (240**2 + 240**2 + 155**2) ** 0.5  # of the voxels of 1 mm of BraTS


def dice_per_case(predicted: Tensor, true: Tensor) -> Tensor:
    """Dice 2|P and T| / (|P| + |T|) of regions, bool (N, R, D, H, W) each: float32 (N, R) in [0, 1].

    Where a case lacks a region, the value is 1 if none is predicted and 0 otherwise, as in the scores of BraTS.
    """
    return compute_dice(predicted.float(), true.float(), include_background=True, ignore_empty=False).float()


def hausdorff_per_case(predicted: Tensor, true: Tensor, spacing: Tensor) -> Tensor:
    """95th percentile of the distances between the surfaces of regions, bool (N, R, D, H, W) each: (N, R) in mm.

    ``spacing`` (N, 3) is the size of the voxels in mm. Where only one of the two has a region the value is that of
    BraTS, the diagonal of its volumes; where none has it, 0.
    """
    predicted, true = predicted.cpu(), true.cpu()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of empty regions, which are handled here
        found = compute_hausdorff_distance(
            predicted.float(), true.float(), include_background=True, percentile=95, spacing=spacing.tolist()
        ).float()
    one, other = predicted.flatten(2).any(dim=2), true.flatten(2).any(dim=2)
    found[one != other], found[~one & ~other] = MISSED_MM, 0.0
    return found


@dataclass(frozen=True, eq=False)
class VolumeResult:
    """Scores of a set of volumes.

    Attributes:
        dice: (cases, regions).
        loss: (cases,).
        hausdorff: (cases, regions) in mm; nan in a validation, where it is not computed.
        volume: (cases, regions), true size of the regions in ml; nan likewise.
        index: (cases,) int64.
        region_names: name of each region.
    """

    dice: Tensor
    loss: Tensor
    hausdorff: Tensor
    volume: Tensor
    index: Tensor
    region_names: Sequence[str]

    @property
    def videos(self) -> int:
        """Number of cases."""
        return len(self.index)

    def metrics(self) -> dict[str, float]:
        """``dice_<region>`` and ``loss``, means over the cases; ``dice``, the mean over the regions.

        Of a test also ``hd95_<region>`` in mm and their mean ``hd95``, and ``dice_small``, ``dice_medium`` and
        ``dice_large``: ``dice`` of the thirds of the cases by the size of their largest region.
        """
        found = {"dice": float(self.dice.double().mean()), **self._by_region("dice", self.dice)}
        if not self.hausdorff.isnan().any():
            found |= {"hd95": float(self.hausdorff.double().mean()), **self._by_region("hd95", self.hausdorff)}
            order = self.volume.amax(dim=1).argsort(stable=True)
            if len(order) >= 3:
                thirds = zip(("small", "medium", "large"), order.tensor_split(3), strict=True)
                found |= {f"dice_{size}": float(self.dice[cases].double().mean()) for size, cases in thirds}
        return found | {"loss": float(self.loss.double().mean())}

    def _by_region(self, name: str, values: Tensor) -> dict[str, float]:
        means = values.double().mean(dim=0).tolist()
        return {f"{name}_{region.lower()}": mean for region, mean in zip(self.region_names, means, strict=True)}
