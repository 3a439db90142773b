"""Compact networks of one file as modules, so that `spectral predict --checkpoint small.pt` takes that file."""

from pathlib import Path
from typing import Any

from torch import nn

from common.training.classification import VideoClassificationModule
from common.training.task import TaskModule
from common.training.volume_segmentation import VolumeSegmentationModule
from papers.fdc3d.files import rebuild, save_compact


class CompactModule(TaskModule):
    """Predicts and tests with a compact network that a file describes; it does not train."""

    def build_network(self) -> nn.Module:
        return nn.Identity()  # until a file says what it is

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.network = rebuild(checkpoint).to(self.device)
        checkpoint["state_dict"] = {f"network.{name}": value for name, value in checkpoint["state_dict"].items()}
        super().on_load_checkpoint(checkpoint)

    def save(self, path: str | Path, facts: dict[str, Any]) -> None:
        """Write the network to a file that `load_compact` and `spectral predict` read; `facts` is kept with it."""
        entries: dict[str, Any] = {"hyper_parameters": dict(self.hparams)}
        self.on_save_checkpoint(entries)
        save_compact(self.network, path, facts=facts, **entries)


class CompactVideoModule(CompactModule, VideoClassificationModule):
    """Classifies videos. The arguments are those of `common.training.classification.ClassificationModule`."""


class CompactVolumeModule(CompactModule, VolumeSegmentationModule):
    """Segments volumes. The arguments are those of `common.training.volume_segmentation.VolumeSegmentationModule`."""
