"""What a result was made by: the commit of this code, and the versions of the packages."""

from __future__ import annotations

import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "torchvision", "lightning", "torchmetrics", "pytorchvideo", "av", "spectral-video")


def git_state() -> dict[str, Any]:
    """``commit`` of this source tree (None outside of git) and ``dirty``: whether tracked files differ from it."""

    command = ["git", "-C", str(Path(__file__).parent), "status", "--porcelain=v2", "--branch", "--untracked-files=no"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except (OSError, subprocess.CalledProcessError):
        return {"commit": None, "dirty": None}
    commit = next(line.split()[-1] for line in lines if line.startswith("# branch.oid"))
    return {
        "commit": None if commit == "(initial)" else commit,
        "dirty": any(not line.startswith("#") for line in lines),
    }


def package_versions() -> dict[str, str]:
    """Versions of Python, of the packages that decide a result, and of the GPU if there is one."""
    import torch

    versions = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            versions[package] = "not installed"
    if torch.cuda.is_available():
        versions["gpu"] = torch.cuda.get_device_name()
    return versions
