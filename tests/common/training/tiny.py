"""A network small enough for tests, as a paper's module would write it."""

from typing import Any

import torch
from torch import nn

from common.training.video_classification import VideoClassificationModule


class TinyModule(VideoClassificationModule):
    """One convolution with batch normalisation and dropout, trained with SGD."""

    def __init__(
        self, num_classes: int = 3, width: int = 4, dropout: float = 0.0, lr: float = 0.1, **kwargs: Any
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        h = self.hparams
        body = nn.Sequential(
            nn.Conv3d(3, h["width"], 3, padding=1, bias=False),
            nn.GroupNorm(2, h["width"]),
            nn.ReLU(),
            nn.AdaptiveAvgPool3d(1),
            nn.Flatten(),
            nn.Dropout(h["dropout"]),
        )
        return nn.Sequential(body, nn.Linear(h["width"], h["num_classes"]))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=self.hparams["lr"], momentum=0.9)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)]
