"""Class probabilities of any video or image from a checkpoint alone."""

import argparse
import csv
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

from common.datamodules.readers import ReadError
from common.evaluation.scores import prediction_table
from common.training.checkpoints import CheckpointError
from common.training.classification import ClassificationModule, load_module


@dataclass(frozen=True)
class Prediction:
    """``probabilities`` (classes,) of one video or image, or None with the reason in ``error``."""

    path: str
    probabilities: Tensor | None = None
    error: str = ""


def predict_files(module: ClassificationModule, paths: Iterable[str | Path]) -> list[Prediction]:
    """Predict videos, or images, with the clips and crops that the network was tested with.

    Args:
        module: from :func:`~common.training.classification.load_module`, on any device.
        paths: files of the module's kind, folders of them, or ``.txt`` lists of these; for videos also frame folders.

    Returns:
        One prediction per file, in order. A file that cannot be read has its reason in ``error``.

    Raises:
        CheckpointError: the checkpoint does not say how a file becomes the network's input.
    """
    if module.spec is None or module.class_names is None:
        raise CheckpointError(
            f"the checkpoint holds no {module.spec_name} and class names: "
            f"it was trained without a {module.kind.capitalize()}DataModule"
        )
    predictions = []
    for path in paths:
        try:
            files = module.find_files([path])
        except FileNotFoundError as error:
            predictions.append(Prediction(str(path), error=str(error)))
            continue
        for file in files:
            try:
                views = module.load_views(file)
            except ReadError as error:
                predictions.append(Prediction(str(file), error=error.reason or str(error)))
            else:
                predictions.append(Prediction(str(file), module.predict_views(views).cpu()))
    return predictions


def prediction_rows(predictions: Sequence[Prediction], class_names: list[str], top: int = 5) -> list[dict[str, Any]]:
    """One plain row per file: ``path``, ``top1``, ``p1``, ..., ``error``."""
    good = [p for p in predictions if p.probabilities is not None]
    rows: dict[int, dict[str, Any]] = {}
    if good:
        probabilities = torch.stack([p.probabilities for p in good if p.probabilities is not None])
        table = prediction_table(probabilities, class_names, [p.path for p in good], top=top)
        rows = {id(p): row for p, row in zip(good, table, strict=True)}
    return [{**rows.get(id(p), {"path": p.path}), "error": p.error} for p in predictions]


def write_rows(path: Path, rows: Sequence[dict[str, Any]], overwrite: bool = False) -> None:
    """Write rows as CSV; the columns are those of all rows.

    Raises:
        FileExistsError: the file exists and ``overwrite`` is False.
    """
    columns = list(dict.fromkeys(key for row in sorted(rows, key=len, reverse=True) for key in row))
    with path.open("w" if overwrite else "x", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(rows)


def print_rows(rows: Sequence[dict[str, Any]], kind: str = "video") -> None:
    """Print predictions as a table in the terminal."""
    table = Table(Column(kind, overflow="fold"), Column("prediction", overflow="fold"), "probability")
    for row in rows:
        if row["error"]:
            table.add_row(row["path"], f"error: {row['error']}", "")
            continue
        ranks = range(1, 1 + sum(key.startswith("top") for key in row))
        table.add_row(
            row["path"], "\n".join(row[f"top{k}"] for k in ranks), "\n".join(f"{row[f'p{k}']:.4f}" for k in ranks)
        )
    Console().print(table)


def main(args: list[str]) -> int:
    """``spectral predict``; returns 1 if a file could not be read."""
    parser = argparse.ArgumentParser(
        prog="spectral predict", description="Predict videos, or images, from a checkpoint alone."
    )
    parser.add_argument(
        "paths", nargs="+", metavar="PATH", help="video or image file, frame folder, folder of them, .txt list"
    )
    parser.add_argument("--checkpoint", required=True, help="checkpoint file, or the folder of a run (its best.ckpt)")
    parser.add_argument("--csv", type=Path, help="also write the predictions to this file")
    parser.add_argument("--top", type=int, default=5, help="number of classes to show (default 5)")
    parser.add_argument(
        "--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu, cuda, cuda:1, mps"
    )
    parser.add_argument("--force", action="store_true", help="overwrite the CSV file")
    options = parser.parse_args(args)
    if options.top < 1:
        parser.error("--top is at least 1")
    if options.csv and options.csv.exists() and not options.force:
        raise FileExistsError(f"{options.csv} exists; give another name, or --force to overwrite it")
    module = load_module(options.checkpoint)
    try:
        module.to(options.device)
    except (RuntimeError, AssertionError) as error:  # torch has no common type for a device that is not there
        raise ValueError(f"--device {options.device} cannot be used: {error}") from error
    predictions = predict_files(module, options.paths)
    rows = prediction_rows(predictions, module.class_names or [], options.top)
    print_rows(rows, module.kind)
    if options.csv:
        write_rows(options.csv, rows, overwrite=options.force)
    return int(any(p.error for p in predictions))
