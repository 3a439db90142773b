"""Training of the networks of this paper: video classification as in Section 4.2, human pose as in Section 4.1."""

from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from common.spectral.transforms import Spectrum
from common.training.pose_estimation import PoseEstimationModule
from common.training.schedules import divided_at, sgd
from common.training.video_classification import VideoClassificationModule
from papers.srl import networks
from papers.srl.layers import Phi, SRLBlock, TimeMixing


class Reorthogonalize(Callback):
    """After every step of the optimiser, puts the learnable matrices of SRL blocks back to orthogonal ones by QR."""

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *args: Any, **kwargs: Any) -> None:
        for module in pl_module.modules():
            if isinstance(module, SRLBlock):
                module.reorthogonalize_()


def block_options(hparams: Any) -> networks.SRLOptions:
    """The options of SRL blocks that were set in a recipe."""
    options: networks.SRLOptions = {}
    for name in ("spectrum", "reduction", "groups", "phi", "conv_t"):
        if hparams.get(name) is not None:
            options[name] = hparams[name]
    return options


class SRLVideoModule(VideoClassificationModule):
    """A C2D ResNet with SRL or other non-local blocks, trained by SGD with a step schedule (Section 4.2).

    Args:
        depth: of the ResNet; 18 in Tables 7 to 9, 50 in Table 10.
        num_classes: number of classes.
        block: what is put in, see `papers.srl.networks`; None for the plain C2D.
        positions: `every` residual block of res3 and res4, the last one of both `stages`, or that of `res4` (Table 9).
        num_frames: of a clip.
        input_size: side of a clip in pixels.
        width: multiplies every channel number; 1 is the paper's network.
        layers: residual blocks of the four stages, in place of those of the ResNet.
        strides: of the four stages.
        dropout: probability before the classifier.
        spectrum, reduction, groups, phi, conv_t: options of SRL blocks, see `papers.srl.layers.SRLBlock`; null
            for their defaults.
        learning_rate: of the first epochs.
        milestones: epochs after which the learning rate is divided by 10.
        momentum, weight_decay: of SGD.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        depth: int = 18,
        num_classes: int | None = None,
        block: networks.Block | None = "srl-fft",
        positions: networks.Positions = "every",
        num_frames: int | None = None,
        input_size: int | None = None,
        width: float = 1.0,
        layers: Sequence[int] | None = None,
        strides: Sequence[int] = (1, 2, 2, 2),
        dropout: float = 0.5,
        spectrum: Spectrum | None = None,
        reduction: int | None = None,
        groups: int | None = None,
        phi: Phi | None = None,
        conv_t: TimeMixing | None = None,
        learning_rate: float = 0.01,
        milestones: Sequence[int] = (20, 35, 45),
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        hparams: Any = self.hparams
        names = ("depth", "num_classes", "block", "positions", "num_frames", "input_size", "width", "dropout")
        network = networks.srl_c2d(
            **{name: hparams[name] for name in (*names, "layers", "strides")}, **block_options(hparams)
        )
        return network

    def configure_callbacks(self) -> list[Callback]:
        return [Reorthogonalize()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        hparams: Any = self.hparams
        return divided_at(sgd(self), hparams.milestones)


class SRLPoseModule(PoseEstimationModule):
    """SimpleBaseline with SRL or other non-local blocks, trained by Adam (Section 4.1).

    The paper names Adam and 210 epochs; rate and milestones are those of SimpleBaseline.

    Args:
        depth: of the ResNet: 50, 101 or 152 in Table 2.
        num_joints: number of keypoints.
        block: what is put in, see `papers.srl.networks`; None for the plain SimpleBaseline.
        block_positions: after deconvolutions (`d1` to `d3`, Table 5), by default each, or after the stages `res2` to
            `res5` (Table 4).
        input_size: height and width of the crops, those of the data.
        num_deconv, deconv_channels: of the decoder.
        width: multiplies every channel number; 1 is the paper's network.
        layers: residual blocks of the four stages, in place of those of the ResNet.
        short_receptive_field: the baseline* of Table 4.
        spectrum, reduction, groups: options of SRL blocks, see `papers.srl.layers.SRLBlock`; null for their
            defaults.
        learning_rate: of the first epochs.
        milestones: epochs after which the learning rate is divided by 10.
        kwargs: arguments of `common.training.pose_estimation.PoseEstimationModule`.
    """

    def __init__(
        self,
        depth: int = 50,
        num_joints: int | None = None,
        block: networks.Block | None = "srl-fft",
        block_positions: Sequence[str] | None = None,
        input_size: tuple[int, int] | None = None,
        num_deconv: int | None = None,
        deconv_channels: int = 256,
        width: float = 1.0,
        layers: Sequence[int] | None = None,
        short_receptive_field: bool = False,
        spectrum: Spectrum | None = None,
        reduction: int | None = None,
        groups: int | None = None,
        learning_rate: float = 1e-3,
        milestones: Sequence[int] = (170, 200),
        **kwargs: Any,
    ) -> None:
        super().__init__(num_joints, **kwargs)

    def build_network(self) -> nn.Module:
        hparams: Any = self.hparams
        names = ("depth", "num_joints", "block", "block_positions", "num_deconv", "deconv_channels", "width", "layers")
        network = networks.pose_resnet(
            **{name: hparams[name] for name in (*names, "short_receptive_field")},
            input_size=tuple(hparams.input_size),
            **block_options(hparams),
        )
        return network

    def configure_callbacks(self) -> list[Callback]:
        return [Reorthogonalize()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        hparams: Any = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), lr=hparams.learning_rate)
        return divided_at(optimizer, hparams.milestones)
