"""Batches of real inputs, from which transforms and channels are learned."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.nn import functional as F

#: takes the network's output and the batch, gives a scalar
Loss = Callable[[Any, Any], Tensor]
INPUT_KEYS = ("video", "volume", "image")


class CompressionError(ValueError):
    """The network, the batches or the rates do not fit."""


@dataclass(frozen=True)
class Examples:
    """Iterates over the first `count` batches, starting over where they end; `tick` is called after each."""

    batches: Iterable[Any]
    count: int
    tick: Callable[[], None]

    def __iter__(self) -> Iterator[Any]:
        for batch in itertools.islice(endless(self.batches), self.count):
            yield batch
            self.tick()


def endless(batches: Iterable[Any]) -> Iterator[Any]:
    """The batches again and again. Raises CompressionError if there are none."""
    while True:
        batch = None
        for batch in batches:
            yield batch
        if batch is None:
            raise CompressionError("there are no batches")


def inputs_of(batch: Any, network: nn.Module) -> Tensor:
    """The network's input in a batch, on the device of the network.

    Args:
        batch: a tensor, a sequence that begins with one, or a mapping that has one under `video`, `volume` or `image`.

    Raises:
        CompressionError: there is none.
    """
    x = batch
    if isinstance(batch, Mapping):
        x = next((batch[key] for key in INPUT_KEYS if key in batch), None)
    elif isinstance(batch, list | tuple) and batch:
        x = batch[0]
    if not isinstance(x, Tensor):
        what = f"a mapping with {', '.join(map(str, batch))}" if isinstance(batch, Mapping) else type(batch).__name__
        raise CompressionError(
            f"a batch must be a tensor, begin with one, or have it under {', '.join(INPUT_KEYS)}, but is {what}"
        )
    parameter = next(network.parameters(), None)
    return x if parameter is None else x.to(parameter.device)


def classification_loss(output: Any, batch: Any) -> Tensor:
    """Cross-entropy of logits (B,classes) and the labels of a batch, which it has under `label` or in second place.

    Raises:
        CompressionError: the batch has no labels.
    """
    labels = batch.get("label") if isinstance(batch, Mapping) else batch[1] if isinstance(batch, list | tuple) else None
    if not isinstance(labels, Tensor) or not isinstance(output, Tensor) or output.dim() != 2:
        raise CompressionError("this method needs a loss: batches with class labels, or `loss` for another task")
    return F.cross_entropy(output, labels.to(output.device))
