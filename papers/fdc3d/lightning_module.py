"""Training of the dense networks (Sections 5.1 and 5.6), and compression with fine-tuning (Algorithm 1)."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal, TypedDict

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import default_collate

from common.datamodules.brats import label_to_regions
from common.datamodules.loading import sample_generator
from common.evaluation.latency import measure_latency
from common.training.checkpoints import CheckpointError
from common.training.schedules import sgd
from common.training.task import TaskModule, load_pretrained
from common.training.video_classification import VideoClassificationModule
from common.training.volume_segmentation import VolumeSegmentationModule
from papers.fdc3d import compression, networks
from papers.fdc3d.deployment import trim_producers
from papers.fdc3d.examples import inputs_of
from papers.fdc3d.files import describe, rebuild, set_source
from papers.fdc3d.methods import MethodName
from papers.fdc3d.rates import KeepTemporal
from papers.fdc3d.report import CompressionReport
from papers.fdc3d.timing import choose_executions
from papers.fdc3d.transforms import Importance

STORED = "fdc3d"  # entry of a checkpoint with the compact architecture and the report


class Compression(TypedDict, total=False):
    """How a trained network is compressed before it is fine-tuned.

    `start` is its checkpoint (of this project, or a state dict of the public 3D-ResNets) or the folder of its run, and
    must be given with `rate`, or with `channel_rate` and `temporal_rate` (p_c and p_t). The others are those of
    `papers.fdc3d.compress`: `method` fdc3d, `importance` paper, `keep_temporal` figure3, `gamma` 0.2, `lambda_` 0.1,
    `steps` 10. `trim` also removes the filters that no layer reads afterwards, beyond the paper. `batch_size` is that
    of the batches of X and Y, by default that of the data. `repeats` is how often both networks are timed after a
    test (10), 0 for not at all.
    """

    start: str
    rate: float | None
    channel_rate: float | None
    temporal_rate: float | None
    method: MethodName
    importance: Importance
    keep_temporal: KeepTemporal
    gamma: float
    lambda_: float
    steps: int
    trim: bool
    batch_size: int
    repeats: int


class CompressedModule(TaskModule):
    """Dense training; or, with `compression`, a trained network that is compressed when `fit` begins and fine-tuned.

    A checkpoint holds the compact architecture, so it predicts without the dense network. `test` scores the dense
    network on the same data and times both, where its checkpoint is still there.

    A subclass has the arguments `compression`, `learning_rate`, `momentum`, `weight_decay` and `patience`.
    """

    scores: Any

    def source(self) -> tuple[str, dict[str, Any]]:
        """Dotted name and arguments of the function that builds the dense network."""
        raise NotImplementedError

    def target_loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The loss that `taylor` and `regularisation` need."""
        raise NotImplementedError

    def build_dense(self) -> nn.Module:
        """The dense network with fresh weights."""
        name, arguments = self.source()
        return getattr(networks, name.rpartition(".")[2])(**arguments)

    def build_network(self) -> nn.Module:
        self.report: CompressionReport | None = None
        self._dense: list[Any] = []  # the dense network and its scores, in a list so as to be no part of this module
        self._facts: dict[str, float] = {}
        return self.build_dense()

    def _options(self) -> dict[str, Any]:
        return dict(self.hparams["compression"] or {})

    # -- Algorithm 1 ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A run that goes on has its compact network in the checkpoint.
        if stage == "fit" and self._options() and self.report is None and self.trainer.ckpt_path is None:
            self._compress()

    def _compress(self) -> None:
        options, data = self._options(), self.trainer.datamodule  # type: ignore[attr-defined]
        steps = options.setdefault("steps", 10)
        stream = _Batches(data, options.pop("batch_size", None) or data.batch_size)
        options.pop("repeats", None)
        start, trim = options.pop("start", None), options.pop("trim", False)
        if start is None:
            raise ValueError("compression needs start: the checkpoint or the run folder of the trained network")
        rank_zero_info(load_pretrained(self.network, start))
        network = set_source(self.network, *self.source()).to(self.trainer.strategy.root_device)
        # A method that trains sees new batches in every step; the others come back to the same few for every layer.
        batches = stream if options.get("method") == "regularisation" else list(itertools.islice(stream, steps))
        found = compression.compress(network, batches, loss=self.target_loss, seed=data.seed, **options)
        if trim:
            x = inputs_of(next(iter(stream)), network)[:1]
            rank_zero_info(str(trim_producers(found.network, x)))
            found.report.recount(found.network)
        self.network, self.report = found.network.train(), found.report
        if self.hparams["compile"]:
            self.network.compile()
        rank_zero_info(str(found.report))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.report is not None:
            checkpoint[STORED] = {"network": describe(self.network), "report": self.report.to_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (stored := checkpoint.get(STORED)) is not None:
            try:
                network, self.report = rebuild(stored["network"]), CompressionReport.from_dict(stored["report"])
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f"the checkpoint's description of the compact network is damaged: {error}"
                ) from error
            self.network = network.to(self.device).train(self.training)
            if self.hparams["compile"]:
                self.network.compile()
        super().on_load_checkpoint(checkpoint)

    # -- beside the dense network -----------------------------------------------------------------------------------

    @contextmanager
    def _as_dense(self) -> Iterator[None]:
        compact = self.network, self.scores
        self.network, self.scores = self._dense
        try:
            yield
        finally:
            self.network, self.scores = compact

    def on_test_epoch_start(self) -> None:
        super().on_test_epoch_start()
        self._dense, self._facts = [], {}
        start = self._options().get("start")
        if self.report is None or start is None:
            return
        dense = self.build_dense()
        try:
            load_pretrained(dense, start)
        except CheckpointError as error:
            rank_zero_warn(f"the dense network is not tested beside the compact one: {error}")
            return
        self._dense = [dense.to(self.device).eval(), copy.deepcopy(self.scores)]

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        if self._dense:
            with self._as_dense():
                self.evaluate_batch(batch)
        return super().test_step(batch, batch_idx)

    def on_test_epoch_end(self) -> None:
        super().on_test_epoch_end()
        if self.report is None:
            return
        self._facts = {"speedup_formula": self.report.formula, "speedup_macs": self.report.multiply_adds}
        if not self._dense:
            return
        with self._as_dense():
            dense = self.compute_result().metrics()[self.score]
        self._facts[f"dense_{self.score}"] = dense
        self._facts[f"lost_{self.score}"] = dense - self.result.metrics()[self.score]
        repeats = self._options().get("repeats", 10)
        if repeats and self.trainer.is_global_zero:
            data = self.trainer.datamodule  # type: ignore[attr-defined]
            x = torch.randn(data.spec.input_shape, device=self.device)
            fast = choose_executions(copy.deepcopy(self.network), x, repeats=min(repeats, 3))
            times = measure_latency({"dense": self._dense[0], "compact": fast}, x, repeats)
            self._facts["speedup_measured"] = 1 / times["compact"].ratio
            self._facts["milliseconds"] = 1000 * times["compact"].seconds
            self._facts["dense_milliseconds"] = 1000 * times["dense"].seconds

    def result_facts(self) -> dict[str, Any]:
        """Three speed-ups (the paper's formula, multiply-adds, time) and what is lost of the score, if compressed."""
        return {**super().result_facts(), **self._facts}

    # -- optimiser --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD; the rate is divided by 10 when the validation loss has not fallen for `patience` validations."""
        hparams: Any = self.hparams
        optimizer = sgd(self)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=hparams.patience)
        every = self.trainer.check_val_every_n_epoch or 1
        monitored: Any = {"scheduler": schedule, "monitor": "val_loss", "frequency": every, "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": monitored}


class FDC3DModule(CompressedModule, VideoClassificationModule):
    """3D-ResNets on videos (Section 5.1): SGD with 0.005, divided by 10 on plateaus of the validation loss.

    Args:
        num_classes: number of classes.
        depth: of the 3D-ResNet: 10, 18, 34, 50, 101, 152 or 200.
        width: multiplies every channel number; 1 is the paper's network.
        shortcut: `A` (zero padding) or `B` (projection).
        compression: None trains the dense network; otherwise see `Compression`.
        learning_rate, momentum, weight_decay: of SGD.
        patience: validations without a lower loss after which the learning rate is divided by 10.
        kwargs: arguments of `common.training.classification.ClassificationModule`.
    """

    def __init__(
        self,
        num_classes: int | None = None,
        depth: int = 18,
        width: float = 1.0,
        shortcut: Literal["A", "B"] = "B",
        compression: Compression | None = None,
        learning_rate: float = 0.005,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        patience: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def source(self) -> tuple[str, dict[str, Any]]:
        names = ("depth", "num_classes", "width", "shortcut")
        return "papers.fdc3d.networks.resnet", {name: self.hparams[name] for name in names}

    def target_loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        return F.cross_entropy(output, batch["label"].to(output.device))


class FDC3DVolumeModule(CompressedModule, VolumeSegmentationModule):
    """The residual 3D U-Net on volumes (Section 5.6): SGD with 0.001, divided by 10 on plateaus of the validation loss.

    Args:
        num_regions: 3: ET, WT and TC.
        layout: `lee` or `isotropic`, see `common.backbones.ResidualUNet3d`.
        in_channels: modalities.
        width: multiplies every channel number.
        norm: `batch`, or `group`.
        compression: None trains the dense network; otherwise see `Compression`.
        learning_rate, momentum, weight_decay: of SGD.
        patience: validations without a lower loss after which the learning rate is divided by 10.
        kwargs: arguments of `common.training.volume_segmentation.VolumeSegmentationModule`.
    """

    def __init__(
        self,
        num_regions: int = 3,
        layout: Literal["lee", "isotropic"] = "lee",
        in_channels: int | None = None,
        width: float = 1.0,
        norm: Literal["batch", "group"] = "batch",
        compression: Compression | None = None,
        learning_rate: float = 0.001,
        momentum: float = 0.9,
        weight_decay: float = 1e-5,
        patience: int = 10,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_regions, **kwargs)

    def source(self) -> tuple[str, dict[str, Any]]:
        names = ("layout", "in_channels", "width", "norm")
        arguments = {name: self.hparams[name] for name in names}
        return "papers.fdc3d.networks.unet", {**arguments, "out_channels": self.hparams["num_regions"]}

    def target_loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        return self.loss_per_case(output, label_to_regions(batch["label"].to(output.device))).mean()


class _Batches:
    """Training batches without end, the same on every process: sample k of the stream follows from the data's seed."""

    def __init__(self, data: Any, batch_size: int) -> None:
        self.data, self.batch_size = data, batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        dataset, seed = self.data.train_dataset, self.data.seed
        keys = (
            (epoch, index)
            for epoch in itertools.count()
            for index in torch.randperm(len(dataset), generator=sample_generator(seed, epoch)).tolist()
        )
        while True:
            yield default_collate([dataset[key] for key in itertools.islice(keys, self.batch_size)])
