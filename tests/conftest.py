"""Options of the test suite."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import SimpleNamespace

import jsonargparse._core
import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--papers",
        type=Path,
        help="hold the paper in this folder, or every paper below it, to tests/papers/test_every_paper.py",
    )


def pytest_configure() -> None:
    """jsonargparse asks `inspect.stack` for the module of its caller, which reads the source of every frame: below
    pytest, a third of the time that parsing takes.
    """

    def stack() -> list[tuple[object]]:
        return [(sys._getframe(1),), (sys._getframe(2),)]

    jsonargparse._core.inspect = SimpleNamespace(**vars(inspect) | {"stack": stack})  # type: ignore[attr-defined]
