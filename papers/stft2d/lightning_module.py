"""Training of the networks of this paper as Section 4 describes it."""

from typing import Any, Literal

import torch
from torch import nn

from common.training.classification import ImageClassificationModule
from papers.stft2d import networks
from papers.stft2d.networks import STFT2DOptions

Method = Literal["stft", "depthwise-separable", "relpu", "mobilenet", "mobilenet-v2", "shufflenet", "shufflenet-v2"]
SIXTEEN_BLOCKS = ("stft", "depthwise-separable", "relpu")


class STFT2DModule(ImageClassificationModule):
    """The networks of Table 2 with cross-entropy, trained by Adam at a constant learning rate (Section 4).

    Args:
        method: the network; see `papers.stft2d.networks`.
        network: options of `stft`, `depthwise-separable` and `relpu`; the others have none.
        num_classes: number of classes; taken from the data by `spectral`.
        learning_rate: of Adam; it does not change. The paper raises the batch size instead.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        method: Method = "stft",
        network: STFT2DOptions = STFT2DOptions(),
        num_classes: int | None = None,
        learning_rate: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        method, options = self.hparams["method"], STFT2DOptions(**self.hparams["network"])
        build = getattr(networks, method.replace("-", "_"))
        if method in SIXTEEN_BLOCKS:
            return build(self.hparams["num_classes"], options)
        if options != STFT2DOptions():
            raise ValueError(f"{method} has no options, but network is {options}")
        return build(self.hparams["num_classes"])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])
