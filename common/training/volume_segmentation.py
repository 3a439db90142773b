"""The base of every module that segments brain volumes: loss, Dice per case, whole volumes window by window."""

import argparse
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from matplotlib.figure import Figure
from monai.inferers import sliding_window_inference
from monai.losses import DiceLoss
from torch import Tensor
from torch.nn import functional as F

from common.datamodules.brats import (
    REGIONS,
    Case,
    find_case,
    find_case_folders,
    label_to_regions,
    load_volume,
    read_label,
    regions_to_label,
    save_label,
    voxel_spacing,
)
from common.datamodules.volumes import VolumeSpec
from common.evaluation.figures import slice_figure
from common.evaluation.item_scores import ItemScores
from common.evaluation.volume_scores import VolumeResult, dice_per_case, hausdorff_per_case
from common.output_files import write_rows
from common.training.predict import Predictor
from common.training.task import TaskModule

Loss = Literal["dice", "dice-bce"]
OUTSIDE = -20.0  # logit of what lies outside of the scan, where all channels are zero


class VolumePredictor(Predictor):
    """Writes ``<case>.nii.gz`` with the labels and the affine of the scan, for every case folder."""

    columns = ("case", f"{' / '.join(REGIONS)} (ml)", f"Dice {' / '.join(REGIONS)}", "written")

    def __init__(self, module: "VolumeSegmentationModule", options: argparse.Namespace) -> None:
        super().__init__(module, options)
        self.modalities = VolumeSpec.from_dict(module.spec or {}).modalities
        options.out.mkdir(parents=True, exist_ok=True)

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--out", type=Path, default=Path("predictions"), help="folder for <case>.nii.gz (default: %(default)s)"
        )

    def find_files(self, path: str) -> list[Path]:
        return find_case_folders([path])

    def load(self, path: Path) -> tuple[Case, Tensor, Tensor | None]:
        """A case with its normalised images (C, D, H, W) and, if it has them, labels (D, H, W)."""
        case = find_case(path, self.modalities)
        return case, load_volume(case), None if case.label is None else read_label(case.label)

    def predict(self, path: Path, content: tuple[Case, Tensor, Tensor | None]) -> Sequence[str]:
        case, volume, true = content
        out = self.options.out / f"{case.name}.nii.gz"
        logits = self.module.segment(volume[None].to(self.module.device))[0].cpu()
        self.check_finite(path, logits)
        predicted = logits > 0
        label = regions_to_label(predicted)
        save_label(label, case.images[0], out, self.options.force)
        sizes = label_to_regions(label).flatten(1).sum(dim=1) * math.prod(voxel_spacing(case.images[0])) / 1000
        dice = "" if true is None else _joined(dice_per_case(predicted[None], label_to_regions(true)[None])[0], 4)
        return _joined(sizes, 1), dice, str(out)


class VolumeSegmentationModule(TaskModule):
    """Trains and tests a network on the batches of ``common.datamodules.VolumeDataModule``.

    ``build_network`` makes a network (B, C, D, H, W) -> logits (B, num_regions, D, H, W), one map for each of the
    overlapping regions ET, WT and TC. It is trained on patches. Whole volumes are segmented in overlapping windows of
    the patch size, whose logits are averaged with Gaussian weights, within the smallest box around the scan.

    Args:
        num_regions: 3, the length of the network's output.
        loss: ``dice``, 1 - soft Dice, mean over regions, or ``dice-bce``, that plus the binary cross-entropy.
        windows_per_forward: windows passed through the network at once. Bounds the memory, not the result.
        kwargs: ``pretrained``, ``imagenet`` and ``compile`` of :class:`~common.training.task.TaskModule`.
    """

    kind = "volume"
    spec_class = VolumeSpec
    output = "region"
    names_source = "common/datamodules/brats.py"
    score = "dice"
    metric_units: ClassVar[Mapping[str, str]] = {"loss": "", "hd95": "mm"}
    predictor = VolumePredictor
    result: VolumeResult

    def __init__(
        self,
        num_regions: int = len(REGIONS),
        *,
        loss: Loss = "dice",
        windows_per_forward: int = 1,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        if loss not in ("dice", "dice-bce"):
            raise ValueError(f"loss is {loss!r}; it is dice or dice-bce")
        self.loss, self.windows_per_forward = loss, windows_per_forward
        self.dice_loss = DiceLoss(sigmoid=True, squared_pred=True, smooth_nr=1.0, smooth_dr=1.0, reduction="none")
        per_region, per_case = torch.empty(0, len(REGIONS)), torch.empty(0)
        rows = {"dice": per_region, "loss": per_case, "hausdorff": per_region, "volume": per_region}
        self.scores = ItemScores(rows, "volume")

    def loss_per_case(self, logits: Tensor, regions: Tensor) -> Tensor:
        """Loss of each volume: logits and regions (B, R, D, H, W) -> (B,)."""
        target = regions.float()
        loss = self.dice_loss(logits, target).flatten(1).mean(dim=1)
        if self.loss == "dice-bce":
            loss = loss + F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1).mean(dim=1)
        return loss

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean loss of the batch's patches."""
        loss = self.loss_per_case(self(batch["volume"]).float(), label_to_regions(batch["label"])).mean()
        self.log_loss(loss, batch, batch_idx)
        return loss

    # -- evaluation ----------------------------------------------------------------------------------------------

    def segment(self, volume: Tensor) -> Tensor:
        """Logits of whole volumes of any size: (B, C, D, H, W) -> (B, R, D, H, W) float32."""
        spec = VolumeSpec.from_dict(self.spec or {"patch_size": tuple(volume.shape[2:])})
        inside = (volume != 0).any(dim=1).any(dim=0)
        logits = volume.new_full((len(volume), len(REGIONS), *volume.shape[2:]), OUTSIDE, dtype=torch.float32)
        if not inside.any():
            return logits
        places = inside.nonzero()
        box = tuple(slice(int(a), int(b) + 1) for a, b in zip(places.amin(0), places.amax(0), strict=True))
        found = sliding_window_inference(
            volume[:, :, *box],
            spec.patch_size,
            self.windows_per_forward,
            lambda window: self(window).float(),
            overlap=spec.overlap,
            mode="gaussian",
        )
        assert isinstance(found, Tensor)
        logits[:, :, *box] = found
        return logits

    def evaluate_batch(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        logits, regions = self.segment(batch["volume"]), label_to_regions(batch["label"])
        self.check_finite(logits, batch)
        predicted = logits > 0
        dice, loss = dice_per_case(predicted, regions), self.loss_per_case(logits, regions)
        size = hausdorff = torch.full_like(dice, torch.nan)
        if self._trainer is not None and self.trainer.testing:  # surfaces take longer than the network
            ml = batch["spacing"].prod(dim=1, keepdim=True) / 1000
            size = regions.flatten(2).sum(dim=2) * ml
            hausdorff = hausdorff_per_case(predicted, regions, batch["spacing"]).to(dice.device)
        self.scores.update(dice=dice, loss=loss, hausdorff=hausdorff, volume=size, index=batch["volume_index"])
        return {"predicted": predicted}

    def compute_result(self) -> VolumeResult:
        return VolumeResult(**vars(super().compute_result()), region_names=list(REGIONS))

    def predict_batch(self, batch: Mapping[str, Any]) -> Tensor:
        return self.segment(batch["volume"])

    def write_predictions(self, folder: Path) -> Path:
        """``predictions.csv``, one row a case: of every region Dice, Hausdorff distance (``hd95``) and true size in ml;
        the loss.
        """
        path = folder / "predictions.csv"
        write_rows(path, self._rows())
        return path

    def describe_result(self, report: Any, root: Path | None) -> None:
        from common.training.run_page import add_files

        rows = [(row, [value for name, value in row.items() if name.startswith("dice_")]) for row in self._rows()]
        lowest = sorted(rows, key=lambda pair: sum(pair[1]))[: self.LISTED]
        report.section("Cases with the lowest Dice")
        regions = " / ".join(self.result.region_names)
        texts = [f"{row['path']} ({regions}: {_joined(100 * torch.tensor(dice), 1)} %)" for row, dice in lowest]
        add_files(report, [(row["path"], text) for (row, _), text in zip(lowest, texts, strict=True)], root)
        super().describe_result(report, root)

    def _rows(self) -> list[dict[str, Any]]:
        result = self.result
        return [
            {"path": self.paths.get(int(i), str(int(i)))}
            | {
                f"{column}_{name.lower()}": round(float(value), 6)
                for column, values in (("dice", dice), ("hd95", distance), ("ml", size))
                for name, value in zip(result.region_names, values, strict=True)
            }
            | {"loss": round(float(loss), 6)}
            for i, dice, distance, size, loss in zip(
                result.index, result.dice, result.hausdorff, result.volume, result.loss, strict=True
            )
        ]

    def batch_figures(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """The slice with most tumour of the first volume: labels and prediction."""
        label, predicted = batch["label"][0].cpu(), regions_to_label(outputs["predicted"][0]).cpu()
        return {"slices": slice_figure(batch["volume"][0, 0].cpu(), {"labels": label, "prediction": predicted})}


def _joined(values: Tensor, digits: int) -> str:
    return " / ".join(f"{value:.{digits}f}" for value in values.tolist())
