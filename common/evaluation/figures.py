"""Figures of clips, fixed filters, confusion matrices, poses and segmented volumes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from torch import Tensor

from common.evaluation.fonts import find_fonts
from common.evaluation.keypoints import CONFIDENT

#: colours of lines and dots on the left and the right of the body, and between them
SIDES = {"left": (0, 200, 120), "right": (255, 120, 0), "": (60, 140, 255)}
#: colours of the labels of BraTS in Figure 4 of the FDC3D paper: 1 core green, 2 oedema yellow, 4 enhancing blue
LABEL_COLOURS = {1: "#2ca02c", 2: "#ffdd33", 4: "#1f77ff"}


def clip_figure(clips: Tensor, captions: list[str], frames: int = 8) -> Figure:
    """One row per clip: up to ``frames`` equidistant frames under the clip's caption.

    Args:
        clips: (N, C, T, H, W), or (N, C, H, W) for images; each clip is stretched to the full range of brightness.
        captions: N strings.
        frames: largest number of frames per row.
    """
    clips = clips.unsqueeze(2) if clips.ndim == 4 else clips
    shown = torch.linspace(0, clips.shape[2] - 1, min(frames, clips.shape[2])).round().long()
    figure = Figure(figsize=(1.5 * len(shown), 1.8 * len(clips)), layout="constrained")
    axes = figure.subplots(len(clips), 1, squeeze=False)[:, 0]
    for ax, clip, caption in zip(axes, clips.float().cpu(), captions, strict=True):
        low, high = clip.min(), clip.max()
        strip = ((clip[:3, shown] - low) / (high - low).clamp_min(1e-12)).permute(2, 1, 3, 0).flatten(1, 2)
        ax.imshow(strip.numpy())
        ax.set_title(caption, fontsize=8, loc="left", fontfamily=list(find_fonts(caption)))
        ax.axis("off")
    return figure


def kernel_figure(kernels: Tensor) -> Figure:
    """One row per filter of (filters, 1, [[T,] H,] W), one column per time step."""
    n = kernels.shape[2:]
    volume = kernels.float().cpu().reshape(len(kernels), *[1] * (3 - len(n)), *n)
    bound = volume.abs().max().clamp_min(1e-12).item()
    figure = Figure(figsize=(1 + 0.6 * volume.shape[1], 0.6 * len(volume)), layout="constrained")
    axes = figure.subplots(len(volume), volume.shape[1], squeeze=False)
    for row, filter_ in zip(axes, volume, strict=True):
        for ax, plane in zip(row, filter_, strict=True):
            ax.imshow(plane.numpy(), vmin=-bound, vmax=bound, cmap="RdBu")
            ax.set_xticks([])
            ax.set_yticks([])
    return figure


def slice_figure(image: Tensor, labels: dict[str, Tensor]) -> Figure:
    """The slice in which the first labels have the largest area: the image alone, then with each of the labels.

    Args:
        image: (D, H, W).
        labels: title -> (D, H, W) with the labels of BraTS 0, 1, 2 and 4.
    """
    first = next(iter(labels.values()))
    middle = int((first > 0).sum(dim=(1, 2)).argmax()) if (first > 0).any() else len(image) // 2
    figure = Figure(figsize=(2.6 * (1 + len(labels)), 2.9), layout="constrained")
    axes = figure.subplots(1, 1 + len(labels))
    for ax, (title, label) in zip(axes, {"image": None, **labels}.items(), strict=True):
        draw_slice(ax, image[middle], None if label is None else label[middle])
        ax.set_title(title, fontsize=8)
    return figure


def draw_slice(axes: Axes, image: Tensor, label: Tensor | None = None) -> None:
    """Draw a slice (H, W) in grey, zero as black, under labels (H, W) with 0, 1, 2 and 4."""
    axes.imshow(image.where(image != 0, image.min()).float().numpy(), cmap="gray", origin="lower")
    if label is not None:
        colours = np.zeros((*label.shape, 4))
        for value, colour in LABEL_COLOURS.items():
            colours[(label == value).numpy()] = to_rgba(colour, 0.75)
        axes.imshow(colours, origin="lower", interpolation="nearest")
    axes.grid(False)
    axes.set_axis_off()


def draw_persons(
    image: Image.Image,
    persons: NDArray,
    skeleton: Sequence[tuple[int, int]],
    names: Sequence[str],
    threshold: float = CONFIDENT,
) -> Image.Image:
    """A copy of an image with the skeletons of persons: the left side green, the right side orange.

    Args:
        image: RGB.
        persons: (N, J, 3): x, y in pixels and height of the heatmap's maximum.
        skeleton: pairs of keypoints that a line connects.
        names: of the keypoints; ``left_`` and ``right_`` decide the colour.
        threshold: keypoints that are not higher, and the lines to them, are not drawn.

    Returns:
        The drawing, four times as large if the longer side of the image has fewer than 512 pixels.
    """
    fine = 4 if max(image.size) < 512 else 2  # drawn larger and reduced, for smooth lines
    canvas = image.resize((fine * image.width, fine * image.height), Image.Resampling.BICUBIC)
    draw = ImageDraw.Draw(canvas)
    sides = [name.partition("_")[0] if name.startswith(("left_", "right_")) else "" for name in names]
    for person in np.asarray(persons, dtype=np.float64):
        sure = person[:, 2] > threshold
        extent = np.ptp(person[sure, :2], axis=0).max() if sure.any() else 0.0
        pen = max(2, round(fine * max(extent, 24) / 60))
        places = [tuple(fine * (xy + 0.5)) for xy in person[:, :2]]
        for a, b in skeleton:
            if sure[a] and sure[b]:
                named = {sides[a], sides[b]} - {""}
                side = named.pop() if len(named) == 1 else ""
                draw.line([places[a], places[b]], fill=SIDES[side], width=pen)
        for joint in np.flatnonzero(sure):
            x, y = places[joint]
            box = [x - pen, y - pen, x + pen, y + pen]
            draw.ellipse(box, fill=SIDES[sides[joint]], outline=(255, 255, 255), width=max(1, pen // 3))
    return canvas.resize(image.size, Image.Resampling.LANCZOS) if fine == 2 else canvas
