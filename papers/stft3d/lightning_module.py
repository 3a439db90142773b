"""Training of the networks of this paper as Section 5.2 describes it."""

from typing import Any, Literal

import torch
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from common.training.video_classification import VideoClassificationModule
from papers.stft3d import networks

Method = Literal["st-stft", "s-stft", "t-stft", "fact-dw", "relpv", "i3d", "i2d", "s3d", "s3d-g"]


class STFT3DModule(VideoClassificationModule):
    """X-STFT and the networks it is compared with, trained by SGD with a step schedule (Section 5.2).

    The defaults train from scratch; fine-tuning takes `learning_rate=0.01, decay_every=20` and `pretrained`.

    Args:
        method: the network; see `papers.stft3d.networks`.
        num_classes: number of classes.
        width: multiplies every channel number; 1 is the paper's network.
        activation: activation after every layer (Table 4); by default LeakyReLU(0.01) in X-STFT and Fact.+DW and
            ReLU in the others.
        head: `linear` as the text says, or `mlp`, which fits the published parameter counts.
        dropout: probability before the classifier.
        memory_efficient: training keeps little more than the input of each fixed transform; gradients are equal.
        learning_rate: of the first epochs.
        decay_every: epochs after which the learning rate is divided by 10, again and again.
        momentum: of SGD.
        dampening: of SGD. With the paper's 0.9 a step is a tenth of that of undamped momentum.
        weight_decay: of SGD, on every parameter.
        pretrained: checkpoint to start from; the classifier is replaced when the classes differ.
        views_per_forward: views passed through the network at once in evaluation; bounds the memory.
        average: views of a video are averaged as probabilities (the paper) or logits.
        compile: run the network through `torch.compile`.
    """

    def __init__(
        self,
        method: Method = "t-stft",
        num_classes: int = 174,
        width: float = 1.0,
        activation: networks.Activation | None = None,
        head: networks.Head = "linear",
        dropout: float = 0.0,
        memory_efficient: bool = False,
        learning_rate: float = 0.1,
        decay_every: int = 40,
        momentum: float = 0.9,
        dampening: float = 0.9,
        weight_decay: float = 1e-3,
        pretrained: str | None = None,
        views_per_forward: int = 32,
        average: Literal["probabilities", "logits"] = "probabilities",
        compile: bool = False,
    ) -> None:
        super().__init__(
            num_classes,
            pretrained=pretrained,
            views_per_forward=views_per_forward,
            average=average,
            compile=compile,
        )

    def build_network(self) -> nn.Module:
        hparams: Any = self.hparams
        options = {"width": hparams.width, "head": hparams.head, "dropout": hparams.dropout}
        if hparams.activation is not None:
            options["activation"] = hparams.activation
        if hparams.memory_efficient:
            if "stft" not in hparams.method and hparams.method != "relpv":
                raise ValueError(f"memory_efficient is for networks with fixed transforms, not {hparams.method}")
            options["memory_efficient"] = True
        return getattr(networks, hparams.method.replace("-", "_"))(hparams.num_classes, **options)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        hparams: Any = self.hparams
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=hparams.learning_rate,
            momentum=hparams.momentum,
            dampening=hparams.dampening,
            weight_decay=hparams.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, hparams.decay_every, gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}
