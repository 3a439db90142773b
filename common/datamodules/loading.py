"""Datasets of videos, and the batch samplers, loader and base of every data module.

Nothing here depends on the number of loader workers: what a training sample is follows from (seed, epoch, video), what
an evaluation batch holds from its number.
"""

from __future__ import annotations

import math
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import lightning as L
import torch
from torch import Generator, Tensor, distributed
from torch.utils.data import DataLoader, Dataset, Sampler

from common.datamodules.clip_spec import ClipSpec, Spec, make_views
from common.datamodules.manifest import Manifest
from common.datamodules.readers import VideoReadError, open_video
from common.datamodules.sampling import dense_indices, sample_generator, segment_indices
from common.datamodules.transforms import normalise, random_multi_scale_crop

REPLACEMENTS = 10  # videos tried, in a row, in place of one that cannot be read
NO_LABEL = -1

T = TypeVar("T")
Frames = Callable[[list[int]], Tensor]


@dataclass(frozen=True)
class Item:
    """One video or image of a dataset; ``name`` is the path as the user wrote it, ``where`` says where it is listed."""

    path: str
    name: str
    label: int
    where: str
    fps: float | None = None


def manifest_items(manifest: Manifest) -> list[Item]:
    """The entries of a manifest as dataset items, in its order."""
    return [
        Item(
            path=str(manifest.root / entry.path),
            name=entry.path,
            label=NO_LABEL if entry.label is None else entry.label,
            where=f"{manifest.source}:{entry.line}" if entry.line else str(manifest.source),
            fps=entry.fps,
        )
        for entry in manifest.entries
    ]


def path_items(paths: Sequence[str | Path]) -> list[Item]:
    """Files without labels."""
    return [Item(str(path), str(path), NO_LABEL, "the given paths") for path in paths]


class VideoDataset(Dataset):
    """Videos by index; the base of the training and the evaluation dataset.

    Args:
        items: the videos.
        expected: how many videos were listed before missing ones were left out.
        cache_decoded: keep every decoded video in memory (uint8, per loader worker).
    """

    def __init__(self, items: Sequence[Item], expected: int | None = None, cache_decoded: bool = False) -> None:
        self.items = list(items)
        self.videos_expected = len(self.items) if expected is None else expected
        self._cache: dict[str, Tensor] | None = {} if cache_decoded else None

    def __len__(self) -> int:
        return len(self.items)

    def _read(self, index: int, use: Callable[[int, Frames], T]) -> T:
        """Open video ``index`` and return ``use(number of frames, frame getter)``; errors name video and index."""
        item = self.items[index]
        try:
            if self._cache is None:
                with open_video(item.path, item.fps) as video:
                    return use(video.num_frames, video.get_frames)
            if item.path not in self._cache:
                with open_video(item.path, item.fps) as video:
                    self._cache[item.path] = video.get_frames(range(video.num_frames))
            frames = self._cache[item.path]
            return use(len(frames), lambda indices: frames[indices])
        except VideoReadError as error:
            raise VideoReadError(item.path, f"{error.reason} (video {index}, listed in {item.where})") from error


class TrainDataset(VideoDataset):
    """Random clips. The key of a sample is (epoch, index); a plain index means epoch 0.

    ``read_errors`` counts the videos that could not be read and were replaced, over all workers of this process.
    """

    def __init__(
        self,
        items: Sequence[Item],
        spec: ClipSpec,
        scales: Sequence[float],
        horizontal_flip: bool,
        seed: int,
        replace_unreadable: bool,
        expected: int | None = None,
        cache_decoded: bool = False,
        resize_range: tuple[int, int] | None = None,
    ) -> None:
        super().__init__(items, expected, cache_decoded)
        self.resize_range = resize_range
        self.spec, self.scales, self.horizontal_flip, self.seed = spec, tuple(scales), horizontal_flip, seed
        self.replace_unreadable = replace_unreadable
        self._errors = multiprocessing.Value("q", 0)

    @property
    def read_errors(self) -> int:
        """Unreadable videos met so far."""
        return self._errors.value

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = sample_generator(self.seed, epoch, index)
        for _ in range(REPLACEMENTS):
            try:
                video = self._read(index, lambda count, frames: self._clip(count, frames, generator))
                return {"video": video, "label": self.items[index].label, "video_index": index}
            except VideoReadError as error:
                if not self.replace_unreadable:
                    raise
                with self._errors.get_lock():
                    self._errors.value += 1
                last, index = error, int(torch.randint(len(self), (), generator=generator))
                warnings.warn(f"{error}; training uses {self.items[index].name} in its place", stacklevel=2)
        raise VideoReadError(last.path, f"{last.reason}; and {REPLACEMENTS} videos in a row cannot be read") from last

    def _clip(self, num_frames: int, get_frames: Frames, generator: Generator) -> Tensor:
        spec = self.spec
        if spec.sampling == "segments":
            indices = segment_indices(num_frames, spec.num_frames, generator)
        else:
            indices = dense_indices(num_frames, spec.num_frames, spec.stride, generator)
        clip = get_frames(indices.tolist())
        crop = random_multi_scale_crop(
            clip, spec.crop_size, generator, self.scales, self.horizontal_flip, self.resize_range
        )
        return normalise(crop, spec.mean, spec.std)


class EvalDataset(VideoDataset):
    """Whole videos with all their views, for validation, test and prediction."""

    @staticmethod
    def collate(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """See :func:`collate_views`."""
        return collate_views(items)

    def __init__(
        self, items: Sequence[Item], spec: ClipSpec, expected: int | None = None, cache_decoded: bool = False
    ) -> None:
        super().__init__(items, expected, cache_decoded)
        self.spec = spec

    def __getitem__(self, index: int) -> dict[str, Any]:
        video = self._read(index, lambda count, frames: make_views(count, frames, self.spec))
        item = self.items[index]
        return {"video": video, "label": item.label, "video_index": index, "path": item.name}


def collate_views(items: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Join whole videos into one batch with an entry per view: video (sum V, C, T, S, S), label, video_index, path."""
    views = torch.tensor([len(item["video"]) for item in items])
    return {
        "video": torch.cat([item["video"] for item in items]),
        "label": torch.tensor([item["label"] for item in items]).repeat_interleave(views),
        "video_index": torch.tensor([item["video_index"] for item in items]).repeat_interleave(views),
        "path": [item["path"] for item in items for _ in range(len(item["video"]))],
    }


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class TrainBatchSampler(Sampler):
    """Batches of (epoch, index) from one permutation of the videos per epoch.

    With W processes every step takes the next W * batch_size videos of the permutation and each process its share of
    them, so an epoch sees every video. The last step may be smaller; where it does not divide by W, at most W - 1
    videos from the start of the permutation fill it up. ``drop_last`` leaves a smaller last step out.
    ``batch_size_by_epoch`` changes the batch size from an epoch on.
    """

    def __init__(
        self,
        num_videos: int,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        epoch: int = 0,
        batch_size_by_epoch: Mapping[int, int] | None = None,
    ) -> None:
        self.num_videos, self.seed, self.drop_last = num_videos, seed, drop_last
        self.sizes = {0: batch_size, **(batch_size_by_epoch or {})}
        self.epoch = epoch
        self._skipped = (epoch, 0)

    @property
    def sampler(self) -> TrainBatchSampler:
        """Itself: Lightning calls ``set_epoch`` on ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; called by Lightning before every epoch."""
        self.epoch = epoch

    def skip(self, epoch: int, batches: int) -> None:
        """Go on in ``epoch`` after its first ``batches`` batches; any other epoch begins at its start."""
        self.epoch = epoch
        self._skipped = (epoch, batches)

    def batch_size_in(self, epoch: int) -> int:
        """Batch size of an epoch."""
        return self.sizes[max(begin for begin in self.sizes if begin <= epoch)]

    @property
    def batch_size(self) -> int:
        """Batch size of the present epoch."""
        return self.batch_size_in(self.epoch)

    @property
    def first_batch(self) -> int:
        """Number of the batch that the next iteration begins with."""
        return self._skipped[1] if self.epoch == self._skipped[0] else 0

    def __len__(self) -> int:
        per_step = self.batch_size * rank_and_world()[1]
        return self.num_videos // per_step if self.drop_last else math.ceil(self.num_videos / per_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = rank_and_world()
        order = torch.randperm(self.num_videos, generator=sample_generator(self.seed, self.epoch)).tolist()
        per_step = self.batch_size * world
        epoch, first = self.epoch, self.first_batch
        self._skipped = (epoch, 0)
        for number in range(first, len(self)):
            step = order[number * per_step : (number + 1) * per_step]
            share = math.ceil(len(step) / world)
            step += [order[position % len(order)] for position in range(share * world - len(step))]
            yield [(epoch, index) for index in step[rank * share : (rank + 1) * share]]


class EvalBatchSampler(Sampler):
    """Batches of videos in order; process r of W takes the batches r, r + W, ...

    Batch k holds the same videos whatever the number of processes, so its scores are the same bits. A process short
    of a batch repeats one; whoever collects the scores drops the repetition by ``video_index``.
    """

    def __init__(self, num_videos: int, batch_size: int) -> None:
        self.num_videos, self.batch_size = num_videos, batch_size

    @property
    def num_batches(self) -> int:
        """Different batches, over all processes."""
        return math.ceil(self.num_videos / self.batch_size)

    def __len__(self) -> int:
        return math.ceil(self.num_batches / rank_and_world()[1])

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = rank_and_world()
        for number in range(rank, len(self) * world, world):
            first = number % self.num_batches * self.batch_size
            yield list(range(first, min(first + self.batch_size, self.num_videos)))


class ResumableLoader(DataLoader):
    """A training loader that continues in the middle of an epoch.

    Lightning stores ``state_dict()`` in its checkpoints and calls ``load_state_dict`` before the first batch. The
    state counts the batches handed out, not those that workers have prepared ahead. ``batch_sampler`` must be a
    :class:`TrainBatchSampler`. ``processed``, if set, tells how many batches of the epoch were trained on: one less
    than handed out where a training step was interrupted.
    """

    batch_sampler: TrainBatchSampler
    processed: Callable[[], int] | None = None
    _position = (0, 0)  # epoch, batches handed out in it

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is drawn before the first batch is asked for, when Lightning has set the epoch.
        epoch, done = self.batch_sampler.epoch, self.batch_sampler.first_batch
        for number, batch in enumerate(super().__iter__(), done + 1):
            self._position = (epoch, number)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position (epoch, batches done) and what the order depends on."""
        epoch, batch = self._position
        return {
            "epoch": epoch,
            "batch": min(batch, self.processed()) if self.processed else batch,
            **self._order(epoch),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the stored position.

        Warns if the number of videos or processes, the batch size or the seed changed: the rest of the epoch is then
        another one than that of the interrupted run.
        """
        now = self._order(state["epoch"])
        if changed := [key for key, value in now.items() if state[key] != value]:
            shown = ", ".join(f"{key} {state[key]} -> {now[key]}" for key in changed)
            warnings.warn(f"the run continues with other data than it was stopped with: {shown}.", stacklevel=2)
        self.batch_sampler.skip(state["epoch"], state["batch"])
        self._position = (state["epoch"], state["batch"])

    def _order(self, epoch: int) -> dict[str, int]:
        sampler = self.batch_sampler
        return {
            "num_videos": sampler.num_videos,
            "batch_size": sampler.batch_size_in(epoch),
            "world_size": rank_and_world()[1],
            "seed": sampler.seed,
        }


class LoadingDataModule(L.LightningDataModule):
    """Loaders of videos, images, persons, volumes; a subclass makes the four datasets in ``setup``.

    The trainer must be made with ``use_distributed_sampler=False``; the samplers share the files out themselves.

    Args:
        batch_size: training files per step and process.
        eval_batch_size: files per evaluation batch; None: as many as give about ``batch_size`` views.
        num_workers: loader processes.
        seed: of the order and of the augmentation; None: that of `seed_everything`, 0 without one.
        drop_last: leave out a last training step that is not full.
        batch_size_by_epoch: batch size from an epoch on, such as ``{300: 128}``.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    kind: ClassVar[str]
    output_names: list[str]
    manifest_hash: str

    @property
    def spec(self) -> Spec:
        """How a file becomes the network's input in testing; stored in checkpoints."""
        raise NotImplementedError

    def facts(self) -> dict[str, Any]:
        """Arguments that a module takes from the data, by name, such as ``num_classes``."""
        raise NotImplementedError

    def __init__(
        self,
        batch_size: int,
        eval_batch_size: int | None,
        num_workers: int,
        seed: int | None,
        drop_last: bool,
        batch_size_by_epoch: Mapping[int, int] | None = None,
    ) -> None:
        super().__init__()
        for name, value in {"batch_size": batch_size, "eval_batch_size": eval_batch_size or 1}.items():
            if value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1.")
        for epoch, value in (batch_size_by_epoch or {}).items():
            if epoch < 1 or value < 1:
                raise ValueError(f"batch_size_by_epoch has {epoch}: {value}; epochs and sizes must be at least 1.")
        if seed is None:
            seed = int(os.environ.get("PL_GLOBAL_SEED", "0"))  # where Lightning keeps the seed of the run
        if seed < 0:
            raise ValueError(f"seed is {seed}; it must not be negative.")
        self.batch_size, self.eval_batch_size = batch_size, eval_batch_size
        self.num_workers, self.seed, self.drop_last = num_workers, seed, drop_last
        self.batch_size_by_epoch = dict(batch_size_by_epoch or {})
        self.train_dataset: Any = None
        self.val_dataset: Any = None
        self.test_dataset: Any = None
        self.predict_dataset: Any = None

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
                    f"an epoch has no full step: {count} training {self.kind}s, batch_size {size} "
                    f"per process and drop_last; make batch_size smaller or set drop_last to false."
                )
        loader = ResumableLoader(self.train_dataset, batch_sampler=sampler, **self._loader_options())
        if trainer is not None:
            progress = trainer.fit_loop.epoch_loop.batch_progress
            loader.processed = lambda: progress.current.processed  # type: ignore[attr-defined]
            if self.batch_size_by_epoch:  # Lightning keeps the number of batches until it asks for a loader again
                later = [begin for begin in self.batch_size_by_epoch if begin > epoch]
                trainer.reload_dataloaders_every_n_epochs = min(later) - epoch if later else 0  # type: ignore[attr-defined]
        return loader

    def val_dataloader(self) -> DataLoader | list[DataLoader]:
        """Whole files, one central view each; empty without validation files."""
        return self._eval_loader(self.val_dataset) if self.val_dataset is not None else []

    def test_dataloader(self) -> DataLoader:
        """Whole files with all views."""
        return self._eval_loader(self.test_dataset)

    def predict_dataloader(self) -> DataLoader:
        """Whole files with all views, of ``predict_paths`` or the test split."""
        # Lightning cannot see that this sampler, like its own, gives every file.
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
            raise ValueError("make the Trainer with use_distributed_sampler=False; this data shares itself out.")
        return {
            "num_workers": self.num_workers,
            "pin_memory": torch.cuda.is_available(),
            "persistent_workers": self.num_workers > 0,
        }


class LabelledDataModule(LoadingDataModule):
    """Loaders of labelled videos or images. The arguments are those of :class:`LoadingDataModule`."""

    def _loaded(self) -> Any:
        """The class names and the hash of the data, as `class_names` and `hash`; read on the first call."""
        raise NotImplementedError

    @property
    def class_names(self) -> list[str]:
        """Names by label."""
        return list(self._loaded().class_names)

    @property
    def output_names(self) -> list[str]:  # type: ignore[override]
        """The class names, one for each output of the network."""
        return self.class_names

    @property
    def num_classes(self) -> int:
        """Number of classes in the class list."""
        return len(self._loaded().class_names)

    def facts(self) -> dict[str, Any]:
        return {"num_classes": self.num_classes}

    @property
    def manifest_hash(self) -> str:  # type: ignore[override]
        """SHA-256 of the class list and of the entries, or of the images of an archive."""
        return self._loaded().hash
