"""The order of the items of a dataset, whatever the number of processes, and a loader that resumes in an epoch.

Nothing here depends on the number of loader workers: a training sample follows from (seed, epoch, item), the content of
an evaluation batch from its number.
"""

from __future__ import annotations

import math
import os
import signal
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, distributed
from torch.utils.data import DataLoader, Sampler


def sample_generator(*key: int) -> Generator:
    """A generator that depends on the key alone, such as (seed, epoch, item), whatever process asks."""
    # The length is part of the key: numpy gives (1, 2) and (1, 2, 0) the same numbers.
    state = np.random.SeedSequence((len(key), *key)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state))


def rank_and_world() -> tuple[int, int]:
    """Rank of this process and number of processes."""
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


def end_with_parent_only(worker: int) -> None:
    """``worker_init_fn`` of a loader: of the SIGTERMs that a loader worker gets, only its parent's ends it.

    One that is sent to a group of processes, as torchrun and job schedulers do, would otherwise end the workers at
    once, and the parent by an error before it can save its state.
    """

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != os.getppid():
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})  # inherited by the thread, which waits for it
    threading.Thread(target=wait, daemon=True, name="sigterm").start()


class TrainBatchSampler(Sampler):
    """Batches of (epoch, index) from one permutation of the items per epoch.

    With W processes every step takes the next W * batch_size items of the permutation and splits them evenly between
    the processes, so an epoch sees every item. The last step may be smaller; if it is not divisible by W, up to W - 1
    items from the start of the permutation fill it. ``drop_last`` leaves out a smaller last step.
    ``batch_size_by_epoch`` changes the batch size from an epoch on.
    """

    def __init__(
        self,
        num_items: int,
        batch_size: int,
        seed: int,
        drop_last: bool = False,
        epoch: int = 0,
        batch_size_by_epoch: Mapping[int, int] | None = None,
    ) -> None:
        self.num_items, self.seed, self.drop_last = num_items, seed, drop_last
        self.sizes = {0: batch_size, **(batch_size_by_epoch or {})}
        self.epoch = epoch
        self._skipped = (epoch, 0)

    @property
    def sampler(self) -> TrainBatchSampler:
        """The sampler itself: Lightning calls ``set_epoch`` on ``loader.batch_sampler.sampler``."""
        return self

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation; called by Lightning before every epoch."""
        self.epoch = epoch

    def skip(self, epoch: int, batches: int) -> None:
        """Resume ``epoch`` after its first ``batches`` batches; any other epoch begins at its start."""
        self.epoch = epoch
        self._skipped = (epoch, batches)

    def batch_size_in(self, epoch: int) -> int:
        """Batch size of an epoch."""
        return self.sizes[max(begin for begin in self.sizes if begin <= epoch)]

    @property
    def batch_size(self) -> int:
        """Batch size of the current epoch."""
        return self.batch_size_in(self.epoch)

    @property
    def first_batch(self) -> int:
        """Number of the batch with which the next iteration begins."""
        return self._skipped[1] if self.epoch == self._skipped[0] else 0

    def __len__(self) -> int:
        per_step = self.batch_size * rank_and_world()[1]
        return self.num_items // per_step if self.drop_last else math.ceil(self.num_items / per_step)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        rank, world = rank_and_world()
        order = torch.randperm(self.num_items, generator=sample_generator(self.seed, self.epoch)).tolist()
        per_step = self.batch_size * world
        epoch, first = self.epoch, self.first_batch
        self._skipped = (epoch, 0)
        for number in range(first, len(self)):
            step = order[number * per_step : (number + 1) * per_step]
            size = math.ceil(len(step) / world)
            step += [order[position % len(order)] for position in range(size * world - len(step))]
            yield [(epoch, index) for index in step[rank * size : (rank + 1) * size]]


class EvalBatchSampler(Sampler):
    """Batches of items in order; process r of W takes the batches r, r + W, ...

    Batch k holds the same items whatever the number of processes, so its scores are bit-identical. A process short of a
    batch repeats one; whoever collects the scores drops the repetition by the items' index.
    """

    def __init__(self, num_items: int, batch_size: int) -> None:
        self.num_items, self.batch_size = num_items, batch_size

    @property
    def num_batches(self) -> int:
        """Different batches, over all processes."""
        return math.ceil(self.num_items / self.batch_size)

    def __len__(self) -> int:
        return math.ceil(self.num_batches / rank_and_world()[1])

    def __iter__(self) -> Iterator[list[int]]:
        rank, world = rank_and_world()
        for number in range(rank, len(self) * world, world):
            first = number % self.num_batches * self.batch_size
            yield list(range(first, min(first + self.batch_size, self.num_items)))


class ResumableLoader(DataLoader):
    """A training loader that resumes in the middle of an epoch.

    Lightning stores ``state_dict()`` in its checkpoints and calls ``load_state_dict`` before the first batch. The
    state counts the batches handed out, not those that workers have prepared ahead. ``batch_sampler`` must be a
    :class:`TrainBatchSampler`. ``processed``, if set, returns the number of batches of the epoch that were trained on:
    one less than handed out if a training step was interrupted.
    """

    batch_sampler: TrainBatchSampler
    processed: Callable[[], int] | None = None
    _position = (0, 0)  # epoch, batches handed out in it

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        # A generator: nothing is drawn before the first batch is requested, when Lightning has set the epoch.
        epoch, done = self.batch_sampler.epoch, self.batch_sampler.first_batch
        for number, batch in enumerate(super().__iter__(), done + 1):
            self._position = (epoch, number)
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Position (epoch, batches done) and everything that the order depends on."""
        epoch, batch = self._position
        return {
            "epoch": epoch,
            "batch": min(batch, self.processed()) if self.processed else batch,
            **self._order(epoch),
        }

    def load_state_dict(self, state: dict[str, int]) -> None:
        """Continue after the stored position.

        Warns if the number of items or processes, the batch size or the seed changed: the rest of the epoch then
        differs from that of the interrupted run.
        """
        now = self._order(state["epoch"])
        if changed := [key for key, value in now.items() if state[key] != value]:
            shown = ", ".join(f"{key} {state[key]} -> {now[key]}" for key in changed)
            warnings.warn(f"the run resumes with other data than it was stopped with: {shown}.", stacklevel=2)
        self.batch_sampler.skip(state["epoch"], state["batch"])
        self._position = (state["epoch"], state["batch"])

    def _order(self, epoch: int) -> dict[str, int]:
        sampler = self.batch_sampler
        return {
            "num_items": sampler.num_items,
            "batch_size": sampler.batch_size_in(epoch),
            "world_size": rank_and_world()[1],
            "seed": sampler.seed,
        }
