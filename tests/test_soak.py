"""A few bad inputs of every kind; `make soak` tries hundreds."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import soak


@pytest.fixture(scope="module")
def valid(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("valid")


@pytest.mark.parametrize("name", soak.KINDS)
def test_bad_inputs_are_refused_by_name(name: str, valid: Path) -> None:
    outcomes = {number: soak.run_case(name, number, valid) for number in range(9)}
    faults = {number: said for number, (outcome, said) in outcomes.items() if outcome not in ("refused", "right")}
    assert not faults


def test_valid_files_are_read(tmp_path: Path) -> None:
    """Every kind's files are right before they are damaged, so that a refusal is about the damage."""
    for name, kind in soak.KINDS.items():
        folder = tmp_path / name
        folder.mkdir()
        kind.write(folder)
        damaged = next(path for path in sorted(folder.glob(kind.damaged)) if path.is_file())
        kind.read(folder, damaged)
