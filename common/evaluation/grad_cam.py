"""Grad-CAM (Selvaraju et al., ICCV 2017) of any network for videos or images."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn


def grad_cam(network: nn.Module, layer: nn.Module, clip: Tensor, target: int | None = None) -> tuple[Tensor, Tensor]:
    """Where a layer's features support a class: the channels, weighted by the mean gradient of the class's logit.

    The network runs in evaluation mode; its mode is restored afterwards.

    Args:
        network: clip (1,C,T,H,W) or image (1,C,H,W) -> logits (1, classes).
        layer: a module of the network whose output is (1,C,T,H,W), or (T,C,H,W) if the network folds frames into the
            batch.
        clip: the network's input, for one clip.
        target: the class; None: the predicted one.

    Returns:
        The map (T',H',W') at the layer's resolution, scaled to 0..1 (all 0 if nothing supports the class), and the
        logits (classes,).

    Raises:
        ValueError: more than one clip, a class that does not exist, or a layer that is not part of the network's
            forward pass or has an output of another shape.
    """
    if len(clip) != 1:
        raise ValueError(f"grad_cam takes one clip at a time, not a batch of {len(clip)}")
    kept: list[Tensor] = []

    def keep(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(output)

    training, handle = network.training, layer.register_forward_hook(keep)
    try:
        network.eval()
        with torch.enable_grad():
            # An input that asks for gradients: frozen networks have a map too.
            logits = network(clip.detach().clone().requires_grad_())[0]
            scores = logits.unbind()
        if len(kept) != 1 or not isinstance(kept[0], Tensor) or kept[0].dim() not in (4, 5):
            seen = "was not called" if not kept else f"was called {len(kept)} times, output {_describe(kept[0])}"
            raise ValueError(
                f"Grad-CAM needs a layer with one output (1,C,T,H,W) or (T,C,H,W); {type(layer).__name__} {seen}"
            )
        if target is None:
            target = int(logits.argmax())
        if not 0 <= target < len(logits):
            raise ValueError(f"there is no class {target}; the network has {len(logits)}")
        (gradient,) = torch.autograd.grad(scores[target], kept[0])
    finally:
        handle.remove()
        network.train(training)
    features = kept[0].detach().float()
    gradient = gradient.float()
    if features.dim() == 5:
        features, gradient = features[0].transpose(0, 1), gradient[0].transpose(0, 1)  # (T,C,H,W)
    heat = (features * gradient.mean(dim=(0, 2, 3), keepdim=True)).sum(dim=1).relu()
    return heat / heat.amax().clamp_min(torch.finfo(torch.float32).tiny), logits.detach()


def _describe(output: Any) -> str:
    return str(tuple(output.shape)) if isinstance(output, Tensor) else type(output).__name__
