"""Checkpoint files: written whole or not at all, read without running code."""

import itertools
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO
from torch import Tensor, nn
from torch.nn.modules.module import register_module_module_registration_hook

from common.command_line import first_line
from common.limits import HINT, limit
from common.output_files import new_file

MAX_CLAIMED = limit(100)  # times the weights that a checkpoint holds may its network have before it is compressed
MAX_MODULES = limit(5_000)  # of a network that a checkpoint describes
LAST, PREVIOUS = "last.ckpt", "last-previous.ckpt"
#: what a training resumes from beside its weights
TRAINING_STATE: dict[str, type] = {
    "epoch": int,
    "global_step": int,
    "pytorch-lightning_version": str,
    "state_dict": dict,
    "loops": dict,
    "callbacks": dict,
    "optimizer_states": list,
    "lr_schedulers": list,
    "hyper_parameters": dict,
}


class CheckpointError(ValueError):
    """A checkpoint is unreadable, or belongs to another network or another list of classes."""


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes to a temporary file in the same folder, flushes it to the disk, and renames it over the old checkpoint.

    A full disk or a killed process leaves the old checkpoint as it was, and the ``last.ckpt`` before the newest is kept
    as ``last-previous.ckpt``. Reading never unpickles objects.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None) -> None:
        """Write ``checkpoint`` to the local ``path``.

        Raises:
            CheckpointError: the file cannot be written; whatever was at ``path`` before is still there.
        """
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with new_file(path, overwrite=True) as temporary:
                with temporary.open("wb") as file:
                    torch.save(checkpoint, file)
                    file.flush()
                    os.fsync(file.fileno())
                if path.name == LAST and path.is_file():
                    path.replace(path.with_name(PREVIOUS))
        except (OSError, RuntimeError) as error:  # torch reports a failed write as RuntimeError
            kept = f"the previous {path.name} is intact" if path.exists() else "no checkpoint was there before"
            raise CheckpointError(f"cannot write the checkpoint {path}: {first_line(error)}; {kept}") from error

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = True
    ) -> dict[str, Any]:
        """Read a checkpoint to the CPU; see :func:`read_checkpoint`."""
        return read_checkpoint(path)


@contextmanager
def building_what_a_file_says() -> Iterator[None]:
    """Within it, networks are made on the meta device, which allocates nothing, and of a limited number of modules.

    Raises:
        CheckpointError: there are more.
    """
    numbers = itertools.count()

    def count(parent: nn.Module, name: str, module: nn.Module | None) -> None:
        if next(numbers) > MAX_MODULES:
            raise CheckpointError(f"claims a network of more than {MAX_MODULES:,} modules; it is damaged; {HINT}")

    handle = register_module_module_registration_hook(count)
    try:
        with torch.device("meta"):
            yield
    finally:
        handle.remove()


def check_claims(network: nn.Module, weights: Mapping[str, Any]) -> None:
    """Raise CheckpointError if a network, on the meta device, has many times the weights that a file holds."""
    claimed = sum(tensor.numel() for tensor in network.state_dict().values())
    tensors = [value for value in weights.values() if _shape(value) is not None]
    # A tensor that repeats a number may look larger than the file.
    held = sum(min(x.numel(), x.untyped_storage().nbytes() // x.element_size()) for x in tensors)
    if claimed > MAX_CLAIMED * held:
        raise CheckpointError(f"claims {claimed:,} weights in its arguments, but holds {held:,}; it is damaged; {HINT}")


def _shape(value: Any) -> tuple[int, ...] | None:
    """The shape of a plain tensor; None for all that cannot be weights."""
    return tuple(value.shape) if isinstance(value, Tensor) and value.layout == torch.strided else None


def compare_state_dicts(ours: Mapping[str, Tensor], theirs: Mapping[str, Tensor], limit: int = 5) -> str:
    """Say which keys are missing, unexpected or of another shape, the first ``limit`` of each; empty if none."""
    kinds = {
        "missing in the checkpoint": [k for k in ours if k not in theirs],
        "unexpected in the checkpoint": [str(k) for k in theirs if k not in ours],
        "of another shape": [
            f"{k} {type(theirs[k]).__name__ if shape is None else shape} instead of {tuple(ours[k].shape)}"
            for k in ours
            if k in theirs and (shape := _shape(theirs[k])) != tuple(ours[k].shape)
        ],
    }
    lines = []
    for kind, keys in kinds.items():
        if keys:
            more = f", and {len(keys) - limit} more" if len(keys) > limit else ""
            lines.append(f"  {len(keys)} {kind}: {', '.join(keys[:limit])}{more}")
    return "\n".join(lines)


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """Read a checkpoint to the CPU without running any code in it. A folder stands for its newest ``best.ckpt``.

    Raises:
        CheckpointError: the file is missing, truncated, no checkpoint, or holds more than tensors and plain values.
    """
    path = find_checkpoint(path)
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:  # of torch.save, which does not compress
                size = sum(entry.file_size for entry in archive.infolist())
                if size > path.stat().st_size:
                    raise ValueError(f"it would unpack to {size} bytes")
                if (damaged := archive.testzip()) is not None:  # torch.load ignores checksums
                    raise ValueError(f"the checksum of its part {damaged} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many types for damaged or foreign files
        raise CheckpointError(
            f"{path}: not a checkpoint that can be read safely ({first_line(error)}); it is damaged, "
            "of another program, or holds objects other than tensors and plain values"
        ) from error
    if not isinstance(checkpoint, dict):
        raise CheckpointError(f"{path}: holds a {type(checkpoint).__name__}, not a checkpoint")
    return checkpoint


def check_training_state(path: Path) -> None:
    """Raise CheckpointError unless a checkpoint can be read and has the parts that a training resumes from."""
    checkpoint = read_checkpoint(path)
    wrong = [key for key, kind in TRAINING_STATE.items() if not isinstance(checkpoint.get(key), kind)]
    if wrong or not checkpoint["loops"].get("fit_loop"):
        raise CheckpointError(
            f"{path}: no training can resume from it, since it lacks {', '.join(wrong or ['loops.fit_loop'])}; "
            "--model.pretrained in place of --ckpt_path starts from its weights"
        )


def find_checkpoint(path: str | Path, name: str = "best.ckpt") -> Path:
    """A checkpoint file as it is; of a run folder, or a folder of runs, the newest ``name`` below it.

    Raises:
        CheckpointError: there is none.
    """
    path = Path(path)
    if path.is_file():
        return path
    found = sorted([*path.glob(name), *path.glob(f"version_*/{name}")], key=lambda p: (p.stat().st_mtime_ns, str(p)))
    if not found:
        what = f"has no {name}, nor do its version_* folders" if path.is_dir() else "does not exist"
        others = sorted([*path.glob(LAST), *path.glob(f"version_*/{LAST}")], key=lambda p: p.stat().st_mtime_ns)
        hint = f"; name the file to use the state after the last epoch: {others[-1]}" if others else ""
        raise CheckpointError(f"no checkpoint: {path} {what}{hint}")
    newest = max(path.glob(f"version_*/{LAST}"), key=lambda p: p.stat().st_mtime_ns, default=found[-1])
    if newest.parent != found[-1].parent and not (newest.parent / name).is_file() and not _resumed(newest.parent):
        raise CheckpointError(
            f"the newest run, {newest.parent}, has no {name}: it was trained without validation, or is not finished. "
            f"Name a file: {newest}, or {found[-1]} of an older run"
        )
    return found[-1]


def _resumed(folder: Path) -> bool:
    """Whether a run resumed another one, whose best weights may still be the best."""
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8")).get("checkpoint") is not None
    except (OSError, ValueError, AttributeError):
        return False


def find_last(runs: str | Path, check: Callable[[Path], Any] = read_checkpoint) -> tuple[Path, list[str]]:
    """The newest ``last.ckpt`` of a folder of runs that passes a check; the one before it where that is damaged.

    Returns:
        The file, and what is wrong with newer ones.

    Raises:
        CheckpointError: there is none that can be read.
    """
    runs = Path(runs)
    names = (f"version_*/{LAST}", f"version_*/{PREVIOUS}", LAST, PREVIOUS)
    found = [path for name in names for path in runs.glob(name)]
    damaged = []
    for path in sorted(found, key=lambda p: (p.stat().st_mtime_ns, str(p)), reverse=True):
        try:
            check(path)
        except CheckpointError as error:
            damaged.append(str(error))
        else:
            return path, damaged
    if damaged:
        raise CheckpointError("\n".join(damaged))
    return find_checkpoint(runs, LAST), []  # says what is missing
