"""What is true of a dataset whatever is trained on it, from ``datasets.yaml``."""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import Any

import yaml


def read_datasets() -> dict[str, dict[str, Any]]:
    """Every known dataset: name -> its entry of ``datasets.yaml``."""
    text = files("common.datamodules").joinpath("datasets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def with_dataset(dataset: str | None, data: str, **given: Any) -> dict[str, Any]:
    """The arguments of a data module: those given, and what the dataset's entry says where nothing is given.

    Args:
        dataset: name of an entry; None for data of the user's own.
        data: the kind of data module, the entry's ``data``.
        given: arguments of the data module; None where nothing is given.

    Returns:
        A value for each of ``given``; None where neither has one.

    Raises:
        ValueError: there is no such dataset, it is of another kind, or no root is known.
    """
    entry: dict[str, Any] = {}
    if dataset is not None:
        known = {name: values for name, values in read_datasets().items() if values["data"] == data}
        if dataset not in known:
            near = difflib.get_close_matches(dataset, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"There are {', '.join(known)}."
            raise ValueError(f"dataset is {dataset!r}, which is not a known {data} dataset. {hint}")
        entry = known[dataset]
    values = {name: entry.get(name) if value is None else value for name, value in given.items()}
    if not values["root"]:
        raise ValueError("the data needs `root`, the folder of your own files, or `dataset`, a known dataset.")
    return values
