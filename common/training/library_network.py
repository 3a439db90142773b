"""Any network function of the papers, torchvision or pytorchvideo under one training, for comparisons."""

import importlib
import inspect
from typing import Any, Literal

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from common.training.classification import VideoClassificationModule
from common.training.schedules import OPTIMIZERS, cosine_over_training

PACKAGES = ("torchvision.models.video", "pytorchvideo.models", "papers")
FACTS = ("num_frames", "input_size")  # of the clips, for networks that are built for them


class TwoPathways(nn.Module):
    """Feeds a two-pathway network (SlowFast) with one video: every ``alpha``-th frame, and all frames."""

    def __init__(self, network: nn.Module, alpha: int) -> None:
        super().__init__()
        self.network = network
        self.alpha = alpha

    def forward(self, video: Tensor) -> Tensor:
        """(B, C, T, H, W) with T a multiple of ``alpha`` -> logits (B, num_classes)."""
        if video.shape[2] % self.alpha:
            raise ValueError(f"SlowFast takes a multiple of {self.alpha} frames, got {video.shape[2]}")
        return self.network([video[:, :, :: self.alpha], video])


def build_library_network(name: str, num_classes: int, **options: Any) -> nn.Module:
    """Call a network function of a paper, torchvision or pytorchvideo.

    Args:
        name: dotted path below ``papers``, ``torchvision.models.video`` or ``pytorchvideo.models``, e.g.
            ``papers.dtf.dtf_net``, ``torchvision.models.video.r2plus1d_18``, ``pytorchvideo.models.csn.create_csn``.
        num_classes: number of classes, passed on under the name the function has for it.
        options: further arguments of the function. ``num_frames`` and ``input_size`` are left out where it has none.

    Raises:
        ValueError: the name lies outside of these packages or does not exist, or an option is unknown.
    """
    module_name, _, function_name = name.rpartition(".")
    if not any(module_name == package or module_name.startswith(package + ".") for package in PACKAGES):
        raise ValueError(f"network {name!r} is not below {' or '.join(PACKAGES)}")
    try:
        function = getattr(importlib.import_module(module_name), function_name)
        parameters = inspect.signature(function).parameters
    except (ImportError, AttributeError, TypeError) as error:
        raise ValueError(f"network {name!r} does not exist: {error}") from error
    key = "model_num_class" if module_name.startswith("pytorchvideo.") else "num_classes"
    builds = inspect.isfunction(function) and function.__module__.endswith(".networks") and key in parameters
    if module_name.startswith("papers.") and not builds:
        raise ValueError(f"{name} is no function of a paper's networks.py with {key}")
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if weights := {"weights", "weights_backbone", "pretrained"} & options.keys():
        raise ValueError(f"{name}: {weights.pop()} would download weights; start from a file with model.pretrained")
    options = {k: v for k, v in options.items() if k not in FACTS or k in parameters}
    unknown = [option for option in options if option not in parameters and not open_ended]
    if unknown:
        raise ValueError(f"{name} takes no {unknown[0]!r}; it takes {', '.join(parameters)}")
    network = function(**{key: num_classes, **options})
    if "slowfast_fusion_conv_stride" in parameters:
        stride = options.get("slowfast_fusion_conv_stride", parameters["slowfast_fusion_conv_stride"].default)
        return TwoPathways(network, alpha=stride[0])
    return network


class LibraryNetworkModule(VideoClassificationModule):
    """Any network, trained by SGD or AdamW with a cosine schedule.

    Args:
        num_classes: number of classes; taken from the data by ``spectral``, as are ``num_frames`` and ``input_size``.
        network: dotted path of the network function, see :func:`build_library_network`.
        network_options: further arguments of that function.
        num_frames, input_size: of the clips, for functions that take them.
        learning_rate: peak of the schedule.
        warmup_epochs: epochs in which the learning rate rises to it, from a hundredth.
        momentum: of SGD.
        weight_decay: of the optimiser.
        optimizer: `sgd` or `adamw`.
        kwargs: arguments of the base class.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        network: str = "torchvision.models.video.r2plus1d_18",
        network_options: dict[str, Any] | None = None,
        num_frames: int | None = None,
        input_size: int | None = None,
        learning_rate: float = 0.02,
        warmup_epochs: float = 1.0,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        optimizer: Literal["sgd", "adamw"] = "sgd",
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        facts = {name: self.hparams[name] for name in FACTS if self.hparams[name] is not None}
        options = facts | (self.hparams["network_options"] or {})
        return build_library_network(self.hparams["network"], self.hparams["num_classes"], **options)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return cosine_over_training(self, OPTIMIZERS[self.hparams["optimizer"]](self), self.hparams["warmup_epochs"])
