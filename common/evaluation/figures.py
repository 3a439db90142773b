"""Figures of clips, fixed filters, confusion matrices and segmented volumes."""

from __future__ import annotations

import numpy as np
import torch
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from torch import Tensor

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
        ax.set_title(caption, fontsize=8, loc="left")
        ax.axis("off")
    return figure


def confusion_figure(confusion: Tensor, class_names: list[str] | None) -> Figure:
    """Confusion matrix (classes, classes), each row divided by its sum."""
    figure = Figure(figsize=(6, 6), layout="constrained")
    ax = figure.subplots()
    ax.imshow((confusion / confusion.sum(dim=1, keepdim=True).clamp_min(1)).numpy(), vmin=0, vmax=1, cmap="Blues")
    ax.set_xlabel("prediction")
    ax.set_ylabel("label")
    if class_names is not None:
        ax.set_xticks(range(len(class_names)), class_names, rotation=90, fontsize=6)
        ax.set_yticks(range(len(class_names)), class_names, fontsize=6)
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
