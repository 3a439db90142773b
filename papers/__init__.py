"""The papers, a package each."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from types import FunctionType
from typing import Any


def networks() -> dict[str, Callable[..., Any]]:
    """The functions that build the networks of all papers, by name: the public ones of every `papers.<paper>.networks`.

    They return a `torch.nn.Module`.
    """
    found: dict[str, Callable[..., Any]] = {}
    for paper in pkgutil.iter_modules(__path__, f"{__name__}."):
        if paper.ispkg:
            names = importlib.import_module(paper.name).__all__
            module = importlib.import_module(f"{paper.name}.networks")
            public = {name: vars(module).get(name) for name in names}
            found |= {
                name: value
                for name, value in public.items()
                if isinstance(value, FunctionType) and value.__module__ == module.__name__
            }
    return found
