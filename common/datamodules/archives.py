"""CIFAR and (Fashion-)MNIST as their authors publish them, read without running anything that a file says.

Nothing is downloaded. A file that is missing, cut short or of another format is a `ManifestError` that names it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import pickle
import tarfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.datamodules.manifest import ManifestError


@dataclass(frozen=True)
class ImageArchive:
    """Images in memory. ``splits`` maps ``train`` and ``test`` to uint8 images (N, C, H, W) and labels (N,) int64."""

    class_names: tuple[str, ...]
    splits: dict[str, tuple[Tensor, Tensor]]

    @property
    def hash(self) -> str:
        """SHA-256 (hex) of class names, images and labels, whatever files they came in."""
        digest = hashlib.sha256("\n".join(self.class_names).encode())
        for name, (images, labels) in self.splits.items():
            digest.update(f"\n\n{name} {tuple(images.shape)}\n".encode())
            digest.update(images.numpy().tobytes() + labels.numpy().tobytes())
        return digest.hexdigest()


@dataclass(frozen=True)
class _Layout:
    """Folder, archive and file names of one published version; ``labels`` are the label bytes of a binary record."""

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    labels: int = 1


CIFAR = {
    "cifar10": (
        _Layout(
            "cifar-10-batches-bin",
            "cifar-10-binary.tar.gz",
            tuple(f"data_batch_{k}.bin" for k in range(1, 6)),
            "test_batch.bin",
            "batches.meta.txt",
        ),
        _Layout(
            "cifar-10-batches-py",
            "cifar-10-python.tar.gz",
            tuple(f"data_batch_{k}" for k in range(1, 6)),
            "test_batch",
            "batches.meta",
        ),
    ),
    "cifar100": (
        _Layout(
            "cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), "test.bin", "fine_label_names.txt", labels=2
        ),
        _Layout("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta"),
    ),
}
CIFAR_PAGE = "www.cs.toronto.edu/~kriz/cifar.html"
FASHION_PAGE = "github.com/zalandoresearch/fashion-mnist"
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE = 32  # of a CIFAR image


def read_cifar(root: str | Path, dataset: str) -> ImageArchive:
    """Read CIFAR-10 (``cifar10``) or CIFAR-100 (``cifar100``, fine labels).

    Args:
        root: folder that holds the archive of the binary or of the Python version, or the folder that it unpacks to.
        dataset: ``cifar10`` or ``cifar100``.

    Raises:
        ManifestError: no such file, or a wrong one; the message names it.
    """
    root = Path(root)
    binary, python = CIFAR[dataset]
    for layout in (binary, python):
        for source in (root / layout.folder, root / layout.archive):
            if source.exists():
                files = _members(source, layout)
                if layout is binary:
                    names = [line.strip() for line in _text(source, layout.names, files[layout.names]) if line.strip()]
                    read = _binary_batch
                else:
                    key = "label_names" if dataset == "cifar10" else "fine_label_names"
                    names = [str(name) for name in _unpickle(source, layout.names, files[layout.names]).get(key, ())]
                    read = _pickled_batch
                expected = {"cifar10": 10, "cifar100": 100}[dataset]
                if len(names) != expected:
                    raise ManifestError(f"{source}: {layout.names} has {len(names)} class names, not {expected}.")
                parts = {n: read(source, n, files[n], layout, expected) for n in (*layout.train, layout.test)}
                train = [parts[name] for name in layout.train]
                images, labels = (torch.cat(part) for part in zip(*train, strict=True))
                return ImageArchive(tuple(names), {"train": (images, labels), "test": parts[layout.test]})
    title = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}[dataset]
    raise ManifestError(
        f"no {title} in {root} (resolved: {root.resolve()}): put {binary.archive} there, or the folder {binary.folder} "
        f"from it (the Python version, {python.archive}, will do too). Get it from the page "
        f"'The CIFAR-10 and CIFAR-100 datasets', {CIFAR_PAGE}; nothing is downloaded here."
    )


def read_fashion_mnist(root: str | Path) -> ImageArchive:
    """Read the four idx files of Fashion-MNIST, compressed (``.gz``) or not.

    Args:
        root: folder with the files, or with ``raw/`` or ``FashionMNIST/raw/`` as torchvision lays them out.

    Raises:
        ManifestError: no such file, or a wrong one; the message names it.
    """
    root = Path(root)
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_path = _find_idx(root, f"{prefix}-images-idx3-ubyte")
        labels_path = _find_idx(root, f"{prefix}-labels-idx1-ubyte")
        images, labels = _idx(images_path, 3), _idx(labels_path, 1)
        if len(images) != len(labels):
            raise ManifestError(f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels.")
        splits[split] = torch.from_numpy(images)[:, None], _labels(labels, labels_path, len(FASHION_CLASSES))
    return ImageArchive(FASHION_CLASSES, splits)


def _find_idx(root: Path, name: str) -> Path:
    for folder in (root, root / "raw", root / "FashionMNIST" / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise ManifestError(
        f"no {name} (or {name}.gz) in {root} (resolved: {root.resolve()}), its raw/ or its FashionMNIST/raw/: get the "
        f"four files from the page of Fashion-MNIST, {FASHION_PAGE}; nothing is downloaded here."
    )


def _idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file: a magic number, the sizes as big-endian int32, the values."""
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise ManifestError(f"{path} cannot be read: {error}.") from error
    begin = 4 + 4 * dimensions
    if content[:4] != bytes((0, 0, 8, dimensions)) or len(content) < begin:
        raise ManifestError(f"{path} is no idx file of bytes with {dimensions} dimensions.")
    shape = [int(n) for n in np.frombuffer(content, ">i4", dimensions, 4)]
    if len(content) - begin != np.prod(shape, dtype=object):
        raise ManifestError(f"{path} should hold {'x'.join(map(str, shape))} values and has {len(content) - begin}.")
    return np.frombuffer(content, np.uint8, offset=begin).reshape(shape).copy()


def _members(source: Path, layout: _Layout) -> dict[str, bytes]:
    """The files of an unpacked folder, or of an archive, by name."""
    wanted = (*layout.train, layout.test, layout.names)
    files: dict[str, bytes] = {}
    try:
        if source.is_dir():
            files = {name: (source / name).read_bytes() for name in wanted if (source / name).is_file()}
        else:
            with tarfile.open(source, "r:gz") as archive:
                for member in archive:
                    name = member.name.removeprefix("./").removeprefix(f"{layout.folder}/")
                    if name in wanted and (file := archive.extractfile(member)) is not None:
                        files[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise ManifestError(f"{source} cannot be read: {error}. Get it anew from {CIFAR_PAGE}.") from error
    if absent := [name for name in wanted if name not in files]:
        raise ManifestError(f"{source} lacks {', '.join(absent)}. Get it anew from {CIFAR_PAGE}.")
    return files


def _text(source: Path, name: str, content: bytes) -> list[str]:
    try:
        return content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise ManifestError(f"{source}: {name} is no text file.") from error


def _labels(values: Any, where: Path | str, classes: int) -> Tensor:
    labels = torch.from_numpy(np.asarray(values).astype(np.int64))
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise ManifestError(
            f"{where} has labels from {int(labels.min())} to {int(labels.max())}; 0..{classes - 1} exist."
        )
    return labels


def _binary_batch(source: Path, name: str, content: bytes, layout: _Layout, classes: int) -> tuple[Tensor, Tensor]:
    """Records of label bytes (the last one is the fine label) and 3 x 32 x 32 pixels."""
    record = layout.labels + 3 * SIDE * SIDE
    if not content or len(content) % record:
        raise ManifestError(f"{source}: {name} has {len(content)} bytes, no multiple of {record}: it is cut short.")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = _labels(rows[:, layout.labels - 1], f"{source}: {name}", classes)
    return torch.from_numpy(rows[:, layout.labels :].reshape(-1, 3, SIDE, SIDE).copy()), labels


def _pickled_batch(source: Path, name: str, content: bytes, layout: _Layout, classes: int) -> tuple[Tensor, Tensor]:
    batch = _unpickle(source, name, content)
    data, labels = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise ManifestError(f"{source}: {name} has no array 'data' of bytes (N, {3 * SIDE * SIDE}).")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(n) is int for n in labels):
        raise ManifestError(f"{source}: {name} has no list of {len(data)} whole numbers as labels.")
    images = torch.from_numpy(data.reshape(-1, 3, SIDE, SIDE).copy())
    return images, _labels(labels, f"{source}: {name}", classes)


def _unpickle(source: Path, name: str, content: bytes) -> dict[str, Any]:
    try:
        value = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise anything
        raise ManifestError(f"{source}: {name} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise ManifestError(f"{source}: {name} holds a {type(value).__name__}, not a dictionary.")
    return value


class _PlainUnpickler(pickle.Unpickler):
    """Makes plain values and numpy arrays; a pickle that names anything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        known = _KNOWN.get((module.replace("numpy._core", "numpy.core"), name))
        if known is None:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, and data files have no need of that")
        return known


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes for Python 2


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): np.zeros(0).__reduce__()[0],
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


def class_members(labels: Tensor | Sequence[int], classes: int) -> list[Tensor]:
    """Positions of the members of each class, ascending."""
    labels = torch.as_tensor(labels)
    return [torch.nonzero(labels == k).flatten() for k in range(classes)]
