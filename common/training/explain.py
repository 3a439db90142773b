"""Where a video network looks: Grad-CAM of a clip as a video, for ``spectral predict --explain``."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Any

import torch
from matplotlib import colormaps
from torch import Tensor, nn
from torch.nn import functional as F

from common.datamodules.video_writer import rgb_frame, write_mp4
from common.evaluation.grad_cam import grad_cam

SIDE = 224  # smaller frames are enlarged to at least this many pixels
FPS = 5
OPACITY = 0.5
POSITIONS = 16  # a map of fewer, such as 2 x 2, shows little


def last_map_layer(network: nn.Module, clip: Tensor) -> nn.Module:
    """The last module of a forward pass whose output is a feature map of at least `POSITIONS` positions in space.

    Where no map is as large, it is the last of the largest.

    Args:
        network: clip (1,C,T,H,W) -> logits.
        clip: its input.

    Returns:
        A module that is called once and whose output is (1,C,T',H',W'), or (T',C,H',W') if it has no fewer channels
        than positions along an axis, as features in channels-last order have.

    Raises:
        ValueError: there is none.
    """
    calls: dict[nn.Module, int] = {}
    found: list[tuple[int, nn.Module]] = []

    def note(module: nn.Module, _: Any, output: Any) -> None:
        calls[module] = calls.get(module, 0) + 1
        if not isinstance(output, Tensor) or output.dim() not in (4, 5):
            return
        channels, height, width = output.shape[1], *output.shape[-2:]
        if height * width > 1 and (output.dim() == 5 or channels >= max(height, width)):
            found.append((min(height * width, POSITIONS), module))

    handles = [module.register_forward_hook(note) for module in network.modules() if module is not network]
    try:
        with torch.no_grad():
            network(clip)
    finally:
        for handle in handles:
            handle.remove()
    maps = [(size, module) for size, module in found if calls[module] == 1]
    if not maps:
        raise ValueError(f"no module of {type(network).__name__} has a feature map that Grad-CAM could show")
    largest = max(size for size, _ in maps)
    return [module for size, module in maps if size == largest][-1]


def write_explanation(network: nn.Module, clip: Tensor, frames: Tensor, target: int, path: Path) -> None:
    """Write the frames of a clip beside the same frames under Grad-CAM of a class, as H.264 in mp4.

    Args:
        network: clip (1,C,T,H,W) -> logits.
        clip: (C,T,H,W), its input, on its device.
        frames: uint8 (T,3,S,S), what is shown.
        target: the class.
        path: the file.
    """
    with torch.inference_mode(False):
        clip = clip[None].clone()
        heat, _ = grad_cam(network, last_map_layer(network, clip), clip, target)
    scale = max(1, -(-SIDE // frames.shape[-1]))
    side = frames.shape[-1] * scale + frames.shape[-1] * scale % 2
    shown = F.interpolate(frames.float(), (side, side), mode="bilinear", antialias=True).permute(0, 2, 3, 1)
    heat = F.interpolate(heat.float().cpu()[None, None], (len(frames), side, side), mode="trilinear")[0, 0]
    colours = torch.from_numpy(255 * colormaps["turbo"](heat.numpy())[..., :3])
    mixed = torch.lerp(shown.double(), colours, OPACITY * heat[..., None].double())
    both = torch.cat([shown.double(), mixed], dim=2).round().clamp(0, 255).byte().numpy()
    write_mp4(path, (rgb_frame(image, k, Fraction(1, FPS)) for k, image in enumerate(both)), FPS)
