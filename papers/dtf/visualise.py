"""Figure 7 for any video and checkpoint: where a network looks, and the filters it uses there.

    python -m papers.dtf.visualise VIDEO [VIDEO ...] --checkpoint RUN --out figure7.png

Every video is one row: frames under their Grad-CAM with two positions, of large (red) and of small (blue) activation,
the filters that the last DTF block has there, and the temporal kernels that these are.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from common.command_line import CommandParser, run_command
from common.datamodules.video_clips import ClipSpec, load_views
from common.evaluation.grad_cam import grad_cam
from common.reporting.plots import COLOURS, style
from common.training.task import load_module
from papers.dtf.networks import dtf_blocks, grad_cam_layer

#: of large and of small activation, and of further positions
POSITION_COLOURS = ("#D62728", "#1F5FB4", *COLOURS[2:])


@dataclass(frozen=True)
class View:
    """What Figure 7 shows of one clip.

    Attributes:
        clip: (3,T,H,W), the network's input.
        heat: Grad-CAM (T',H',W') in 0..1.
        logits: (classes,).
        positions: (y, x) in the grid of the block.
        grid: height and width of that grid.
        filters: complex (positions, K, M), a filter of M frequencies for each of K groups of channels; None in a
            network without DTF blocks.
        kernels: (positions, K, T'), their inverse transforms: circular kernels over the T' frames that the block sees.
    """

    clip: Tensor
    heat: Tensor
    logits: Tensor
    positions: list[tuple[int, int]]
    grid: tuple[int, int]
    filters: Tensor | None
    kernels: Tensor | None


def inspect_clip(
    network: nn.Module,
    clip: Tensor,
    positions: Sequence[tuple[int, int]] | None = None,
    target: int | None = None,
    layer: str | None = None,
    block: str | None = None,
) -> View:
    """Grad-CAM of a clip, and the filters and kernels of one DTF block at some positions.

    Args:
        network: of `papers.dtf.networks`; another one needs `layer`.
        clip: (3,T,H,W), as the network takes it.
        positions: (y, x) in the grid of the block; None: where Grad-CAM, averaged over time, is largest and smallest,
            as Section 4.5 chooses them.
        target: class of Grad-CAM; None: the predicted one.
        layer: path of the module that Grad-CAM looks at; None: the last stage.
        block: path of the DTF block; None: the last one.

    Raises:
        ValueError: no such layer, block, class or position.
    """
    blocks = dtf_blocks(network)
    chosen = None
    if block is not None or blocks:
        name = block or list(blocks)[-1]
        if name not in blocks:
            raise ValueError(f"there is no DTF block {name!r}; there are {', '.join(blocks) or 'none'}")
        chosen = blocks[name]
    module = grad_cam_layer(network) if layer is None else _submodule(network, layer)
    inputs: list[Tensor] = []
    handle = chosen.register_forward_pre_hook(lambda _, given: inputs.append(given[0])) if chosen else None
    try:
        heat, logits = grad_cam(network, module, clip[None], target)
    finally:
        if handle:
            handle.remove()
    grid = tuple(inputs[0].shape[-2:]) if inputs else tuple(heat.shape[-2:])
    if positions is None:
        positions = extremes(F.interpolate(heat.mean(0)[None, None], size=grid, mode="bilinear")[0, 0])
    for y, x in positions:
        if not (0 <= y < grid[0] and 0 <= x < grid[1]):
            raise ValueError(f"there is no position {y} {x} in the grid of {grid[0]} x {grid[1]}")
    filters = kernels = None
    if chosen:
        with torch.no_grad():
            spectrum, kernel = chosen.filter_spectrum(inputs[0])[0], chosen.kernel(inputs[0])[0]
        filters = torch.stack([spectrum[..., y, x] for y, x in positions]).cpu()
        kernels = torch.stack([kernel[..., y, x] for y, x in positions]).cpu()
    return View(clip.cpu(), heat.cpu(), logits.cpu(), list(positions), (grid[0], grid[1]), filters, kernels)


def extremes(heat: Tensor) -> list[tuple[int, int]]:
    """The positions (y, x) of the largest and of the smallest value of a map (H,W)."""
    width = heat.shape[1]
    return [(int(i) // width, int(i) % width) for i in (heat.argmax(), heat.argmin())]


def _submodule(network: nn.Module, path: str) -> nn.Module:
    try:
        return network.get_submodule(path)
    except AttributeError as error:
        raise ValueError(f"there is no module {path!r} in the network: {error}") from error


def figure7(views: Mapping[str, View], frames: int = 4) -> Figure:
    """One row for every clip: frames with Grad-CAM and positions, size of the filters, kernels.

    Filters and kernels of one clip share their colour scale; rows are groups of channels.
    """
    places = max(len(view.positions) for view in views.values())
    with_filters = any(view.filters is not None for view in views.values())
    columns = [1.0] * frames + ([1.0] * 2 * places if with_filters else [])
    with style():
        figure = Figure(figsize=(1.75 * len(columns), 2.15 * len(views) + 0.2), layout="constrained")
        grid = figure.subplots(len(views), len(columns), squeeze=False)
        for row, (title, view) in zip(grid, views.items(), strict=True):
            for axes in row:
                axes.grid(False)
                axes.set_xticks([])
                axes.set_yticks([])
            _draw_frames(row[:frames], view)
            row[0].set_title(title, fontsize=9, loc="left")
            if view.filters is not None and view.kernels is not None:
                _draw_filters(row[frames:], view.filters, view.kernels, places)
            else:
                for axes in row[frames:]:
                    axes.set_axis_off()
    return figure


def _draw_frames(row: Sequence[Any], view: View) -> None:
    low, high = view.clip.min(), view.clip.max()
    pixels = ((view.clip - low) / (high - low).clamp_min(1e-12)).permute(1, 2, 3, 0).numpy()
    shown = torch.linspace(0, len(pixels) - 1, len(row)).round().long().tolist()
    heat = F.interpolate(view.heat[None, None], size=tuple(view.clip.shape[1:]), mode="trilinear")[0, 0].numpy()
    height, width = pixels.shape[1:3]
    step_y, step_x = height / view.grid[0], width / view.grid[1]
    for axes, t in zip(row, shown, strict=True):
        axes.imshow(pixels[t])
        axes.imshow(heat[t], cmap="jet", alpha=0.4, vmin=0, vmax=1)
        axes.set_xlabel(f"frame {t}", fontsize=8)
        for colour, (y, x) in zip(POSITION_COLOURS, view.positions, strict=False):
            corner = (x * step_x - 0.5, y * step_y - 0.5)
            axes.add_patch(Rectangle(corner, step_x, step_y, fill=False, edgecolor=colour, linewidth=2))


def _draw_filters(row: Sequence[Any], filters: Tensor, kernels: Tensor, places: int) -> None:
    sizes = filters.abs().numpy()
    length = kernels.shape[-1]
    centred = np.roll(kernels.numpy(), length // 2, axis=-1)  # lag 0 in the middle
    bound = float(np.abs(centred).max()) or 1.0
    lags = np.arange(length) - length // 2
    for i, colour in enumerate(POSITION_COLOURS[: len(filters)]):
        left, right = row[i], row[places + i]
        left.imshow(sizes[i], aspect="auto", cmap="viridis", vmin=0, vmax=float(sizes.max()) or 1.0, origin="lower")
        left.set_xticks(range(sizes.shape[-1]) if sizes.shape[-1] <= 9 else range(0, sizes.shape[-1], 4))
        left.set_xlabel("frequency (cycles a clip)", fontsize=7)
        right.imshow(centred[i], aspect="auto", cmap="RdBu_r", vmin=-bound, vmax=bound, origin="lower")
        ticks = range(length) if length <= 8 else range(0, length, 4)
        right.set_xticks(ticks, [str(lags[t]) for t in ticks])
        right.set_xlabel("lag (frames)", fontsize=7)
        left.set_title("filter, size", fontsize=9)
        right.set_title("kernel", fontsize=9)
        for axes in (left, right):
            axes.tick_params(labelsize=7)
            for spine in axes.spines.values():
                spine.set(visible=True, color=colour, linewidth=2)
    for axes in [*row[len(filters) : places], *row[places + len(filters) :]]:
        axes.set_axis_off()


def mean_responses(network: nn.Module, clips: Tensor) -> dict[str, Tensor]:
    """Mean size of the filters at every frequency, (M,), over clips, positions, channels and blocks of a stage.

    Args:
        network: with DTF blocks.
        clips: (B,3,T,H,W), as the network takes them.

    Returns:
        By the path of the stage in the network, the first stage first; empty without DTF blocks.
    """
    found: dict[str, list[Tensor]] = {}
    handles = []
    for name, block in dtf_blocks(network).items():
        own = found.setdefault(name.rpartition(".")[0].rpartition(".")[0], [])

        def keep(module: Any, given: tuple[Tensor, ...], own: list[Tensor] = own) -> None:
            own.append(module.filter_spectrum(given[0]).abs().mean((0, 1, 3, 4)).cpu())

        handles.append(block.register_forward_pre_hook(keep))
    training = network.training
    try:
        if found:
            with torch.no_grad():
                network.eval()(clips)
    finally:
        network.train(training)
        for handle in handles:
            handle.remove()
    return {name: torch.stack(own).mean(0) for name, own in found.items()}


def response_figure(responses: Mapping[str, Tensor]) -> Figure:
    """The mean filter response of every stage against frequency."""
    with style():
        figure = Figure(figsize=(6.4, 3.6), layout="constrained")
        axes = figure.subplots()
        for (name, response), colour in zip(responses.items(), COLOURS, strict=False):
            axes.plot(range(len(response)), response.numpy(), color=colour, marker="o", markersize=4, label=name)
        axes.set(title="mean filter response", xlabel="frequency (cycles a clip)", ylabel="mean size of the filters")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9)
    return figure


def load_clip(path: str | Path, spec: Mapping[str, Any]) -> Tensor:
    """The central view (3,T,H,W) of a video, made as a checkpoint's clip specification says.

    Raises:
        VideoReadError: the video cannot be read.
    """
    return load_views(path, replace(ClipSpec.from_dict(dict(spec)), num_clips=1, num_crops=1))[0]


def main(argv: Sequence[str] | None = None) -> int:
    """The command; returns the exit status: 0 done, 1 refused, 130 interrupted."""
    parser = CommandParser(
        prog="python -m papers.dtf.visualise",
        description="Grad-CAM, filters and temporal kernels of a trained network on videos (Figure 7).",
    )
    parser.add_argument("videos", nargs="+", metavar="VIDEO", help="video files or frame folders, one row each")
    parser.add_argument("--checkpoint", required=True, help="checkpoint file, or the folder of a run (its best.ckpt)")
    parser.add_argument("--out", type=Path, default=Path("figure7.png"), help="image to write (default: %(default)s)")
    parser.add_argument(
        "--position",
        nargs=2,
        type=int,
        action="append",
        metavar=("Y", "X"),
        help="position in the grid of the block; several times for several. Default: where Grad-CAM is largest and "
        "where it is smallest",
    )
    parser.add_argument("--target", help="class of Grad-CAM, by name or number (default: the predicted one)")
    parser.add_argument("--layer", help="module that Grad-CAM looks at (default: the last stage)")
    parser.add_argument("--block", help="DTF block whose filters are shown (default: the last one)")
    parser.add_argument("--frames", type=int, default=4, help="frames to show (default: %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite the image")
    args = parser.parse_args(argv)
    return run_command(lambda: _write(args))


def _write(args: argparse.Namespace) -> None:
    """Write the figure that the command line asks for."""
    if args.out.exists() and not args.force:
        raise ValueError(f"{args.out} exists; give another --out, or --force to overwrite it")
    if args.frames < 1:
        raise ValueError("--frames is at least 1")
    module: Any = load_module(args.checkpoint)
    if module.spec is None:
        raise ValueError(f"{args.checkpoint}: the checkpoint does not say how a video becomes a clip")
    names = module.output_names or []
    target = None if args.target is None else _class_number(args.target, names)
    positions = None if args.position is None else [(y, x) for y, x in args.position]
    views = {}
    for path in args.videos:
        clip = load_clip(path, module.spec)
        view = inspect_clip(module.network, clip, positions, target, args.layer, args.block)
        probability, best = view.logits.softmax(0).max(0)
        name = names[int(best)] if names else f"class {int(best)}"
        views[f"{Path(path).name}: {name} ({100 * float(probability):.0f} %)"] = view
        places = ", ".join(f"({y}, {x})" for y, x in view.positions)
        print(f"{path}: {name}, positions {places} of {view.grid[0]} x {view.grid[1]}")
    args.out.parent.mkdir(parents=True, exist_ok=True)
    figure7(views, args.frames).savefig(args.out, dpi=160)
    print(f"Written: {args.out}")


def _class_number(text: str, names: Sequence[str]) -> int:
    if text in names:
        return list(names).index(text)
    if text.isdigit():
        return int(text)
    raise ValueError(f"there is no class {text!r}; there are {', '.join(names)}")


if __name__ == "__main__":
    sys.exit(main())
