"""Training of the networks of this paper: video classification as in Section 4.2, human pose as in Section 4.1."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from common.training.classification import VideoClassificationModule
from common.training.pose_estimation import PoseEstimationModule
from common.training.schedules import divided_at, sgd
from papers.srl.layers import SRLBlock
from papers.srl.networks import PoseOptions, VideoOptions, pose_resnet, srl_c2d


class Reorthogonalize(Callback):
    """After every step of the optimiser, makes the learnable matrices of SRL blocks orthogonal again by QR."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        for module in pl_module.modules():
            if isinstance(module, SRLBlock):
                module.reorthogonalize_()


class SRLVideoModule(VideoClassificationModule):
    """A C2D ResNet with SRL or other non-local blocks, trained by SGD with a step schedule (Section 4.2).

    Args:
        network: its options.
        num_classes, num_frames, input_size: of the clips; taken from the data by `spectral`.
        learning_rate: of the first epochs.
        milestones: epochs after which the learning rate is divided by 10.
        momentum, weight_decay: of SGD.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        network: VideoOptions = VideoOptions(),
        num_classes: int | None = None,
        num_frames: int | None = None,
        input_size: int | None = None,
        learning_rate: float = 0.01,
        milestones: Sequence[int] = (20, 35, 45),
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        facts = {name: self.hparams[name] for name in ("num_classes", "num_frames", "input_size")}
        return srl_c2d(**facts, options=VideoOptions(**self.hparams["network"]))

    def configure_callbacks(self) -> list[Callback]:
        return [Reorthogonalize()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return divided_at(sgd(self), self.hparams["milestones"])


class SRLPoseModule(PoseEstimationModule):
    """SimpleBaseline with SRL or other non-local blocks, trained by Adam (Section 4.1).

    The paper names Adam and 210 epochs; learning rate and milestones are those of SimpleBaseline.

    Args:
        network: its options.
        num_joints: number of keypoints; taken from the data by `spectral`, as is `input_size`.
        input_size: height and width of the crops.
        learning_rate: of the first epochs.
        milestones: epochs after which the learning rate is divided by 10.
        kwargs: arguments of `common.training.pose_estimation.PoseEstimationModule`.
    """

    def __init__(
        self,
        network: PoseOptions = PoseOptions(),
        num_joints: int | None = None,
        input_size: tuple[int, int] | None = None,
        learning_rate: float = 1e-3,
        milestones: Sequence[int] = (170, 200),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_joints, **kwargs)

    def build_network(self) -> nn.Module:
        options = PoseOptions(**self.hparams["network"])
        return pose_resnet(self.hparams["num_joints"], tuple(self.hparams["input_size"]), options)

    def configure_callbacks(self) -> list[Callback]:
        return [Reorthogonalize()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])
        return divided_at(optimizer, self.hparams["milestones"])
