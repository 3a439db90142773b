"""Geometry of pose estimation: a person's box to the network's input, keypoints to heatmaps.

A pixel with index (x, y) lies at the coordinate (x, y), in an image, in a crop and in a heatmap. A heatmap has a
quarter of the crop's size, and the coordinate of a keypoint is divided by 4. This is the convention of SimpleBaseline
(Xiao et al., ECCV 2018), so its published weights stay valid.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.datamodules.spec import IMAGENET_MEAN, IMAGENET_STD, ColourSpec

STRIDE = 4  # pixels of a crop per pixel of a heatmap
PADDING = 1.25  # of a person's box, before it is cropped
Array = NDArray[np.float64]


@dataclass(frozen=True)
class KeypointSpec(ColourSpec):
    """How a person's box becomes the network's input.

    Attributes:
        height, width: of the crop in pixels, multiples of 4; the box is widened to their ratio.
        mean, std: per colour, on the scale 0..1.
        left_right: pairs of keypoints that swap places in a mirror image.
        skeleton: pairs of keypoints that are connected by a line in a drawing.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    left_right: tuple[tuple[int, int], ...] = ()
    skeleton: tuple[tuple[int, int], ...] = ()

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            value = getattr(self, name)
            if value < STRIDE or value % STRIDE:
                raise ValueError(f"{name} is {value}; it must be a positive multiple of {STRIDE}.")
        self._check_colours()
        self._check_memory()
        for name in ("left_right", "skeleton"):
            object.__setattr__(self, name, tuple((int(a), int(b)) for a, b in getattr(self, name)))

    @property
    def input_shape(self) -> tuple[int, ...]:
        return 1, 3, self.height, self.width

    @property
    def heatmap_size(self) -> tuple[int, int]:
        """Height and width of a heatmap."""
        return self.height // STRIDE, self.width // STRIDE

    def mirrored(self, joints: int) -> list[int]:
        """For every keypoint the one that takes its place in a mirror image."""
        order = list(range(joints))
        for left, right in self.left_right:
            order[left], order[right] = right, left
        return order


@dataclass(frozen=True, eq=False)
class PersonCrop:
    """A region of an image that becomes a crop of the spec's size.

    The centre of the region goes to (width / 2, height / 2) of the crop; then the region is rotated and scaled to the
    crop's width. Mirroring swaps left and right before that.

    Attributes:
        centre, size: (2,) of the region, x before y, in pixels of the image.
        spec: size and normalisation of the crop.
        rotation: in degrees, clockwise as seen.
        mirror: swap left and right.
    """

    centre: Array
    size: Array
    spec: KeypointSpec
    rotation: float = 0.0
    mirror: bool = False

    @classmethod
    def around(
        cls,
        box: Sequence[float] | Array,
        spec: KeypointSpec,
        scale: float = 1.0,
        rotation: float = 0.0,
        mirror: bool = False,
    ) -> Self:
        """The region around a person: the box, widened to the ratio of the crop, padded by 1.25 and scaled.

        Args:
            box: x and y of the corner, width and height, in pixels of the image.
            spec, rotation, mirror: see the class.
            scale: factor on the padded box.
        """
        x, y, width, height = (float(value) for value in box)
        ratio = spec.width / spec.height
        size = np.array([max(width, height * ratio), max(height, width / ratio)])
        centre = np.array([x + width / 2, y + height / 2])
        return cls(centre, scale * (PADDING * size), spec, rotation, mirror)

    @cached_property
    def matrix(self) -> Array:
        """Affine map (2, 3) from coordinates of the image to those of the crop."""
        scale = self.spec.width / self.size[0]
        cos, sin = scale * math.cos(math.radians(self.rotation)), scale * math.sin(math.radians(self.rotation))
        linear = np.array([[cos, -sin], [sin, cos]]) @ np.diag([-1.0 if self.mirror else 1.0, 1.0])
        middle = np.array([self.spec.width / 2, self.spec.height / 2])
        return np.column_stack([linear, middle - linear @ self.centre])

    def to_crop(self, points: Array) -> Array:
        """Points (..., 2) of the image in the coordinates of the crop."""
        return points @ self.matrix[:, :2].T + self.matrix[:, 2]

    def cut(self, image: Image.Image) -> Tensor:
        """The crop as the network takes it, (3, height, width) float32; black beyond the image."""
        inverse = np.linalg.inv(self.matrix[:, :2])
        (a, b), (d, e) = inverse
        c, f = -inverse @ self.matrix[:, 2]
        # Pillow's coordinates start at the corner of a pixel, not at its centre.
        data = (a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2)
        size = (self.spec.width, self.spec.height)
        crop = image.transform(size, Image.Transform.AFFINE, data, Image.Resampling.BILINEAR)
        return self.spec.normalise(torch.from_numpy(np.array(crop)).permute(2, 0, 1))


def draw_heatmaps(points: Array, visible: NDArray[np.bool_], spec: KeypointSpec, sigma: float) -> tuple[Tensor, Tensor]:
    """Targets of the network: a Gaussian of height 1 around each keypoint, cut off at three sigma.

    The Gaussian is centred on the pixel nearest to the keypoint, as in SimpleBaseline.

    Args:
        points: (J, 2) in the crop.
        visible: (J,), whether the keypoint is labelled.
        spec: size of the crop.
        sigma: in pixels of the heatmap.

    Returns:
        Heatmaps (J, height / 4, width / 4) float32 and weights (J,) float32: 0 if the keypoint is not labelled or its
        Gaussian lies outside the heatmap.
    """
    height, width = spec.heatmap_size
    middle = np.floor(points / STRIDE + 0.5)
    reach = int(3 * sigma)
    inside = ((middle >= -reach) & (middle < np.array([width, height]) + reach)).all(axis=1)
    weights = visible & inside

    def profile(size: int, centres: Array) -> Array:
        distance = np.arange(size) - centres[:, None]
        return np.exp(-(distance**2) / (2 * sigma**2)) * (np.abs(distance) <= reach)

    maps = profile(height, middle[:, 1])[:, :, None] * profile(width, middle[:, 0])[:, None]
    maps[~weights] = 0
    return torch.from_numpy(maps.astype(np.float32)), torch.from_numpy(weights.astype(np.float32))
