"""The ``spectral`` command: ``spectral fit|validate|test --config recipe.yaml`` and ``spectral predict``.

Every run gets a folder ``<trainer.default_root_dir>/<recipe name>/version_<n>`` of its own with the resolved recipe
(``config.yaml``), where it came from (``run.json``), the logs, ``last.ckpt`` and ``best.ckpt``; ``validate`` and
``test`` add ``result.json`` and ``predictions.csv``.
"""

import difflib
import inspect
import json
import os
import platform
import re
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, LearningRateMonitor
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only
from rich.console import Console
from rich.table import Table

from common.evaluation.scores import prediction_table
from common.training import callbacks, predict
from common.training.checkpoints import AtomicCheckpointIO, find_checkpoint
from common.training.video_classification import VideoClassificationModule

DEBUG_VARIABLE = "SPECTRAL_DEBUG"
PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "pytorchvideo", "av", "spectral-video")


class UsageError(ValueError):
    """The command line or the recipe is wrong."""


#: errors whose message is written for the user; they end the command without a traceback
USER_ERRORS = (ValueError, OSError, MisconfigurationException)


class _Parser(LightningArgumentParser):
    """Raises one clean message, with the nearest valid key, where the parent prints and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        noise = ("Does not validate against", "Subtypes:", "Errors:", "- Expected a <class 'NoneType'>", "Given value")
        lines = [line.rstrip() for line in message.splitlines() if not line.strip().startswith(noise)]
        raise UsageError("\n".join(lines) + self._suggestion(message)) from ex

    def _suggestion(self, message: str) -> str:
        if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
            near = difflib.get_close_matches(found[2], vars(sys.modules[found[1]]), n=1)
            return f"\nDid you mean {found[1]}.{near[0]}?" if near else ""
        found = re.search(r"[Oo]ption '([\w.]+)'(?: is not accepted)?$", message) or re.search(
            r"[Uu]nrecognized arguments: --([\w.]+)", message
        )
        if not found:
            return ""
        prefix, _, leaf = found[1].rpartition(".")
        known: dict[str, str] = {}
        for action in self._known_actions():
            known.setdefault(action, action)
        if not prefix or "init_args" in prefix or prefix in ("model", "data"):
            for cls in _subclasses(VideoClassificationModule, L.LightningDataModule):
                for name in _parameters(cls):
                    known.setdefault(name, f"{name} of {cls.__name__}")
            near = difflib.get_close_matches(leaf, known, n=1, cutoff=0.5)
        else:
            near = difflib.get_close_matches(found[1], known, n=1)
        return f". Did you mean {known[near[0]]}?" if near else ""

    def _known_actions(self) -> Iterator[str]:
        for action in self._actions:
            for parser in (getattr(action, "_name_parser_map", None) or {}).values():
                yield from (a.dest for a in parser._actions)
            yield action.dest


def _subclasses(*classes: type) -> Iterator[type]:
    for cls in classes:
        for subclass in cls.__subclasses__():
            yield subclass
            yield from _subclasses(subclass)


def _parameters(cls: type) -> list[str]:
    names = [name for base in cls.__mro__ if "__init__" in vars(base) for name in inspect.signature(base).parameters]
    return [name for name in dict.fromkeys(names) if name not in ("self", "args", "kwargs")]


class _SaveRun(SaveConfigCallback):
    """Writes ``config.yaml`` and ``run.json`` into the run folder before anything else is written there."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        description = {
            "command": stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self.config.get("seed_everything"),
            "checkpoint": self.config.get("ckpt_path"),
            "manifest_hash": getattr(trainer.datamodule, "manifest_hash", None),  # type: ignore[attr-defined]
            "world_size": trainer.world_size,
            **git_state(),
            "versions": package_versions(),
        }
        write_json(Path(str(trainer.log_dir)) / "run.json", description)


class SpectralCLI(LightningCLI):
    """LightningCLI with our trainer defaults, a run folder, and the result file.

    After the command: ``trainer``, ``model``, ``datamodule``, ``run_dir`` (None with ``fast_dev_run``) and, after
    ``validate`` and ``test``, ``result`` (the content of ``result.json``).
    """

    def __init__(self, args: list[str]) -> None:
        self.run_dir: Path | None = None
        self.result: dict[str, Any] | None = None
        super().__init__(
            VideoClassificationModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=_SaveRun,
            trainer_defaults={"use_distributed_sampler": False, "default_root_dir": "runs", "log_every_n_steps": 10},
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={name: {"allow_abbrev": False} for name in self.subcommands()},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=args,
        )

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {k: v for k, v in LightningCLI.subcommands().items() if k != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="name of the run; the recipe's by default")
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int | None,
            default=None,
            help="write last.ckpt every so many optimiser steps too, not only at the end of each epoch",
        )

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        self.config = parser.parse_args(args)

    def _parse_ckpt_path(self) -> None:
        """Keep the recipe as it is written: a checkpoint that does not fit is an error, not a change of the recipe."""

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        configs = config.get("config") or []
        name = config.name or (Path(str(configs[-1])).stem if configs else config.model.class_path.rpartition(".")[2])
        runs = Path(config.trainer.default_root_dir) / name
        checkpoint = config.get("ckpt_path")
        if checkpoint in ("last", "best"):
            config.ckpt_path = str(find_checkpoint(runs, f"{checkpoint}.ckpt"))
        elif checkpoint:
            config.ckpt_path = str(find_checkpoint(checkpoint))
        if not config.trainer.fast_dev_run:
            self.run_dir = new_run_dir(runs)

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[self.subcommand]
        settings = config.trainer
        plugins = settings.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        extra: list[Callback] = [callbacks.StepSeed(config.seed_everything), callbacks.Throughput()]
        if self.run_dir is not None:
            kwargs["default_root_dir"] = str(self.run_dir)
            if settings.logger is None or settings.logger is True:
                kwargs["logger"] = TensorBoardLogger(self.run_dir, name="", version="")
            if kwargs.get("logger", settings.logger):
                extra += [LearningRateMonitor(), callbacks.Pictures()]
            if self.subcommand == "fit" and settings.enable_checkpointing is not False:
                extra += callbacks.checkpoint_callbacks(self.run_dir, config.checkpoint_every_n_steps)
        own = settings.callbacks or []
        kwargs["callbacks"] = [*(own if isinstance(own, list) else [own]), *extra]
        return super().instantiate_trainer(**kwargs)

    def before_fit(self) -> None:
        batch = getattr(self.datamodule, "batch_size", None)
        if batch is not None:
            accumulate, world = self.trainer.accumulate_grad_batches, self.trainer.world_size
            rank_zero_info(
                f"Effective batch size: {batch * world * accumulate} clips "
                f"({batch} per batch x {world} processes x {accumulate} accumulated batches)"
            )

    def before_validate(self) -> None:
        self._started = time.perf_counter()

    before_test = before_validate

    def after_validate(self) -> None:
        self._report("validate")

    def after_test(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        duration = time.perf_counter() - self._started
        scores = self.model.result
        if scores is None or self.run_dir is None or not self.trainer.is_global_zero:
            return
        loaders = self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        dataset = getattr(loaders, "dataset", None)
        views = self.model.views_per_video
        paths = [self.model.paths.get(int(i), str(int(i))) for i in scores.video_index]
        names = self.model.class_names or [str(k) for k in range(self.model.num_classes)]
        rows = prediction_table(scores.probabilities, names, paths, scores.label)
        predictions = self.run_dir / "predictions.csv"
        predict.write_rows(predictions, rows)
        self._dump_config()
        self.result = {
            **scores.metrics(),
            "videos": scores.videos,
            "videos_expected": None if dataset is None else len(dataset),
            "views": views,
            "average": self.model.average,
            "params": sum(p.numel() for p in self.model.network.parameters()),
            "seed": self.config_dump["seed_everything"],
            **git_state(),
            "manifest_hash": self.model.manifest_hash,
            "checkpoint": self.config_dump.get("ckpt_path"),
            "config": self.config_dump,
            "stage": stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": duration,
            "clips_per_s": scores.videos * views / duration,
            "versions": package_versions(),
            "predictions": str(predictions),
        }
        write_json(self.run_dir / "result.json", self.result)
        table = Table(f"{stage}: {scores.videos} of {self.result['videos_expected']} videos x {views} views", "")
        for key in ("top1", "top5", "mean_class"):
            table.add_row(key, f"{100 * self.result[key]:.2f} %")
        table.add_row("loss", f"{scores.loss:.4f}")
        table.add_row("clips/s", f"{self.result['clips_per_s']:.1f}")
        console = Console()
        console.print(table)
        console.print(f"Written: {self.run_dir / 'result.json'}, {predictions}", soft_wrap=True)


def new_run_dir(runs: Path) -> Path:
    """Make ``runs/version_<n>`` with the first free n; on ranks other than 0, name a folder without making it."""
    taken = [int(p.name.removeprefix("version_")) for p in runs.glob("version_*") if p.name[8:].isdigit()]
    n = max(taken, default=-1) + 1
    while rank_zero_only.rank == 0:
        try:
            (runs / f"version_{n}").mkdir(parents=True)
        except FileExistsError:  # another run was faster
            n += 1
        else:
            break
    return runs / f"version_{n}"


def git_state() -> dict[str, Any]:
    """``commit`` of this source tree (None outside of git) and ``dirty``: whether tracked files differ from it."""

    def git(*args: str) -> str:
        command = ["git", "-C", str(Path(__file__).parent), *args]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()

    try:
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain", "--untracked-files=no"))}
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}


def package_versions() -> dict[str, str]:
    """Versions of Python, of the packages that decide a result, and of the GPU if there is one."""
    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    if torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    return versions


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a new JSON file; an existing one is never replaced (FileExistsError)."""
    with path.open("x", encoding="utf-8") as file:
        json.dump(content, file, indent=2, default=str)
        file.write("\n")


def run(args: list[str]) -> SpectralCLI:
    """Run ``fit``, ``validate`` or ``test`` and return the finished command; errors are raised.

    Args:
        args: command line arguments, e.g. ``["test", "--config", "recipe.yaml", "--ckpt_path", "best"]``.
    """
    with warnings.catch_warnings():
        # the scores are already those of all processes, so averaging them again would only change the last digit
        warnings.filterwarnings("ignore", message=r"It is recommended to use `self.log\('(val|test)_")
        return SpectralCLI(args)


def main(args: list[str] | None = None) -> int:
    """The command line; returns the exit code: 0, 1 for a failed run, 2 for wrong arguments.

    ``--debug``, or the environment variable SPECTRAL_DEBUG, shows tracebacks.
    """
    args = list(sys.argv[1:] if args is None else args)
    debug = "--debug" in args or bool(os.environ.get(DEBUG_VARIABLE))
    args = [arg for arg in args if arg != "--debug"]
    try:
        if args[:1] == ["predict"]:
            return predict.main(args[1:])
        run(args)
    except SystemExit as stop:  # --help, and argparse's own errors
        return stop.code if isinstance(stop.code, int) else int(stop.code is not None)
    except USER_ERRORS as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2 if isinstance(error, UsageError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
