"""The base of every image classification module."""

from pathlib import Path

from torch import Tensor

from common.datamodules.image_dataset import ImageSpec, load_image
from common.training.classification import ClassificationModule


class ImageClassificationModule(ClassificationModule):
    """Trains and tests a network on the batches of ``common.datamodules.ImageDataModule``.

    ``build_network`` makes a network (B, 3, H, W) -> logits (B, num_classes). The arguments are those of
    :class:`~common.training.classification.ClassificationModule`.
    """

    kind = "image"
    spec_class = ImageSpec

    def load_views(self, path: str | Path) -> Tensor:
        return load_image(path, ImageSpec.from_dict(self.spec or {}))[None]
