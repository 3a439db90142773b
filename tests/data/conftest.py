"""A small motion data set, made once for the tests of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from common.datamodules.manifest import Manifest
from data.demo.motion import generate_motion


@pytest.fixture(scope="session")
def motion(tmp_path_factory: pytest.TempPathFactory) -> Manifest:
    """40 training, 2 validation and 40 test clips of each of the eight classes, 48 x 48 pixels, 8 frames."""
    folder: Path = tmp_path_factory.mktemp("motion") / "clips"
    return Manifest.read(generate_motion(folder, size=48, frames=8, train=40, val=2, test=40, seed=3), folder)
