"""The wheel has all that the code needs, and works without the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("papers", "common", "data")


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the content of the wheel, built from a copy of the sources."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in PACKAGES:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["pip", "wheel", str(source), "--no-deps", "--no-build-isolation", "--quiet", "--wheel-dir", str(folder)]
    subprocess.run([sys.executable, "-m", *build], check=True, timeout=120)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def run(site: Path, folder: Path, *words: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environment, capture_output=True, text=True, timeout=200
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.mark.slow
def test_every_file_of_the_packages_is_in_the_wheel(site: Path) -> None:
    passed_over = {".png", ".pyc"}
    for package in PACKAGES:
        for path in (ROOT / package).rglob("*"):
            if path.is_file() and path.suffix not in passed_over:
                assert (site / path.relative_to(ROOT)).is_file(), path


@pytest.mark.slow
def test_the_wheel_trains_by_a_recipe_of_its_own(site: Path, tmp_path: Path) -> None:
    data = ["--out", "runs/demo/motion", "--frames", "8", "--train", "1", "--val", "1", "--test", "1", "--size", "32"]
    run(site, tmp_path, "data.demo", "motion", *data)
    recipe = ["--config", "papers/stft3d/recipes/demo.yaml", "--trainer.max_epochs", "1"]
    printed = run(site, tmp_path, "common.training.cli", "fit", *recipe, "--trainer.check_val_every_n_epoch", "1")
    assert "STFT3DModule" in printed
    run(site, tmp_path, "common.training.cli", "test", *recipe, "--ckpt_path", "last")
    assert "demo" in run(site, tmp_path, "common.training.cli", "runs")
    assert "table2/t-stft-16f" in run(site, tmp_path, "papers.stft3d.reproduce", "--list")
    assert "A dynamic filter" in run(
        site, tmp_path, "common.training.cli", "compare", "papers/dtf/claims.yaml", "--show"
    )
