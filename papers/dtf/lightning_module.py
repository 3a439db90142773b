"""Training of DTF-Net, DTF-Transformer and the networks they are compared with, as Section 4.1 describes it."""

from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from matplotlib.figure import Figure
from torch import Tensor, nn

from common.training.classification import VideoClassificationModule
from common.training.schedules import OPTIMIZERS, cosine_over_training
from papers.dtf.networks import DTFNetOptions, DTFTransformerOptions, dtf_net, dtf_transformer
from papers.dtf.visualise import mean_responses, response_figure


class DTFModule(VideoClassificationModule):
    """DTF-Net, or another temporal module in its backbone, trained by SGD with a cosine schedule (Section 4.1).

    Args:
        network: options of `papers.dtf.networks.dtf_net`.
        num_classes: number of classes; taken from the data by `spectral`.
        num_frames: frames of a clip, which the filters are made for; taken from the data by `spectral`.
        learning_rate: peak of the schedule.
        warmup_epochs: epochs in which the learning rate rises to it, from a hundredth.
        momentum, nesterov: of SGD.
        weight_decay: of the optimiser.
        optimizer: `sgd`, the paper's, or `adamw`, with which a new block begins to learn sooner.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        network: DTFNetOptions = DTFNetOptions(),
        num_classes: int | None = None,
        num_frames: int | None = None,
        learning_rate: float = 0.04,
        warmup_epochs: float = 1.0,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 1e-4,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        options = DTFNetOptions(**self.hparams["network"])
        return dtf_net(self.hparams["num_classes"], self.hparams["num_frames"], options)

    def batch_figures(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Adds the mean response of the filters of every stage, on the first clips of the batch."""
        figures = super().batch_figures(batch, outputs)
        responses = mean_responses(self.network, batch[self.kind][: self.views_per_forward])
        return figures | ({"filter response": response_figure(responses)} if responses else {})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return cosine_over_training(self, OPTIMIZERS[self.hparams["optimizer"]](self), self.hparams["warmup_epochs"])


class DTFTransformerModule(DTFModule):
    """DTF-Transformer, trained as DTF-Net with a lower learning rate.

    Args:
        network: options of `papers.dtf.networks.dtf_transformer`.
        num_classes, num_frames, learning_rate, kwargs: as for `DTFModule`.
    """

    def __init__(
        self,
        network: DTFTransformerOptions = DTFTransformerOptions(),
        num_classes: int | None = None,
        num_frames: int | None = None,
        learning_rate: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(network, num_classes, num_frames, learning_rate, **kwargs)  # type: ignore[arg-type]

    def build_network(self) -> nn.Module:
        options = DTFTransformerOptions(**self.hparams["network"])
        return dtf_transformer(self.hparams["num_classes"], self.hparams["num_frames"], options)
