"""The figures of the DTF paper: functions that the ledger names, each for `common.reporting.main_job`."""

from __future__ import annotations

from pathlib import Path

import skimage.data
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from common.datamodules.manifest import Manifest
from common.reporting.plots import COLOURS, MARKERS, style
from common.reporting.runs import Job, Trained, load_trained
from papers.dtf import visualise
from papers.dtf.networks import dtf_blocks, dtf_net


def figure2(job: Job | None = None) -> Figure:
    """Eq. 3 in numbers: a signal and a kernel of three frames or of the whole clip, their spectra, and what comes out
    of the product of the spectra and of the circular convolution."""
    frames = 16
    time = torch.arange(frames, dtype=torch.float64)
    signal = torch.exp(-((time - 5) ** 2) / 4) + 0.4 * torch.sin(2 * torch.pi * time / frames)
    short = torch.zeros(frames, dtype=torch.float64)
    short[[0, 1, -1]] = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64)
    long = torch.fft.irfft(
        torch.fft.rfft(torch.exp(-time / 5)) * torch.exp(2j * torch.pi * time[: frames // 2 + 1] / 9)
    )
    with style():
        figure = Figure(figsize=(11.5, 4.8), layout="constrained")
        grid = figure.subplots(2, 4)
        for row, (kernel, name) in zip(grid, ((short, "three frames"), (long, "the whole clip")), strict=True):
            spectrum = torch.fft.rfft(signal) * torch.fft.rfft(kernel)
            product = torch.fft.irfft(spectrum, n=frames)
            places = (time[:, None] - time[None, :]).long() % frames
            convolved = kernel[places] @ signal
            row[0].plot(time, signal, color=COLOURS[0], marker="o", markersize=4)
            row[0].set(title="signal over time", xlabel="frame")
            row[1].bar(time - frames // 2, torch.roll(kernel, frames // 2), color=COLOURS[1])
            row[1].set(title=f"kernel over {name}", xlabel="lag (frames)")
            for values, label, i in ((signal, "signal", 0), (kernel, "kernel", 1)):
                size = torch.fft.rfft(values).abs()
                row[2].plot(size / size.max(), color=COLOURS[i], marker=MARKERS[i], markersize=4, label=label)
            row[2].set(title="size of the spectra", xlabel="frequency (cycles a clip)")
            row[2].legend(fontsize=8)
            row[3].plot(time, product, color=COLOURS[2], label="product of spectra")
            row[3].plot(time, convolved, ".", color="black", label="circular convolution")
            row[3].set(title=f"equal to {float((product - convolved).abs().max()):.0e}", xlabel="frame")
            row[3].legend(fontsize=8)
    return figure


def with_active_blocks(network: nn.Module, clip: Tensor) -> nn.Module:
    """A network with initial weights whose DTF blocks act (alpha is 0 at first) and whose normalisations know the
    statistics of a clip (1,3,T,H,W); without these, random filters in many blocks would make huge numbers."""
    for block in dtf_blocks(network).values():
        nn.init.ones_(block.alpha)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(clip)
    return network.eval()


def reach(network: nn.Module, clip: Tensor) -> int:
    """How many frames of a clip (1,3,T,H,W) the features of the middle frame of the last stage depend on."""
    clip = clip.clone().requires_grad_()
    kept: list[Tensor] = []
    handle = network.get_submodule("layer4").register_forward_hook(lambda _, given, output: kept.append(output))
    network(clip)
    handle.remove()
    middle = kept[0][:, :, kept[0].shape[2] // 2]
    (gradient,) = torch.autograd.grad((middle * torch.randn(middle.shape)).sum(), clip)
    return int((gradient.abs().amax(dim=(0, 1, 3, 4)) > 0).sum())


def reaches(numbers: tuple[int, ...] = (0, 1, 2, 4, 8, 16), frames: int = 32) -> dict[str, list[int]]:
    """Reach in time of DTF_1d-Net and DTF-Net on ResNet-50 with a number of blocks, every frame kept by the stem.

    Filters start with no effect (alpha is 0); here they have one.
    """
    found: dict[str, list[int]] = {}
    for block, name in (("dtf-1d", "DTF_1d-Net"), ("dtf", "DTF-Net")):
        for number in numbers:
            torch.manual_seed(0)
            network = dtf_net(2, num_frames=frames, block=block, num_blocks=number, width=0.25, stem_stride=1)
            clip = torch.randn(1, 3, frames, 32, 32)
            found.setdefault(name, []).append(reach(with_active_blocks(network, clip), clip))
    return found


def figure6(job: Job | None = None) -> Figure:
    """What lies behind Figure 6: frames of the input that one frame of the output sees, for a number of blocks."""
    numbers = (0, 1, 2, 4, 8, 16)
    with style():
        figure = Figure(figsize=(5.6, 3.6), layout="constrained")
        axes = figure.subplots()
        for i, (name, values) in enumerate(reaches(numbers).items()):
            axes.plot(numbers, values, color=COLOURS[i], marker=MARKERS[i], label=name)
        axes.set(title="reach in time", xlabel="number of inserted blocks", ylabel="frames of 32 that an output sees")
        axes.legend(fontsize=9)
    return figure


def figure7(job: Job | None = None) -> Figure:
    """Grad-CAM, positions, filters and kernels of the DTF-Net that the demo trained on four of its test clips; without
    a trained one, of a network with random filters on an image that moves."""
    found = job.find("demo/dtf") if job else None
    if found is None:
        clip = moving_picture()
        return visualise.figure7({"random weights": visualise.inspect_clip(random_network(clip), clip)})
    return visualise.figure7(_demo_views(*found))


def _demo_views(run: Trained, data: Path) -> dict[str, visualise.View]:
    module = load_trained(run.folder)
    assert module.spec is not None
    names = module.output_names or []
    views = {}
    for label in range(4):
        entry = next(e for e in Manifest.read(data / "manifest.csv", data).split("test").entries if e.label == label)
        clip = visualise.load_clip(data / entry.path, module.spec)
        # The stage with the block: the maps of res5, the default, have a single position in clips of 32 x 32.
        view = visualise.inspect_clip(module.network, clip, layer="layer2")
        views[f"{entry.label_name}, predicted {names[int(view.logits.argmax())]}"] = view
    return views


def random_network(clip: Tensor) -> nn.Module:
    """A small DTF-Net with random filters for clips such as `clip` (3,T,H,W), the same in every call."""
    torch.manual_seed(0)
    network = dtf_net(8, depth=18, num_frames=clip.shape[1], width=0.5, stem_stride=1)
    return with_active_blocks(network, clip[None])


def moving_picture(frames: int = 8, size: int = 128) -> Tensor:
    """A clip (3,T,H,W) of a piece of an image that moves over another one."""
    back = torch.from_numpy(skimage.data.camera()[:size, :size].copy()).float().div(255).expand(3, -1, -1)
    face = torch.from_numpy(skimage.data.astronaut()[80:128, 200:248].copy()).permute(2, 0, 1).float().div(255)
    clip = back[:, None].repeat(1, frames, 1, 1)
    for t in range(frames):
        left = round(t * (size - 48) / max(frames - 1, 1))
        clip[:, t, 40:88, left : left + 48] = face
    return (clip - 0.45) / 0.225
