"""Square crops of a clip: uint8 (T, H, W, 3), as decoded, to uint8 (T, 3, S, S). Every frame gets the same crop."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Generator, Tensor
from torchvision.transforms.v2 import functional as F

CropPlaces = Literal["anywhere", "corners"]
# The scales printed in section 5.2 of the STFT paper.
SCALES = (1.0, 2**-0.25, 2**-0.75, 0.5)


def random_multi_scale_crop(
    clip: Tensor,
    size: int,
    generator: Generator,
    scales: Sequence[float] = SCALES,
    resize_range: tuple[int, int] | None = None,
    places: CropPlaces = "anywhere",
) -> Tensor:
    """A square crop at a random position, its side a random scale times the short side, resized to ``size``.

    With ``resize_range`` it is a crop of side ``size`` from frames whose short side is resized to a random whole number
    of pixels in this range (the protocol of the residual networks for video). The crop is cut out before resizing,
    which gives the same up to the rounding of its position and side, and resizes no pixels that are thrown away.

    Args:
        clip: uint8 (T, H, W, 3).
        size: side of the result in pixels; small crops are enlarged.
        generator: source of scale and position.
        scales: fractions of the short side, each in (0, 1].
        resize_range: smallest and largest short side in pixels, at least ``size``; replaces ``scales``.
        places: ``anywhere``, or one of the four ``corners`` or the centre.

    Returns:
        uint8 (T, 3, size, size).
    """
    height, width = clip.shape[1:3]
    if resize_range is None:
        scale = scales[int(torch.randint(len(scales), (), generator=generator))]
    else:
        scale = size / int(torch.randint(resize_range[0], resize_range[1] + 1, (), generator=generator))
    side = min(height, width, max(1, round(scale * min(height, width))))
    top = int(torch.randint(height - side + 1, (), generator=generator))
    left = int(torch.randint(width - side + 1, (), generator=generator))
    if places == "corners":
        top, left = _corners_and_centre(height - side, width - side)[int(torch.randint(5, (), generator=generator))]
    return _resize(clip[:, top : top + side, left : left + side], (size, size))


def _corners_and_centre(bottom: int, right: int) -> list[tuple[int, int]]:
    return [(0, 0), (0, right), (bottom, 0), (bottom, right), (bottom // 2, right // 2)]


def square_crops(clip: Tensor, size: int, num_crops: int = 1, resize: int | None = None) -> Tensor:
    """The central square of each frame, or three squares along the long side.

    Args:
        clip: uint8 (T, H, W, 3).
        size: side of the result in pixels.
        num_crops: 1 (centre) or 3 (start, centre and end of the long side).
        resize: None: the squares have the side of the short side and are resized to ``size`` (STFT paper, section
            5.2). Otherwise the short side is first resized to this many pixels and the squares have side ``size``.

    Returns:
        uint8 (num_crops, T, 3, size, size).
    """
    height, width = clip.shape[1:3]
    if resize is None:
        side, images = min(height, width), clip
    else:
        # Integer arithmetic: the short side is exactly `resize`, the long one is never below it.
        short = min(height, width)
        images = _resize(clip, (resize * height // short, resize * width // short)).permute(0, 2, 3, 1)
        side = size
        height, width = images.shape[1:3]
    positions = (0.5,) if num_crops == 1 else (0.0, 0.5, 1.0)
    crops = []
    for position in positions:
        # The crop moves along the long side and is centred along the short one.
        top = int((height - side) * (position if height > width else 0.5))
        left = int((width - side) * (position if width >= height else 0.5))
        crops.append(_resize(images[:, top : top + side, left : left + side], (size, size)))
    return torch.stack(crops)


def _resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (T, H, W, 3) to (T, 3, *size), bilinear with antialiasing; unchanged pixels if the size is right."""
    images = images.permute(0, 3, 1, 2)
    if tuple(images.shape[-2:]) == size:
        return images
    return F.resize(images, list(size), antialias=True)
