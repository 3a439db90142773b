"""Networks of torchvision and pytorchvideo through the same harness, as baselines for the papers' networks."""

import importlib
import inspect
from typing import Any

import torch
from torch import Tensor, nn

from common.training.video_classification import VideoClassificationModule

PACKAGES = ("torchvision.models.video", "pytorchvideo.models")


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
    """Call a network function of torchvision or pytorchvideo.

    Args:
        name: dotted path below ``torchvision.models.video`` or ``pytorchvideo.models``,
            e.g. ``torchvision.models.video.r2plus1d_18`` or ``pytorchvideo.models.csn.create_csn``.
        num_classes: number of classes, passed on under the name the function has for it.
        options: further arguments of the function.

    Raises:
        ValueError: the name lies outside of the two packages or does not exist, or an option is unknown.
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
    open_ended = any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values())
    if weights := {"weights", "weights_backbone", "pretrained"} & options.keys():
        raise ValueError(f"{name}: {weights.pop()} would download weights; start from a file with model.pretrained")
    unknown = [option for option in options if option not in parameters and not open_ended]
    if unknown:
        raise ValueError(f"{name} takes no {unknown[0]!r}; it takes {', '.join(parameters)}")
    network = function(**{key: num_classes, **options})
    if "slowfast_fusion_conv_stride" in parameters:
        stride = options.get("slowfast_fusion_conv_stride", parameters["slowfast_fusion_conv_stride"].default)
        return TwoPathways(network, alpha=stride[0])
    return network


class LibraryNetworkModule(VideoClassificationModule):
    """A stock network trained with SGD and step decay.

    Args:
        num_classes: number of classes.
        network: dotted path of the network function, see :func:`build_library_network`.
        network_options: further arguments of that function.
        lr: learning rate at the start.
        momentum, dampening, weight_decay: of SGD.
        lr_step: the learning rate is multiplied by ``lr_gamma`` every ``lr_step`` epochs.
        lr_gamma: that factor.
        kwargs: arguments of the base class.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        network: str = "torchvision.models.video.r2plus1d_18",
        network_options: dict[str, Any] | None = None,
        lr: float = 0.1,
        momentum: float = 0.9,
        dampening: float = 0.0,
        weight_decay: float = 1e-3,
        lr_step: int = 40,
        lr_gamma: float = 0.1,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        h = self.hparams
        return build_library_network(h["network"], h["num_classes"], **(h["network_options"] or {}))

    def configure_optimizers(self) -> Any:
        h = self.hparams
        optimizer = torch.optim.SGD(
            self.parameters(),
            lr=h["lr"],
            momentum=h["momentum"],
            dampening=h["dampening"],
            weight_decay=h["weight_decay"],
        )
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, h["lr_step"], h["lr_gamma"])]
