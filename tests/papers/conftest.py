"""Fixtures of the papers' tests."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest

from common.reporting.ledger import Ledger, load
from tests.datasets import write_dataset


@pytest.fixture(scope="module")
def ledger(request: pytest.FixtureRequest) -> Ledger:
    """The ledger of the paper whose folder the test is in."""
    return load(Path(__file__).resolve().parents[2] / "papers" / request.path.parent.name / "ledger.yaml")


@pytest.fixture(scope="session")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], list[str]]:
    """A function from a dataset's name to the arguments that point a recipe at a tiny copy of it."""
    return cache(lambda name: write_dataset(name, tmp_path_factory.mktemp(name)))
