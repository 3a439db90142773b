"""Compress a trained network: ``python -m papers.fdc3d.compress CHECKPOINT --data VIDEOS --rate 2 --out FILE``.

CHECKPOINT is a checkpoint or run folder of this project, a state dict of a 3D-ResNet with the key names of the public
ones, or, with ``--network``, one of a network of torchvision or pytorchvideo. The data are real inputs without labels,
from which the transforms and the channels are learned. The file written holds the compact network alone;
``papers.fdc3d.load_compact`` reads it. To fine-tune it on labelled data, use a recipe of ``papers/fdc3d/recipes``,
which also offers the methods that need labels.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import Tensor, nn

from common.backbones.resnet3d import BLOCKS, Bottleneck3d, ResNet3d, ZeroPadShortcut, resnet3d_from_state_dict
from common.datamodules.brats import find_case, find_case_folders, load_volume
from common.datamodules.errors import ReadError
from common.datamodules.folders import find_files
from common.datamodules.video_clips import ClipSpec, load_views
from common.datamodules.volumes import VolumeSpec
from common.training.checkpoints import CheckpointError, compare_state_dicts, read_checkpoint
from common.training.library_network import build_library_network
from common.training.task import load_module
from papers.fdc3d.compression import CompressionError, choose_executions, compress, measure, update_report
from papers.fdc3d.files import save_compact, set_source
from papers.fdc3d.layers import CompactConv3d
from papers.fdc3d.trimming import trim_producers

METHODS = ("fdc3d", "dct", "identity", "channels", "l1")  # the others need labels
#: mean colours of ActivityNet on the scale 0..255, which the public 3D-ResNets subtract from values of that scale
ACTIVITYNET_MEAN = (114.7748 / 255, 107.7354 / 255, 99.4750 / 255)
ACTIVITYNET_STD = (1 / 255, 1 / 255, 1 / 255)


@dataclass
class Source:
    """A trained network, and how files become its inputs."""

    network: nn.Module
    spec: ClipSpec | VolumeSpec
    facts: dict[str, Any]


def load_network(path: str | Path, network: str | None = None, num_classes: int | None = None) -> Source:
    """Read a trained network, told from what the file holds.

    Args:
        path: see the module.
        network: dotted name of a network function of torchvision or pytorchvideo, for a state dict of such a network.
        num_classes: of that network.

    Raises:
        CheckpointError: the file cannot be read, or does not fit.
        ValueError: the library has no such network.
    """
    if network is not None:
        if num_classes is None:
            raise CompressionError("--network needs --num-classes")
        arguments = {"name": network, "num_classes": num_classes}
        library = build_library_network(network, num_classes)
        state = _plain_state(read_checkpoint(path))
        differences = compare_state_dicts(library.state_dict(), state)
        if differences:
            raise CheckpointError(f"{path}: weights of another network than {network}:\n{differences}")
        library.load_state_dict(state)
        return Source(
            set_source(library, "common.training.library_network.build_library_network", arguments), ClipSpec(), {}
        )
    checkpoint = read_checkpoint(path)
    if "hyper_parameters" in checkpoint:
        module = load_module(path)
        if any(isinstance(m, CompactConv3d) for m in module.modules()):
            raise CompressionError(
                f"{path}: compressed already; save_compact(load_module(...).network, FILE) writes it as one file"
            )
        kind = f"{type(module).__module__}.{type(module).__qualname__}"
        if module.spec is None:
            raise CheckpointError(
                f"{path}: does not say how a file becomes the network's input: it was trained without a data module "
                "of this project"
            )
        if module.kind not in ("video", "volume"):
            raise CompressionError(
                f"{path}: a network for {module.kind}s; only videos and volumes have a time axis to prune"
            )
        arguments = {**checkpoint["hyper_parameters"], "pretrained": None, "compile": False}
        spec = (VolumeSpec if module.kind == "volume" else ClipSpec).from_dict(module.spec)
        facts = {"module": kind, "spec": module.spec, "output_names": module.output_names}
        return Source(set_source(module.network, kind, arguments), spec, facts)
    state = _plain_state(checkpoint)
    try:
        resnet = resnet3d_from_state_dict(state)
    except ValueError as error:
        raise CheckpointError(
            f"{path}: {error}. Name the network with --network if it is one of torchvision or pytorchvideo"
        ) from error
    spec = ClipSpec(sampling="dense", mean=ACTIVITYNET_MEAN, std=ACTIVITYNET_STD)
    return Source(set_source(resnet, "common.backbones.resnet3d.ResNet3d", _resnet_arguments(resnet)), spec, {})


def _plain_state(checkpoint: dict[str, Any]) -> dict[str, Tensor]:
    state = checkpoint.get("state_dict", checkpoint)
    return {str(k).removeprefix("module."): v for k, v in state.items() if isinstance(v, Tensor)}


def _resnet_arguments(network: ResNet3d) -> dict[str, Any]:
    stages = [getattr(network, f"layer{i}") for i in (1, 2, 3, 4)]
    blocks = tuple(len(stage) for stage in stages)
    deep = isinstance(stages[0][0], Bottleneck3d)
    depth = next(d for d, b in BLOCKS.items() if b == blocks and (d >= 50) == deep)
    shortcut = "A" if isinstance(stages[1][0].downsample, ZeroPadShortcut) else "B"
    width = network.conv1.out_channels / 64
    return {"depth": depth, "num_classes": network.fc.out_features, "width": width, "shortcut": shortcut}


def load_batches(paths: Sequence[str | Path], spec: ClipSpec | VolumeSpec, batch_size: int, count: int) -> list[Tensor]:
    """The first `count` batches of the files: clips of videos, or the middle patches of brain scans.

    Raises:
        FileNotFoundError: there are no files.
        ReadError: one cannot be read.
    """
    read = _clips if isinstance(spec, ClipSpec) else _patches
    batches, waiting = [], []
    for clip in read(paths, spec):  # type: ignore[arg-type]
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


def export_onnx(network: nn.Module, x: Tensor, path: str | Path) -> None:
    """Write a compact network as ONNX, for inputs of the size of `x`. Needs the packages onnx and onnxscript."""
    fixed = copy.deepcopy(network).eval().cpu()
    torch.onnx.export(fixed, (x.cpu(),), str(path), dynamo=True, verbose=False, external_data=False)


def main(argv: list[str] | None = None) -> int:
    """Command line; returns 0, or 1 with a message if something does not fit."""
    args = _parser().parse_args(argv)
    try:
        return _run(args)
    except (CompressionError, CheckpointError, ReadError, FileNotFoundError, FileExistsError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _run(args: argparse.Namespace) -> int:
    written = [path for path in (args.out, args.onnx, args.report) if path is not None]
    for path in written:
        if path.exists() and not args.force:
            raise FileExistsError(f"{path} exists; name another file, or replace it with --force")
    source = load_network(args.checkpoint, args.network, args.num_classes)
    spec = source.spec
    if isinstance(spec, ClipSpec):
        changes = {"num_frames": args.frames, "crop_size": args.size, "mean": args.mean, "std": args.std}
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in changes.items() if v is not None}
        spec = ClipSpec.from_dict({**spec.to_dict(), **changes})
    elif any(v is not None for v in (args.frames, args.size, args.mean, args.std)):
        raise CompressionError("--frames, --size, --mean and --std are for videos; this network reads volumes")
    batches = [b.to(args.device) for b in load_batches(args.data, spec, args.batch_size, args.steps)]
    network = source.network.to(args.device)
    found = compress(
        network,
        batches,
        rate=2.0 if args.rate is None and args.speedup is None and args.channel_rate is None else args.rate,
        speedup=args.speedup,
        channel_rate=args.channel_rate,
        temporal_rate=args.temporal_rate if args.channel_rate is not None else None,
        method=args.method,
        importance=args.importance,
        keep_temporal=args.keep_temporal,
        steps=args.steps,
        state=args.state,
        seed=args.seed,
    )
    console = Console()
    x = batches[0]
    if args.trim:
        console.print(str(trim_producers(found.network, x)), highlight=False)
        update_report(found.report, found.network)
    if args.repeats:
        choose_executions(found.network, x)
        measure(found.report, network, found.network, x, args.repeats)
    console.print(str(found.report), highlight=False, soft_wrap=True)
    save_compact(found.network, args.out, facts={**source.facts, "report": found.report.to_dict()})
    if args.report is not None:
        args.report.write_text(json.dumps(found.report.to_dict(), indent=1))
    if args.onnx is not None:
        export_onnx(found.network, x[:1], args.onnx)
    console.print("written: " + ", ".join(map(str, written)), highlight=False)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m papers.fdc3d.compress",
        description=(__doc__ or "").replace("``", ""),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("checkpoint", type=Path, metavar="CHECKPOINT", help="checkpoint, state dict, or run folder (its best.ckpt)")
    add("--data", nargs="+", required=True, metavar="PATH", help="videos or brain scans: files, folders, .txt lists")
    add("--out", type=Path, required=True, help="file to write, for example small.pt")
    add("--network", help="torchvision.models.video... or pytorchvideo.models...: whose state dict CHECKPOINT is")
    add("--num-classes", type=int, help="of --network")
    add("--rate", type=float, help="speed-up of 3x3x3 layers by the paper's formula (default 2)")
    add("--speedup", type=float, help="instead: speed-up of the network in multiply-adds, transforms included")
    add("--channel-rate", type=float, help="instead: p_c for every layer, with --temporal-rate")
    add("--temporal-rate", type=float, default=1 / 3, help="p_t beside --channel-rate (default 1/3)")
    add("--method", choices=METHODS, default="fdc3d", help="(default %(default)s)")
    add("--importance", choices=("paper", "energy"), default="paper", help="of temporal rows (default %(default)s)")
    add(
        "--keep-temporal",
        choices=("figure3", "floor"),
        default="figure3",
        help="4 or 5 rows of 7 (default %(default)s)",
    )
    add("--steps", type=int, default=10, help="batches per layer at most (default %(default)s)")
    add("--batch-size", type=int, default=2, help="(default %(default)s)")
    add("--frames", type=int, help="of a clip, where the checkpoint does not say it (default 16)")
    add("--size", type=int, help="of its frames, likewise (default 112)")
    add("--mean", type=float, nargs=3, help="colours subtracted, on the scale 0..1, likewise")
    add("--std", type=float, nargs=3, help="and divided by")
    add("--trim", action="store_true", help="also remove filters whose output no layer reads")
    add("--repeats", type=int, default=10, help="timed runs of both networks; 0: do not measure (default %(default)s)")
    add("--state", type=Path, help="file that keeps the layers done; an interrupted call goes on from it")
    add("--report", type=Path, help="write the table as JSON")
    add("--onnx", type=Path, help="also export to this file")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="(default %(default)s)")
    add("--seed", type=int, default=0, help="of the sampled positions (default %(default)s)")
    add("--force", action="store_true", help="replace the files to write")
    return parser
