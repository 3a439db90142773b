"""The figures of the FDC3D paper: functions that the ledger names, each for `common.reporting.main_job`."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from torch import Tensor, nn

from common.datamodules.brats import (
    find_case,
    find_case_folders,
    label_to_regions,
    load_volume,
    read_label,
    regions_to_label,
)
from common.datamodules.volumes import VolumeSpec
from common.evaluation.complexity import count
from common.evaluation.figures import draw_slice
from common.evaluation.volume_scores import dice_per_case
from common.reporting.plots import COLOURS, MARKERS, style
from common.reporting.results import ReproduceError
from common.reporting.runs import Job, Trained, load_clips, load_trained
from common.spectral.transforms import dct_matrix
from papers.fdc3d.compression import compress
from papers.fdc3d.layers import MaskedConv3d
from papers.fdc3d.learning import learn_transform, row_norms, temporal_products

KEPT = 4  # of the 7 rows of the first layer, as in Figure 3
RATES = (2.0, 4.0, 8.0)
#: name, method, and place among the demo's networks, whose colour it has
LADDER: tuple[tuple[str, str, int], ...] = (
    ("FDC3D", "fdc3d", 1),
    ("With DCT", "dct", 2),
    ("Channels only", "channels", 4),
)


def _run(job: Job | None, row: str) -> tuple[Trained, Path]:
    """The training of a demo row, and the folder of its data. Raises ReproduceError where there is none."""
    found = job.find(row) if job else None
    if found is None:
        raise ReproduceError(f"it is drawn from the demo: name {row}, too, or run the whole job")
    return found


def _volumes(data: Path, module: Any, run: Trained, held_out: bool) -> list[tuple[Tensor, Tensor]]:
    """Volumes (4,D,H,W) with labels (D,H,W): those that the run was tested on, or the others."""
    tested = {row["path"] for row in run.predictions()}
    modalities = VolumeSpec.from_dict(module.spec).modalities
    cases = [find_case(folder, modalities, labelled=True) for folder in find_case_folders([data])]
    return [
        (load_volume(case), read_label(case.label))
        for case in cases
        if (case.name in tested) == held_out and case.label is not None
    ]


@torch.inference_mode()
def _errors(network: nn.Module, clips: Tensor, labels: Tensor) -> float:
    """Share of the clips that are taken for another class."""
    logits = torch.cat([network(part) for part in clips.split(32)])
    return float((logits.argmax(dim=1) != labels).float().mean())


# Figures 2 and 3


def first_layer_transforms(conv: nn.Conv3d) -> dict[str, Tensor]:
    """The three transforms of Figure 2 for a convolution, (t,t) float32 each, by name."""
    products, dct = temporal_products(conv.weight, "energy"), dct_matrix(conv.kernel_size[0]).double()
    learned, _ = learn_transform(products, dct)
    identity = torch.eye(len(dct), dtype=torch.float64)
    return {"min l2": identity.float(), "DCT": dct.float(), "OT (learned)": learned.float()}


def mask_rows(conv: nn.Conv3d, transform: Tensor, kept: int) -> MaskedConv3d:
    """The convolution with all rows of the transform but those of largest importance masked."""
    layer = MaskedConv3d(copy.deepcopy(conv), transform)
    norms = row_norms(transform.double(), temporal_products(conv.weight, "energy"))
    strongest = norms.argsort(descending=True)[:kept]
    layer.rows.zero_()
    layer.rows[strongest] = True
    return layer


def figure2(job: Job | None = None) -> Figure:
    """Error on the test clips when only the temporal rows of the first convolution are pruned, without fine-tuning."""
    run, data = _run(job, "motion/dense")
    module = load_trained(run.folder)
    clips, labels = load_clips(data, module, "test", 120)
    network = module.network
    conv: Any = network.conv1
    taps = conv.kernel_size[0]
    base = _errors(network, clips, labels)
    with style():
        figure = Figure(figsize=(6.4, 4), layout="constrained")
        axes = figure.subplots()
        for i, (name, transform) in enumerate(first_layer_transforms(conv).items()):
            points = [(1.0, 0.0)]
            for kept in range(taps - 1, 0, -1):
                network.conv1 = mask_rows(conv, transform, kept)
                points.append((taps / kept, 100 * (_errors(network, clips, labels) - base)))
            axes.plot(*zip(*points, strict=True), color=COLOURS[i], marker=MARKERS[i], label=name)
        axes.set_xscale("log")
        ticks = [taps / kept for kept in range(taps, 0, -1)]
        axes.set_xticks(ticks, [f"{tick:.2f}" for tick in ticks])
        axes.minorticks_off()
        axes.set(
            title=f"First layer alone ({len(labels)} clips, dense error {100 * base:.1f} %)",
            xlabel="speed-up of the layer, t / t'",
            ylabel="increased error (%)",
        )
        axes.legend()
    return figure


def figure3(job: Job | None = None) -> Figure:
    """The strongest filter of the first layer: its slices in time, its rows in the frequency domain, and what the kept
    rows give back."""
    run, _ = _run(job, "motion/dense")
    conv = load_trained(run.folder).network.conv1
    return filter_figure(conv, first_layer_transforms(conv)["OT (learned)"], KEPT)


def filter_figure(conv: nn.Conv3d, transform: Tensor, kept: int) -> Figure:
    """Figure 3 for the channel of a convolution (N,C,t,d,d) with most energy."""
    weight = conv.weight.detach()
    n, c = divmod(int(weight.square().flatten(2).sum(2).argmax()), weight.shape[1])
    layer = mask_rows(conv, transform, kept)
    spatial = weight[n, c]
    rows = torch.einsum("it,thw->ihw", transform, spatial)
    back = layer.masked_weight().detach()[n, c]
    left = float(back.square().sum() / spatial.square().sum())
    bound = float(spatial.abs().max())
    parts = {
        "(a) the filter, a slice for every frame": spatial,
        f"(b) in the frequency domain; the {kept} kept rows are boxed": rows,
        f"(c) reconstructed from the kept rows ({100 * left:.1f} % of the energy)": back,
    }
    with style():
        figure = Figure(figsize=(1.25 * len(spatial), 5.2), layout="constrained")
        shown: Any = figure.subfigures(3, 1)
        for part, (title, slices) in zip(shown, parts.items(), strict=True):
            part.suptitle(title, fontsize=10)
            limit = max(float(slices.abs().max()), 1e-12) if slices is rows else bound
            for k, axes in enumerate(part.subplots(1, len(slices))):
                axes.imshow(slices[k].numpy(), cmap="RdBu_r", vmin=-limit, vmax=limit)
                axes.set_axis_off()
                if slices is rows and layer.rows[k]:
                    side = slices.shape[-1]
                    axes.add_patch(Rectangle((-0.5, -0.5), side, side, fill=False, edgecolor="#d00000", linewidth=3))
    return figure


# Figure 4


def figure4(job: Job | None = None) -> Figure:
    """Slices of two held-out volumes with the labels, the dense network's and the compressed network's segmentation."""
    dense, data = _run(job, "brain/dense")
    compact, _ = _run(job, "brain/fdc3d-2x")
    modules = {"(b) U-Net": load_trained(dense.folder), "(c) compressed, 2×": load_trained(compact.folder)}
    volumes = _volumes(data, modules["(b) U-Net"], dense, held_out=True)
    # Those with most of the enhancing tumour show most.
    volumes = sorted(volumes, key=lambda pair: -int((pair[1] == 4).sum()))[:2]
    with style():
        figure = Figure(figsize=(10.4, 2.9 * len(volumes)), layout="constrained")
        grid = figure.subplots(len(volumes), 4, squeeze=False)
        for axes, (volume, label) in zip(grid, volumes, strict=True):
            middle = int((label == 4).sum(dim=(1, 2)).argmax())
            maps: dict[str, Tensor | None] = {"T1ce": None, "(a) ground truth": label}
            for name, module in modules.items():
                with torch.inference_mode():
                    found = module.segment(volume[None])[0] > 0
                dice = dice_per_case(found[None], label_to_regions(label)[None])[0]
                text = " / ".join(f"{value:.2f}" for value in dice.tolist())
                maps[f"{name}, Dice {text}"] = regions_to_label(found)
            for ax, (title, shown) in zip(axes, maps.items(), strict=True):
                draw_slice(ax, volume[2, middle], None if shown is None else shown[middle])
                ax.set_title(title, fontsize=8, fontweight="normal")
        figure.supxlabel("enhancing tumour blue, core green, whole tumour yellow; Dice of ET / WT / TC", fontsize=8)
    return figure


# The ladder


def ladder(job: Job | None = None) -> Figure:
    """Score against multiply-adds for every rate without fine-tuning, and for the fine-tuned networks of the demos."""
    with style():
        figure = Figure(figsize=(10.4, 4.4), layout="constrained")
        for axes, name in zip(figure.subplots(1, 2), ("motion", "brain"), strict=True):
            network, batches, score, shape = _subject(name, *_run(job, f"{name}/dense"))
            whole = count(network, shape).macs_paper
            for title, method, i in LADDER:
                points = [(whole, score(network))]
                for rate in RATES:
                    found = compress(network, batches, rate=rate, method=method, steps=len(batches), progress=False)
                    points.append((found.report.macs_compact, score(found.network)))
                x, y = zip(*points, strict=True)
                axes.plot(
                    [v / 1e6 for v in x],
                    [100 * v for v in y],
                    color=COLOURS[i],
                    linestyle="--",
                    marker=MARKERS[i],
                    markersize=4,
                    alpha=0.7,
                    label=f"{title}, not fine-tuned",
                )
            _tuned(axes, job, name)
            axes.set_title("3D-ResNet on motions" if name == "motion" else "U-Net on brain-like volumes")
            axes.set_xlabel("multiply-adds (M)")
            axes.set_ylabel("top-1 accuracy (%)" if name == "motion" else "Dice (%)")
        axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=8)
    return figure


def _tuned(axes: Axes, job: Job | None, name: str) -> None:
    runs = [run for runs in (job.demos if job else []) for run in runs.rows if runs.demo.id == name]
    metric = "top1" if name == "motion" else "dice"
    series: dict[str, list[tuple[float, float]]] = {}
    for run in runs:
        point = (run.complexity().macs_paper / 1e6, 100 * run.result.metrics[metric])
        series.setdefault(run.name.partition(",")[0], []).append(point)
    for i, (title, points) in enumerate(series.items()):
        x, y = zip(*points, strict=True)
        axes.scatter(
            x, y, color=COLOURS[i % len(COLOURS)], marker=MARKERS[i % len(MARKERS)], s=36, label=title, zorder=3
        )


def _subject(
    name: str, dense: Trained, data: Path
) -> tuple[nn.Module, Sequence[Any], Callable[[nn.Module], float], tuple[int, ...]]:
    """The dense network of a demo, batches of its training data, its score on the test data, and the input's shape."""
    module = load_trained(dense.folder)
    if name == "motion":
        clips, labels = load_clips(data, module, "test", 120)
        train, _ = load_clips(data, module, "train")
        order = torch.randperm(len(train), generator=torch.Generator().manual_seed(0))
        batches = list(train[order[:48]].split(16))
        return module.network, batches, lambda network: 1 - _errors(network, clips, labels), (1, *clips.shape[1:])
    train_volumes = [volume for volume, _ in _volumes(data, module, dense, held_out=False)]
    tested = _volumes(data, module, dense, held_out=True)
    size = VolumeSpec.from_dict(module.spec).patch_size
    batches = [volume[None] for volume in train_volumes[:3]]

    @torch.inference_mode()
    def dice(network: nn.Module) -> float:
        found = [network.eval()(volume[None]) > 0 for volume, _ in tested]
        true = [label_to_regions(label)[None] for _, label in tested]
        return float(torch.cat([dice_per_case(p, t) for p, t in zip(found, true, strict=True)]).mean())

    return module.network, batches, dice, (1, train_volumes[0].shape[0], *size)
