"""The base of the metrics that score every item of a dataset exactly once, on any number of processes."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.utilities import dim_zero_cat


class ItemScores(Metric):
    """Collects one row of values for each video, image, person or volume.

    Samplers repeat items so that all processes get the same number of batches; an item that was added more than once
    counts once. The rows come out on the CPU in the order of the items' indices, so one, two and three processes give
    bit-identical results.

    Args:
        rows: empty tensor (0, ...) with the shape and type of the rows, by name.
        kind: what an item is, for messages.
    """

    full_state_update = False
    index: list[Tensor]

    def __init__(self, rows: Mapping[str, Tensor], kind: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rows = {**rows, "index": torch.empty(0, dtype=torch.int64)}
        self.kind = kind
        for name in self.rows:
            self.add_state(name, default=[], dist_reduce_fx="cat")

    def update(self, **values: Tensor) -> None:
        """Add items: the values of ``rows`` (N, ...), and ``index`` (N,), unique in the dataset."""
        for name, row in self.rows.items():
            getattr(self, name).append(values[name].detach().to(row.dtype))

    def sync(self, *args: Any, **kwargs: Any) -> None:
        """Gather over the processes; one that saw no item takes part with empty tensors of the right shape."""
        if not self.index:
            ItemScores.update(self, **{name: row.to(self.device) for name, row in self.rows.items()})
        super().sync(*args, **kwargs)

    def compute(self) -> Any:
        """All rows and ``index``, as attributes, on the CPU, ascending by index, each item once.

        Raises:
            ValueError: no item was added, or one was added with two labels (two values of an integer row).
        """
        if not len(self.index) or not len(dim_zero_cat(self.index)):
            raise ValueError(f"no {self.kind} was scored: the dataset is empty, or the loader gave no batch")
        values = {name: dim_zero_cat(getattr(self, name)).cpu() for name in self.rows}
        order = torch.argsort(values["index"], stable=True)
        values = {name: value[order] for name, value in values.items()}
        index = values["index"]
        repeated = index[1:] == index[:-1]
        for name, value in values.items():
            if not value.is_floating_point() and (clash := repeated & (value[1:] != value[:-1])).any():
                raise ValueError(f"{self.kind} index {index[1:][clash][0].item()} came with two {name}s")
        first = torch.cat([torch.ones(1, dtype=torch.bool), ~repeated])
        # No dict or dataclass: torchmetrics would squeeze the tensors of a single item in one.
        return SimpleNamespace(**{name: value[first] for name, value in values.items()})
