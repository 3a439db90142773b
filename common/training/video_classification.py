"""The base of every video classification module."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from torch import Tensor

from common.datamodules.clip_spec import ClipSpec, load_views
from common.datamodules.manifest import find_files
from common.training.classification import ClassificationModule
from common.training.task import NonFiniteError, load_module, load_pretrained

__all__ = ["NonFiniteError", "VideoClassificationModule", "load_module", "load_pretrained"]


class VideoClassificationModule(ClassificationModule):
    """Trains and tests a network on the batches of ``common.datamodules.VideoDataModule``.

    ``build_network`` makes a network (B, C, T, H, W) -> logits (B, num_classes). The arguments are those of
    :class:`~common.training.classification.ClassificationModule`.
    """

    kind = "video"
    spec_name = "clip_spec"

    @property
    def clip_spec(self) -> dict[str, Any] | None:
        """How test clips are made (:class:`~common.datamodules.clip_spec.ClipSpec`), as plain values."""
        return self.spec

    @staticmethod
    def find_files(paths: Iterable[str | Path]) -> list[Path]:
        return find_files(paths, "video")

    def load_views(self, path: str | Path) -> Tensor:
        return load_views(path, ClipSpec.from_dict(self.spec or {}))

    def predict_video(self, views: Tensor) -> Tensor:
        """Class probabilities of one video: views (V, C, T, H, W) -> (num_classes,) float32."""
        return self.predict_views(views)
