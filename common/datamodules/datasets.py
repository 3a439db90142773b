"""Facts about the known datasets, from ``datasets.yaml``."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from common.command_line import did_you_mean
from common.datamodules.errors import DatasetError
from common.datamodules.manifest import SPLITS

CARDS = Path(__file__).with_name("datasets.yaml")
NO_ARGUMENTS = ("data", "title", "classes", "counts")  # keys that are no arguments of a data module
PREPARED = (*NO_ARGUMENTS, "root", "manifest", "test_split", "horizontal_flip")  # what `data.prepare` and runs rely on


def read_datasets() -> dict[str, dict[str, Any]]:
    """The entries of ``datasets.yaml`` by name."""
    return yaml.safe_load(CARDS.read_text(encoding="utf-8"))


def read_card(dataset: str) -> dict[str, Any]:
    """The entry of a dataset that `data.prepare` prepares.

    Raises:
        DatasetError: there is none, a key is missing, or it names a split that does not exist.
    """
    card = read_datasets().get(dataset)
    if card is None:
        raise DatasetError(f"{CARDS}: no entry {dataset}: add one with the keys {', '.join(PREPARED)}.")
    if missing := [key for key in PREPARED if key not in card]:
        raise DatasetError(f"{CARDS}: {dataset} lacks the keys {', '.join(missing)}: add or correct them.")
    if wrong := sorted({*card["counts"], card["test_split"]} - set(SPLITS)):
        raise DatasetError(
            f"{CARDS}: {dataset} names the split {', '.join(wrong)} in counts or test_split; "
            f"the splits are {', '.join(SPLITS)}: correct it."
        )
    return card


def with_dataset(dataset: str | None, data: str, **given: Any) -> dict[str, Any]:
    """The arguments of a data module: those given, otherwise those of the dataset's entry.

    Args:
        dataset: name of an entry; None for the user's own data.
        data: the kind of data module, the entry's ``data``.
        given: arguments of the data module; None if not given.

    Returns:
        A value for each of ``given``; None if neither has one.

    Raises:
        ValueError: the dataset is unknown or of another kind, its entry has an unknown key, or no root is known.
    """
    entry: dict[str, Any] = {}
    if dataset is not None:
        known = {name: values for name, values in read_datasets().items() if values["data"] == data}
        if dataset not in known:
            hint = did_you_mean(dataset, known, f" The known ones are {', '.join(known)}.")
            raise ValueError(f"dataset is {dataset!r}, which is not a known {data} dataset.{hint}")
        entry = known[dataset]
        for key in entry:
            if key not in (keys := {*NO_ARGUMENTS, *given}):
                hint = did_you_mean(key, keys, f" The known ones are {', '.join(sorted(keys))}.")
                raise ValueError(f"{CARDS}: {dataset} has the unknown key {key}.{hint}")
    values = {name: entry.get(name) if value is None else value for name, value in given.items()}
    if not values["root"]:
        raise ValueError("give `root`, the folder of your own files, or `dataset`, a known dataset.")
    return values
