"""The base of every video classification module."""

from pathlib import Path

from torch import Tensor

from common.datamodules.video_clips import ClipSpec, load_views
from common.training.classification import ClassificationModule
from common.training.predict_windows import VideoClassPredictor


class VideoClassificationModule(ClassificationModule):
    """Trains and tests a network on the batches of ``common.datamodules.VideoDataModule``.

    ``build_network`` makes a network (B, C, T, H, W) -> logits (B, num_classes). The arguments are those of
    :class:`~common.training.classification.ClassificationModule`.
    """

    kind = "video"
    spec_class = ClipSpec
    predictor = VideoClassPredictor

    def load_views(self, path: str | Path) -> Tensor:
        return load_views(path, ClipSpec.from_dict(self.spec or {}))
