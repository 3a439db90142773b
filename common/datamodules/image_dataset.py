"""Images from files or from memory to the network's input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from common.datamodules.errors import ImageReadError
from common.datamodules.loading import sample_generator
from common.datamodules.manifest import Item
from common.datamodules.spec import ColourSpec, check_range


@dataclass(frozen=True)
class ImageSpec(ColourSpec):
    """How an image becomes the network's input.

    Attributes:
        height, width: in pixels. An image of another size is resized until it covers them, and its centre is taken.
        mean, std: per colour, on the scale 0..1.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]

    def __post_init__(self) -> None:
        check_range(1, None, height=self.height, width=self.width)
        self._check_colours()
        self._check_memory()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def input_shape(self) -> tuple[int, ...]:
        return 1, 3, self.height, self.width


def open_image(path: str | Path) -> Image.Image:
    """An image file as it is stored, in RGB; grey is repeated. Raises ImageReadError if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "no such file" if isinstance(error, FileNotFoundError) else f"not a readable image ({error})"
        raise ImageReadError(path, f"{reason}.") from error


def read_image(path: str | Path) -> Tensor:
    """An image file as uint8 (3, H, W), RGB; grey is repeated. Raises ImageReadError if it cannot be read."""
    return torch.from_numpy(np.array(open_image(path))).permute(2, 0, 1).contiguous()


def fit_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) to (3, *size): resized (bilinear, antialiased) until it covers the size, then its centre."""
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    scale = max(size[0] / height, size[1] / width)
    cover = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    return F.center_crop(F.resize(image, cover, antialias=True), list(size))


def load_image(path: str | Path, spec: ImageSpec) -> Tensor:
    """One image file as the network takes it: float32 (3, H, W). Raises ImageReadError if it cannot be read."""
    return spec.normalise(fit_image(read_image(path), spec.size))


@dataclass(frozen=True)
class ImageAugmentation:
    """Random changes of a training image; see `ImageDataModule`. Shifts are not rounded to pixels."""

    horizontal_flip: bool
    shift: float
    rotation: float
    seed: int

    def __post_init__(self) -> None:
        check_range(0, 1, shift=self.shift)
        check_range(0, 181, rotation=self.rotation)

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """uint8 (3, H, W) to the same shape, float on the scale 0..255 if it was moved (bilinear interpolation).

        Pixels beyond the border repeat the nearest pixel of the border.
        """
        # All are drawn always, so that one option does not change the effect of another.
        mirror, turn, right, down = torch.rand(4, generator=generator).tolist()
        if self.horizontal_flip and mirror < 0.5:
            image = F.horizontal_flip(image)
        if not self.shift and not self.rotation:
            return image
        height, width = image.shape[-2:]
        angle = (2 * turn - 1) * self.rotation
        moves = [(2 * right - 1) * self.shift * width, (2 * down - 1) * self.shift * height]
        # A corner moves by at most the angle times its distance from the centre, plus the shift.
        reach = np.deg2rad(abs(angle)) * np.hypot(height, width) / 2 + max(map(abs, moves))
        margin = int(np.ceil(reach)) + 1
        padded = torch.nn.functional.pad(image[None].float(), [margin] * 4, mode="replicate")
        moved = F.affine(padded, angle, moves, 1.0, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
        return moved[0, :, margin : margin + height, margin : margin + width]


class ImageDataset(Dataset):
    """Images by index, from files or from memory. A key (epoch, index) gives a training image.

    Args:
        items: the images.
        spec: what they become.
        pixels: uint8 (N, 1 or 3, H, W) in the order of the items; None: read from their files.
        augmentation: for keys with an epoch; None: none.
        fixed_size: an image of another size than the spec's is an error.
        expected: number of images that the published dataset has here.
    """

    def __init__(
        self,
        items: Sequence[Item],
        spec: ImageSpec,
        pixels: Tensor | None = None,
        augmentation: ImageAugmentation | None = None,
        fixed_size: bool = False,
        expected: int | None = None,
    ) -> None:
        self.items, self.spec, self.pixels, self.augmentation = list(items), spec, pixels, augmentation
        self.fixed_size = fixed_size
        self.videos_expected = len(self.items) if expected is None else expected

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """uint8 (3, height, width) of the spec. Raises ImageReadError with the file's name."""
        if self.pixels is not None:
            return fit_image(self.pixels[index].expand(3, -1, -1), self.spec.size)
        path = self.items[index].path
        image = read_image(path)
        height, width = image.shape[-2:]
        if self.fixed_size and (height, width) != self.spec.size:
            raise ImageReadError(
                path,
                f"it has {height} x {width} pixels, the first image {self.spec.height} x {self.spec.width}; "
                "set image_size to resize all images.",
            )
        return fit_image(image, self.spec.size)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        image = self.image(index)
        if isinstance(key, tuple) and self.augmentation is not None:
            image = self.augmentation(image, sample_generator(self.augmentation.seed, *key))
        item = self.items[index]
        return {
            "image": self.spec.normalise(image),
            "label": item.label,
            "image_index": index,
            "path": item.name,
        }


def class_members(labels: Tensor | Sequence[int], classes: int) -> list[Tensor]:
    """Positions of the members of each class, ascending."""
    labels = torch.as_tensor(labels)
    return [torch.nonzero(labels == k).flatten() for k in range(classes)]


def colour_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per colour of uint8 images (N, 3, H, W), on the scale 0..1; exact integer sums.

    The deviation of a constant colour is given as 1, so that it can be divided by.
    """
    count = images.numel() // 3
    mean, std = [], []
    for colour in images.unbind(1):
        histogram = torch.bincount(colour.flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        average = float(histogram @ values) / count
        spread = float((histogram @ (values - average) ** 2 / count).sqrt())
        mean.append(average)
        std.append(spread or 1.0)
    return tuple(mean), tuple(std)  # type: ignore[return-value]
