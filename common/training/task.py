"""What the modules of all tasks share: the network, its first weights, evaluation, checkpoints that predict alone.

A task (classification, pose estimation, segmentation) subclasses :class:`TaskModule` with its loss and its evaluation;
a paper's module subclasses the task and implements ``build_network`` and ``configure_optimizers``.
"""

import importlib
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, is_dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor, nn
from torchmetrics import MeanMetric

from common.backbones.imagenet import load_imagenet
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import is_text, shorten
from common.datamodules.spec import InputSpec
from common.training.checkpoints import (
    CheckpointError,
    building_what_a_file_says,
    check_claims,
    compare_state_dicts,
    read_checkpoint,
)

if TYPE_CHECKING:
    from common.training.predict import Predictor

TRUSTED = ("papers", "common")  # packages whose modules a checkpoint may name
MAX_NAME = 10_000  # characters of the name of an output
MAX_UNREADABLE = 0.1  # share of the files of an evaluation that may be left out
STORED = "spectral"  # entry of a checkpoint with what TaskModule needs besides weights and arguments


class NonFiniteError(ValueError):
    """A loss or a score is NaN or infinite."""


class TaskModule(L.LightningModule):
    """A network with its loss and its evaluation.

    A batch is a dict with at least ``<kind>_index`` (N,) int64 and, in evaluation, ``path`` (N strings). The data
    module has ``facts()``, the arguments of the module that follow from the data; ``output_names``, one for each output
    of the network; ``spec``, how a file becomes the network's input, with ``to_dict()`` and ``input_shape``; and
    ``manifest_hash``.

    A task sets the class attributes and ``scores``, and implements ``training_step``, ``evaluate_batch``,
    ``predict_batch`` and ``write_predictions``.

    Attributes:
        kind: what is counted: ``video``, ``image``, ``person`` or ``volume``.
        output: what a channel of the network's output stands for, such as ``class``, for messages.
        names_source: where the user finds the names of the outputs, for messages.
        score: the metric that selects the best checkpoint; larger is better.
        metric_units: units of the metrics that are no fractions, which are shown in per cent; ``hd95`` stands for
            ``hd95_et``, too.
        free_to_change: arguments that may change when a training resumes.
        predictor: what ``spectral predict`` does for this task.
        spec_class: the class of ``spec``.
        output_names: names of the outputs; None until the data or a checkpoint gives them.
        spec: how a file becomes the network's input, as plain values; None likewise.
        num_outputs: number of the outputs that ``output_names`` names; None if the task does not say.
        scores: collects what a task predicts, see :class:`common.evaluation.item_scores.ItemScores`.
        result: of the last evaluation; it has ``videos``, the number of videos, images, persons or volumes, and
            ``metrics()``, the numbers by name as they stand in ``result.json``.

    Args:
        pretrained: checkpoint, or folder of a run, whose weights a training starts from. They are loaded once, when a
            fit begins, unless it resumes. All weights must match, except that layers whose size depends on the number
            of outputs keep their initial values if that number differs; what was loaded is printed.
        imagenet: weights of an image network to start from in the same way, see ``common.backbones.load_imagenet``;
            ignored with ``pretrained``.
        compile: run the network through ``torch.compile``. The keys of the state dict do not change.
    """

    kind: ClassVar[str]
    output: ClassVar[str]
    names_source: ClassVar[str]
    score: ClassVar[str]
    metric_units: ClassVar[Mapping[str, str]] = {"loss": ""}
    free_to_change: ClassVar[frozenset[str]] = frozenset(
        {"pretrained", "imagenet", "compile", "views_per_forward", "average"}
    )
    LISTED: ClassVar[int] = 10  # of the worst files on the page of a test
    predictor: ClassVar["type[Predictor]"]
    spec_class: ClassVar[type[InputSpec]]
    num_outputs: int | None = None
    scores: Any

    def __init__(self, *, pretrained: str | None = None, imagenet: str | None = None, compile: bool = False) -> None:
        super().__init__()
        self.save_hyperparameters()  # also the arguments of the subclass, so `build_network` reads `self.hparams`
        for name, value in self.hparams.items():
            if is_dataclass(value) and not isinstance(value, type):
                self.hparams[name] = asdict(value)  # checkpoints and logs hold plain values
        self.pretrained, self.imagenet = pretrained, imagenet
        self.output_names: list[str] | None = None
        self.spec: dict[str, Any] | None = None
        self.manifest_hash: str | None = None
        self.result: Any = None
        self.paths: dict[int, str] = {}  # of what was evaluated last, by index
        self.unreadable: dict[int, str] = {}  # what is wrong with files that were left out of it, by index
        self.views_per_video = 1
        self.evaluation_seconds = 0.0
        self.network = self.build_network()
        self.train_loss = MeanMetric()
        if compile:
            self.network.compile()  # in place: no wrapper, so no `_orig_mod` in the keys

    def build_network(self) -> nn.Module:
        """The network: a batch (B, ...) -> output. Reads its options from ``self.hparams``."""
        raise NotImplementedError(f"{type(self).__name__} must implement build_network")

    def forward(self, batch: Tensor) -> Tensor:
        """(B, ...) -> the network's output."""
        return self.network(batch)

    @property
    def names(self) -> list[str]:
        """Names of the outputs, or their numbers."""
        return self.output_names or [str(k) for k in range(self.num_outputs or 0)]

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input with its batch axis; ValueError before ``spec`` is known."""
        return self.spec_class.from_dict(self.spec or {}).input_shape

    # -- data ----------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Take names and spec from the data module, and check that the data fits the network.

        Raises:
            ValueError: an argument of the module disagrees with the data; the message names both.
        """
        data: Any = getattr(self.trainer, "datamodule", None)
        if not hasattr(data, "facts"):
            return
        for name, value in data.facts().items():
            given = self.hparams.get(name, value)
            if given is not None and (tuple(given) if isinstance(given, list) else given) != value:
                raise ValueError(
                    f"{name} is {value} in the data and {given} in the network; leave model.init_args.{name} out of "
                    "the recipe, so that it follows the data"
                )
        self.output_names = list(data.output_names)
        self.manifest_hash = data.manifest_hash
        self.spec = data.spec.to_dict()

    def on_fit_start(self) -> None:
        """Load the weights to start from, unless the training resumes: then those of the checkpoint are in place."""
        if self.trainer.ckpt_path is not None:
            return
        if self.pretrained is not None:
            try:
                rank_zero_info(load_pretrained(self.network, self.pretrained))
            except CheckpointError as error:
                raise CheckpointError(
                    f"model.pretrained: {error}\nGive --model.pretrained a checkpoint of this network, or train the "
                    "run that it names first; null starts from random weights."
                ) from error
        elif self.imagenet is not None:
            rank_zero_info(load_imagenet(self.network, self.imagenet))
        self.pretrained = self.imagenet = None  # a second fit continues with the weights of the first

    def name_files(self, batch: Mapping[str, Any], positions: Tensor | None = None) -> str:
        """The files of a batch, or of some positions in it, for a message."""
        index = batch[f"{self.kind}_index"]
        chosen = range(len(index)) if positions is None else positions.tolist()
        if "path" in batch:
            return f"{self.kind}s: " + ", ".join(dict.fromkeys(str(batch["path"][i]) for i in chosen))
        indices = list(dict.fromkeys(int(index[i]) for i in chosen))
        # training batches carry no paths; our datasets know them
        items = getattr(getattr(self.trainer.train_dataloader, "dataset", None), "items", None)
        if items is None:
            return f"{self.kind} indices: {', '.join(map(str, indices))}"
        return f"{self.kind}s: " + ", ".join(f"{items[i].name} (index {i})" for i in indices)

    # -- training ------------------------------------------------------------------------------------------------

    def log_loss(self, loss: Tensor, batch: Mapping[str, Any], batch_idx: int) -> None:
        """Log the training loss of a step, and its mean over the epoch.

        Raises:
            NonFiniteError: it is NaN or infinite; the message names the files of the batch.
        """
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the training loss is {loss.item()} in epoch {self.current_epoch}, step {self.global_step}, "
                f"batch {batch_idx} ({self.name_files(batch)}). Lower the learning rate, add "
                f"trainer.gradient_clip_val, or look at these {self.kind}s. The last checkpoint is untouched."
            )
        size = len(batch[f"{self.kind}_index"])
        self.train_loss.update(loss.detach(), weight=size)
        self.log("train_loss_step", loss.detach(), prog_bar=True, batch_size=size)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True, batch_size=size)

    # -- evaluation ----------------------------------------------------------------------------------------------

    def format_metric(self, name: str, value: float) -> str:
        """A metric as a person reads it: with its unit, or in per cent."""
        for prefix, unit in self.metric_units.items():
            if name == prefix or name.startswith(f"{prefix}_"):
                return f"{value:.2f} {unit}" if unit else f"{value:.4f}"
        return f"{100 * value:.2f} %"

    def evaluate_batch(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Collect the predictions of a batch; what it returns goes to :meth:`batch_figures`."""
        raise NotImplementedError

    def compute_result(self) -> Any:
        """The scores over all processes, the same numbers on each of them; what was collected is dropped."""
        result = self.scores.compute()
        self.scores.reset()
        return result

    def check_finite(self, output: Tensor, batch: Mapping[str, Any]) -> None:
        """Raise NonFiniteError, naming the files, where an output (N, ...) holds NaN or infinite values."""
        bad = ~torch.isfinite(output).flatten(1).all(dim=1)
        if bad.any():
            raise NonFiniteError(
                f"the network's output is NaN or infinite ({self.name_files(batch, bad.nonzero().flatten())}); "
                "the weights are damaged, or the precision is too low"
            )

    def finish_evaluation(self, prefix: str) -> None:
        """Compute and log the result; name the files that could not be read."""
        self.paths, self.unreadable = self._of_all_processes(self.paths), self._of_all_processes(self.unreadable)
        self._check_unreadable()
        if self.trainer.sanity_checking and self.unreadable and not self.paths:
            return  # the few files of the check cannot be read
        self.result = self.compute_result()
        if self.unreadable:
            rank_zero_warn(
                f"{prefix}: {len(self.unreadable)} of {len(self.unreadable) + self.result.videos} {self.kind}s cannot "
                f"be read, the scores are without them:\n{shorten(list(self.unreadable.values()))}"
            )
        for name, value in self.result.metrics().items():
            self.log(f"{prefix}_{name}", value, prog_bar=name == self.score)
        self.evaluation_seconds = time.perf_counter() - self._started

    def _of_all_processes(self, texts: dict[int, str]) -> dict[int, str]:
        if self.trainer.world_size == 1:
            return dict(sorted(texts.items()))
        every: list[dict[int, str]] = [{} for _ in range(self.trainer.world_size)]
        torch.distributed.all_gather_object(every, texts)
        return dict(sorted(item for part in every for item in part.items()))

    def _check_unreadable(self) -> None:
        """Raise DatasetError if too many files of an evaluation cannot be read, for a score of the others to count."""
        if not self.unreadable:
            return
        loaders = self.trainer.test_dataloaders if self.trainer.testing else self.trainer.val_dataloaders
        number = len(loaders.dataset)  # type: ignore[union-attr]
        if len(self.unreadable) > max(1, int(MAX_UNREADABLE * number)) or len(self.unreadable) == number:
            raise DatasetError(
                f"{len(self.unreadable)} of {number} {self.kind}s cannot be read, more than can be left out of a score "
                f"({MAX_UNREADABLE:.0%}, or one); repair them or remove them from the data:\n"
                f"{shorten(list(self.unreadable.values()))}"
            )

    def on_validation_epoch_start(self) -> None:
        self.paths, self.unreadable = {}, {}
        self._started = time.perf_counter()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        if "path" in batch:
            index = batch[f"{self.kind}_index"].tolist()
            self.paths.update({i: str(path) for i, path in zip(index, batch["path"], strict=True)})
        self.unreadable.update(batch.get("unreadable", {}))
        self._check_unreadable()
        return self.evaluate_batch(batch) if len(batch[f"{self.kind}_index"]) else {}

    def on_validation_epoch_end(self) -> None:
        self.finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return self.validation_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        self.finish_evaluation("test")

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """For ``Trainer.predict`` and prediction writers: ``path`` (list), and ``output``, what the task predicts for
        each: class probabilities (N, classes), heatmaps (N, J, h, w) or logits (N, regions, D, H, W), on the CPU."""
        return {"path": list(batch["path"]), "output": self.predict_batch(batch).cpu()}

    def predict_batch(self, batch: Mapping[str, Any]) -> Tensor:
        """The predictions of a batch; see :meth:`predict_step`."""
        raise NotImplementedError

    def result_facts(self) -> dict[str, Any]:
        """Further entries of ``result.json``: how the result was obtained."""
        return {}

    def write_predictions(self, folder: Path) -> Path:
        """Write the predictions of the last evaluation into ``folder`` as ``predictions.<extension>``; that path."""
        raise NotImplementedError

    def batch_figures(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """Figures of a validation batch by name, for TensorBoard."""
        return {}

    def result_figures(self) -> dict[str, Figure]:
        """Figures of the last result by name, for TensorBoard."""
        return {}

    def describe_result(self, report: Any, root: Path | None) -> None:
        """Add the last result to a page.

        Args:
            report: a :class:`common.reporting.page.Report`.
            root: folder of the files; None: there is none.
        """
        from common.training.run_page import add_figures

        add_figures(report, self.result_figures())

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[STORED] = self.about()

    def about(self) -> dict[str, Any]:
        """What is needed to predict from a file alone, beside weights and arguments; plain values only."""
        class_path = f"{type(self).__module__}.{type(self).__qualname__}"
        facts = {"output_names": self.output_names, "spec": self.spec, "manifest_hash": self.manifest_hash}
        return {"class_path": class_path, **facts}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this network and these outputs.

        Raises:
            CheckpointError: naming the first keys, or the first name, that differ.
        """
        stored = _stored(checkpoint)
        differences = compare_state_dicts(self.state_dict(), checkpoint["state_dict"])
        if differences:
            raise CheckpointError(
                f"the checkpoint belongs to another network (module {stored.get('class_path', 'unknown')}, this is "
                f"{type(self).__module__}.{type(self).__qualname__}):\n{differences}\nUse the recipe it was trained "
                "with, or, to start from its weights with another number of outputs, --model.pretrained "
                "instead of --ckpt_path."
            )
        if self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING:
            self._check_resumed_options(checkpoint.get("hyper_parameters", {}))
        names = stored.get("output_names")
        if self.output_names is None:
            self.output_names, self.spec = names, stored.get("spec")
            self.manifest_hash = stored.get("manifest_hash")
        elif names is not None and names != self.output_names:
            pairs = itertools.zip_longest(names, self.output_names)
            k, (theirs, ours) = next((k, pair) for k, pair in enumerate(pairs) if pair[0] != pair[1])
            raise CheckpointError(
                f"{self.output} {k} is {theirs!r} in the checkpoint and {ours!r} in the data; "
                f"use the {self.output} list that the network was trained with ({self.names_source})"
            )

    def _check_resumed_options(self, before: Mapping[str, Any]) -> None:
        """Refuse options that a training which resumes would not follow."""
        then, now = _flat(before), _flat(self.hparams)
        for name in sorted(set(then) & set(now) - self.free_to_change):
            if then[name] != now[name]:
                raise CheckpointError(
                    f"{name} is {then[name]} in the checkpoint and {now[name]} now. A training that resumes "
                    f"keeps its own: leave --model.{name} out, or begin another training from these weights with "
                    "--model.pretrained in place of --ckpt_path."
                )


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested dicts as one with dotted keys; lists and tuples are equal."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = list(value) if isinstance(value, tuple) else value
    return flat


def load_pretrained(network: nn.Module, path: str | Path) -> str:
    """Load weights into a network; tensors of the outputs are left alone where the number of outputs differs.

    A tensor counts as one of these when only its first dimension differs. The file is a checkpoint of this project
    or a plain state dict of the network, or a dict with one as ``state_dict``; its keys may all begin with ``module.``
    (saved from ``DataParallel``).

    Returns:
        A sentence that says what was loaded and what not.

    Raises:
        CheckpointError: other keys or shapes differ.
    """
    checkpoint = read_checkpoint(path)
    theirs = checkpoint.get("state_dict", checkpoint)
    if any(key.startswith("network.") for key in theirs):
        theirs = {k.removeprefix("network."): v for k, v in theirs.items() if k.startswith("network.")}
    elif all(str(key).startswith("module.") for key in theirs):
        theirs = {key.removeprefix("module."): value for key, value in theirs.items()}
    ours = network.state_dict()
    swapped = [
        k for k in ours if k in theirs and ours[k].shape != theirs[k].shape and ours[k].shape[1:] == theirs[k].shape[1:]
    ]
    outputs = {(theirs[k].shape[0], ours[k].shape[0]) for k in swapped}
    kept = {k: v for k, v in theirs.items() if k not in swapped}
    # Files of old versions of PyTorch lack the counters of batches, which nothing here reads.
    counters = {k for k in ours if k.endswith("num_batches_tracked") and k not in theirs}
    differences = compare_state_dicts({k: v for k, v in ours.items() if k not in {*swapped, *counters}}, kept)
    if differences or len(outputs) > 1:
        differences = differences or compare_state_dicts(ours, theirs)
        raise CheckpointError(f"{path}: weights of another network:\n{differences}")
    network.load_state_dict(kept, strict=False)
    if not swapped:
        return f"{path}: loaded all {len(kept)} tensors"
    old, new = outputs.pop()
    return f"{path}: loaded {len(kept)} tensors; {old} outputs there, {new} here, so not loaded: {', '.join(swapped)}"


def _stored(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What :meth:`TaskModule.on_save_checkpoint` stored; empty if nothing."""
    stored = checkpoint.get(STORED)
    return stored if isinstance(stored, dict) else {}


def module_class_of(class_path: str, path: str | Path, trusted_packages: Sequence[str] = TRUSTED) -> type[TaskModule]:
    """The class that a file names. Raises CheckpointError if it is no module below ``trusted_packages``."""
    module_name, _, class_name = class_path.rpartition(".")
    if module_name.split(".")[0] not in trusted_packages:
        raise CheckpointError(
            f"{path}: names {class_path}, which lies outside of {', '.join(trusted_packages)}. If you trust it, add "
            f"--allow {module_name.split('.')[0]}"
        )
    try:
        module_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(
            f"{path}: {class_path} does not exist here ({error}); it must be installed or lie in the current folder"
        ) from error
    if not (isinstance(module_class, type) and issubclass(module_class, TaskModule)):
        raise CheckpointError(f"{path}: {class_path} is not a module of this project")
    return module_class


def load_module(path: str | Path, trusted_packages: Sequence[str] = TRUSTED) -> TaskModule:
    """Rebuild a module from its checkpoint alone, on the CPU, in evaluation mode.

    Args:
        path: checkpoint written during training.
        trusted_packages: top-level packages whose modules a checkpoint may name. Nothing else is imported.

    Raises:
        CheckpointError: the file cannot be read safely, was not written by this project, names a class outside of
            ``trusted_packages``, or does not fit the class it names.
    """
    checkpoint = read_checkpoint(path)
    class_path, weights = _stored(checkpoint).get("class_path"), checkpoint.get("state_dict")
    if not isinstance(class_path, str) or not isinstance(weights, dict):
        raise CheckpointError(f"{path}: not a checkpoint written by this project")
    module_class = module_class_of(class_path, path, trusted_packages)
    try:
        arguments = {**checkpoint.get("hyper_parameters", {}), "compile": False}
        with building_what_a_file_says():
            module = module_class(**arguments).to("meta")
            check_claims(module, weights)
            module.on_load_checkpoint(dict(checkpoint))  # it may describe another network, and compares the weights
            check_claims(module, weights)
            check_stored_facts(module)
        module = module_class(**arguments)
        module.on_load_checkpoint(checkpoint)
        module.load_state_dict(checkpoint["state_dict"])
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from error
    except Exception as error:  # what a damaged file asks for fails in many ways
        raise CheckpointError(f"{path}: {class_path} takes other arguments now ({error})") from error
    return module.eval()


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and is_text(name) and len(name.splitlines()) == 1 and len(name) < MAX_NAME


def check_stored_facts(module: TaskModule) -> None:
    """Check what a stored file said of the input and the outputs of a module. Raises CheckpointError."""
    names, count = module.output_names, module.num_outputs
    if names is not None:
        if not isinstance(names, list) or not all(_is_name(name) for name in names):
            raise CheckpointError(f"its {module.output} names are not a list of texts of one line")
        if count is not None and len(names) != count:
            raise CheckpointError(f"it has {len(names)} {module.output} names, but {count} outputs")
    if module.spec is not None:
        try:
            module.spec_class.from_dict(module.spec)
        except ValueError as error:
            raise CheckpointError(f"how a file becomes the network's input is damaged: {error}") from error
