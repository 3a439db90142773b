"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Collection
from typing import Any


def lazy_attributes(package: str, submodule: str, names: Collection[str]) -> Callable[[str], Any]:
    """The `__getattr__` of a package that takes `names` from a submodule on first use.

    The papers' packages offer their modules like this, so that networks and layers need no Lightning.
    """

    def attribute(name: str) -> Any:
        if name in names:
            return getattr(importlib.import_module(f"{package}.{submodule}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute
