"""``spectral fit|validate|test``: Lightning's command line with one folder a run and errors of one line."""

import ast
import contextlib
import difflib
import importlib
import json
import logging
import os
import re
import shutil
import sys
import threading
import warnings
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path
from typing import Any, NoReturn

import lightning as L
import yaml
from jsonargparse import ArgumentParser, Namespace
from lightning.pytorch.callbacks import Callback, LearningRateMonitor, ProgressBar
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI, SaveConfigCallback
from lightning.pytorch.loggers import TensorBoardLogger
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import MisconfigurationException, SIGTERMException
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_only, rank_zero_warn
from rich.console import Console
from rich.table import Table

from common.command_line import USER_ERRORS, UsageError, first_line, without_dump
from common.datamodules.datasets import read_datasets
from common.datamodules.remote_shards import is_url
from common.output_files import FULL, naming_full_disk, write_json
from common.plain_yaml import YamlError, check_yaml
from common.provenance import git_state, package_versions
from common.training import callbacks, processes, run_folders
from common.training.arguments import ALLOW_CLASS_HELP
from common.training.checkpoints import (
    PREVIOUS,
    AtomicCheckpointIO,
    CheckpointError,
    check_training_state,
    find_checkpoint,
    find_last,
    read_checkpoint,
)
from common.training.task import TRUSTED, TaskModule

#: warnings of Lightning that are about what we do on purpose
EXPECTED_WARNINGS = (
    r"It is recommended to use `self.log\('(val|test)_",  # the scores are already those of all processes
    r"Checkpoint directory .* exists and is not empty",  # the run's own folder
    r"Be aware that when using `ckpt_path`, callbacks used",  # testing needs no checkpoint callbacks
    r"`\w+.configure_optimizers` will be overridden by",  # --optimizer
    r"The dirpath has changed from",  # a resumed run gets a folder of its own
    r"`isinstance\(treespec, LeafSpec\)` is deprecated",
    r"Glyph \d+ .* missing from font",  # ours says it once, with what to do
    r"monai.metrics.utils get_mask_edges:always_return_as_numpy",  # MONAI's own call
)


class _Parser(LightningArgumentParser):
    """Raises one clean message, with the nearest valid key, where the parent prints and exits."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        # the parser of a class reports first, its owner passes the message on
        hint = "" if "Did you mean" in message or "It takes" in message else self._hint(message)
        raise UsageError(without_dump(message) + hint) from ex

    def _hint(self, message: str) -> str:
        if found := re.search(r"No module named '(\w+)", message):
            return f"\nIf {found[1]} is a module in the current folder that you trust, add --allow {found[1]}"
        if found := re.search(r"module '([\w.]+)' has no attribute '(\w+)'", message):
            module = sys.modules[found[1]]
            near = difflib.get_close_matches(found[2], {*dir(module), *getattr(module, "__all__", ())}, n=1)
            return f"\nDid you mean {found[1]}.{near[0]}?" if near else ""
        if found := re.search(r"Option '\w+\.(model|data)' is required", message):
            return f" Give a recipe, e.g. --config papers/stft3d/recipes/demo.yaml, or --{found[1]} CLASS."
        if "Not a valid subclass" in message and (found := re.search(r"Given value: (\{.*\})", message)):
            with contextlib.suppress(ValueError, SyntaxError):
                wrong = [key for key in ast.literal_eval(found[1]) if key not in ("class_path", "init_args")]
                return f"Beside class_path and init_args there is {', '.join(wrong)}. Did you mean init_args?"
            return ""
        found = re.search(r"[Oo]ption '([\w.]+)'(?! is required)", message)
        found = found or re.search(r"[Uu]nrecognized arguments: --([\w.]+)", message)
        if not found:
            return ""
        known = [*self._keys(), "class_path", "init_args"]
        if group := re.search(r"Group '([\w.]+)'", message):
            known = [key.removeprefix(f"{group[1]}.") for key in known if key.startswith(f"{group[1]}.")]
        parts = found[1].split(".")
        for word in (found[1], parts[-1], parts[0]):
            if near := difflib.get_close_matches(word, known, n=1):
                return f". Did you mean {near[0]}?"
        names = [key for key in known if key not in ("class_path", "init_args")]
        return f". It takes: {', '.join(names)}." if len(names) < 40 else ""

    def _keys(self) -> list[str]:
        keys = []
        for action in self._actions:
            for parser in (getattr(action, "_name_parser_map", None) or {}).values():
                keys += parser._keys()
            keys.append(action.dest)
        return [key for key in dict.fromkeys(keys) if key not in ("help", "print_config")]


class _SaveRun(SaveConfigCallback):
    """Writes ``config.yaml`` and ``run.json`` into the run folder, whatever the folder of the logger, before anything
    else is written there."""

    def save_config(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = Path(trainer.default_root_dir)  # log_dir would wait for the other ranks
        self.parser.save(self.config, folder / self.config_filename, skip_none=False, multifile=self.multifile)
        description = {
            "command": stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "seed": self.config.get("seed_everything"),
            "checkpoint": self.config.get("ckpt_path"),
            "manifest_hash": getattr(trainer.datamodule, "manifest_hash", None),  # type: ignore[attr-defined]
            "world_size": trainer.world_size,
            "slurm_job": processes.slurm_job(),
            **git_state(),
            "versions": package_versions(),
        }
        write_json(folder / "run.json", description)


class SpectralCLI(LightningCLI):
    """LightningCLI with our trainer defaults, a run folder, and the result file.

    After the command: ``trainer``, ``model``, ``datamodule``, ``run_dir`` (None with ``fast_dev_run``) and, after
    ``validate`` and ``test``, ``result`` (the content of ``result.json``).
    """

    def __init__(self, args: list[str], callbacks: Sequence[Callback] = (), typed: Sequence[str] | None = None) -> None:
        self.more_callbacks = callbacks
        self.args, self.typed = args, args if typed is None else typed
        self.run_dir: Path | None = None
        self.result: dict[str, Any] | None = None
        self.stop = processes.StopTogether()
        try:
            self._run(args)
        except BaseException as error:
            if self.run_dir is not None and not self._has_begun():
                shutil.rmtree(self.run_dir, ignore_errors=True)  # made by this command
                with contextlib.suppress(OSError):
                    self.run_dir.parent.rmdir()  # only if no other run is in it
            if self.stop.job_ends and self.trainer.is_global_zero:
                processes.queue_again()
            if processes.is_lost_worker(error):
                raise processes.LostProcessError(processes.LOST_WORKER) from error
            if not processes.is_lost_process(error):
                self._blame_checkpoint(error)
                with naming_full_disk(self.run_dir or Path()):  # such as that of TensorBoard's files
                    raise
            if self.stop.asked:  # the other process was, too
                raise SIGTERMException from error
            raise processes.LostProcessError(f"another process of this run has ended; {processes.GO_ON}") from error

    def _run(self, args: list[str]) -> None:
        super().__init__(
            TaskModule,
            L.LightningDataModule,
            subclass_mode_model=True,
            subclass_mode_data=True,
            save_config_callback=_SaveRun,
            save_config_kwargs={"save_to_log_dir": False},  # `_SaveRun` writes to the run folder
            trainer_defaults={
                "use_distributed_sampler": False,  # the samplers of the data module know the processes themselves
                "default_root_dir": "runs",
                "log_every_n_steps": 10,
                "enable_model_summary": False,  # it would claim 0 FLOPs
            },
            seed_everything_default=0,
            parser_class=_Parser,
            parser_kwargs={name: {"allow_abbrev": False} for name in self.subcommands()},
            load_from_checkpoint_support=False,
            args=args,
        )

    def _blame_checkpoint(self, error: BaseException) -> None:
        """Raise CheckpointError if a training that resumes fails for no known reason before its first step is done."""
        trainer = getattr(self, "trainer", None)
        path = trainer.ckpt_path if trainer is not None and trainer.state.fn == TrainerFn.FITTING else None
        ours = isinstance(error, (*USER_ERRORS, MisconfigurationException)) and type(error) is not ValueError
        if path and not self.stop.stepped and isinstance(error, Exception) and not ours:
            raise CheckpointError(
                f"the training did not resume from {path} ({type(error).__name__}: {first_line(error)}). If the file "
                f"is damaged, name {PREVIOUS} beside it, or start from its weights with --model.pretrained in place of "
                "--ckpt_path. SPECTRAL_DEBUG=1 shows where it failed."
            ) from error

    def _has_begun(self) -> bool:
        """Whether a batch of the training or the evaluation was read."""
        if getattr(rank_zero_only, "rank", 0) != 0:
            return True  # the folder is that of process 0
        if (trainer := getattr(self, "trainer", None)) is None:
            return False
        loops = (trainer.fit_loop.epoch_loop, trainer.validate_loop, trainer.test_loop)
        return any(loop.batch_progress.total.ready for loop in loops)

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        return {k: v for k, v in LightningCLI.subcommands().items() if k != "predict"}

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        parser.add_argument("--name", type=str | None, default=None, help="name of the run; the recipe's by default")
        parser.add_argument("--allow", type=str | None, default=None, help=ALLOW_CLASS_HELP)
        parser.add_argument(
            "--page",
            type=bool,
            default=False,
            help="also write page/index.html: the curves of a training; scores, classes and mistakes of a test",
        )
        parser.add_argument(
            "--checkpoint_every_n_steps",
            type=int | None,
            default=None,
            help="also write last.ckpt every N optimiser steps, not only at the end of each epoch",
        )

    def _prepare_subcommand_parser(self, klass: type, subcommand: str, **kwargs: Any) -> LightningArgumentParser:
        parser = super()._prepare_subcommand_parser(klass, subcommand, **kwargs)
        if subcommand != "fit":
            parser.set_defaults({"verbose": False, "trainer.enable_checkpointing": False})  # we print our own table
        return parser

    def parse_arguments(self, parser: LightningArgumentParser, args: Any) -> None:
        recipes = _recipes(args)
        try:
            for recipe in filter(os.path.isfile, recipes):
                check_yaml(recipe)
            self.config = parser.parse_args(args)
        except YamlError as error:
            raise UsageError(str(error)) from error
        except UsageError as error:
            for k, recipe in enumerate(recipes):  # the first that gives this error without the other options
                try:
                    parser.parse_args([args[0], *(f"--config={name}" for name in recipes[: k + 1])])
                except UsageError as own:
                    if str(own) == str(error) and recipe not in str(error):
                        raise UsageError(f"{recipe}: {error}") from error
            raise

    def _parse_ckpt_path(self) -> None:
        """Keep the recipe as it is written: a checkpoint that does not fit is an error, not a change of the recipe."""

    def before_instantiate_classes(self) -> None:
        config = self.config[str(self.subcommand)]
        if config.get("lr_scheduler") and not config.get("optimizer"):
            raise UsageError("--lr_scheduler needs --optimizer; together they replace those of the recipe")
        configs = config.get("config") or []
        name = config.name or (run_folders.run_name(str(configs[-1])) if configs else "")
        name = name or config.model.class_path.rpartition(".")[2]
        runs = Path(config.trainer.default_root_dir) / name
        checkpoint, begun = config.get("ckpt_path"), None
        if self.subcommand == "fit" and (begun := processes.begun_before_requeue(runs)):
            checkpoint = "last"
            rank_zero_info(f"The job was queued again; it resumes the training of {begun}.")
        if checkpoint:
            if checkpoint == "last":
                check = check_training_state if self.subcommand == "fit" else read_checkpoint
                found, damaged = find_last(begun or runs, check)
                for message in damaged:
                    rank_zero_warn(f"{message}. {found} is used instead.")
            else:
                found = find_checkpoint(runs, "best.ckpt") if checkpoint == "best" else find_checkpoint(checkpoint)
            config.ckpt_path = str(found)
            if self.subcommand == "fit":
                if checkpoint != "last":
                    check_training_state(found)
                _check_resumed_optimizer(config, found.parent / "config.yaml")
        elif self.subcommand != "fit":
            rank_zero_warn(f"{self.subcommand} without --ckpt_path: the network has its initial, untrained weights")
        if not config.trainer.fast_dev_run:
            self.run_dir = run_folders.new_run_dir(runs)

    def instantiate_classes(self) -> None:
        """Make the data first; what follows from it, such as the number of classes, goes to the model.

        All that the dataset and the data decide is written into the configuration, so that it says what ran.
        """
        config = self.config[str(self.subcommand)]
        parser = self._parser(str(self.subcommand))
        arguments = config.data.get("init_args", Namespace())
        try:
            _fill(arguments, read_datasets().get(arguments.get("dataset"), {}))
            self._check_url(arguments.get("root"))
            self.datamodule = parser.instantiate_classes(Namespace(data=config.data)).data
            if hasattr(self.datamodule, "facts"):
                _fill(config.model.get("init_args", Namespace()), self.datamodule.facts())
            self.config_init = self.parser.instantiate_classes(self.config)
        except ValueError as error:
            if "Does not validate against" not in str(error):
                raise
            raise UsageError(without_dump(str(error))) from error
        self.config_init[str(self.subcommand)].data = self.datamodule
        self.model = self._get(self.config_init, "model")
        self._add_configure_optimizers_method_to_model(self.subcommand)
        self.trainer = self.instantiate_trainer()

    def _check_url(self, root: Any) -> None:
        """Raise UsageError if only the recipe found beside a checkpoint, which may be anybody's, gives a URL."""
        typed = [re.sub("^--data[.](init_args[.])?root=", "", word) for word in self.typed]
        if is_url(root) and len(typed) < len(self.args) and root not in typed:
            raise UsageError(
                f"{_recipes(self.args)[0]}, the recipe beside the checkpoint, would fetch data from {root}; if that is "
                f"what you want, add --data.root {root}"
            )

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        config = self.config_init[str(self.subcommand)]
        settings = config.trainer
        plugins = settings.plugins or []
        kwargs["plugins"] = [*(plugins if isinstance(plugins, list) else [plugins]), AtomicCheckpointIO()]
        extra: list[Callback] = [callbacks.StepSeed(config.seed_everything), callbacks.Throughput(), self.stop]
        if self.run_dir is not None:
            kwargs["default_root_dir"] = str(self.run_dir)
            if settings.logger is None or settings.logger is True:
                kwargs["logger"] = TensorBoardLogger(self.run_dir, name="", version="", default_hp_metric=False)
            if kwargs.get("logger", settings.logger):
                extra += [LearningRateMonitor(), callbacks.Pictures()]
            if self.subcommand == "fit" and settings.enable_checkpointing is not False:
                extra += callbacks.checkpoint_callbacks(self.run_dir, self.model.score, config.checkpoint_every_n_steps)
        own = settings.callbacks or []
        own = [*(own if isinstance(own, list) else [own]), *self.more_callbacks]
        if settings.enable_progress_bar is not False and not any(isinstance(given, ProgressBar) for given in own):
            extra.append(callbacks.OneLineProgressBar())
        kwargs["callbacks"] = [*own, *extra]
        try:
            return super().instantiate_trainer(**kwargs)
        except (MisconfigurationException, ImportError) as error:  # a missing library of TPUs
            if settings.accelerator in ("auto", "cpu"):
                raise
            raise UsageError(
                f"trainer.accelerator is {settings.accelerator}: {error} Leave it out to use what this machine has."
            ) from error

    def before_fit(self) -> None:
        parameters = sum(p.numel() for p in self.model.network.parameters())
        rank_zero_info(f"{type(self.model).__name__}: {parameters:,} parameters")
        self.trainer.ckpt_path = self.config[str(self.subcommand)].get("ckpt_path")
        if self.trainer.ckpt_path and processes.resumes_up_to_rounding(self.trainer):
            rank_zero_info(
                f"With {self.trainer.world_size} processes the resumed training may differ in its last bits from one "
                "without interruption; --trainer.strategy ddp_find_unused_parameters_true in all of it prevents that."
            )
        if self.run_dir is not None and self.trainer.is_global_zero:
            package = type(self.model).__module__.partition(".")[0]
            run_folders.explain(self.run_dir, self.args, "" if package in TRUSTED else package)
        unit = "clips" if self.model.kind == "video" else f"{self.model.kind}s"
        if (batch := getattr(self.datamodule, "batch_size", None)) is not None:
            accumulate, world = self.trainer.accumulate_grad_batches, self.trainer.world_size
            rank_zero_info(
                f"Effective batch size: {batch * world * accumulate} {unit} "
                f"({batch} per batch x {world} processes x {accumulate} accumulated batches)"
            )

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        kwargs = super()._prepare_subcommand_kwargs(subcommand)
        if subcommand == "fit":
            kwargs.pop("ckpt_path", None)  # the trainer knows it since before_fit, so that set-up can ask for it
        return kwargs

    def after_fit(self) -> None:
        if replaced := getattr(self.datamodule, "read_errors", 0):
            rank_zero_warn(f"in training, videos that cannot be read were replaced by others {replaced} times")
        if self.run_dir is None or not self.trainer.is_global_zero:
            return
        run_folders.add_scores(self.run_dir, self.trainer.checkpoint_callbacks)
        if self.config["fit"].page:
            from common.training.run_page import training_page

            page = training_page(self.run_dir)
            print(f"Written: {page}" if page else "There is no page: the training logged nothing")

    def after_validate(self) -> None:
        self._report("validate")

    def after_test(self) -> None:
        self._report("test")

    def _report(self, stage: str) -> None:
        scores = self.model.result
        if scores is None or self.run_dir is None or not self.trainer.is_global_zero:
            return
        loaders = self.trainer.test_dataloaders if stage == "test" else self.trainer.val_dataloaders
        dataset = getattr(loaders, "dataset", None)
        expected = getattr(dataset, "videos_expected", len(dataset) if dataset is not None else None)
        views = self.model.views_per_video
        predictions = self.model.write_predictions(self.run_dir)
        self._dump_config()
        self.result = {
            **scores.metrics(),
            "kind": self.model.kind,
            "videos": scores.videos,
            "videos_expected": expected,
            "unreadable": list(self.model.unreadable.values()),
            "views": views,
            **self.model.result_facts(),
            "params": sum(p.numel() for p in self.model.network.parameters()),
            "seed": self.config_dump["seed_everything"],
            **git_state(),
            "manifest_hash": self.model.manifest_hash,
            "checkpoint": self.config_dump.get("ckpt_path"),
            "config": self.config_dump,
            "stage": stage,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "duration_s": self.model.evaluation_seconds,
            "clips_per_s": scores.videos * views / self.model.evaluation_seconds,
            "versions": package_versions(),
            "predictions": str(predictions),
        }
        write_json(self.run_dir / "result.json", self.result)
        of = f"{self.result['videos_expected']} {self.model.kind}s x {views} view{'s' * (views != 1)}"
        table = Table(f"{stage}: {scores.videos} of {of}", "")
        shown = [(key, self.model.format_metric(key, value)) for key, value in scores.metrics().items()]
        speed = "clips/s" if self.model.kind == "video" else f"{self.model.kind}s/s"
        if self.model.unreadable:
            shown.append((f"{self.model.kind}s not read, not scored", str(len(self.model.unreadable))))
        for key, value in [*shown, (speed, f"{self.result['clips_per_s']:.1f}")]:
            table.add_row(key, value)
        written = [self.run_dir / "result.json", predictions]
        if self.config[str(self.subcommand)].page:
            from common.training.run_page import result_page

            root = getattr(self.datamodule, "root", None)
            written.append(result_page(self.run_dir, self.result, shown, self.model, root))
        console = Console()
        console.print(table)
        console.print(f"Written: {', '.join(map(str, written))}", soft_wrap=True, markup=False)


def run_command(args: list[str]) -> None:
    """Run ``fit``, ``validate`` or ``test`` as typed; with a recipe, ``--help`` lists the options of its classes."""
    if {"-h", "--help"} & set(args) and _recipes(args):
        print_recipe_options(args)
        return
    processes.watch_launcher()
    run(args)


def print_recipe_options(args: Sequence[str]) -> None:
    """Print the options of the model and the data that the recipes of a command line name, with the recipes' values."""
    recipe: dict[str, Any] = {}
    for path in _recipes(args):
        check_yaml(path)
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise UsageError(f"{path}: a recipe is a mapping of model, data and trainer")
        recipe |= {key: value for key, value in content.items() if key in ("model", "data")}
    if not recipe:
        raise UsageError(f"{', '.join(_recipes(args))}: names no model or data")
    parser = ArgumentParser(prog=f"spectral {args[0]}", usage=f"spectral {args[0]} --config RECIPE ...", add_help=False)
    for key, given in recipe.items():
        try:
            module, _, name = given["class_path"].rpartition(".")
            parser.add_class_arguments(getattr(importlib.import_module(module), name), key)
        except (KeyError, TypeError, ImportError, AttributeError, ValueError) as error:
            raise UsageError(f"{', '.join(_recipes(args))}: {key}.class_path names no class: {error}") from error
        name = ""
        try:
            for name, value in (given.get("init_args") or {}).items():
                parser.set_defaults({f"{key}.{name}": value})
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UsageError(f"{', '.join(_recipes(args))}: {key}.init_args.{name}: {error}") from error
    parser.print_help()
    print(f"\nThe options of the trainer and of the command: spectral {args[0]} --help")


def _recipes(args: Sequence[str]) -> list[str]:
    """The files that ``--config`` names."""
    names = [after for word, after in pairwise(args) if word in ("-c", "--config")]
    return names + [word.removeprefix("--config=") for word in args if word.startswith("--config=")]


def _fill(arguments: Namespace, facts: Mapping[str, Any]) -> None:
    """Give the arguments that are None the values that follow from the data."""
    for name, value in facts.items():
        if name in arguments and arguments[name] is None:
            arguments[name] = value


def _check_resumed_optimizer(config: Namespace, recorded: Path) -> None:
    """Refuse an optimiser or a schedule that a training which resumes would not follow."""
    try:
        check_yaml(recorded)  # the file may be anybody's
        before = yaml.safe_load(recorded.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return  # nothing says what it was
    for key in ("optimizer", "lr_scheduler") if isinstance(before, dict) else ():
        then, now = before.get(key), config.get(key)
        if then != (now and json.loads(json.dumps(now.as_dict()))):
            raise UsageError(
                f"{key} differs from that of {recorded}. A training that resumes keeps its own: give the same --{key} "
                "options, or begin another training from these weights with --model.pretrained in place of --ckpt_path."
            )


def run(args: list[str], callbacks: Sequence[Callback] = ()) -> SpectralCLI:
    """See :func:`common.training.cli.run`."""
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(_not_advertising)
    threading.excepthook = _report_of_thread
    try:
        with warnings.catch_warnings():
            for message in EXPECTED_WARNINGS:
                warnings.filterwarnings("ignore", message=message)
            return SpectralCLI(run_folders.with_recipe_beside(args), callbacks, typed=args)
    finally:
        threading.excepthook = threading.__excepthook__


def _report_of_thread(failed: threading.ExceptHookArgs) -> None:
    """Leave out the traceback of TensorBoard's thread on a full disk: the training gets the error, too."""
    if not (isinstance(failed.exc_value, OSError) and failed.exc_value.errno in FULL):
        threading.__excepthook__(failed)


class _ParsedOnly(SpectralCLI):
    def before_instantiate_classes(self) -> None:
        raise _ParsedError


class _ParsedError(Exception):
    pass


def check_arguments(args: list[str]) -> None:
    """Parse the arguments of a run without running it. Raises UsageError for a wrong key or value."""
    with contextlib.suppress(_ParsedError):
        _ParsedOnly(args)


def _not_advertising(record: logging.LogRecord) -> bool:
    return "Tip: For seamless cloud" not in record.getMessage()
