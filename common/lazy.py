"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def lazy_attributes(package: str, **names: str) -> Callable[[str], Any]:
    """The `__getattr__` of a package that takes names, given by submodule and with a space between, on first use.

    The papers' packages offer their modules like this, so that networks and layers need no Lightning.
    """
    homes = {name: submodule for submodule, listed in names.items() for name in listed.split()}

    def attribute(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute
