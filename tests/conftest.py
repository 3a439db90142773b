"""Options of the test suite."""

from __future__ import annotations

from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--papers",
        type=Path,
        help="hold the paper in this folder, or every paper below it, to tests/papers/test_every_paper.py",
    )
