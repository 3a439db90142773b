"""Training of the networks of this paper as Section 4 describes it."""

from typing import Any, Literal

import torch
from torch import nn

from common.training.image_classification import ImageClassificationModule
from papers.stft2d import networks

Method = Literal["stft", "depthwise-separable", "relpu", "mobilenet", "mobilenet-v2", "shufflenet", "shufflenet-v2"]


class STFT2DModule(ImageClassificationModule):
    """The networks of Table 2 with cross-entropy, trained by Adam at a constant learning rate (Section 4).

    Args:
        method: the network; see `papers.stft2d.networks`.
        num_classes: number of classes.
        b: channels of the bottlenecks of `stft`; `depthwise-separable` is made as large as that.
        f: channels of the blocks of these two and of `relpu`, which has 256 in Table 2.
        block: blocks of `stft` and `relpu` as the text describes them, or those that `fit` the published counts.
        learning_rate: of Adam; it does not change. The paper raises the batch size instead.
        kwargs: `pretrained`, `compile` and the other arguments of the base class.
    """

    def __init__(
        self,
        method: Method = "stft",
        num_classes: int = 10,
        b: int = 64,
        f: int = 128,
        block: networks.Block = "text",
        learning_rate: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        h = self.hparams
        options: dict[str, Any] = {"num_classes": h["num_classes"]}
        if h["method"] in ("stft", "depthwise-separable", "relpu"):
            options["f"] = h["f"]
        if h["method"] in ("stft", "relpu"):
            options["block"] = h["block"]
        if h["method"] in ("stft", "depthwise-separable"):
            options["b"] = h["b"]
        return getattr(networks, h["method"].replace("-", "_"))(**options)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])
