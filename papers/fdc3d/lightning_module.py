"""3D-ResNets on videos (Section 5.1) and the residual 3D U-Net on volumes (Section 5.6), dense or compressed."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from common.datamodules.brats import label_to_regions
from common.training.classification import VideoClassificationModule
from common.training.volume_segmentation import VolumeSegmentationModule
from papers.fdc3d.finetuning import CompressedModule, FinetuningOptions
from papers.fdc3d.networks import ResNetOptions, UNetOptions


class FDC3DModule(CompressedModule, VideoClassificationModule):
    """3D-ResNets on videos: SGD with 0.005, divided by 10 on plateaus of the validation loss.

    Args:
        network: options of the 3D-ResNet.
        num_classes: number of classes; taken from the data by `spectral`.
        compression: None trains the dense network; otherwise a trained one is compressed and fine-tuned.
        learning_rate, momentum, weight_decay: of SGD.
        patience: validations without a lower loss after which the learning rate is divided by 10.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        network: ResNetOptions = ResNetOptions(),
        num_classes: int | None = None,
        compression: FinetuningOptions | None = None,
        learning_rate: float = 0.005,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        patience: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def source(self) -> tuple[str, dict[str, Any]]:
        return "resnet", {"num_classes": self.hparams["num_classes"], **self.hparams["network"]}

    def target_loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        return self.cross_entropy(output, batch["label"].to(output.device))


class FDC3DVolumeModule(CompressedModule, VolumeSegmentationModule):
    """The residual 3D U-Net on volumes: SGD with 0.001, divided by 10 on plateaus of the validation loss.

    Args:
        network: options of the U-Net.
        in_channels: modalities; taken from the data by `spectral`.
        compression: None trains the dense network; otherwise a trained one is compressed and fine-tuned.
        learning_rate, momentum, weight_decay: of SGD.
        patience: validations without a lower loss after which the learning rate is divided by 10.
        kwargs: arguments of `common.training.volume_segmentation.VolumeSegmentationModule`.
    """

    def __init__(
        self,
        network: UNetOptions = UNetOptions(),
        in_channels: int | None = None,
        compression: FinetuningOptions | None = None,
        learning_rate: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        patience: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)

    def source(self) -> tuple[str, dict[str, Any]]:
        return "unet", {"in_channels": self.hparams["in_channels"], **self.hparams["network"]}

    def target_loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        return self.loss_per_case(output, label_to_regions(batch["label"].to(output.device))).mean()
