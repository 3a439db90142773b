"""Names of a package that are imported when they are asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from typing import Any


def lazy_attributes(package: str, **names: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """The `__getattr__` and `__dir__` of a package that imports some names, given by submodule and with a space
    between, on first use.

    The papers' packages offer their names like this, so that networks need no Lightning, and lists no PyTorch.
    """
    homes = {name: submodule for submodule, listed in names.items() for name in listed.split()}

    def attribute(name: str) -> Any:
        if name in homes:
            return getattr(importlib.import_module(f"{package}.{homes[name]}"), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return attribute, lambda: sorted({*vars(sys.modules[package]), *homes})
