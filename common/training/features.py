"""``--features`` of ``spectral predict``: what the last layer of a network gets, one row per file or window."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from common.output_files import save_rows

_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)


def last_layer(network: nn.Module, num_classes: int) -> tuple[str, nn.Module]:
    """Name and module of the layer that computes the logits.

    It is the last ``nn.Linear`` with ``num_classes`` outputs, else the last convolution with as many, else the last
    ``nn.Linear`` of any size, in the order of ``named_modules()``.

    Raises:
        ValueError: the network has none of these.
    """
    layers = list(network.named_modules())
    linear: list[tuple[str, Any]] = [(name, layer) for name, layer in layers if isinstance(layer, nn.Linear)]
    found: list[tuple[str, Any]] = (
        [(name, layer) for name, layer in linear if layer.out_features == num_classes]
        or [(n, layer) for n, layer in layers if isinstance(layer, _CONVOLUTIONS) and layer.out_channels == num_classes]
        or linear
    )
    if not found:
        raise ValueError(
            "--features needs a network with a last linear layer, and this one has none; an ONNX file has no layers: "
            "give the checkpoint that it was made from"
        )
    return found[-1]


class FeatureRecorder:
    """Records the input of the last layer, averaged over views and, where it has them, positions.

    Attributes:
        layer: name of the layer.
        rows: dicts with ``path``, ``start``, ``end`` (NaN for a whole file) and ``features`` (C,) float32.

    Args:
        network: the network, which gets a hook.
        num_classes: number of its outputs.
    """

    def __init__(self, network: nn.Module, num_classes: int) -> None:
        self.layer, layer = last_layer(network, num_classes)
        self.channel_dim = 1 if isinstance(layer, _CONVOLUTIONS) else -1
        self.rows: list[dict[str, Any]] = []
        self._inputs: list[Tensor] = []
        layer.register_forward_pre_hook(self._record)

    def _record(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        features = inputs[0].detach().float().movedim(self.channel_dim, -1)
        self._inputs.append(features.reshape(-1, features.shape[-1]))

    def end_row(self, path: str, start: float = float("nan"), end: float = float("nan")) -> None:
        """Make a row of what the layer got since the row before."""
        features = torch.cat(self._inputs).mean(dim=0).cpu().numpy()
        self._inputs.clear()
        self.rows.append({"path": path, "start": start, "end": end, "features": features})

    def write(self, path: Path, new: Callable[[Path], Path]) -> None:
        """Write an npz file with the arrays ``path``, ``start``, ``end`` and ``features`` (rows, C), a Parquet file
        with columns of these names, or an npy file with the last and a CSV file of the others beside it. ``new`` is
        of :func:`~common.output_files.new_files`.
        """
        features = np.stack([row["features"] for row in self.rows]) if self.rows else np.zeros((0, 0), np.float32)
        paths = np.array([row["path"] for row in self.rows], str)
        start, end = (np.array([row[name] for row in self.rows], np.float64) for name in ("start", "end"))
        with new(path).open("wb") as file:  # numpy adds an extension to names
            if path.suffix.lower() == ".npz":
                np.savez(file, path=paths, start=start, end=end, features=features)
            elif path.suffix.lower() == ".parquet":
                pyarrow = parquet_writer()
                columns = {"path": paths, "start": start, "end": end}
                arrays = {name: pyarrow.array(values, from_pandas=True) for name, values in columns.items()}
                arrays["features"] = pyarrow.FixedSizeListArray.from_arrays(features.ravel(), features.shape[1] or 1)
                pyarrow.parquet.write_table(pyarrow.table(arrays), file)
            else:
                writer: Any = SimpleNamespace(write=file.write)  # with a file, numpy can miss that the disk is full
                np.save(writer, features)
        if table := paths_file(path):
            rows = [{name: row[name] for name in ("path", "start", "end")} for row in self.rows]
            save_rows(new(table), rows)


def parquet_writer() -> Any:
    """The package ``pyarrow``. Raises ValueError if it is not installed."""
    try:
        import pyarrow.parquet
    except ImportError:
        raise ValueError("a .parquet file needs pyarrow: pip install pyarrow, or write .npz") from None
    return pyarrow


def paths_file(path: Path) -> Path | None:
    """The CSV file with the rows of an npy file; None for files that hold them themselves."""
    return path.with_suffix(".csv") if path.suffix.lower() == ".npy" else None
