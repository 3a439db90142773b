"""Entry points of `torch.hub`: the networks of all papers with untrained weights, and those of checkpoints.

    torch.hub.load(".", "t_stft", source="local", num_classes=27)
    torch.hub.load(".", "checkpoint", source="local", path="runs/my_run")

Nothing is downloaded.
"""

from collections.abc import Sequence as _Sequence
from pathlib import Path as _Path

from torch.nn import Module as _Module

from papers import networks as _networks

dependencies = ["torch", "torchvision", "lightning", "torchmetrics", "fvcore", "scipy", "yaml", "matplotlib", "rich"]

globals().update(_networks())


def checkpoint(path: str | _Path, allow: _Sequence[str] = ()) -> _Module:
    """The trained network of a checkpoint of this project, on the CPU and in evaluation mode.

    Args:
        path: checkpoint file, or the folder of a run (its `best.ckpt`).
        allow: packages whose modules a checkpoint may name besides those of this project; they are imported.

    Raises:
        CheckpointError: the file cannot be read safely, or was not written by this project.
    """
    from common.training.task import TRUSTED, load_module

    return load_module(path, (*TRUSTED, *allow)).network
