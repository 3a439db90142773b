"""Facts about the known datasets, from ``datasets.yaml``."""

from __future__ import annotations

import difflib
from importlib.resources import files
from typing import Any

import yaml


def read_datasets() -> dict[str, dict[str, Any]]:
    """The entries of ``datasets.yaml`` by name."""
    text = files("common.datamodules").joinpath("datasets.yaml").read_text(encoding="utf-8")
    return yaml.safe_load(text)


def with_dataset(dataset: str | None, data: str, **given: Any) -> dict[str, Any]:
    """The arguments of a data module: those given, otherwise those of the dataset's entry.

    Args:
        dataset: name of an entry; None for the user's own data.
        data: the kind of data module, the entry's ``data``.
        given: arguments of the data module; None if not given.

    Returns:
        A value for each of ``given``; None if neither has one.

    Raises:
        ValueError: the dataset is unknown or of another kind, or no root is known.
    """
    entry: dict[str, Any] = {}
    if dataset is not None:
        known = {name: values for name, values in read_datasets().items() if values["data"] == data}
        if dataset not in known:
            near = difflib.get_close_matches(dataset, known, n=1)
            hint = f"Did you mean {near[0]}?" if near else f"The known ones are {', '.join(known)}."
            raise ValueError(f"dataset is {dataset!r}, which is not a known {data} dataset. {hint}")
        entry = known[dataset]
    values = {name: entry.get(name) if value is None else value for name, value in given.items()}
    if not values["root"]:
        raise ValueError("give `root`, the folder of your own files, or `dataset`, a known dataset.")
    return values
