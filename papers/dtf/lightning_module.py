"""Training of DTF-Net, DTF-Transformer and the networks they are compared with, as Section 4.1 describes it."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from matplotlib.figure import Figure
from torch import Tensor, nn

from common.training.schedules import cosine_over_training, sgd
from common.training.video_classification import VideoClassificationModule
from papers.dtf import networks
from papers.dtf.layers import Preset
from papers.dtf.visualise import mean_responses, response_figure

Backbone = Literal["resnet-18", "resnet-34", "resnet-50", "resnet-101", "resnet-152", "swin-t", "swin-s", "swin-b"]


class DTFModule(VideoClassificationModule):
    """DTF-Net or DTF-Transformer, or another temporal module in their backbones, trained by SGD with a cosine schedule.

    Args:
        backbone: of the frames; ResNets make a DTF-Net, Swins a DTF-Transformer.
        num_classes: number of classes; taken from the data by `spectral`.
        num_frames: frames of a clip, for which the filters are made; likewise.
        block: the temporal module (Tables 1a and 1d); see `networks.dtf_net`. Swins have no convolutions to replace.
        preset: `paper`, the equations, or `author`, the released code's choices.
        stages: stages with the module, 2 to 5 of a ResNet (Table 1c), 1 to 4 of a Swin; all by default.
        num_blocks: so many blocks, the last ones of these stages, have the module; all by default (Figure 6a).
        aggregation, correlation: parts of the DTF block (Table 1b).
        dropout: probability before the classifier.
        early_stride: frames that a step of the first convolution takes in.
        width, layers: of a ResNet other than the paper's: channels times `width`, residual blocks of the four stages.
        learning_rate: the highest; the paper's 0.04 is for DTF-Net, DTF-Transformer has 0.01.
        warmup_epochs: epochs in which the learning rate rises to it, from a hundredth.
        momentum, nesterov, weight_decay: of SGD.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        backbone: Backbone = "resnet-50",
        num_classes: int | None = None,
        num_frames: int | None = None,
        block: networks.Block = "dtf",
        preset: Preset = "paper",
        stages: Sequence[int] | None = None,
        num_blocks: int | None = None,
        aggregation: bool = True,
        correlation: bool = True,
        dropout: float = 0.5,
        width: float = 1.0,
        layers: Sequence[int] | None = None,
        early_stride: int = 4,
        learning_rate: float = 0.04,
        warmup_epochs: float = 1.0,
        momentum: float = 0.9,
        nesterov: bool = True,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        hparams: Any = self.hparams
        kind, size = hparams.backbone.split("-")
        names = ["num_classes", "num_frames", "block", "num_blocks", "preset", "aggregation", "correlation"]
        options = {name: hparams[name] for name in (*names, "early_stride", "dropout")}
        if hparams.stages is not None:
            options["stages"] = hparams.stages
        if kind == "resnet":
            return networks.dtf_net(depth=int(size), width=hparams.width, layers=hparams.layers, **options)
        if hparams.width != 1 or hparams.layers is not None:
            raise ValueError(f"width and layers are for ResNets, not {hparams.backbone}")
        return networks.dtf_transformer(size=size, **options)

    def batch_figures(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Adds the mean response of the filters of every stage, on the first clips of the batch."""
        figures = super().batch_figures(batch, outputs)
        responses = mean_responses(self.network, batch[self.kind][: self.views_per_forward])
        return figures | ({"filter response": response_figure(responses)} if responses else {})

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return cosine_over_training(self, sgd(self), self.hparams["warmup_epochs"])
