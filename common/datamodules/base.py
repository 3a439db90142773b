"""The base of every data module: options of loading, the datasets of a stage, the loaders."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal

import lightning as L
import torch
from torch.utils.data import DataLoader

from common.datamodules.datasets import read_datasets
from common.datamodules.errors import DatasetError
from common.datamodules.loading import (
    EvalBatchSampler,
    ResumableLoader,
    TrainBatchSampler,
    end_with_parent_only,
    rank_and_world,
)
from common.datamodules.spec import InputSpec, check_range


class BaseDataModule(L.LightningDataModule):
    """Loaders of videos, images, persons or volumes.

    A subclass sets ``kind``, ``demo`` (the generated data of its kind), ``root`` and ``dataset``,
    has the properties ``spec``, ``output_names`` and ``manifest_hash``, and implements ``facts``,
    ``_splits``, ``_train_dataset``, ``_eval_dataset`` and ``_files_dataset``. The trainer must be created with
    ``use_distributed_sampler=False``: the samplers of :mod:`common.datamodules.loading` distribute the items over the
    processes themselves.

    Args:
        batch_size: training items per step and process.
        eval_batch_size: items per evaluation batch; None: as many as give about ``batch_size`` views.
        num_workers: loader processes.
        seed: of the order and the augmentation; None: that of `seed_everything`, 0 without one.
        drop_last: leave out a last training step that is not full.
        batch_size_by_epoch: batch size from an epoch on, such as ``{300: 128}``.
        test_split: split to test on; None: ``test`` if it can be scored, otherwise ``val``.
        predict_paths: files, folders or .txt lists to predict; None: the test split.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    kind: ClassVar[str]
    demo: ClassVar[str]
    root: Path
    dataset: str | None

    def __init__(
        self,
        batch_size: int = 32,
        eval_batch_size: int | None = None,
        num_workers: int = 2,
        seed: int | None = None,
        drop_last: bool = False,
        batch_size_by_epoch: dict[int, int] | None = None,
        test_split: Literal["train", "val", "test"] | None = None,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__()
        check_range(1, None, batch_size=batch_size, eval_batch_size=eval_batch_size)
        for epoch, value in (batch_size_by_epoch or {}).items():
            if epoch < 1 or value < 1:
                raise ValueError(f"batch_size_by_epoch has {epoch}: {value}; epochs and sizes must be at least 1.")
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where Lightning keeps the seed of the run
        check_range(0, None, seed=seed, num_workers=num_workers)
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed, self.drop_last = num_workers, seed, drop_last
        self.batch_size_by_epoch = dict(batch_size_by_epoch or {})
        self.test_split, self.predict_paths = test_split, predict_paths
        self.train_dataset: Any = None
        self.val_dataset: Any = None
        self.test_dataset: Any = None
        self.predict_dataset: Any = None

    # -- facts ----------------------------------------------------------------------------------------------------

    @cached_property
    def spec(self) -> InputSpec:
        """How a file becomes the network's input in testing; stored in checkpoints."""
        raise NotImplementedError

    @property
    def output_names(self) -> list[str]:
        """What each output of a network stands for, such as the names of the classes."""
        raise NotImplementedError

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of what the data consists of."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Arguments that a network takes from the data, by name, such as ``num_classes``."""
        raise NotImplementedError

    # -- datasets -------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the data and create the datasets of the stage (fit, validate, test, predict; None: all).

        Raises:
            DatasetError: no root, missing or wrong files, or nothing for the stage.
            ReadError: a file that must be read now cannot be read.
        """
        if stage == "predict" and self.predict_paths is not None:
            self.predict_dataset = self._files_dataset(self.predict_paths)
            return
        splits = self._splits()
        if stage in (None, "fit") and self.train_dataset is None:
            self.train_dataset = self._train_dataset()
        if stage in (None, "fit", "validate") and self.val_dataset is None and ("val" in splits or stage == "validate"):
            self.val_dataset = self._eval_dataset("val", "validate")
        test = self.test_split or self._scored_split()
        if stage in (None, "test") and self.test_dataset is None and (test in splits or stage == "test"):
            self.test_dataset = self._eval_dataset(test, "test")
        if stage == "predict" and self.predict_dataset is None:
            split = self.test_split or ("test" if "test" in splits else "val")
            self.predict_dataset = self._eval_dataset(split, "predict")

    def _check_root(self) -> None:
        """Raise DatasetError, with a remedy, if the root does not exist."""
        if not self.root.is_dir():
            raise DatasetError(
                f"the data root {self.root} does not exist (resolved: {os.path.realpath(self.root)}): set `root` to "
                f"the folder with the data, or {self._remedy()}."
            )

    def _remedy(self) -> str:
        """How to get the data."""
        demo = self.dataset or self.demo
        if "counts" in read_datasets().get(demo, {}) or demo in ("coco", "brats2018"):
            return f"get {demo} as described in data/datasets.md"
        return f"generate demo data with `python -m data.demo {demo} --out {self.root}`"

    def _splits(self) -> Sequence[str]:
        """The splits that have items."""
        raise NotImplementedError

    def _scored_split(self) -> str:
        """The split to test on if none is chosen."""
        return "test" if "test" in self._splits() else "val"

    def _train_dataset(self) -> Any:
        raise NotImplementedError

    def _eval_dataset(self, split: str, stage: str) -> Any:
        """The dataset of a split for the stage validate, test or predict."""
        raise NotImplementedError

    def _files_dataset(self, paths: Sequence[str]) -> Any:
        """A dataset of files without labels."""
        raise NotImplementedError

    # -- loaders --------------------------------------------------------------------------------------------------

    def train_dataloader(self) -> DataLoader:
        """Random views in random order, resumable in the middle of an epoch."""
        if self.train_dataset is None:
            raise RuntimeError("call setup('fit') first.")
        count, trainer = len(self.train_dataset), self.trainer
        epoch = trainer.current_epoch if trainer is not None else 0
        sampler = TrainBatchSampler(count, self.batch_size, self.seed, self.drop_last, epoch, self.batch_size_by_epoch)
        for size in sampler.sizes.values():
            if self.drop_last and count < size * rank_and_world()[1]:
                raise ValueError(
                    f"an epoch has no full step: {count} training {self.kind}s, batch_size {size} per process and "
                    "drop_last; make batch_size smaller or set drop_last to false."
                )
        loader = ResumableLoader(self.train_dataset, batch_sampler=sampler, **self._loader_options())
        if trainer is not None:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            loader.processed = lambda: progress.current.processed  # type: ignore[attr-defined]
            if self.batch_size_by_epoch:  # Lightning keeps the number of batches until it requests a loader again
                later = [begin for begin in self.batch_size_by_epoch if begin > epoch]
                trainer.reload_dataloaders_every_n_epochs = min(later) - epoch if later else 0  # type: ignore[attr-defined]
        return loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Whole files with one central view each; empty without validation files."""
        return self._eval_loader(self.val_dataset) if self.val_dataset is not None else []

    def test_dataloader(self) -> DataLoader:
        """Whole files with all their views."""
        return self._eval_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader:
        """Whole files with all their views, of ``predict_paths`` or the test split."""
        # Lightning cannot see that this sampler, like its own, returns every file.
        warnings.filterwarnings("ignore", ".*custom batch sampler `EvalBatchSampler`.*")
        return self._eval_loader(self.predict_dataset)

    def _eval_loader(self, dataset: Any) -> DataLoader:
        if dataset is None:
            raise RuntimeError("call setup() for this stage first.")
        size = self.eval_batch_size or max(1, self.batch_size // dataset.spec.num_views)
        sampler = EvalBatchSampler(len(dataset), size)
        collate = getattr(dataset, "collate", None)
        return DataLoader(dataset, batch_sampler=sampler, collate_fn=collate, **self._loader_options())

    def _loader_options(self) -> dict[str, Any]:
        connector = getattr(self.trainer, "_accelerator_connector", None)
        if getattr(connector, "use_distributed_sampler", False) and self.trainer.world_size > 1:  # type: ignore[union-attr]
            raise ValueError("create the Trainer with use_distributed_sampler=False: this data distributes itself.")
        return {
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
            "worker_init_fn": end_with_parent_only,
        }


class LabelledDataModule(BaseDataModule):
    """Loaders of videos or images with one label each. The arguments are those of :class:`BaseDataModule`."""

    @cached_property
    def _loaded(self) -> Any:
        """The class names and the hash of the data, as `class_names` and `hash`."""
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return list(self._loaded.class_names)

    @property
    def output_names(self) -> list[str]:
        """The class names."""
        return self.class_names

    @property
    def manifest_hash(self) -> str:
        """SHA-256 of the class list and of the entries, or of the images of an archive."""
        return self._loaded.hash

    def setup(self, stage: str | None = None) -> None:
        """As :meth:`BaseDataModule.setup`, with a warning for a training on a single class."""
        super().setup(stage)
        if stage in (None, "fit") and len(self.class_names) == 1:
            warnings.warn(f"the only class is {self.class_names[0]}: there is nothing to learn.", stacklevel=2)

    def facts(self) -> dict[str, Any]:
        """``num_classes``, the length of the class list."""
        return {"num_classes": len(self.class_names)}
