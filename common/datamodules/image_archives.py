"""CIFAR and (Fashion-)MNIST as published by their authors, read without executing anything in a file.

Nothing is downloaded. A file that is missing, cut short or of another format is a `DatasetError` that names it.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import pickletools
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from common.datamodules.errors import DatasetError
from common.limits import HINT, limit


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
class _Version:
    """Folder, archive and file names of one published version of a dataset.

    ``names_key`` is the entry of the class names in a pickled file, None for the binary version, in which every image
    follows ``labels`` label bytes, the last of which is the fine label.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: str
    names: str
    names_key: str | None = None
    labels: int = 1


BATCHES = tuple(f"data_batch_{k}" for k in range(1, 6))
BIN_BATCHES = tuple(f"{name}.bin" for name in BATCHES)
CIFAR = {
    "cifar10": (
        _Version("cifar-10-batches-bin", "cifar-10-binary.tar.gz", BIN_BATCHES, "test_batch.bin", "batches.meta.txt"),
        _Version("cifar-10-batches-py", "cifar-10-python.tar.gz", BATCHES, "test_batch", "batches.meta", "label_names"),
    ),
    "cifar100": (
        _Version(
            "cifar-100-binary", "cifar-100-binary.tar.gz", ("train.bin",), "test.bin", "fine_label_names.txt", labels=2
        ),
        _Version("cifar-100-python", "cifar-100-python.tar.gz", ("train",), "test", "meta", "fine_label_names"),
    ),
}
TITLES = {"cifar10": "CIFAR-10", "cifar100": "CIFAR-100"}
CIFAR_PAGE = "www.cs.toronto.edu/~kriz/cifar.html"
FASHION_PAGE = "github.com/zalandoresearch/fashion-mnist"
FASHION_CLASSES = (
    *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
    *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
)
SIDE = 32  # of a CIFAR image
MAX_BYTES = limit(2**30)  # of a file after decompression; the largest published one has 184 MB


# -- CIFAR ------------------------------------------------------------------------------------------------------------


def read_cifar(root: str | Path, dataset: str) -> ImageArchive:
    """Read CIFAR-10 (``cifar10``) or CIFAR-100 (``cifar100``, fine labels).

    Args:
        root: folder that holds the archive of the binary or the Python version, or the folder that it unpacks to.
        dataset: ``cifar10`` or ``cifar100``.

    Raises:
        DatasetError: the files are missing or wrong; the message names them.
    """
    root, title = Path(root), TITLES[dataset]
    for version in CIFAR[dataset]:
        for source in (root / version.folder, root / version.archive):
            if source.exists():
                return _read_version(source, version, classes=int(title.rpartition("-")[2]))
    binary, python = CIFAR[dataset]
    raise DatasetError(
        f"no {title} in {root} (resolved: {os.path.realpath(root)}): put {binary.archive} there, or the folder "
        f"{binary.folder} from it (the Python version, {python.archive}, works too). Get it from the page "
        f"'The CIFAR-10 and CIFAR-100 datasets', {CIFAR_PAGE}; nothing is downloaded here."
    )


def _read_version(source: Path, version: _Version, classes: int) -> ImageArchive:
    files = _members(source, version)
    where = f"{source}: {version.names}"
    if version.names_key is None:
        names = [line.strip() for line in _text(where, files[version.names]) if line.strip()]
    else:
        names = [str(name) for name in _unpickle(where, files[version.names]).get(version.names_key, ())]
    if len(names) != classes:
        raise DatasetError(f"{where} has {len(names)} class names, not {classes}.")
    read = _binary_batch if version.names_key is None else _pickled_batch
    batches = [read(f"{source}: {name}", files[name], version, classes) for name in (*version.train, version.test)]
    images, labels = (torch.cat(parts) for parts in zip(*batches[:-1], strict=True))
    return ImageArchive(tuple(names), {"train": (images, labels), "test": batches[-1]})


def _members(source: Path, version: _Version) -> dict[str, bytes]:
    """The files of an unpacked folder, or of an archive, by name."""
    wanted = (*version.train, version.test, version.names)
    files: dict[str, bytes] = {}
    try:
        if source.is_dir():
            files = {name: (source / name).read_bytes() for name in wanted if (source / name).is_file()}
        else:
            with tarfile.open(source, "r:gz") as archive:
                for member in archive:
                    name = member.name.removeprefix("./").removeprefix(f"{version.folder}/")
                    if name in wanted and member.isfile() and (file := archive.extractfile(member)) is not None:
                        if member.size > MAX_BYTES:
                            raise DatasetError(
                                f"{source}: {name} has {member.size} bytes, more than {MAX_BYTES}; {HINT}."
                            )
                        files[name] = file.read()
    except (OSError, EOFError, tarfile.TarError, zlib.error) as error:
        raise DatasetError(f"{source} cannot be read: {error}. Download it again from {CIFAR_PAGE}.") from error
    if absent := [name for name in wanted if name not in files]:
        raise DatasetError(f"{source} lacks {', '.join(absent)}. Download it again from {CIFAR_PAGE}.")
    return files


def _text(where: str, content: bytes) -> list[str]:
    try:
        return content.decode("ascii").splitlines()
    except UnicodeDecodeError as error:
        raise DatasetError(f"{where} is not a text file.") from error


def _labels(values: Any, where: Path | str, classes: int) -> Tensor:
    try:
        labels = torch.from_numpy(np.asarray(values).astype(np.int64))
    except OverflowError as error:
        raise DatasetError(f"{where} has labels outside 0..{classes - 1}.") from error
    if len(labels) and (int(labels.min()) < 0 or int(labels.max()) >= classes):
        raise DatasetError(
            f"{where} has labels from {int(labels.min())} to {int(labels.max())}, outside 0..{classes - 1}."
        )
    return labels


def _binary_batch(where: str, content: bytes, version: _Version, classes: int) -> tuple[Tensor, Tensor]:
    """Records of label bytes and 3 x 32 x 32 pixels."""
    record = version.labels + 3 * SIDE * SIDE
    if not content or len(content) % record:
        raise DatasetError(f"{where} has {len(content)} bytes, not a multiple of {record}: it is cut short.")
    rows = np.frombuffer(content, np.uint8).reshape(-1, record)
    labels = _labels(rows[:, version.labels - 1], where, classes)
    return torch.from_numpy(rows[:, version.labels :].reshape(-1, 3, SIDE, SIDE).copy()), labels


def _pickled_batch(where: str, content: bytes, version: _Version, classes: int) -> tuple[Tensor, Tensor]:
    batch = _unpickle(where, content)
    data, labels = batch.get("data"), batch.get("fine_labels", batch.get("labels"))
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3 * SIDE * SIDE:
        raise DatasetError(f"{where} lacks an array 'data' of bytes (N, {3 * SIDE * SIDE}).")
    if not isinstance(labels, list) or len(labels) != len(data) or not all(type(n) is int for n in labels):
        raise DatasetError(f"{where} lacks a list of {len(data)} whole numbers as labels.")
    images = torch.from_numpy(data.reshape(-1, 3, SIDE, SIDE).copy())
    return images, _labels(labels, where, classes)


def _unpickle(where: str, content: bytes) -> dict[str, Any]:
    try:
        for operation, argument, _ in pickletools.genops(content):  # a table as long as the largest number is made
            if operation.name in ("PUT", "LONG_BINPUT") and int(argument or 0) > len(content):
                raise ValueError(f"it numbers a value {argument}")
        value = _PlainUnpickler(io.BytesIO(content), encoding="latin1").load()
    except Exception as error:  # damaged pickles raise anything
        raise DatasetError(f"{where} cannot be read: {error}.") from error
    if not isinstance(value, dict):
        raise DatasetError(f"{where} holds a {type(value).__name__}, not a dictionary.")
    return value


class _PlainUnpickler(pickle.Unpickler):
    """Makes plain values and numpy arrays; a pickle that names anything else is refused before it is called."""

    def find_class(self, module: str, name: str) -> Any:
        key = module.replace("numpy._core", "numpy.core"), name
        if key not in _KNOWN:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which data files do not need")
        return _KNOWN[key]


def _latin1(text: str, encoding: str) -> bytes:
    return text.encode("latin1")  # how Python 3 writes bytes for Python 2


def _empty_array(*_: Any) -> np.ndarray:
    """An array that the values which follow in the pickle fill."""
    return np.zeros(0, np.uint8)


_KNOWN = {
    ("numpy.core.multiarray", "_reconstruct"): _empty_array,
    ("numpy", "ndarray"): None,  # an argument of the above; called, it would make an array of any size
    ("numpy", "dtype"): np.dtype,
    ("_codecs", "encode"): _latin1,
}


# -- MNIST ------------------------------------------------------------------------------------------------------------


def read_fashion_mnist(root: str | Path) -> ImageArchive:
    """Read the four idx files of Fashion-MNIST, compressed (``.gz``) or not.

    Args:
        root: folder with the files, or with ``raw/`` or ``FashionMNIST/raw/`` as torchvision lays them out.

    Raises:
        DatasetError: the files are missing or wrong; the message names them.
    """
    root = Path(root)
    splits = {}
    for split, prefix in (("train", "train"), ("test", "t10k")):
        images_path = _find_idx(root, f"{prefix}-images-idx3-ubyte")
        labels_path = _find_idx(root, f"{prefix}-labels-idx1-ubyte")
        images, labels = _read_idx(images_path, 3), _read_idx(labels_path, 1)
        if len(images) != len(labels):
            raise DatasetError(f"{images_path} has {len(images)} images, {labels_path} {len(labels)} labels.")
        splits[split] = torch.from_numpy(images)[:, None], _labels(labels, labels_path, len(FASHION_CLASSES))
    return ImageArchive(FASHION_CLASSES, splits)


def _find_idx(root: Path, name: str) -> Path:
    for folder in (root, root / "raw", root / "FashionMNIST" / "raw"):
        for path in (folder / name, folder / f"{name}.gz"):
            if path.is_file():
                return path
    raise DatasetError(
        f"no {name} (or {name}.gz) in {root} (resolved: {os.path.realpath(root)}), its raw/ or FashionMNIST/raw/: get "
        f"the four files from the page of Fashion-MNIST, {FASHION_PAGE}; nothing is downloaded here."
    )


def _read_idx(path: Path, dimensions: int) -> np.ndarray:
    """The uint8 array of an idx file: a magic number, the sizes as big-endian int32, the values."""
    try:
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            header = file.read(4 + 4 * dimensions)
            if header[:4] != bytes((0, 0, 8, dimensions)) or len(header) < 4 + 4 * dimensions:
                raise DatasetError(f"{path} is not an idx file of bytes with {dimensions} dimensions.")
            shape = [int(n) for n in np.frombuffer(header, ">i4", dimensions, 4)]
            size = int(np.prod(shape, dtype=object))
            if not 0 <= size <= MAX_BYTES:
                claimed = "x".join(map(str, shape))
                raise DatasetError(f"{path} says that it holds {claimed} values; it is damaged; {HINT}.")
            content = file.read(size + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise DatasetError(f"{path} cannot be read: {error}.") from error
    if len(content) != size:
        more = "more" if len(content) > size else str(len(content))
        raise DatasetError(f"{path} should hold {'x'.join(map(str, shape))} values, but holds {more}.")
    return np.frombuffer(content, np.uint8).reshape(shape).copy()
