"""Training of the networks of this paper: video classification as in Section 4.2, human pose as in Section 4.1."""

from collections.abc import Sequence
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from common.backbones import load_imagenet
from common.spectral.transforms import KeepOrthogonal, Spectrum
from common.training.pose_estimation import PoseEstimationModule
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
    for name in ("spectrum", "reduction", "groups", "phi", "conv_t", "keep"):
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
        spectrum, reduction, groups, phi, conv_t, keep: options of SRL blocks, see `papers.srl.layers.SRLBlock`; null
            for their defaults.
        imagenet: image weights to start from, see `common.backbones.load_imagenet`; not used with `pretrained`.
        learning_rate: of the first epochs.
        milestones: epochs after which the learning rate is divided by 10.
        momentum, weight_decay: of SGD.
        pretrained: checkpoint to start from; the classifier is replaced when the classes differ.
        views_per_forward: views passed through the network at once in evaluation; bounds the memory.
        average: views of a video are averaged as probabilities (the paper: "classification scores") or logits.
        compile: run the network through `torch.compile`.
    """

    def __init__(
        self,
        depth: int = 18,
        num_classes: int = 400,
        block: networks.Block | None = "srl-fft",
        positions: networks.Positions = "every",
        num_frames: int = 8,
        input_size: int = 224,
        width: float = 1.0,
        layers: Sequence[int] | None = None,
        strides: Sequence[int] = (1, 2, 2, 2),
        dropout: float = 0.5,
        spectrum: Spectrum | None = None,
        reduction: int | None = None,
        groups: int | None = None,
        phi: Phi | None = None,
        conv_t: TimeMixing | None = None,
        keep: KeepOrthogonal | None = None,
        imagenet: str | None = None,
        learning_rate: float = 0.01,
        milestones: Sequence[int] = (20, 35, 45),
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
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
        names = ("depth", "num_classes", "block", "positions", "num_frames", "input_size", "width", "dropout")
        network = networks.srl_c2d(
            **{name: hparams[name] for name in (*names, "layers", "strides")}, **block_options(hparams)
        )
        if hparams.imagenet is not None and hparams.pretrained is None:
            rank_zero_info(load_imagenet(network, hparams.imagenet))
        return network

    def configure_callbacks(self) -> list[Callback]:
        return [Reorthogonalize()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        hparams: Any = self.hparams
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=hparams.learning_rate,
            momentum=hparams.momentum,
            weight_decay=hparams.weight_decay,
        )
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(hparams.milestones), gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}


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
        spectrum, reduction, groups, keep: options of SRL blocks, see `papers.srl.layers.SRLBlock`; null for their
            defaults.
        imagenet: image weights to start from, see `common.backbones.load_imagenet`; not used with `pretrained`.
        learning_rate: of the first epochs.
        milestones: epochs after which the learning rate is divided by 10.
        flip_test, flip_shift, quarter_offset, oks_sigmas: of the test, see `PoseEstimationModule`.
        pretrained: checkpoint to start from, such as published SimpleBaseline weights.
        compile: run the network through `torch.compile`.
    """

    def __init__(
        self,
        depth: int = 50,
        num_joints: int = 17,
        block: networks.Block | None = "srl-fft",
        block_positions: Sequence[str] | None = None,
        input_size: tuple[int, int] = (256, 192),
        num_deconv: int | None = None,
        deconv_channels: int = 256,
        width: float = 1.0,
        layers: Sequence[int] | None = None,
        short_receptive_field: bool = False,
        spectrum: Spectrum | None = None,
        reduction: int | None = None,
        groups: int | None = None,
        keep: KeepOrthogonal | None = None,
        imagenet: str | None = None,
        learning_rate: float = 1e-3,
        milestones: Sequence[int] = (170, 200),
        flip_test: bool = True,
        flip_shift: bool = True,
        quarter_offset: bool = True,
        oks_sigmas: Sequence[float] | None = None,
        pretrained: str | None = None,
        compile: bool = False,
    ) -> None:
        super().__init__(
            num_joints,
            flip_test=flip_test,
            flip_shift=flip_shift,
            quarter_offset=quarter_offset,
            oks_sigmas=oks_sigmas,
            pretrained=pretrained,
            compile=compile,
        )

    def build_network(self) -> nn.Module:
        hparams: Any = self.hparams
        names = ("depth", "num_joints", "block", "block_positions", "num_deconv", "deconv_channels", "width", "layers")
        network = networks.pose_resnet(
            **{name: hparams[name] for name in (*names, "short_receptive_field")},
            input_size=tuple(hparams.input_size),
            **block_options(hparams),
        )
        if hparams.imagenet is not None and hparams.pretrained is None:
            rank_zero_info(load_imagenet(network, hparams.imagenet))
        return network

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.spec is not None:
            crop, expected = (self.keypoint_spec.height, self.keypoint_spec.width), tuple(self.hparams["input_size"])
            if crop != expected:
                raise ValueError(
                    f"the data has crops of {crop[0]} x {crop[1]} pixels, the network takes {expected[0]} x "
                    f"{expected[1]}; set model.init_args.input_size to data.init_args.height and width"
                )

    def configure_callbacks(self) -> list[Callback]:
        return [Reorthogonalize()]

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        hparams: Any = self.hparams
        optimizer = torch.optim.Adam(self.parameters(), lr=hparams.learning_rate)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, list(hparams.milestones), gamma=0.1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule}}
