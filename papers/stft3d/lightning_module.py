"""Training of the networks of this paper as Section 5.2 describes it."""

from typing import Any, Literal

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from common.training.classification import VideoClassificationModule
from common.training.schedules import divided_every, sgd
from papers.stft3d import networks
from papers.stft3d.networks import STFT3DOptions

Method = Literal["st-stft", "s-stft", "t-stft", "fact-dw", "relpv", "i3d", "i2d", "s3d", "s3d-g"]


class STFT3DModule(VideoClassificationModule):
    """X-STFT and the networks it is compared with, trained by SGD with a step schedule (Section 5.2).

    The defaults train from scratch; fine-tuning takes `learning_rate=0.01, decay_every=20` and `pretrained`.

    Args:
        method: the network; see `papers.stft3d.networks`.
        network: its options.
        num_classes: number of classes; taken from the data by `spectral`.
        learning_rate: of the first epochs.
        decay_every: number of epochs after which the learning rate is divided by 10.
        momentum: of SGD.
        dampening: of SGD. With the paper's 0.9 a step is a tenth of that of undamped momentum.
        weight_decay: of SGD, on every parameter.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        method: Method = "t-stft",
        network: STFT3DOptions = STFT3DOptions(),
        num_classes: int | None = None,
        learning_rate: float = 0.1,
        decay_every: int = 40,
        momentum: float = 0.9,
        dampening: float = 0.9,
        weight_decay: float = 1e-3,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        build = getattr(networks, self.hparams["method"].replace("-", "_"))
        return build(self.hparams["num_classes"], STFT3DOptions(**self.hparams["network"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return divided_every(sgd(self), self.hparams["decay_every"])
