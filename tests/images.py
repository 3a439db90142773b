"""Tiny image data sets in the exact formats of their publishers, with random pixels."""

from __future__ import annotations

import gzip
import io
import pickle
import tarfile
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image


def pixels(count: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, *shape), dtype=np.uint8)


def write_cifar_binary(root: Path, classes: int = 10, per_batch: int = 10) -> tuple[np.ndarray, np.ndarray]:
    """The unpacked binary version; returns the training images (N, 3, 32, 32) and their labels."""
    ten = classes == 10
    folder = root / ("cifar-10-batches-bin" if ten else "cifar-100-binary")
    folder.mkdir(parents=True)
    train = [f"data_batch_{k}.bin" for k in range(1, 6)] if ten else ["train.bin"]
    images, labels = [], []
    for seed, name in enumerate([*train, "test_batch.bin" if ten else "test.bin"]):
        batch = pixels(per_batch, 3, 32, 32, seed=seed)
        label = np.arange(per_batch, dtype=np.uint8) % classes
        coarse = [] if ten else [label[:, None] // 5]
        (folder / name).write_bytes(np.hstack([*coarse, label[:, None], batch.reshape(per_batch, -1)]).tobytes())
        images.append(batch)
        labels.append(label)
    names = "".join(f"class {k}\n" for k in range(classes))
    (folder / ("batches.meta.txt" if ten else "fine_label_names.txt")).write_text(names + "\n")
    return np.concatenate(images[:-1]), np.concatenate(labels[:-1])


class Python2Pickler(pickle._Pickler):  # type: ignore[name-defined]
    """Writes strings and bytes as Python 2 did, which the published files were made with."""

    dispatch: ClassVar[dict] = dict(pickle._Pickler.dispatch)  # type: ignore[attr-defined]

    def save_string(self, text: str | bytes) -> None:
        content = text.encode("latin1") if isinstance(text, str) else text
        self.write(pickle.BINSTRING + len(content).to_bytes(4, "little") + content)
        self.memoize(text)

    dispatch[str] = dispatch[bytes] = save_string


def python2_pickle(value: Any) -> bytes:
    file = io.BytesIO()
    Python2Pickler(file, protocol=2).dump(value)
    return file.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def write_cifar_python(root: Path, classes: int = 10, per_batch: int = 10, dump: Any = python2_pickle) -> None:
    """The unpacked Python version, with the same images as the binary one."""
    ten = classes == 10
    folder = root / ("cifar-10-batches-py" if ten else "cifar-100-python")
    folder.mkdir(parents=True)
    train = [f"data_batch_{k}" for k in range(1, 6)] if ten else ["train"]
    for seed, name in enumerate([*train, "test_batch" if ten else "test"]):
        labels = [k % classes for k in range(per_batch)]
        batch: dict[str, Any] = {"batch_label": name, "filenames": [f"{k}.png" for k in labels]}
        batch["data"] = pixels(per_batch, 3, 32, 32, seed=seed).reshape(per_batch, -1)
        batch |= {"labels": labels} if ten else {"fine_labels": labels, "coarse_labels": [k // 5 for k in labels]}
        (folder / name).write_bytes(dump(batch))
    names = [f"class {k}" for k in range(classes)]
    meta = {"label_names": names, "num_vis": 3072} if ten else {"fine_label_names": names}
    (folder / ("batches.meta" if ten else "meta")).write_bytes(dump(meta))


def pack(folder: Path, archive: Path) -> None:
    """Pack an unpacked folder as it was published."""
    with tarfile.open(archive, "w:gz") as file:
        file.add(folder, folder.name)


def write_idx(path: Path, values: np.ndarray, compressed: bool = False) -> None:
    header = bytes((0, 0, 8, values.ndim)) + b"".join(n.to_bytes(4, "big") for n in values.shape)
    content = header + values.astype(np.uint8).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if compressed else content)


def write_fashion_mnist(folder: Path, compressed: bool = False, count: int = 20) -> None:
    end = ".gz" if compressed else ""
    for seed, prefix in enumerate(("train", "t10k")):
        write_idx(folder / f"{prefix}-images-idx3-ubyte{end}", pixels(count, 28, 28, seed=seed), compressed)
        write_idx(folder / f"{prefix}-labels-idx1-ubyte{end}", np.arange(count) % 10, compressed)


def write_folders(root: Path, classes: int = 2, size: tuple[int, int] = (12, 12), **counts: int) -> Path:
    """PNG files ``<split>/<class>/<k>.png``; a class is brighter than the one before. Without counts: no splits."""
    for seed, (split, count) in enumerate((counts or {"": 5}).items()):
        for label in range(classes):
            place = root / split / f"class{label}"
            place.mkdir(parents=True, exist_ok=True)
            for k, image in enumerate(pixels(count, *size, 3, seed=10 * seed + label)):
                Image.fromarray(image // 2 + np.uint8(label * 100 // classes)).save(place / f"{k}.png")
    return root
