"""Compress a trained network: ``python -m papers.fdc3d CHECKPOINT --data VIDEOS --rate 2 --out FILE``.

CHECKPOINT is a checkpoint or run folder of this project, a state dict of a 3D-ResNet with the key names of the public
ones, or, with ``--network``, one of a network of torchvision or pytorchvideo. The data are real inputs without labels,
from which the transforms and the channels are learned. The file written holds the compact network alone:
``spectral predict --checkpoint FILE VIDEOS``, ``spectral export FILE`` and ``papers.fdc3d.load_compact`` read it. To
fine-tune on labelled data, use a recipe of ``papers/fdc3d/recipes``, which also offers the methods that need labels.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser, Namespace
from rich.console import Console
from torch import Tensor, nn

from common.backbones.resnet3d import resnet3d_from_state_dict
from common.datamodules.brats import find_case, find_case_folders, load_volume
from common.datamodules.errors import ReadError
from common.datamodules.folders import find_files
from common.datamodules.video_clips import ClipSpec, load_views
from common.datamodules.volumes import VolumeSpec
from common.training.checkpoints import CheckpointError, compare_state_dicts, read_checkpoint
from common.training.library_network import build_library_network
from common.training.task import TaskModule, load_module
from papers.fdc3d.compact_module import CompactModule, CompactVideoModule, CompactVolumeModule
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import fold_batch_norms, trim_producers
from papers.fdc3d.files import LOADING, set_source
from papers.fdc3d.layers import CompactConv3d
from papers.fdc3d.methods import CompressionError
from papers.fdc3d.rates import CompressionOptions
from papers.fdc3d.timing import choose_executions, measure

#: mean colours of ActivityNet on the scale 0..255, which the public 3D-ResNets subtract from values of that scale
ACTIVITYNET_MEAN = (114.7748 / 255, 107.7354 / 255, 99.4750 / 255)
ACTIVITYNET_STD = (1 / 255, 1 / 255, 1 / 255)


def load_network(path: str | Path, network: str | None = None, num_classes: int | None = None) -> TaskModule:
    """Read a trained network, told from what the file holds, as a module that knows its inputs and outputs.

    Args:
        path: see this module.
        network: dotted name of a network function of torchvision or pytorchvideo, for a state dict of such a network.
        num_classes: of that network.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
        ValueError: the library has no such network.
    """
    checkpoint = read_checkpoint(path)
    if network is not None:
        return _library_network(path, _plain_state(checkpoint), network, num_classes)
    if "hyper_parameters" in checkpoint:
        return _of_this_project(path, checkpoint["hyper_parameters"])
    try:
        resnet = resnet3d_from_state_dict(_plain_state(checkpoint))
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}. Name the network with --network if it is one of torchvision or pytorchvideo"
        ) from error
    set_source(resnet, "common.backbones.resnet3d.ResNet3d", resnet.arguments)
    spec = ClipSpec(sampling="dense", mean=ACTIVITYNET_MEAN, std=ACTIVITYNET_STD)
    return _module(resnet, spec, [str(k) for k in range(resnet.fc.out_features)])


def _library_network(path: str | Path, state: dict[str, Tensor], name: str, num_classes: int | None) -> TaskModule:
    if num_classes is None:
        raise CompressionError("--network needs --num_classes")
    network = build_library_network(name, num_classes)
    if differences := compare_state_dicts(network.state_dict(), state):
        raise CheckpointError(f"{path}: weights of another network than {name}:\n{differences}")
    network.load_state_dict(state)
    arguments = {"name": name, "num_classes": num_classes}
    set_source(network, "common.training.library_network.build_library_network", arguments)
    return _module(network, ClipSpec(), [str(k) for k in range(num_classes)])


def _of_this_project(path: str | Path, hyper_parameters: dict[str, Any]) -> TaskModule:
    module = load_module(path)
    if any(isinstance(m, CompactConv3d) for m in module.modules()):
        raise CompressionError(
            f"{path}: compressed already; save_compact(load_module(...).network, FILE) writes it as one file"
        )
    if module.kind not in ("video", "volume"):
        raise CompressionError(
            f"{path}: a network for {module.kind}s; only videos and volumes have a time axis to prune"
        )
    if module.spec is None or module.output_names is None:
        raise CheckpointError(
            f"{path}: does not say how a file becomes the network's input: it was trained without a data module of "
            "this project"
        )
    arguments = {name: value for name, value in hyper_parameters.items() if name not in LOADING} | {"compile": False}
    set_source(module.network, f"{type(module).__module__}.{type(module).__qualname__}", arguments)
    return module


def _module(network: nn.Module, spec: ClipSpec | VolumeSpec, names: list[str]) -> CompactModule:
    """The module that predicts with a network."""
    module = CompactVideoModule(len(names)) if isinstance(spec, ClipSpec) else CompactVolumeModule(len(names))
    module.network, module.spec, module.output_names = network, spec.to_dict(), names
    return module


def _plain_state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    state = checkpoint.get("state_dict", checkpoint)
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def load_batches(paths: Sequence[str | Path], spec: ClipSpec | VolumeSpec, batch_size: int, count: int) -> list[Tensor]:
    """The first `count` batches of the files: clips of videos, or the middle patches of brain scans.

    Raises:
        FileNotFoundError: there are no files.
        ReadError: one cannot be read.
    """
    batches, waiting = [], []
    for clip in _clips(paths, spec) if isinstance(spec, ClipSpec) else _patches(paths, spec):
        waiting.append(clip)
        if len(waiting) == batch_size:
            batches.append(torch.stack(waiting))
            waiting = []
        if len(batches) == count:
            return batches
    return [*batches, torch.stack(waiting)] if waiting else batches


def _clips(paths: Sequence[str | Path], spec: ClipSpec) -> Iterator[Tensor]:
    for path in find_files(paths, "video"):
        yield from load_views(path, spec)


def _patches(paths: Sequence[str | Path], spec: VolumeSpec) -> Iterator[Tensor]:
    for folder in find_case_folders(paths):
        volume = load_volume(find_case(folder, spec.modalities))
        for axis, size in enumerate(spec.patch_size, start=1):
            volume = volume.narrow(axis, max(0, (volume.shape[axis] - size) // 2), min(size, volume.shape[axis]))
        yield volume


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 1 with a message if something does not fit."""
    args = _parser().parse_args(argv)
    try:
        _run(args)
    except (ReadError, OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _run(args: Namespace) -> None:
    written = [Path(path) for path in (args.out, args.report) if path is not None]
    for path in written:
        if path.exists() and not args.force:
            raise FileExistsError(f"{path} exists; name another file, or replace it with --force")
    module = load_network(args.checkpoint, args.network, args.num_classes)
    spec = _spec(module, args)
    batches = [b.to(args.device) for b in load_batches(args.data, spec, args.batch_size, args.steps)]
    network = module.network.to(args.device)
    options = CompressionOptions(**{f.name: args[f.name] for f in fields(CompressionOptions)})
    if options.rate is options.speedup is options.channel_rate is options.temporal_rate is None:
        options = replace(options, rate=2.0)
    result = compress(network, batches, options, state=args.state)
    x, console = batches[0], Console()
    if args.trim:
        console.print(str(trim_producers(result.network, x)), highlight=False)
    if args.fold:
        console.print(f"{len(fold_batch_norms(result.network, x))} batch norms folded", highlight=False)
    result.report.recount(result.network)
    if args.repeats:
        choose_executions(result.network, x)
        measure(result.report, network, result.network, x, args.repeats)
    console.print(str(result.report), highlight=False, soft_wrap=True)
    assert module.output_names is not None
    _module(result.network, spec, module.output_names).save(args.out, {"report": result.report.to_dict()})
    if args.report is not None:
        Path(args.report).write_text(json.dumps(result.report.to_dict(), indent=1))
    console.print("written: " + ", ".join(map(str, written)), highlight=False)


def _spec(module: TaskModule, args: Namespace) -> ClipSpec | VolumeSpec:
    """How files become inputs, as the checkpoint and the command line say."""
    assert module.spec is not None
    changes = {"num_frames": args.frames, "crop_size": args.size, "mean": args.mean, "std": args.std}
    changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items() if v is not None}
    if module.kind == "video":
        return ClipSpec.from_dict({**module.spec, **changes})
    if changes:
        raise CompressionError("--frames, --size, --mean and --std are for videos; this network reads volumes")
    return VolumeSpec.from_dict(module.spec)


def _parser() -> ArgumentParser:
    parser = ArgumentParser(prog="python -m papers.fdc3d", description=(__doc__ or "").replace("``", ""))
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="checkpoint, state dict, or run folder (its best.ckpt)")
    add("--data", nargs="+", required=True, metavar="PATH", help="videos or brain scans: files, folders, .txt lists")
    add("--out", required=True, metavar="FILE", help="file to write, for example small.pt")
    add("--network", help="torchvision.models.video... or pytorchvideo.models...: whose state dict CHECKPOINT is")
    add("--num_classes", type=int, help="of --network")
    parser.add_class_arguments(CompressionOptions)
    add("--batch_size", type=int, default=2, help="inputs per batch")
    add("--frames", type=int, help="frames per clip, where the checkpoint does not say it (16 otherwise)")
    add("--size", type=int, help="of the frames, likewise (112 otherwise)")
    add("--mean", type=float, nargs=3, help="colours to subtract, on the scale 0..1, likewise")
    add("--std", type=float, nargs=3, help="and to divide by")
    add("--trim", action="store_true", help="also remove filters whose output no layer reads")
    add("--fold", action="store_true", help="also merge batch norms into the convolutions before them")
    add("--repeats", type=int, default=10, help="timed runs of both networks; 0 does not measure")
    add("--state", metavar="FILE", help="file with the layers done, from which an interrupted command resumes")
    add("--report", metavar="FILE", help="write the table as JSON")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1")
    add("--force", action="store_true", help="replace the files to write")
    return parser


if __name__ == "__main__":
    sys.exit(main())
