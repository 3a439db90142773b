"""Compression at the start of a fit, fine-tuning (step 14 of Algorithm 1), and testing next to the dense network."""

import copy
import itertools
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from typing import Any

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn
from torch.utils.data import default_collate

from common.datamodules.loading import sample_generator
from common.evaluation.latency import measure_latency
from common.training.checkpoints import CheckpointError
from common.training.schedules import sgd
from common.training.task import TaskModule, load_pretrained
from papers.fdc3d import networks
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import trim_producers
from papers.fdc3d.files import describe, rebuild, set_source
from papers.fdc3d.methods import METHODS, inputs_of
from papers.fdc3d.rates import CompressionOptions
from papers.fdc3d.report import CompressionReport
from papers.fdc3d.timing import choose_executions

STORED = "fdc3d"  # entry of a checkpoint with the compact architecture and the report


@dataclass(frozen=True)
class FinetuningOptions(CompressionOptions):
    """How a trained network is compressed before it is fine-tuned: `CompressionOptions`, and these.

    Attributes:
        start: checkpoint of the trained network (of this project, or a state dict of the public 3D-ResNets), or the
            folder of its run.
        trim: also remove the filters that no layer reads afterwards, beyond the paper.
        batch_size: of the batches of X and Y; that of the data by default.
        repeats: timed calls of both networks after a test; 0 does not measure.
    """

    start: str | None = None
    trim: bool = False
    batch_size: int | None = None
    repeats: int = 10


class CompressedModule(TaskModule):
    """Dense training; or, with `compression`, a trained network that is compressed when a fit begins and fine-tuned.

    A checkpoint holds the compact architecture, so it predicts without the dense network. `test` scores the dense
    network on the same data and times both, where its checkpoint is still there.

    A subclass has the arguments `compression` (None or `FinetuningOptions`), `learning_rate`, `momentum`,
    `weight_decay` and `patience`.
    """

    free_to_change = TaskModule.free_to_change | {"compression.start"}
    scores: Any

    def source(self) -> tuple[str, dict[str, Any]]:
        """Name in `papers.fdc3d.networks`, and arguments, of the function that builds the dense network."""
        raise NotImplementedError

    def target_loss(self, output: Tensor, batch: Mapping[str, Any]) -> Tensor:
        """The loss that `taylor` and `regularisation` need."""
        raise NotImplementedError

    def build_dense(self) -> nn.Module:
        """The dense network with fresh weights."""
        name, arguments = self.source()
        return getattr(networks, name)(**arguments)

    def build_network(self) -> nn.Module:
        given = self.hparams["compression"]
        self.options = None if given is None else FinetuningOptions(**given)
        self.report: CompressionReport | None = None
        self._dense: list[Any] = []  # the dense network and its scores, in a list so as to be no part of this module
        self._facts: dict[str, float] = {}
        return self.build_dense()

    # -- Algorithm 1 ----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        super().setup(stage)
        # A resumed run has its compact network in the checkpoint.
        if stage == "fit" and self.options and self.report is None and self.trainer.ckpt_path is None:
            self._compress(self.options)

    def _compress(self, options: FinetuningOptions) -> None:
        if options.start is None:
            raise ValueError("compression needs start: the checkpoint or the run folder of the trained network")
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        rank_zero_info(load_pretrained(self.network, options.start))
        name, arguments = self.source()
        network = set_source(self.network, f"{networks.__name__}.{name}", arguments)
        network.to(self.trainer.strategy.root_device)
        stream = TrainingBatches(data, options.batch_size or data.batch_size)
        # A method that trains sees new batches in every step; the others return to the same few for every layer.
        batches = stream if METHODS[options.method].trains else list(itertools.islice(stream, options.steps))
        chosen = {f.name: getattr(options, f.name) for f in fields(CompressionOptions)}
        result = compress(network, batches, loss=self.target_loss, **{**chosen, "seed": data.seed})
        if options.trim:
            x = inputs_of(next(iter(stream)), network)[:1]
            rank_zero_info(str(trim_producers(result.network, x)))
            result.report.recount(result.network)
        self._set_network(result.network, result.report)
        rank_zero_info(str(result.report))

    def _set_network(self, network: nn.Module, report: CompressionReport) -> None:
        self.network, self.report = network.train(self.training), report
        if self.hparams.get("compile"):
            self.network.compile()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.report is not None:
            checkpoint[STORED] = {"network": describe(self.network), "report": self.report.to_dict()}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if (stored := checkpoint.get(STORED)) is not None:
            try:
                report = CompressionReport.from_dict(stored["report"])
                self._set_network(rebuild(stored["network"]).to(self.device), report)
            except (KeyError, TypeError) as error:
                raise CheckpointError(
                    f"the checkpoint's description of the compact network is damaged: {error}"
                ) from error
        super().on_load_checkpoint(checkpoint)

    # -- next to the dense network ----------------------------------------------------------------------------------

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
        if self.report is None or self.options is None or self.options.start is None:
            return
        dense = self.build_dense()
        try:
            load_pretrained(dense, self.options.start)
        except CheckpointError as error:
            rank_zero_warn(f"the dense network is not tested next to the compact one: {error}")
            return
        self._dense = [dense.to(self.device).eval(), copy.deepcopy(self.scores)]

    def test_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Tensor]:
        outputs = super().test_step(batch, batch_idx)
        if self._dense and outputs:
            with self._as_dense():
                self.evaluate_batch(batch)
        return outputs

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
        repeats = self.options.repeats if self.options else 0
        if repeats and self.trainer.is_global_zero:
            data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
            x = torch.randn(data.spec.input_shape, device=self.device)
            fast = choose_executions(copy.deepcopy(self.network), x, repeats=min(repeats, 3))
            times = measure_latency({"dense": self._dense[0], "compact": fast}, x, repeats)
            self._facts["speedup_measured"] = 1 / times["compact"].ratio
            self._facts["milliseconds"] = 1000 * times["compact"].seconds
            self._facts["dense_milliseconds"] = 1000 * times["dense"].seconds

    def result_facts(self) -> dict[str, Any]:
        """Three speed-ups (the paper's formula, multiply-adds, time) and the loss of the score, if compressed."""
        return {**super().result_facts(), **self._facts}

    # -- optimiser --------------------------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        """SGD; the rate is divided by 10 when the validation loss has not fallen for `patience` validations."""
        optimizer = sgd(self)
        patience = self.hparams["patience"]
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.1, patience=patience)
        every = self.trainer.check_val_every_n_epoch or 1
        monitored: Any = {"scheduler": schedule, "monitor": "val_loss", "frequency": every, "strict": False}
        return {"optimizer": optimizer, "lr_scheduler": monitored}


class TrainingBatches:
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
