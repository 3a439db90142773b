"""``spectral predict``: predictions for any file from a checkpoint alone; the checkpoint's task says which ones."""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text
from torch import Tensor

from common.command_line import first_line, printable
from common.datamodules.errors import ReadError
from common.datamodules.folders import find_files
from common.evaluation.scores import prediction_table
from common.output_files import new_files, save_json, save_rows
from common.training.arguments import predict_parser
from common.training.checkpoints import CheckpointError
from common.training.features import FeatureRecorder, parquet_writer, paths_file
from common.training.task import TRUSTED, NonFiniteError, TaskModule, load_module

SUFFIXES = {"--features": (".npz", ".npy", ".parquet"), "--video": (".mp4",)}  # of the files that options name


class Predictor:
    """Predicts files with a module. Each task has a subclass, which :attr:`TaskModule.predictor` names.

    Attributes:
        columns: names of the columns of the printed table, the first of which is the file.
        complete: files that hold all rows, also those that the printed table leaves out.

    Args:
        module: on its device, with ``spec`` and ``output_names``.
        options: of the command line, among them ``paths`` and ``force``.

    Raises:
        ValueError: an option is out of its range.
        FileExistsError: a file to write exists, and ``force`` is not set.
    """

    columns: tuple[str, ...]
    complete: Sequence[Path] = ()

    def __init__(self, module: Any, options: argparse.Namespace) -> None:
        self.module, self.options = module, options

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        """Declare the options of this task."""

    def find_files(self, path: str) -> list[Path]:
        """The files to predict that a path of the command line stands for. Raises FileNotFoundError."""
        return find_files(path, "video" if self.module.kind == "video" else "image")

    def load(self, path: Path) -> Any:
        """Read a file. Raises ReadError."""
        raise NotImplementedError

    def predict(self, path: Path, content: Any) -> Sequence[str]:
        """Predict what :meth:`load` returned; the cells of its row in the table, after the path."""
        raise NotImplementedError

    def predict_rows(self, path: Path, content: Any) -> Iterable[Sequence[str]]:
        """The rows of a file, one unless a task makes more. Raises ReadError, after the rows before the damage."""
        return [self._checked_prediction(path, content)]

    def check_finite(self, path: Path | str, output: Tensor | np.ndarray) -> None:
        """Raise NonFiniteError if the network's output for a file holds NaN or infinite values."""
        if not torch.as_tensor(output).isfinite().all():
            raise NonFiniteError(f"{path}: the network's output is NaN or infinite; the weights are damaged")

    def fail(self, path: str, reason: str) -> None:
        """Note that a file cannot be read."""

    def finish(self) -> list[str]:
        """Write what concerns all files; lines to print below the table."""
        return []

    def run(self) -> int:
        """Predict all files, print a table and write the results; returns 1 if a file could not be read, else 0."""
        table = Table(*(Column(name, overflow="fold") for name in self.columns))
        errors, left_out = [], 0
        for path, content, reason in self._read():
            if not reason:
                try:
                    for cells in self.predict_rows(Path(path), content):
                        if table.row_count < self.options.rows:
                            table.add_row(*(Text(printable(cell)) for cell in (path, *cells)))  # names are no markup
                        else:
                            left_out += 1
                except ReadError as unreadable:
                    reason = unreadable.reason or str(unreadable)
            if reason:
                errors.append(reason if reason.startswith(path) else f"{path}: {reason}")
                self.fail(path, reason)
        notes = self.finish()  # before anything is printed, which fails where a pipe was closed
        console = Console()
        if table.row_count:
            console.print(table)
        if left_out:
            total, files = table.row_count + left_out, " and ".join(map(str, self.complete))
            console.print(
                f"{left_out} more rows" + (f" in {files}" if files else f"; --rows {total} prints all"),
                soft_wrap=True,
                markup=False,
            )
        for error in errors:
            console.print(f"error: {printable(error)}", soft_wrap=True, markup=False)
        for note in notes:
            console.print(note, soft_wrap=True, markup=False, highlight=False)
        return int(bool(errors))

    def _checked_prediction(self, path: Path, content: Any) -> Sequence[str]:
        try:
            return self.predict(path, content)
        except NonFiniteError:
            raise
        except (RuntimeError, ValueError, IndexError, TypeError) as error:  # torch has no type for wrong sizes
            raise CheckpointError(
                f"{path}: the network of {self.options.checkpoint} cannot take it ({first_line(error)}); "
                "it is damaged, or the file too small"
            ) from error

    def _read(self) -> Iterator[tuple[str, Any, str]]:
        """``(path, content, "")`` of every file; ``(path, None, reason)`` of one that cannot be read."""
        for path in self.options.paths:
            try:
                files = self.find_files(path)
            except FileNotFoundError as error:
                yield str(path), None, str(error)
                continue
            for file in files:
                try:
                    content = self.load(file)
                except ReadError as error:
                    yield str(file), None, error.reason or str(error)
                else:
                    yield str(file), content, ""

    def check_new(self, path: Path) -> None:
        """Raise FileExistsError if a file, or something in a folder, would be overwritten without ``--force``."""
        taken = any(path.iterdir()) if path.is_dir() else path.exists()
        if taken and not self.options.force:
            what = "is not empty" if path.is_dir() else "exists"
            raise FileExistsError(f"{path} {what}; give another name, or --force to overwrite it")

    def check_file(self, option: str, path: Path, suffixes: Sequence[str] = ()) -> None:
        """Check, before anything is predicted, that a file can be written.

        Raises:
            ValueError: the name ends in none of ``suffixes``.
            OSError: it exists and ``--force`` is not set, is a folder, or its folder does not take files.
        """
        if suffixes and path.suffix.lower() not in suffixes:
            raise ValueError(f"{option} is {path}; the name must end in {' or '.join(suffixes)}")
        if path.is_dir():
            raise IsADirectoryError(f"{option} is {path}, which is a folder; give the name of a file")
        if not path.parent.is_dir():
            raise FileNotFoundError(f"{option} is {path}, but there is no folder {path.parent}; create it first")
        if not os.access(path.parent, os.W_OK):
            raise PermissionError(f"{option} is {path}, but {path.parent} is not writable; give another folder")
        self.check_new(path)
        if path.exists() and self._is_input(path):
            raise ValueError(f"{option} is {path}, which is also an input; give another name")

    def _is_input(self, path: Path) -> bool:
        """Whether a file is the checkpoint, or among those to predict."""
        for source in (self.options.checkpoint, *self.options.paths):
            with contextlib.suppress(OSError, ValueError):
                if any(path.samefile(file) for file in (Path(source), *self.find_files(source)) if file.exists()):
                    return True
        return False

    def check_folder(self, option: str, path: Path) -> None:
        """Make a folder for files to write. Raises FileExistsError if it is a file or holds something, without
        ``--force``."""
        if path.is_file():
            raise FileExistsError(f"{option} is {path}, which is a file; give the name of a folder")
        if path.is_dir():
            self.check_new(path)
        path.mkdir(parents=True, exist_ok=True)


class ClassPredictor(Predictor):
    """The most probable classes of every file, with the clips and crops of the test."""

    csv_written = False  # whether --csv has got the rows as they came

    def __init__(self, module: Any, options: argparse.Namespace) -> None:
        super().__init__(module, options)
        if options.top < 1:
            raise ValueError(f"--top is {options.top}; it is at least 1")
        files: dict[Path, str] = {}
        for option, path in self.outputs():
            self.check_file(option, path, SUFFIXES.get(option, ()))
            if (other := files.setdefault(path.resolve(), option)) != option:
                raise ValueError(f"{other} and {option} both write {path}; give them different names")
        self.features = FeatureRecorder(module.network, module.num_classes) if options.features else None
        if options.features and options.features.suffix.lower() == ".parquet":
            parquet_writer()
        self.complete = [path for path in (options.csv, options.json) if path]
        self.columns = (module.kind, "prediction", "probability")
        self.rows: list[dict[str, Any]] = []

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--csv", type=Path, metavar="FILE", help="also write the predictions to this file")
        parser.add_argument("--json", type=Path, metavar="FILE", help="also write the same rows as a JSON list")
        parser.add_argument(
            "--features",
            type=Path,
            metavar="FILE",
            help="also write the input of the last linear layer, averaged over views, as float32: .npz with the arrays "
            "path, start, end and features, .parquet with columns of these names (needs pyarrow), or .npy with a .csv "
            "of the paths beside it",
        )
        parser.add_argument("--top", type=int, default=5, help="number of classes to show (default 5)")

    def outputs(self) -> list[tuple[str, Path]]:
        """The files to write, each with its option."""
        names = ("csv", "json", "features")
        files = [(f"--{name}", path) for name in names if (path := getattr(self.options, name))]
        if self.options.features and (table := paths_file(self.options.features)):
            files.append(("the table of --features", table))
        return files

    def load(self, path: Path) -> Tensor:
        return self.module.load_views(path)

    def predict(self, path: Path, content: Tensor) -> Sequence[str]:
        return self.add_row(path, self.classify(path, content))

    def classify(self, path: Path | str, views: Tensor, **times: float) -> Tensor:
        """Class probabilities (num_classes,) of some views of a file; their features are kept for ``--features``."""
        probabilities = self.module.predict_views(views).cpu()
        self.check_finite(path, probabilities)
        if self.features is not None:
            self.features.end_row(str(path), **times)
        return probabilities

    def add_row(self, path: Path | str, probabilities: Tensor, **times: float) -> Sequence[str]:
        """Note a prediction for the files to write; its cells in the printed table, without ``times``."""
        names = self.module.output_names
        (row,) = prediction_table(probabilities[None], names, [str(path)], top=self.options.top)
        self.rows.append({"path": str(path), **times, **row, "error": ""})
        ranks = range(1, 1 + min(self.options.top, len(names)))
        return "\n".join(row[f"top{k}"] for k in ranks), "\n".join(f"{row[f'p{k}']:.4f}" for k in ranks)

    def fail(self, path: str, reason: str) -> None:
        self.rows.append({"path": path, "error": reason})

    def finish(self) -> list[str]:
        options, notes = self.options, []
        with new_files(options.force) as new:
            if options.csv and not self.csv_written:
                save_rows(new(options.csv), self.rows)
            if options.json:
                save_json(new(options.json), self.rows)
            if self.features is not None:
                self.features.write(options.features, new)
                count, layer = len(self.features.rows), self.features.layer
                notes.append(f"Written: {options.features}, {count} rows with the input of the layer {layer}")
        return notes


def main(args: list[str]) -> int:
    """``spectral predict``; returns 1 if a file could not be read.

    Raises:
        CheckpointError: the checkpoint cannot be used, or does not say how a file becomes the network's input.
        ValueError: the device cannot be used, or an option is out of its range.
        OSError: a file to write exists, and there is no ``--force``, or it cannot be written.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--checkpoint")
    first.add_argument("--allow", action="append", default=[])
    known = first.parse_known_args(args)[0]
    checkpoint, trusted = known.checkpoint, (*TRUSTED, *known.allow)
    module = None if checkpoint is None else _load(checkpoint, trusted)
    parser = predict_parser() if module is None else predict_parser("")
    if module is not None:
        module.predictor.add_arguments(parser)
    options = parser.parse_args(args)
    assert module is not None  # the parser requires a checkpoint
    options.device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    options.paths = list(_expand(options.paths))
    if module.spec is None or module.output_names is None:
        raise CheckpointError(
            f"{checkpoint} lacks the {module.output} names and how a file becomes the network's input: "
            "it was trained without a data module of this project"
        )
    try:
        module.to(options.device)
    except (RuntimeError, AssertionError) as error:  # torch has no common type for a device that is not there
        raise ValueError(f"--device {options.device} cannot be used: {error}") from error
    with torch.inference_mode():
        return module.predictor(module, options).run()


def _expand(paths: Sequence[str]) -> Iterator[str]:
    """The paths, with those on standard input in place of ``-``."""
    for path in paths:
        if path != "-":
            yield path
            continue
        lines = [line for line in sys.stdin.read().split("\n") if line.strip()]
        if not lines:
            raise ValueError("- reads paths from standard input, one a line, and there are none")
        yield from (line.removesuffix("\r") for line in lines)


def _load(checkpoint: str, trusted: Sequence[str]) -> TaskModule:
    if checkpoint.endswith(".onnx"):
        from common.training.export import load_onnx

        return load_onnx(checkpoint, trusted)
    return load_module(checkpoint, trusted)
