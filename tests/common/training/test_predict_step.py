"""`Trainer.predict` gives the predictions of every task, for writers of Lightning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import BasePredictionWriter

from common.datamodules import ImageDataModule, KeypointDataModule, VideoDataModule, VolumeDataModule
from common.training.cli import main
from papers.fdc3d import FDC3DVolumeModule
from papers.fdc3d.networks import UNetOptions
from papers.srl import SRLPoseModule
from papers.srl.networks import PoseOptions
from papers.stft2d import STFT2DModule
from papers.stft2d.networks import STFT2DOptions
from tests.common.training.tiny import TinyModule
from tests.datasets import WRITERS

SMALL_POSE = PoseOptions(
    depth=18, layers=(1, 1, 1, 1), width=0.125, deconv_channels=8, block="none", block_positions=()
)
TASKS: dict[str, tuple[str, Any, Any]] = {
    "video": ("motion", VideoDataModule, lambda: TinyModule(num_classes=8)),
    "image": ("digits", ImageDataModule, lambda: STFT2DModule(num_classes=10, network=STFT2DOptions(b=2, f=4))),
    "person": ("figures", KeypointDataModule, lambda: SRLPoseModule(SMALL_POSE, 17, (64, 48))),
    "volume": ("brain", VolumeDataModule, lambda: FDC3DVolumeModule(UNetOptions(layout="lee", width=0.125), 4)),
}
OPTIONS: dict[str, dict[str, Any]] = {
    "video": {"num_frames": 4, "crop_size": 16, "num_clips": 2, "manifest": "manifest.csv"},
    "person": {"height": 64, "width": 48},
    "volume": {"patch_size": (16, 16, 16)},
}


class Writer(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__("batch")
        self.paths: list[str] = []

    def write_on_batch_end(self, trainer: Any, pl_module: Any, prediction: Any, *args: Any) -> None:
        self.paths += prediction["path"]


@pytest.mark.parametrize("task", TASKS)
def test_trainer_predict(task: str, tmp_path: Path) -> None:
    dataset, data_class, make = TASKS[task]
    WRITERS[dataset](tmp_path / "data")
    data = data_class(
        root=str(tmp_path / "data"), dataset=dataset, num_workers=0, batch_size=4, **OPTIONS.get(task, {})
    )
    writer = Writer()
    options: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(use_distributed_sampler=False, callbacks=[writer], limit_predict_batches=2, **options)
    predictions = trainer.predict(make(), data)
    assert predictions
    paths = [path for prediction in predictions for path in prediction["path"]]
    outputs = torch.cat([prediction["output"] for prediction in predictions])
    assert writer.paths == paths
    assert len(paths) == len(outputs) > 0
    if task in ("video", "image"):
        torch.testing.assert_close(outputs.sum(1), torch.ones(len(outputs)))
        assert len(set(paths)) == len(paths), "the views of a file are one prediction"


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("spectral-video ")
