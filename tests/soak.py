"""Bad inputs without end: every reader is fed damaged and hostile files, which may be refused, but nothing else.

`python -m tests.soak` writes valid files of every kind, and damages a copy of them in a way that a seed decides: bytes,
words, lines, or values of the tree that the file holds, and, in every third case, one of the special faults of the
kind. The real reader of the kind then reads the file. Two outcomes are allowed: a result, or an error that the command
line shows to the user, whose message names the file. Any other exception, a message that does not name the file, more
than `MAX_SECONDS` or more than `MAX_BYTES` of memory is a fault of the reader, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import gzip
import io
import json
import logging
import math
import multiprocessing
import os
import pickle
import re
import resource
import shutil
import struct
import sys
import tarfile
import tempfile
import time
import traceback
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random
from typing import Any

import av.logging
import nibabel as nib
import numpy as np
import torch
import yaml

from common.comparison import study
from common.datamodules import brats, coco
from common.datamodules.folders import find_files, read_class_folders
from common.datamodules.image_archives import read_cifar, read_fashion_mnist
from common.datamodules.manifest import Manifest
from common.datamodules.video_reader import open_video
from common.reporting import ledger
from common.training import export, predict
from common.training.cli import user_errors
from common.training.lightning_cli import check_arguments
from papers.fdc3d import files
from papers.fdc3d.compression import compress
from papers.fdc3d.lightning_module import FDC3DModule
from tests.coco import two_persons
from tests.common.comparison.test_study import write as write_study
from tests.common.reporting.conftest import LEDGER, RECIPE
from tests.images import pack, write_cifar_binary, write_cifar_python, write_fashion_mnist
from tests.media import write_frames, write_video
from tests.volumes import write_case

MAX_SECONDS = 20.0  # of the processor
WAIT = 120.0  # seconds until a case that does not end is ended, on a machine that may be busy
MAX_BYTES = 1536 * 2**20
OUTCOMES = ("refused", "right", "crashed", "hung")

Special = Callable[[Random, Path], Path]
"""Writes a fault into a folder of valid files; returns the file or folder that it is in."""


@dataclass(frozen=True)
class Kind:
    """A kind of input.

    Attributes:
        write: writes valid files into a folder.
        read: reads the files of a folder, one of which is damaged, as the commands do.
        damaged: pattern of the files that are damaged.
        specials: faults that chance would not find.
        load, dump: between the bytes of a file and a tree of plain values; None: the file is no tree.
        also: a file of the folder that a message may name instead.
    """

    write: Callable[[Path], Any]
    read: Callable[[Path, Path], Any]
    damaged: str
    specials: Sequence[Special]
    load: Callable[[bytes], Any] | None = None
    dump: Callable[[Any], bytes] | None = None
    also: str | None = None


# -- damage that fits every file --------------------------------------------------------------------------------------

WORDS: tuple[bytes, ...] = (
    *(b"", b"nan", b"-inf", b"-1", b"0", b"1e308", b"1e9", b"9" * 5000, b"99999999999", b"0x10", b"0.5", b"\xb2"),
    *(b"null", b"true", b"[]", b"{}", b"'", b'"', b",", b":", b"\t", b"\0", b"\xe9", b"\xef\xbf\xbe", b"\xed\xa0\x80"),
    *(
        b"..",
        b"../../x",
        b"/etc/passwd",
        b"a" * 200_000,
        b"=cmd|x",
        b"[/b]",
        b"<script>",
        b"&a [*a, *a]",
        b"!!python/x",
    ),
)
VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 1, 3, 10**6, 10**9, 2**63, 10**30, 0.5, -1.0, 1e308, math.nan, math.inf, 10**4300),
    *("", "x", "../../x", "\0", "9" * 5000, [], [0], [[]], {}, {"x": 1}, {"": {}}, ["x"] * 1000, [-1, 10**9]),
)


def truncate(rng: Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data) + 1)]


def flip(rng: Random, data: bytes) -> bytes:
    damaged = bytearray(data)
    reach = rng.choice((len(data), 64))  # the header alone, or anywhere
    for _ in range(rng.choice((1, 3, 20))):
        damaged[rng.randrange(min(reach, len(data)))] ^= 1 << rng.randrange(8)
    return bytes(damaged)


def replace_word(rng: Random, data: bytes) -> bytes:
    found = [match.span() for match in re.finditer(rb"[\w.+-]+", data[:100_000])] or [(0, 0)]
    start, end = rng.choice(found)
    return data[:start] + rng.choice(WORDS) + data[end:]


def repeat_part(rng: Random, data: bytes) -> bytes:
    start, end = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    part = data[start : min(end, start + rng.choice((1, 10, 1000, 10**6)))]
    return data[:end] + part * rng.choice((0, 1, 30)) + data[end:]


def swap_lines(rng: Random, data: bytes) -> bytes:
    lines = data.split(b"\n")
    rng.shuffle(lines)
    return b"\n".join(lines[: rng.randrange(1, len(lines) + 1)])


def encode_otherwise(rng: Random, data: bytes) -> bytes:
    encoding = rng.choice(("utf-16", "utf-32", "utf-8-sig", "cp037"))
    text = data.decode("latin-1").replace("\n", rng.choice(("\n", "\r\n", "\r")))
    return text.encode(encoding, "replace")


def add_junk(rng: Random, data: bytes) -> bytes:
    at = rng.choice((0, rng.randrange(len(data) + 1), len(data)))
    return data[:at] + rng.randbytes(rng.choice((1, 4, 100))) + data[at:]


DAMAGE = (truncate, truncate, flip, flip, flip, replace_word, repeat_part, swap_lines, encode_otherwise, add_junk)


def spoil(rng: Random, tree: Any) -> Any:
    """The tree with one to three values replaced or removed, at any depth."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 3))):
        places = [
            (node, key) for node in _nodes(tree) for key in (node if isinstance(node, dict) else range(len(node)))
        ]
        if not places:
            break
        node, key = rng.choice(places)
        value = node[key]
        choice = rng.randrange(5)
        if choice == 0:
            del node[key]
        elif choice == 1 and isinstance(node, dict):
            node[rng.choice([f"{key}s", "", 3, None])] = node.pop(key)
        elif isinstance(value, torch.Tensor):
            node[key] = rng.choice(
                (None, "x", value[..., :-1], value.double(), value.int(), value * math.nan, value.to_sparse(), [1.0])
                if value.ndim and value.numel()
                else (None, "x", value[None])
            )
        else:
            node[key] = copy.deepcopy(rng.choice(VALUES))
    return tree


def _nodes(tree: Any) -> Iterator[Any]:
    if isinstance(tree, dict | list):
        yield tree
        for child in tree.values() if isinstance(tree, dict) else tree:
            yield from _nodes(child)


def damage(kind: Kind, rng: Random, number: int, folder: Path) -> Path:
    """Damage a folder of valid files; the file or folder that is damaged."""
    if number % 3 == 0:
        return kind.specials[number // 3 % len(kind.specials)](rng, folder)
    path = rng.choice(sorted(path for path in folder.glob(kind.damaged) if path.is_file()))
    data = path.read_bytes()
    if number % 3 == 1 and kind.load is not None and kind.dump is not None:
        with contextlib.suppress(OverflowError, ValueError):  # of a format that cannot hold the value
            path.write_bytes(kind.dump(spoil(rng, kind.load(data))))
            return path
    packed = path.suffix == ".gz" and rng.random() < 0.5  # what is damaged is inside then
    data = rng.choice(DAMAGE)(rng, gzip.decompress(data) if packed else data)
    path.write_bytes(gzip.compress(data, 1) if packed else data)
    return path


def content(name: str, data: bytes | str | Callable[[], bytes]) -> Special:
    """A file of the folder with other content."""

    def write(rng: Random, folder: Path) -> Path:
        made = data() if callable(data) else data.encode() if isinstance(data, str) else data
        (folder / name).write_bytes(made)
        return folder / name

    return write


def changed(name: str, change: Callable[[dict[str, Any]], Any]) -> Special:
    """A file of `torch.save` whose content is changed."""

    def write(rng: Random, folder: Path) -> Path:
        stored = torch.load(folder / name, weights_only=True)
        new = change(stored)
        torch.save(stored if new is None else new, folder / name)
        return folder / name

    return write


def odd_place(name: str) -> Sequence[Special]:
    """The file is a folder, a broken link, a link to itself, or empty."""

    def folder_there(rng: Random, folder: Path) -> Path:
        (folder / name).unlink()
        (folder / name).mkdir()
        return folder / name

    def link(target: str) -> Special:
        def write(rng: Random, folder: Path) -> Path:
            (folder / name).unlink()
            (folder / name).symlink_to(target)
            return folder / name

        return write

    return folder_there, link("nothing"), link(Path(name).name), content(name, b"")


# -- manifests --------------------------------------------------------------------------------------------------------

HEADER = "path,label,label_name,num_frames,fps,duration,split\n"
ROW = "a/1.mp4,0,walk,10,25,0.4,train\n"


def write_manifest(folder: Path) -> None:
    rows = [f"{c}/{k}.mp4,{c},{'walk' if c else 'café'},{10 + k},25.0,0.4,{('train', 'val')[k % 2]}\n"
            for c in (0, 1) for k in range(4)]  # fmt: skip
    (folder / "manifest.csv").write_text(HEADER + "".join(rows), encoding="utf-8")


def read_manifest(folder: Path, damaged: Path) -> None:
    manifest = Manifest.read(folder / "manifest.csv", folder)
    assert len(manifest.hash) == 64
    for name in manifest.splits():
        part = manifest.split(name)
        part.class_counts()
        assert len(part.items()) == len(part.present()[0].entries) + len(part.present()[1])


def rows(*lines: str) -> Special:
    return content("manifest.csv", HEADER + ROW + "".join(f"{line}\n" for line in lines))


MANIFESTS = Kind(
    write_manifest,
    read_manifest,
    "*.csv",
    (
        content("manifest.csv", (HEADER + ROW).encode("utf-16")),
        content("manifest.csv", (HEADER + "é.mp4,0,café,,,,train\n").encode("latin-1")),
        content("manifest.csv", ("\ufeff" + HEADER + ROW).replace("\n", "\r\n")),
        content("manifest.csv", HEADER),
        content("manifest.csv", "path,path,label,split\na,b,0,train\n"),
        content("manifest.csv", HEADER + ROW * 3 + '"a/2.mp4,0,walk,10,25,0.4,train\n' * 3),
        content("manifest.csv", lambda: (HEADER + "".join(f"{k}.mp4,0,a,,,,train\n" for k in range(50_000))).encode()),
        content("classes.txt", "walk\n" * 2),
        content("classes.txt", "walk\0\n"),
        content("classes.txt", b"\xff\xfe\n"),
        rows("a/2.mp4,0,wa\0lk,10,25,0.4,train"),
        rows("a" * 200_000 + ",0,walk,10,25,0.4,train"),
        rows("a/" * 2500 + "x.mp4,0,walk,10,25,0.4,train"),
        rows("a/2.mp4," + "9" * 5000 + ",walk,10,25,0.4,train"),
        rows("a/2.mp4,99999999999,run,10,25,0.4,train"),
        rows("a/2.mp4,999999999,run,10,25,0.4,train"),
        rows("a/2.mp4,-1,walk,10,25,0.4,train"),
        rows("a/2.mp4,²,walk,10,25,0.4,train"),
        rows("a/2.mp4,0,walk," + "9" * 5000 + ",25,0.4,train"),
        rows("a/2.mp4,0,walk,10,nan,0.4,train"),
        rows("a/2.mp4,0,walk,10,25,inf,train"),
        rows("a/2.mp4,0,walk,10,1e-320,0.4,train"),
        rows("../../etc/passwd,0,walk,10,25,0.4,train"),
        rows("a/../../../x.mp4,0,walk,10,25,0.4,train"),
        rows("/etc/passwd,0,walk,10,25,0.4,train"),
        rows('"a\nb.mp4",0,"wa\nlk",10,25,0.4,train'),
        *odd_place("manifest.csv"),
    ),
)

# -- folders of classes -----------------------------------------------------------------------------------------------

NAMES = ("walk", "train", "Val", " ", "[red]x", "<script>", "a'\"b", "=cmd", "é", "\u202eabc", "new\nline", ".hidden",
         "-rf", "x" * 200, "a,b", "\udcff", "CON", "..x", "%s{}", "\t", "classes.txt")  # fmt: skip
ENDS = (".mp4", ".MP4", ".gif", ".jpg", ".txt", "", ".mp4.part", ".tar.gz", ".\udcfe")


def write_classes(folder: Path) -> None:
    for name in ("walk", "run"):
        (folder / "clips" / name).mkdir(parents=True)
        for k in range(3):
            (folder / "clips" / name / f"{k}.mp4").write_bytes(b"x")


def read_classes(folder: Path, damaged: Path) -> None:
    for kind in ("video", "image"):
        with contextlib.suppress(*() if kind == "video" else user_errors()):  # there are no images in most cases
            manifest = read_class_folders(folder / "clips", kind=kind)
            assert len(manifest.hash) == 64
            assert len(manifest.items()) == manifest.expected
            manifest.present()
            find_files(folder / "clips", kind)


def odd_tree(rng: Random, folder: Path) -> Path:
    """Folders and files with odd names, at some depth, and links."""
    root = folder / "clips"
    places = [root, *(path for path in root.iterdir() if path.is_dir())]
    for _ in range(rng.randrange(1, 12)):
        path = rng.choice(places) / (rng.choice(NAMES) + rng.choice(ENDS))
        if os.path.lexists(path):
            continue
        what = rng.randrange(6)
        if what < 2:
            path.mkdir()
            places.append(path)
        elif what < 4:
            path.write_bytes(b"x")
        else:
            path.symlink_to(rng.choice(("nothing", "..", path.name, "/etc/passwd")))
    return root


def no_classes(rng: Random, folder: Path) -> Path:
    shutil.rmtree(folder / "clips")
    if rng.random() < 0.5:
        (folder / "clips").mkdir()
    return folder / "clips"


def unread_folder(rng: Random, folder: Path) -> Path:
    (folder / "clips" / "walk").rename(folder / "clips" / ("w" * 255))
    return folder / "clips"


CLASSES = Kind(write_classes, read_classes, "clips/*/*", (odd_tree, odd_tree, odd_tree, no_classes, unread_folder))


# -- checkpoints and compact files ------------------------------------------------------------------------------------


class Command:
    def __reduce__(self) -> Any:
        return os.system, ("echo ran > ran",)


def torch_bytes(value: Any, **options: Any) -> bytes:
    file = io.BytesIO()
    torch.save(value, file, **options)
    return file.getvalue()


def torch_tree(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), weights_only=True)


@cache
def zip_bomb() -> bytes:
    """A file of `torch.save` that is compressed to a thousandth."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive:
        archive.writestr("archive/version", "3\n")
        with archive.open("archive/data.pkl", "w") as entry:
            for _ in range(100):
                entry.write(bytes(16 * 2**20))
    return file.getvalue()


@cache
def gzip_bomb(header: bytes, size: int) -> bytes:
    """A header and zeros, compressed."""
    file = io.BytesIO()
    with gzip.open(file, "wb", compresslevel=1) as packed:
        packed.write(header)
        for _ in range(size // 2**20):
            packed.write(bytes(2**20))
        packed.write(bytes(size % 2**20))
    return file.getvalue()


def claimed_storage(name: str) -> Special:
    """A tensor whose storage is said to be larger than what the file holds of it."""

    def write(rng: Random, folder: Path) -> Path:
        with zipfile.ZipFile(folder / name) as archive:
            entries = {entry: archive.read(entry) for entry in archive.namelist()}
        with zipfile.ZipFile(folder / name, "w") as archive:
            for entry, data in entries.items():
                if entry.endswith("data.pkl"):  # the number of elements behind the device of the first storage
                    where = data.index(b"cpu") + 5
                    at = where + data[where:].index(b"K")
                    data = data[:at] + b"J" + struct.pack("<i", 2**31 - 1) + data[at + 2 :]
                archive.writestr(entry, data)
        return folder / name

    return write


def write_checkpoint(folder: Path) -> None:
    torch.manual_seed(0)
    write_video(folder / "clip.mp4", num_frames=6, width=32, height=32)
    network = {"depth": 10, "width": 0.0625}
    module = FDC3DModule(network=network, num_classes=3)  # type: ignore[arg-type]
    module.output_names, module.manifest_hash = ["a", "b", "c"], "0" * 64
    module.spec = {"num_frames": 4, "crop_size": 16}
    stored: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(stored)
    torch.save(stored, folder / "best.ckpt")


def read_checkpoint(folder: Path, damaged: Path) -> None:
    assert predict.main(["--checkpoint", str(folder / "best.ckpt"), str(folder / "clip.mp4")]) == 0


def spec_of(**values: Any) -> Special:
    return changed("best.ckpt", lambda stored: stored["spectral"]["spec"].update(values))


def names_of(names: Any) -> Special:
    return changed("best.ckpt", lambda stored: stored["spectral"].update(output_names=names))


def pretend(name: str) -> Special:
    """Weights that claim to be large, and take no memory: the network that the arguments ask for would."""

    def write(stored: dict[str, Any]) -> None:
        stored["hyper_parameters"]["network"]["width"] = 1000.0
        with torch.device("meta"):
            large = FDC3DModule(network={"depth": 10, "width": 1000.0}, num_classes=3)  # type: ignore[arg-type]
        stored["state_dict"] = {
            key: torch.zeros((1,) * value.ndim).expand(value.shape) for key, value in large.state_dict().items()
        }

    return changed(name, write)


def endless(network: str, **options: Any) -> Special:
    """Options of which a network would have blocks without end."""

    def change(stored: dict[str, Any]) -> None:
        stored["spectral"]["class_path"] = "common.training.library_network.LibraryNetworkModule"
        stored["hyper_parameters"] = {"num_classes": 3, "network": network, "network_options": options}

    return changed("best.ckpt", change)


def of_torch(name: str) -> Sequence[Special]:
    """Faults of all files of `torch.save`."""
    return (
        content(name, pickle.dumps(Command())),
        content(name, lambda: torch_bytes({"state_dict": Command()})),
        content(name, lambda: torch_bytes([1, 2])),
        content(name, lambda: torch_bytes(torch.zeros(3))),
        content(name, zip_bomb),
        claimed_storage(name),
        changed(name, lambda stored: stored.update(state_dict=[])),
        changed(name, lambda stored: stored.update(state_dict=dict.fromkeys(stored["state_dict"], "x"))),
        changed(name, lambda stored: stored.update(state_dict={k: v[None] for k, v in stored["state_dict"].items()})),
        *(changed(name, lambda stored, key=key: stored.pop(key, None)) for key in ("state_dict", "hyper_parameters")),
        *odd_place(name),
    )


CHECKPOINTS = Kind(
    write_checkpoint,
    read_checkpoint,
    "*.ckpt",
    (
        *of_torch("best.ckpt"),
        changed("best.ckpt", lambda stored: stored.update(hyper_parameters=[1])),
        changed("best.ckpt", lambda stored: stored.update(spectral=[1])),
        changed("best.ckpt", lambda stored: stored["hyper_parameters"]["network"].update(width=1e9)),
        changed("best.ckpt", lambda stored: stored["hyper_parameters"].update(num_classes=10**9)),
        changed("best.ckpt", lambda stored: stored["hyper_parameters"].update(pretrained="/etc/passwd")),
        changed("best.ckpt", lambda stored: stored["spectral"].update(class_path="os.system")),
        changed("best.ckpt", lambda stored: stored["spectral"].update(class_path="papers.dtf.DTFModule.x")),
        pretend("best.ckpt"),
        endless("pytorchvideo.models.x3d.create_x3d", depth_factor=1e9),
        endless(
            "torchvision.models.video.swin_transformer.SwinTransformer3d",
            **{"patch_size": [2, 4, 4], "embed_dim": 6, "depths": [10**9], "num_heads": [1], "window_size": [2, 2, 2]},
        ),
        *(spec_of(num_frames=n) for n in (10**9, 0, "4", 4.5, None)),
        *(spec_of(**{key: 10**6}) for key in ("crop_size", "num_clips", "stride")),
        spec_of(crop_size=16, resize=10**6),
        spec_of(mean=[0.5], std=["a", "b", "c"]),
        spec_of(sampling=["dense"]),
        *(names_of(names) for names in (["a"], {"a": 1}, [1, None, 2.5], "abc", ["a", "a\0", "\udcff"], None, [])),
        content("best.ckpt", lambda: torch_bytes({"state_dict": {}}, _use_new_zipfile_serialization=False)),
    ),
    torch_tree,
    torch_bytes,
    also="clip.mp4",
)


def write_onnx(folder: Path) -> None:
    write_checkpoint(folder)
    export.main([str(folder / "best.ckpt"), "--out", str(folder / "network.onnx")])
    (folder / "best.ckpt").unlink()


def read_onnx(folder: Path, damaged: Path) -> None:
    assert predict.main(["--checkpoint", str(folder / "network.onnx"), str(folder / "clip.mp4")]) == 0


def described(change: Callable[[dict[str, Any]], Any]) -> Special:
    """An ONNX file in which what `spectral export` says of the network is changed."""

    def write(rng: Random, folder: Path) -> Path:
        import onnx

        path = folder / "network.onnx"
        model = onnx.load(str(path))
        (entry,) = (entry for entry in model.metadata_props if entry.key == export.ENTRY)
        about = json.loads(entry.value)
        change(about)
        entry.value = json.dumps(about)
        onnx.save(model, str(path))
        return path

    return write


ONNX = Kind(
    write_onnx,
    read_onnx,
    "*.onnx",
    (
        content("network.onnx", b""),
        content("network.onnx", pickle.dumps(Command())),
        described(lambda about: about.clear()),
        described(lambda about: about.update(class_path="os.system")),
        described(lambda about: about.update(arguments=[1])),
        described(lambda about: about["arguments"].update(num_classes=10**9)),
        described(lambda about: about["arguments"].update(num_classes=7)),
        described(lambda about: about["arguments"]["network"].update(width=1e9)),
        described(lambda about: about["spec"].update(num_frames=10**9)),
        described(lambda about: about["spec"].update(num_frames=7)),
        described(lambda about: about.update(output_names=["a"])),
        described(lambda about: about.update(output_names={"a": 1})),
        described(lambda about: about.update(spec=None)),
        *odd_place("network.onnx"),
    ),
    also="clip.mp4",
)


def write_compact(folder: Path) -> None:
    torch.manual_seed(0)
    builder = ("common.backbones.resnet3d.ResNet3d", {"depth": 10, "num_classes": 4, "width": 0.0625})
    network = files.set_source(files._build({"builder": builder[0], "arguments": builder[1]}), *builder)
    batches = [(torch.randn(2, 3, 4, 16, 16), torch.tensor([0, 1]))]
    files.save_compact(compress(network, batches, rate=2, steps=1, progress=False).network, folder / "small.pt")


def arguments_of(**arguments: Any) -> Special:
    return changed("small.pt", lambda stored: stored["arguments"].update(arguments))


def first_module(**values: Any) -> Special:
    return changed("small.pt", lambda stored: next(iter(stored["modules"].values())).update(values))


def read_compact(folder: Path, damaged: Path) -> None:
    network = files.load_compact(folder / "small.pt")
    with contextlib.suppress(ValueError):  # of layers that do not take this clip
        network(torch.zeros(1, 3, 4, 16, 16))


COMPACT = Kind(
    write_compact,
    read_compact,
    "*.pt",
    (
        *of_torch("small.pt"),
        changed("small.pt", lambda stored: stored.update(builder="os.system", arguments={"command": "echo ran > ran"})),
        arguments_of(width=1e9),
        arguments_of(width=1e3),
        arguments_of(depth=10**9),
        arguments_of(num_classes=10**10),
        *(first_module(type=kind) for kind in ("Linear", "Identity", "BatchNorm3d", 3, None)),
        *(first_module(**{key: 10**9}) for key in ("out_channels", "in_channels", "num_features")),
        changed("small.pt", lambda stored: stored.update(modules={"..": {"type": "Conv3d"}})),
        changed("small.pt", lambda stored: stored.update(modules=[1])),
    ),
    torch_tree,
    torch_bytes,
)

# -- YAML: recipes, studies, ledgers ----------------------------------------------------------------------------------


def yaml_bytes(value: Any) -> bytes:
    return yaml.safe_dump(value, sort_keys=False).encode()


def yaml_tree(data: bytes) -> Any:
    return yaml.safe_load(data)


def alias_bomb(top: str) -> str:
    levels = [f"  - &a{k} [{', '.join([f'*a{k - 1}'] * 10)}]\n" for k in range(1, 12)]
    return f"{top}:\n  - &a0 [{', '.join('x' * 10)}]\n{''.join(levels)}"


def merge_bomb(top: str) -> str:
    levels = [f"  k{k}: &m{k} {{{', '.join(f'x{i}: *m{k - 1}' for i in range(10))}}}\n" for k in range(1, 12)]
    return f"{top}:\n  k0: &m0 {{x: 1}}\n{''.join(levels)}"


def of_yaml(name: str, top: str) -> Sequence[Special]:
    """Faults of all YAML files; `top` is one of its keys."""
    texts: tuple[str | bytes, ...] = (
        *(alias_bomb(top), merge_bomb(top), f"{top}: &a [*a]\n", f"{top}: {{x: &a {{y: *a}}}}\n"),
        *("[" * 5000, "{a: " * 5000, f"{top}: " + "[" * 800 + "]" * 800, "- " * 5000, "? " * 3000),
        *(f"\t{top}: 1\n", f"{top}: 1\n\tx: 2\n", f"{top}: " + "9" * 5000, f"{top}: 2024-99-99\n", f"{top}: 0x\n"),
        *(f"!!python/object/apply:os.system ['echo ran > ran']: 1\n{top}: 1\n", f"{top}: !!binary é\n"),
        *("[]", "3", "x", "null", "--- 1\n--- 2\n", "? [a]\n: 1\n", "? {a: 1}\n: 2\n", f"{top}: 1\n{top}: 2\n"),
        *(b"\xff\xfe\x00", f"{top}: é\n".encode("latin-1"), f"{top}: \xed\xa0\xbd".encode("latin-1")),
        *(f"{top}: !!timestamp x\n", f"{top}: !!int x\n", f"{top}: !!set {{a, b}}\n", f"{top}: 'x\0'\n"),
        *(f"<<: 3\n{top}: 1\n", "%YAML 9\n--- 1\n"),
    )  # fmt: skip
    return tuple(content(name, text) for text in texts)


def write_recipe(folder: Path) -> None:
    text = Path("papers/stft3d/recipes/demo.yaml").read_text()
    (folder / "recipe.yaml").write_text(text)


RECIPES = Kind(
    write_recipe,
    lambda folder, damaged: check_arguments(["fit", "--config", str(folder / "recipe.yaml")]),
    "*.yaml",
    (*of_yaml("recipe.yaml", "model"), *of_yaml("recipe.yaml", "trainer"), *odd_place("recipe.yaml")),
    yaml_tree,
    yaml_bytes,
)
STUDIES = Kind(
    write_study,
    lambda folder, damaged: study.load(folder / "study.yaml"),
    "study.yaml",
    (*of_yaml("study.yaml", "methods"), *of_yaml("study.yaml", "title"), *odd_place("study.yaml")),
    yaml_tree,
    yaml_bytes,
)


def write_ledger(folder: Path) -> None:
    (folder / "recipes").mkdir()
    (folder / "ledger.yaml").write_text(LEDGER)
    (folder / "recipes" / "demo.yaml").write_text(RECIPE)


LEDGERS = Kind(
    write_ledger,
    lambda folder, damaged: ledger.load(folder / "ledger.yaml"),
    "ledger.yaml",
    (*of_yaml("ledger.yaml", "tables"), *of_yaml("ledger.yaml", "demos"), *odd_place("ledger.yaml")),
    yaml_tree,
    yaml_bytes,
)

# -- images, volumes, keypoints, videos -------------------------------------------------------------------------------

IDX = "idx/train-images-idx3-ubyte.gz"
PACKED = "packed/cifar-10-binary.tar.gz"


def write_archives(folder: Path) -> None:
    write_fashion_mnist(folder / "idx", compressed=True, count=5)
    write_cifar_binary(folder / "binary", per_batch=10)
    write_cifar_python(folder / "python", per_batch=10)
    (folder / "packed").mkdir()
    pack(folder / "binary/cifar-10-batches-bin", folder / PACKED)


def read_archives(folder: Path, damaged: Path) -> None:
    root = folder / damaged.relative_to(folder).parts[0]
    archive = read_fashion_mnist(root) if root.name == "idx" else read_cifar(root, "cifar10")
    assert len(archive.hash) == 64


def idx(*shape: int, size: int) -> Special:
    header = bytes((0, 0, 8, len(shape))) + b"".join(n.to_bytes(4, "big") for n in shape)
    return content(IDX, partial(gzip_bomb, header, size))


def tar(change: Callable[[tarfile.TarInfo, bytes], tuple[tarfile.TarInfo, bytes]]) -> Special:
    """The archive with another entry for a batch."""

    def write(rng: Random, folder: Path) -> Path:
        with tarfile.open(folder / PACKED) as old:
            entries = [(entry, old.extractfile(entry).read()) for entry in old if entry.isfile()]  # type: ignore[union-attr]
        with tarfile.open(folder / PACKED, "w:gz", compresslevel=1) as new:
            for entry, data in entries:
                if entry.name.endswith("data_batch_2.bin"):
                    entry, data = change(entry, data)
                new.fileobj.write(entry.tobuf())  # type: ignore[union-attr]
                new.fileobj.write(data + bytes(-len(data) % 512))  # type: ignore[union-attr]
        return folder / PACKED

    return write


def tar_link(kind: bytes, target: str) -> Special:
    def change(entry: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        entry.type, entry.linkname, entry.size = kind, target, 0
        return entry, b""

    return tar(change)


def tar_size(size: int) -> Special:
    def change(entry: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        entry.size = size
        return entry, bytes(min(size, 1000))

    return tar(change)


def tar_name(name: str) -> Special:
    def change(entry: tarfile.TarInfo, data: bytes) -> tuple[tarfile.TarInfo, bytes]:
        entry.name = name
        return entry, data

    return tar(change)


BATCH = "python/cifar-10-batches-py/data_batch_1"


def batch(**values: Any) -> Special:
    return content(BATCH, lambda: pickle.dumps({"data": np.zeros((10, 3072), np.uint8), "labels": [0] * 10, **values}))


ARCHIVES = Kind(
    write_archives,
    read_archives,
    "*/**/*",
    (
        idx(60000, 28, 28, size=100),
        idx(2**31 - 1, 2**31 - 1, 2**31 - 1, size=10),
        idx(2**30, 1, 1, size=400 * 2**20),
        idx(5, 28, 28, size=400 * 2**20),
        idx(0, 28, 28, size=0),
        idx(5, 0, 28, size=0),
        idx(5, 28, size=140),
        tar_link(tarfile.SYMTYPE, "/etc/passwd"),
        tar_link(tarfile.LNKTYPE, "cifar-10-batches-bin/data_batch_1.bin"),
        tar_link(tarfile.LNKTYPE, "nothing"),
        tar_link(tarfile.SYMTYPE, "cifar-10-batches-bin/data_batch_2.bin"),
        tar_link(tarfile.FIFOTYPE, ""),
        tar_size(0),
        tar_size(1000),
        tar_size(2**33),
        tar_name("/cifar-10-batches-bin/data_batch_2.bin"),
        tar_name("../../data_batch_2.bin"),
        batch(),
        batch(labels=[10**30] * 10),
        batch(labels=[True] * 10),
        batch(labels=[99] * 10),
        batch(data=np.zeros((10, 3072))),
        batch(data=np.zeros((0, 3072), np.uint8), labels=[]),
        content(BATCH, pickle.dumps(Command())),
        content(BATCH, b"\x80\x02B\xff\xff\xff\x7f"),  # bytes of a length that the file does not have
        content(BATCH, b"\x80\x02cnumpy\nndarray\n(J\xff\xff\xff\x7ftR."),  # an array of 2 GB
        content(BATCH, b"(" * 10**6 + b"l" * 10**6),
        *odd_place("packed/cifar-10-binary.tar.gz"),
        *odd_place("idx/train-labels-idx1-ubyte.gz"),
        *odd_place("binary/cifar-10-batches-bin/data_batch_1.bin"),
    ),
)

CASE = "Brats18_X_1"


def read_volume(folder: Path, damaged: Path) -> None:
    case = brats.find_case(brats.find_case_folders([folder])[0], labelled=True)
    brats.load_volume(case)
    assert case.label is not None
    brats.read_label(case.label)
    brats.voxel_spacing(case.label)


def nifti(name: str, change: Callable[[Any], Any], voxels: bytes = b"") -> Special:
    """A file with a changed header, and other voxels."""

    def write(rng: Random, folder: Path) -> Path:
        path = folder / CASE / f"{CASE}_{name}.nii.gz"
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(gzip.decompress(path.read_bytes())), check=False)
        change(header)
        path.write_bytes(gzip.compress(header.binaryblock + bytes(4) + voxels, 1))
        return path

    return write


def values(name: str, change: Callable[[Any], Any]) -> Special:
    def write(rng: Random, folder: Path) -> Path:
        path = folder / CASE / f"{CASE}_{name}.nii.gz"
        image: Any = nib.load(path)
        nib.save(nib.Nifti1Image(change(image.get_fdata()), image.affine), path)
        return path

    return write


def field(**fields: Any) -> Callable[[Any], None]:
    def change(header: Any) -> None:
        for key, value in fields.items():
            header[key] = value

    return change


VOLUMES = Kind(
    lambda folder: write_case(folder, CASE),
    read_volume,
    "*/*.nii.gz",
    (
        nifti("flair", field(dim=[3, 20000, 20000, 20, 1, 1, 1, 1])),
        nifti("flair", field(dim=[3, 640, 640, 640, 1, 1, 1, 1])),
        nifti("flair", field(dim=[3, 640, 640, 640, 1, 1, 1, 1], datatype=64, bitpix=64)),
        nifti("flair", field(dim=[3, 14, 16, 12, 1, 1, 1, 1], datatype=1792, bitpix=128), bytes(43008)),
        nifti("flair", field(dim=[3, -1, 16, 12, 1, 1, 1, 1])),
        nifti("flair", field(dim=[7, 1, 1, 1, 1, 1, 1, 1]), bytes(100)),
        nifti("flair", field(dim=[9, 1, 1, 1, 1, 1, 1, 1]), bytes(100)),
        nifti("flair", field(vox_offset=1e30), bytes(10000)),
        nifti("flair", field(vox_offset=math.nan), bytes(10000)),
        nifti("seg", field(scl_slope=math.inf, scl_inter=math.nan), bytes(10000)),
        nifti("t1", field(scl_slope=1e38), b"\xff" * 10000),
        nifti("seg", field(datatype=128, bitpix=24), bytes(10000)),
        nifti("seg", field(srow_x=[math.nan] * 4), bytes(10000)),
        values("t2", lambda x: x * math.nan),
        values("t2", lambda x: x * 0),
        values("t2", lambda x: x + 1e300),
        values("seg", lambda x: x + 0.5),
        values("seg", lambda x: x * math.nan),
        values("t1", lambda x: x[:-1]),
        values("flair", lambda x: x[..., None]),
        values("flair", lambda x: x[:0]),
        *odd_place(f"{CASE}/{CASE}_t1.nii.gz"),
    ),
)

COCO_FILE = "annotations/person_keypoints_train2017.json"


def write_keypoints(folder: Path) -> None:
    two_persons(folder)
    found = [{"image_id": 785, "category_id": 1, "bbox": [3, 4, 30, 40], "score": 0.9}] * 3
    (folder / "annotations" / "detections.json").write_text(json.dumps(found))


def read_keypoints(folder: Path, damaged: Path) -> None:
    images = folder / "train2017"
    annotations = coco.read_annotations(folder / COCO_FILE)
    persons = coco.annotated_persons(annotations, images)
    coco.check_images(persons, images)
    assert isinstance(annotations.left_right, tuple)
    for person in (*persons, *coco.detected_persons(folder / "annotations/detections.json", annotations, images)):
        assert np.isfinite(person.box).all(), person.box


def annotated(change: Callable[[Any], Any]) -> Special:
    def write(rng: Random, folder: Path) -> Path:
        path = folder / COCO_FILE
        tree = json.loads(path.read_text())
        change(tree)
        path.write_text(json.dumps(tree))
        return path

    return write


def entry_of(part: str, **values: Any) -> Special:
    return annotated(lambda tree: tree[part][0].update(values))


KEYPOINTS = Kind(
    write_keypoints,
    read_keypoints,
    "annotations/*[!l]2017.json",
    (
        *(annotated(lambda tree, key=key: tree.update({key: {}})) for key in ("images", "annotations", "categories")),
        annotated(lambda tree: tree.update(annotations=None)),
        *(entry_of("annotations", image_id=value) for value in ([1], {}, "785", 10**30, None, 785.0, True)),
        *(entry_of("annotations", bbox=value) for value in ([10**400] * 4, [1e308] * 4, ["1"] * 4, [-5, -5, 1e9, 1e9])),
        *(entry_of("annotations", keypoints=value) for value in ([], [[1]] * 51, [10**400] * 51, [0.5] * 51)),
        entry_of("annotations", area=[1]),
        *(entry_of("images", id=value) for value in (10**30, -1, True, "785")),
        *(
            entry_of("images", file_name=value)
            for value in ("../../../etc/passwd", "/etc/passwd", "a\0b", "", "x" * 5000)
        ),
        *(entry_of("images", width=value) for value in (-5, 0, 10**400, True)),
        *(entry_of("categories", keypoints=value) for value in ([{}] * 17, ["left_x"] * 17, "nose", {"a": 1})),
        *(entry_of("categories", skeleton=value) for value in ([[1, "x"]], [[1.5, 2]], [[0, 99]], {"a": 1}, None, 3)),
        content(COCO_FILE, "[" * 100_000),
        content(COCO_FILE, '{"images": ' + "9" * 5000 + "}"),
        content(COCO_FILE, '{"images": [], "categories": [], "images": NaN}'),
        *(content("annotations/detections.json", text) for text in ("{}", "[1]", '[{"bbox": 1}]', "[[" * 10_000)),
        content(
            "annotations/detections.json",
            '[{"image_id": 785, "category_id": 1, "bbox": [1e308, 1e308, 1e308, 1e308], "score": 1}]',
        ),
        content(
            "annotations/detections.json",
            f'[{{"image_id": 1{"0" * 400}, "category_id": 1, "bbox": [1, 1, 9, 9], "score": 1}}]',
        ),
        *odd_place(COCO_FILE),
    ),
    json.loads,
    lambda tree: json.dumps(tree).encode(),
)


def write_videos(folder: Path) -> None:
    write = partial(write_video, num_frames=12, width=32, height=24)
    write(folder / "a.mp4")
    write(folder / "b.mkv", b_frames=2)
    write(folder / "c.webm", codec="libvpx-vp9", options={"cpu-used": "8", "deadline": "realtime"})
    write(folder / "d.avi", codec="mpeg4")
    write(folder / "e.gif", codec="gif", pix_fmt="rgb8", fps=10)
    write(folder / "f.ts")
    write_frames(folder / "frames", num_frames=3, width=32, height=24)


def read_video(folder: Path, damaged: Path) -> None:
    with open_video(damaged.parent if damaged.parent.name == "frames" else damaged) as video:
        indices = sorted({0, video.num_frames // 2, video.num_frames - 1})
        assert len(video.get_frames(indices)) == len(indices)
        assert math.isfinite(video.fps)
        assert math.isfinite(video.duration)
        video.get_clip(0.0, 0.1)


def gif_of(width: int, height: int) -> Special:
    return content(
        "e.gif",
        b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
        + struct.pack("<HH", width, height) + b"\0\x02\x02\x4c\x01\0;",
    )  # fmt: skip


def png_of(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", __import__("zlib").crc32(name + data))
        for name, data in ((b"IHDR", header), (b"IDAT", b""), (b"IEND", b""))
    )


def frame_named(name: str, data: bytes = b"x") -> Special:
    def write(rng: Random, folder: Path) -> Path:
        (folder / "frames" / name).write_bytes(data)
        return folder / "frames" / name

    return write


VIDEOS = Kind(
    write_videos,
    read_video,
    "**/*.*",
    (
        content("a.mp4", b"not a video" * 100),
        content("a.mp4", "ffconcat version 1.0\nfile /etc/passwd\n"),
        content("a.mp4", "#EXTM3U\n#EXT-X-MEDIA-SEQUENCE:0\n#EXTINF:1,\nfile:///etc/passwd\n"),
        gif_of(65535, 65535),
        gif_of(16000, 16000),
        gif_of(1, 1),
        frame_named("img_00009.jpg"),
        frame_named("img_00004.png", png_of(2**31 - 1, 2**31 - 1)),
        frame_named("img_00004.png", png_of(40000, 40000)),
        frame_named("img_00004.png", png_of(0, 0)),
        frame_named(f"img_{'9' * 200}.jpg"),
        frame_named("x_00004.jpg"),
        frame_named("img_²²².jpg"),
        frame_named("img_00004.jpg", b""),
        *odd_place("b.mkv"),
        *odd_place("frames/img_00002.jpg"),
    ),
    also="/frames:",
)

KINDS: dict[str, Kind] = {
    "manifests": MANIFESTS,
    "class folders": CLASSES,
    "checkpoints": CHECKPOINTS,
    "onnx files": ONNX,
    "compact files": COMPACT,
    "recipes": RECIPES,
    "studies": STUDIES,
    "ledgers": LEDGERS,
    "image archives": ARCHIVES,
    "volumes": VOLUMES,
    "keypoints": KEYPOINTS,
    "videos": VIDEOS,
}


# -- running ----------------------------------------------------------------------------------------------------------


def run_case(name: str, number: int, valid: Path) -> tuple[str, str]:
    """The outcome of a case, and what was said.

    Args:
        name: of the kind.
        number: of the case; the same number gives the same case.
        valid: folder for the valid files of all kinds, which are written once.
    """
    kind, source = KINDS[name], valid / name.replace(" ", "_")
    if not source.exists():
        unfinished = source.with_suffix(".part")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        kind.write(unfinished)
        unfinished.rename(source)
    with tempfile.TemporaryDirectory(prefix="soak-") as place, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        folder = Path(place) / "case"
        shutil.copytree(source, folder, symlinks=True)
        damaged = damage(kind, Random(f"{name} {number}"), number, folder)
        torch.manual_seed(0)
        before, started = _peak(), time.process_time()
        outcome, said = "right", ""
        try:
            with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
                kind.read(folder, damaged)
        except user_errors() as error:
            outcome, said = "refused", str(error)
            if not any(name in said for name in (damaged.name, repr(damaged.name)[1:-1], kind.also) if name):
                outcome = "crashed"
                said = f"the message does not name the file: {said}\n{traceback.format_exc(limit=-3)}"
            elif any(isinstance(cause, MemoryError) for cause in _causes(error)):
                outcome, said = "crashed", f"out of memory: {said}"
        except BaseException:
            outcome, said = "crashed", traceback.format_exc()
        if Path("ran").exists() or (folder / "ran").exists():
            outcome, said = "crashed", "a file ran a command"
        if (seconds := time.process_time() - started) > MAX_SECONDS:
            outcome, said = "hung", f"{seconds:.0f} seconds; {said}"
        if (taken := _peak() - before) > MAX_BYTES:
            outcome, said = "crashed", f"{taken / 2**20:.0f} MiB of memory; {said}"
    return outcome, said.replace(place, "")


def _peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def quiet() -> None:
    """Turn off what libraries print about damaged files."""
    av.logging.set_level(None)
    for name in ("nibabel.global", "lightning.pytorch", "lightning.fabric", "nibabel"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def _work(pipe: Connection, valid: Path) -> None:
    """Run the cases that come through a pipe, in little memory."""
    quiet()
    torch.set_num_threads(1)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 2 * MAX_BYTES, resource.RLIM_INFINITY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    while True:
        pipe.send(run_case(*pipe.recv(), valid))


class Worker:
    """A process that runs cases one after the other, and is replaced when a case kills it or does not end."""

    def __init__(self, valid: Path) -> None:
        self.valid = valid
        self.start()

    def start(self) -> None:
        context = multiprocessing.get_context("fork")  # this process only waits, so it has no threads
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, self.valid), daemon=True)
        self.process.start()
        theirs.close()

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()

    def run(self, name: str, number: int) -> tuple[str, str]:
        try:
            self.pipe.send((name, number))
            if self.pipe.poll(WAIT):
                return self.pipe.recv()
            outcome, said = "hung", f"no end after {WAIT:.0f} seconds"
        except (EOFError, OSError):
            self.process.join(5)
            outcome, said = "crashed", f"the process died with status {self.process.exitcode}"
        self.stop()
        self.start()
        return outcome, said


def main(args: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.soak", description="Feed every reader with bad inputs.")
    parser.add_argument("--cases", type=int, default=300, help="of each kind (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="number of the first case (default: %(default)s)")
    parser.add_argument("--kind", choices=KINDS, action="append", help="this kind alone; may be given again")
    options = parser.parse_args(args)
    faults = 0
    with tempfile.TemporaryDirectory(prefix="soak-valid-") as valid:
        worker = Worker(Path(valid))
        print(f"{'kind':16}{'cases':>9}" + "".join(f"{outcome:>9}" for outcome in OUTCOMES), flush=True)
        for name in options.kind or KINDS:
            counts: Counter[str] = Counter()
            for number in range(options.seed, options.seed + options.cases):
                outcome, said = worker.run(name, number)
                counts[outcome] += 1
                if outcome in ("crashed", "hung"):
                    faults += 1
                    print(
                        f"--- {name}, --seed {number} --cases 1: {outcome}\n{said[-3000:]}", file=sys.stderr, flush=True
                    )
            cells = "".join(f"{counts[outcome]:>9}" for outcome in OUTCOMES)
            print(f"{name:16}{options.cases:>9}{cells}", flush=True)
        worker.stop()
    return int(faults > 0)


if __name__ == "__main__":
    sys.exit(main())
