"""Segmentation of volumes: loss, Dice per case, windows, checkpoints and predictions."""

from __future__ import annotations

import argparse
import csv
import re
from pathlib import Path
from typing import Any

import lightning as L
import nibabel as nib
import numpy as np
import pytest
import torch
from torch import nn

from common.datamodules.brats import find_case_folders, label_to_regions
from common.datamodules.volumes import VolumeDataModule
from common.evaluation.volume_scores import VolumeResult, dice_per_case, hausdorff_per_case
from common.reporting.page import Report
from common.training.task import NonFiniteError, load_module
from common.training.volume_segmentation import OUTSIDE, VolumeSegmentationModule
from tests.volumes import AFFINE, write_brats


class TinySegmentation(VolumeSegmentationModule):
    """One convolution."""

    def __init__(self, learning_rate: float = 0.5, **kwargs: Any) -> None:
        super().__init__(**kwargs)

    def build_network(self) -> nn.Module:
        return nn.Conv3d(4, 3, 3, padding=1)

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


def trainer(**options: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return L.Trainer(accelerator="cpu", use_distributed_sampler=False, **{**quiet, **options})


@pytest.fixture
def data(tmp_path: Path) -> VolumeDataModule:
    root = write_brats(tmp_path / "brats")
    return VolumeDataModule(str(root), (8, 12, 12), tumour_patches=0.5, val_fraction=0.4, batch_size=2, num_workers=0)


def test_dice_is_that_of_the_definition_and_of_brats_where_a_region_is_missing() -> None:
    generator = torch.Generator().manual_seed(0)
    predicted, true = (torch.rand(2, 3, 4, 5, 6, generator=generator) > 0.6 for _ in range(2))
    true[1, 0] = False
    predicted[1, 1] = true[1, 1] = False
    expected = torch.empty(2, 3)
    for n in range(2):
        for r in range(3):
            p, t = predicted[n, r], true[n, r]
            total = int(p.sum() + t.sum())
            expected[n, r] = 2 * int((p & t).sum()) / total if total else 1.0
    torch.testing.assert_close(dice_per_case(predicted, true), expected)
    assert expected[1, 0] == 0
    assert expected[1, 1] == 1


def test_hausdorff_distances_are_in_mm_and_those_of_brats_where_a_region_is_missing() -> None:
    true = torch.zeros(2, 3, 9, 9, 9, dtype=torch.bool)
    true[:, :, 3:6, 3:6, 3:6] = True
    predicted = true.roll(2, dims=3)  # by two rows of 1.5 mm
    predicted[0, 1] = False
    predicted[0, 2] = true[0, 2] = False
    spacing = torch.tensor([[3.0, 1.5, 1.0], [1.0, 1.0, 1.0]])
    found = hausdorff_per_case(predicted, true, spacing)
    expected = [[3.0, (2 * 240**2 + 155**2) ** 0.5, 0.0], [2.0, 2.0, 2.0]]
    torch.testing.assert_close(found, torch.tensor(expected))


def test_scores_by_the_size_of_the_tumour() -> None:
    sizes, dice = torch.tensor([30.0, 1.0, 8.0, 2.0]), torch.tensor([[0.9], [0.1], [0.5], [0.3]]).expand(4, 2)
    volume = torch.stack([torch.full((4,), 0.5), sizes], dim=1)
    metrics = VolumeResult(dice, torch.zeros(4), 10 * dice, volume, torch.arange(4), ["ET", "WT"]).metrics()
    assert metrics["dice_small"] == pytest.approx(0.2)  # of four cases, the first third has two
    assert metrics["dice_medium"] == pytest.approx(0.5)
    assert metrics["dice_large"] == pytest.approx(0.9)
    assert metrics["hd95"] == metrics["hd95_et"] == pytest.approx(4.5)


def test_distances_are_shown_in_millimetres() -> None:
    shown = {name: TinySegmentation().format_metric(name, 0.5) for name in ("hd95", "hd95_et", "dice_et", "loss")}
    assert shown == {"hd95": "0.50 mm", "hd95_et": "0.50 mm", "dice_et": "50.00 %", "loss": "0.5000"}


def test_a_case_counts_once_whatever_the_order() -> None:
    dice, loss = torch.rand(4, 3), torch.rand(4)
    results = []
    for order in ([0, 1, 2, 3], [3, 1, 0, 2, 1, 3]):
        module = TinySegmentation()
        for k in order:
            rows = {"dice": dice[k : k + 1], "loss": loss[k : k + 1]}
            unknown = torch.full((1, 3), torch.nan)
            module.scores.update(**rows, hausdorff=unknown, volume=unknown, index=torch.tensor([k]))
        results.append(module.compute_result())
    assert results[0].metrics() == results[1].metrics()
    assert results[0].videos == results[1].videos == 4
    assert results[0].metrics()["dice_wt"] == pytest.approx(float(dice[:, 1].mean()))
    assert results[0].metrics()["dice"] == pytest.approx(float(dice.mean()))
    with pytest.raises(ValueError, match="no volume was scored"):
        TinySegmentation().compute_result()


@pytest.mark.parametrize("loss", ["dice", "dice-bce"])
def test_the_loss_is_least_for_the_truth(loss: Any) -> None:
    module = TinySegmentation(loss=loss)
    regions = torch.rand(2, 3, 4, 6, 8) > 0.5
    right = 20 * regions.float() - 10
    losses = [module.loss_per_case(logits, regions) for logits in (right, torch.zeros_like(right), -right)]
    assert losses[0].shape == (2,)
    assert (losses[0] < 0.02).all()
    assert (losses[0] < losses[1]).all()
    assert (losses[1] < losses[2]).all()


def test_a_volume_is_segmented_window_by_window_as_in_one_piece() -> None:
    module = TinySegmentation().eval()
    module.network = nn.Conv3d(4, 3, 1)  # looks at one voxel, so that windows do not show at their borders
    volume = torch.zeros(1, 4, 20, 22, 18)
    volume[:, :, 3:17, 2:19, 5:] = torch.randn(1, 4, 14, 17, 13)
    module.spec = {"patch_size": [8, 8, 8], "overlap": 0.5}
    with torch.no_grad():
        whole, found = module.network(volume), module.segment(volume)
    inside = (volume != 0).any(dim=1)[0]
    torch.testing.assert_close(found[0][:, inside], whole[0][:, inside], atol=1e-5, rtol=1e-5)
    assert (found[0, :, :3] == OUTSIDE).all()
    assert (module.segment(torch.zeros(1, 4, 5, 6, 7)) == OUTSIDE).all()


def test_training_learns_and_the_checkpoint_predicts_alone(
    data: VolumeDataModule, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    module = TinySegmentation()
    run = trainer(max_epochs=25, enable_checkpointing=False, check_val_every_n_epoch=25)
    run.fit(module, datamodule=data)
    run.test(module, datamodule=data, verbose=False)
    assert module.result is not None
    metrics = module.result.metrics()
    regions = ("et", "wt", "tc")
    assert set(metrics) == {"dice", "hd95", "loss"} | {f"{score}_{r}" for score in ("dice", "hd95") for r in regions}
    assert metrics["dice"] > 0.8
    assert module.result.videos == 2
    report = Report("Test")
    module.describe_result(report, data.root)
    page = report.write(tmp_path / "page").read_text()
    lowest = min(zip(module.result.dice.mean(dim=1).tolist(), module.result.index.tolist(), strict=True))[1]
    first = re.search(r'href="(file:[^"]+)"', page.partition("Cases with the lowest Dice</h2>")[2])
    assert first is not None
    assert first[1] == (data.root / module.paths[lowest]).resolve().as_uri()
    table = list(csv.DictReader(module.write_predictions(tmp_path).open()))
    assert [row["path"] for row in table] == sorted(module.paths.values())
    assert np.mean([float(row["dice_wt"]) for row in table]) == pytest.approx(metrics["dice_wt"], abs=1e-5)

    run.save_checkpoint(tmp_path / "last.ckpt")
    loaded = load_module(tmp_path / "last.ckpt", trusted_packages=("tests",))
    assert isinstance(loaded, TinySegmentation)
    assert loaded.spec == {"modalities": ["flair", "t1", "t1ce", "t2"], "patch_size": [8, 12, 12], "overlap": 0.5}
    folder = find_case_folders([data.root])[0]
    broken = find_case_folders([data.root])[1]
    (broken / f"{broken.name}_t2.nii.gz").unlink()
    parser = argparse.ArgumentParser()
    loaded.predictor.add_arguments(parser)
    options = parser.parse_args(["--out", str(tmp_path / "out")])
    options.paths, options.force, options.rows = [str(folder)], False, 10
    assert loaded.predictor(loaded, options).run() == 0
    written = nib.load(tmp_path / "out" / f"{folder.name}.nii.gz")
    assert np.array_equal(written.affine, AFFINE)
    found = np.asarray(written.dataobj)
    true = np.asarray(nib.load(folder / f"{folder.name}_seg.nii.gz").dataobj)
    assert found.shape == true.shape
    assert (found == true).mean() > 0.95
    with pytest.raises(FileExistsError, match="exists"):
        loaded.predictor(loaded, options).run()
    options.force, options.paths = True, [str(folder), str(broken), str(tmp_path / "nothing")]
    assert loaded.predictor(loaded, options).run() == 1
    printed = capsys.readouterr().out
    assert f"error: {broken}: it lacks" in printed
    assert f"error: {tmp_path / 'nothing'}: no such folder" in printed


def test_the_same_numbers_window_by_window_and_case_by_case(data: VolumeDataModule) -> None:
    torch.manual_seed(0)
    module = TinySegmentation()
    results = []
    for size in (1, 2):
        data.eval_batch_size = size
        module.windows_per_forward = size
        trainer(enable_checkpointing=False).test(module, datamodule=data, verbose=False)
        assert module.result is not None
        results.append(module.result.metrics())
    assert results[0] == pytest.approx(results[1], abs=1e-5)


def test_output_that_is_not_finite_is_named(data: VolumeDataModule) -> None:
    module = TinySegmentation()
    nn.init.constant_(module.network.bias, float("nan"))  # type: ignore[arg-type]
    with pytest.raises(NonFiniteError, match="volumes: Brats18_"):
        trainer(enable_checkpointing=False).test(module, datamodule=data, verbose=False)
    with pytest.raises(NonFiniteError, match="the training loss is nan"):
        trainer(max_epochs=1, enable_checkpointing=False, limit_val_batches=0).fit(module, datamodule=data)


def test_wrong_choices_are_named(data: VolumeDataModule) -> None:
    with pytest.raises(ValueError, match="loss is 'l2'"):
        TinySegmentation(loss="l2")
    module = TinySegmentation(num_regions=2)
    with pytest.raises(ValueError, match="num_regions is 3 in the data and 2 in the network; leave"):
        trainer(max_epochs=1, enable_checkpointing=False).fit(module, datamodule=data)


def test_pictures_of_a_batch(data: VolumeDataModule) -> None:
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    figures = TinySegmentation().batch_figures(batch, {"predicted": label_to_regions(batch["label"])})
    (figure,) = figures.values()
    assert [axes.get_title() for axes in figure.axes] == ["image", "labels", "prediction"]
    shown = [np.asarray(axes.images[-1].get_array()) for axes in figure.axes[1:]]
    assert np.array_equal(*shown)
