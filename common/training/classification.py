"""The base of every classification module: steps, metrics, multi-view testing, checkpoints.

What is classified, and how a file of it is read, is said by the two subclasses for
:mod:`videos <common.training.video_classification>` and :mod:`images <common.training.image_classification>`.
A paper's module subclasses one of them and implements ``build_network`` and ``configure_optimizers``.
"""

import importlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info
from torch import Tensor, nn
from torch.nn import functional as F
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from common.evaluation.scores import VideoResult, VideoScores, combine_views
from common.training.checkpoints import CheckpointError, compare_state_dicts, read_checkpoint

#: end of the name of the checkpoint entry with what the weights alone do not tell: class path and names, spec, manifest
CHECKPOINT_KEY = "_classification"


class NonFiniteError(ValueError):
    """A loss or a score is NaN or infinite."""


class ClassificationModule(L.LightningModule):
    """Trains and tests a network on labelled videos or images.

    A batch is a dict, here for a subclass with ``kind = "video"``: ``video`` (N, ...) float, ``label`` (N,) int64,
    ``video_index`` (N,) int64 and, in evaluation, ``path`` (N strings). In evaluation N counts views; all views of a
    video lie in one batch.

    A subclass sets ``kind`` and ``spec_name``, the attribute of the data module that says how a file becomes the
    network's input, and implements ``find_files`` and ``load_views``.

    Args:
        num_classes: number of classes, the length of the network's output.
        pretrained: checkpoint to start from. Every weight must fit, except that the layers that depend on the number
            of classes keep their initial values when that number differs; what was loaded is printed.
        views_per_forward: views passed through the network at once in evaluation. Bounds the memory, not the result.
        average: how the views of a video are combined: mean of ``"probabilities"`` or of ``"logits"``.
        compile: run the network through ``torch.compile``. The keys of the state dict do not change.
    """

    kind: ClassVar[str]
    spec_name: ClassVar[str]

    def __init__(
        self,
        num_classes: int,
        *,
        pretrained: str | None = None,
        views_per_forward: int = 32,
        average: Literal["probabilities", "logits"] = "probabilities",
        compile: bool = False,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()  # also the arguments of the subclass, so `build_network` reads `self.hparams`
        self.num_classes = num_classes
        self.views_per_forward = views_per_forward
        self.average = average
        self.class_names: list[str] | None = None
        self.spec: dict[str, Any] | None = None  # how a file becomes views, as plain values
        self.manifest_hash: str | None = None
        self.result: VideoResult | None = None  # of the last evaluation
        self.paths: dict[int, str] = {}  # of the videos of the last evaluation, by index
        self.views_per_video = 0
        self.evaluation_seconds = 0.0
        self.network = self.build_network()
        self.train_loss = MeanMetric()
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.scores = VideoScores(num_classes)
        if pretrained is not None:
            rank_zero_info(load_pretrained(self.network, pretrained))
        if compile:
            self.network.compile()  # in place: no wrapper, so no `_orig_mod` in the keys

    def build_network(self) -> nn.Module:
        """The network: a batch (B, ...) -> logits (B, num_classes). Reads its options from ``self.hparams``."""
        raise NotImplementedError(f"{type(self).__name__} must implement build_network")

    def forward(self, batch: Tensor) -> Tensor:
        """(B, ...) -> logits (B, num_classes)."""
        return self.network(batch)

    # -- data ----------------------------------------------------------------------------------------------------

    @staticmethod
    def find_files(paths: Iterable[str | Path]) -> list[Path]:
        """Expand files, folders and lists of them into the files to predict."""
        raise NotImplementedError

    def load_views(self, path: str | Path) -> Tensor:
        """The views (V, ...) of one file, made as ``spec`` says. Raises VideoReadError if it cannot be read."""
        raise NotImplementedError

    def setup(self, stage: str) -> None:
        """Take the class names and the spec from the data module, and check that they fit the network."""
        data = getattr(self.trainer, "datamodule", None)
        names = getattr(data, "class_names", None)
        if names is None:
            return
        if len(names) != self.num_classes:
            raise ValueError(
                f"the data has {len(names)} classes, the network {self.num_classes}; "
                f"set model.init_args.num_classes to {len(names)}"
            )
        self.class_names = list(names)
        self.manifest_hash = getattr(data, "manifest_hash", None)
        spec = getattr(data, self.spec_name, None)
        self.spec = spec if spec is None or isinstance(spec, dict) else spec.to_dict()

    # -- training ------------------------------------------------------------------------------------------------

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean cross-entropy of the batch."""
        logits = self(batch[self.kind])
        loss = F.cross_entropy(logits, batch["label"])
        if not torch.isfinite(loss):
            raise NonFiniteError(
                f"the training loss is {loss.item()} in epoch {self.current_epoch}, step {self.global_step}, "
                f"batch {batch_idx} ({self._name_files(batch)}). Lower the learning rate, add "
                f"trainer.gradient_clip_val, or look at these {self.kind}s. The last checkpoint is untouched."
            )
        size = len(batch["label"])
        self.train_loss.update(loss.detach(), weight=size)
        self.train_top1.update(logits.detach().float(), batch["label"])
        self.log("train_loss_step", loss.detach(), prog_bar=True, batch_size=size)
        self.log("train_loss", self.train_loss, on_step=False, on_epoch=True, batch_size=size)
        self.log("train_top1", self.train_top1, on_step=False, on_epoch=True, prog_bar=True, batch_size=size)
        return loss

    def _name_files(self, batch: Mapping[str, Any], positions: Tensor | None = None) -> str:
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

    # -- evaluation ----------------------------------------------------------------------------------------------

    def forward_views(self, views: Tensor) -> Tensor:
        """Logits of many views, ``views_per_forward`` at a time: (V, ...) -> (V, num_classes) float32."""
        return torch.cat([self(part).float() for part in views.split(self.views_per_forward)])

    def evaluate_batch(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Add the videos of a batch to the scores.

        Returns:
            ``scores`` (videos, classes) and ``first`` (videos,), see :func:`common.evaluation.scores.combine_views`.
        """
        logits = self.forward_views(batch[self.kind])
        bad = ~torch.isfinite(logits).all(dim=1)
        if bad.any():
            raise NonFiniteError(
                f"the network's output is NaN or infinite ({self._name_files(batch, bad.nonzero().flatten())}); "
                "the weights are damaged, or the precision is too low"
            )
        scores, index, first = combine_views(logits, batch[f"{self.kind}_index"], self.average)
        self.scores.update(scores, batch["label"][first], index)
        self.views_per_video = len(logits) // len(index)
        if "path" in batch:
            self.paths.update({int(i): str(batch["path"][k]) for i, k in zip(index, first, strict=True)})
        return {"scores": scores, "first": first}

    def finish_evaluation(self, prefix: str) -> None:
        """Compute over all processes; the numbers are the same on each of them."""
        self.result = self.scores.compute()
        if self.trainer.world_size > 1 and not self.trainer.sanity_checking:
            every: list[dict[int, str]] = [{} for _ in range(self.trainer.world_size)]
            torch.distributed.all_gather_object(every, self.paths)
            self.paths = {index: path for paths in every for index, path in paths.items()}
        for name, value in self.result.metrics().items():
            self.log(f"{prefix}_{name}", value, prog_bar=name == "top1")
        self.scores.reset()
        self.evaluation_seconds = time.perf_counter() - self._started

    def on_validation_epoch_start(self) -> None:
        self.paths = {}
        self._started = time.perf_counter()

    def validation_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return self.evaluate_batch(batch)

    def on_validation_epoch_end(self) -> None:
        self.finish_evaluation("val")

    def on_test_epoch_start(self) -> None:
        self.on_validation_epoch_start()

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        return self.evaluate_batch(batch)

    def on_test_epoch_end(self) -> None:
        self.finish_evaluation("test")

    @torch.inference_mode()
    def predict_views(self, views: Tensor) -> Tensor:
        """Class probabilities of one file: its views (V, ...) -> (num_classes,) float32."""
        logits = self.forward_views(views.to(self.device))
        index = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return combine_views(logits, index, self.average)[0][0].softmax(dim=0)

    # -- checkpoints ---------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Store what is needed to predict from the checkpoint alone; plain values only."""
        checkpoint[self.kind + CHECKPOINT_KEY] = {
            "class_path": f"{type(self).__module__}.{type(self).__qualname__}",
            "class_names": self.class_names,
            self.spec_name: self.spec,
            "manifest_hash": self.manifest_hash,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check that the checkpoint belongs to this network and these classes.

        Raises:
            CheckpointError: naming the first keys, or the first class, that differ.
        """
        differences = compare_state_dicts(self.state_dict(), checkpoint["state_dict"])
        if differences:
            stored = _facts(checkpoint).get("class_path", "unknown")
            raise CheckpointError(
                f"the checkpoint belongs to another network (module {stored}, this is {type(self).__module__}."
                f"{type(self).__qualname__}):\n{differences}\nUse the recipe it was trained with, or, to start from "
                "its weights with another number of classes, --model.init_args.pretrained instead of --ckpt_path."
            )
        stored = _facts(checkpoint)
        names = stored.get("class_names")
        if self.class_names is None:
            self.class_names, self.spec = names, stored.get(self.spec_name)
            self.manifest_hash = stored.get("manifest_hash")
        elif names is not None and names != self.class_names:
            k = next(k for k, pair in enumerate(zip(names, self.class_names, strict=True)) if pair[0] != pair[1])
            raise CheckpointError(
                f"class {k} is {names[k]!r} in the checkpoint and {self.class_names[k]!r} in the data; "
                "use the class list that the network was trained with (classes.txt beside the manifest)"
            )


def load_pretrained(network: nn.Module, path: str | Path) -> str:
    """Load weights into a network; class-dependent tensors are left alone where the number of classes differs.

    A tensor counts as class-dependent when only its first dimension differs. The file is a checkpoint of this project
    or a plain state dict of the network.

    Returns:
        A sentence that says what was loaded and what not.

    Raises:
        CheckpointError: other keys or shapes differ.
    """
    checkpoint = read_checkpoint(path)
    theirs = checkpoint.get("state_dict", checkpoint)
    if "state_dict" in checkpoint:
        theirs = {k.removeprefix("network."): v for k, v in theirs.items() if k.startswith("network.")}
    ours = network.state_dict()
    swapped = [
        k for k in ours if k in theirs and ours[k].shape != theirs[k].shape and ours[k].shape[1:] == theirs[k].shape[1:]
    ]
    classes = {(theirs[k].shape[0], ours[k].shape[0]) for k in swapped}
    kept = {k: v for k, v in theirs.items() if k not in swapped}
    differences = compare_state_dicts({k: v for k, v in ours.items() if k not in swapped}, kept)
    if differences or len(classes) > 1:
        differences = differences or compare_state_dicts(ours, theirs)
        raise CheckpointError(f"{path}: weights of another network:\n{differences}")
    network.load_state_dict(kept, strict=False)
    if not swapped:
        return f"{path}: loaded all {len(kept)} tensors"
    old, new = classes.pop()
    return f"{path}: loaded {len(kept)} tensors; {old} classes there, {new} here, so not loaded: {', '.join(swapped)}"


def _facts(checkpoint: Mapping[str, Any]) -> dict[str, Any]:
    """What :meth:`ClassificationModule.on_save_checkpoint` stored, of whatever kind; empty if nothing."""
    found = [value for key, value in checkpoint.items() if key.endswith(CHECKPOINT_KEY) and isinstance(value, dict)]
    return found[0] if found else {}


def load_module(path: str | Path, trusted_packages: tuple[str, ...] = ("papers", "common")) -> ClassificationModule:
    """Rebuild a module from its checkpoint alone, on the CPU, in evaluation mode.

    Args:
        path: checkpoint written during training.
        trusted_packages: top-level packages whose modules a checkpoint may name. Nothing else is imported.

    Raises:
        CheckpointError: the file cannot be read safely, is not of this project, names a class outside of
            ``trusted_packages``, or does not fit the class it names.
    """
    checkpoint = read_checkpoint(path)
    info = _facts(checkpoint)
    if not isinstance(info.get("class_path"), str) or "state_dict" not in checkpoint:
        raise CheckpointError(
            f"{path}: not a checkpoint of a video classification module of this project, nor of one for images"
        )
    module_name, _, class_name = info["class_path"].rpartition(".")
    if module_name.split(".")[0] not in trusted_packages:
        raise CheckpointError(
            f"{path}: names {info['class_path']}, which lies outside of {', '.join(trusted_packages)}"
        )
    try:
        module_class = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError) as error:
        raise CheckpointError(f"{path}: {info['class_path']} does not exist here ({error})") from error
    if not (isinstance(module_class, type) and issubclass(module_class, ClassificationModule)):
        raise CheckpointError(f"{path}: {info['class_path']} is not a video classification module, nor one for images")
    arguments = {**checkpoint.get("hyper_parameters", {}), "pretrained": None, "compile": False}
    try:
        module = module_class(**arguments)
    except TypeError as error:
        raise CheckpointError(f"{path}: {info['class_path']} has other arguments now ({error})") from error
    module.on_load_checkpoint(checkpoint)
    module.load_state_dict(checkpoint["state_dict"])
    return module.eval()
