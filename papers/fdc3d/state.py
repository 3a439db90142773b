"""The decisions of a compression, and the file from which an interrupted one resumes."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.training.checkpoints import AtomicCheckpointIO, CheckpointError, read_checkpoint
from papers.fdc3d.examples import CompressionError


@dataclass
class Decision:
    """The result of steps 2 to 12 for a layer: S (t,t), the kept rows (t,) bool, beta (c,) with 0 for what goes."""

    transform: Tensor
    rows: Tensor
    scale: Tensor
    loss_start: float = math.nan
    loss: float = math.nan
    error: float = 0.0


class State:
    """The file of a compression under way: the decisions so far, and a fingerprint of the network and the options."""

    def __init__(self, path: str | Path | None, network: nn.Module, settings: Any) -> None:
        self.path = None if path is None else Path(path)
        self.decisions: dict[str, Decision] = {}
        self.weights: dict[str, Tensor] | None = None
        if self.path is None:
            return
        digest = hashlib.sha256(repr(settings).encode())
        for name, value in network.state_dict().items():
            digest.update(name.encode())
            digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        self.fingerprint = digest.hexdigest()
        if not self.path.exists():
            return
        stored = read_checkpoint(self.path)
        if stored.get("fingerprint") != self.fingerprint:
            raise CompressionError(
                f"{self.path} belongs to the compression of another network, or with other options; "
                "name another state file, or delete this one to start afresh"
            )
        known = {f.name for f in fields(Decision)}
        try:
            for name, values in stored["decisions"].items():
                self.decisions[name] = Decision(**{k: v for k, v in values.items() if k in known})
        except (KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{self.path}: not the state of a compression ({error})") from error
        self.weights = stored.get("weights")

    def add(self, name: str, decision: Decision) -> None:
        """Keep the decision of a layer."""
        self.decisions[name] = decision
        self._save()

    def keep(self, network: nn.Module) -> None:
        """Keep the weights of a network that the method trained."""
        self.weights = network.state_dict()
        self._save()

    def restore(self, network: nn.Module) -> bool:
        """Give the network the weights that were kept, if there are any."""
        if self.weights is not None:
            network.load_state_dict(self.weights)
        return self.weights is not None

    def _save(self) -> None:
        if self.path is not None:
            decisions = {name: vars(decision) for name, decision in self.decisions.items()}
            stored = {"fingerprint": self.fingerprint, "decisions": decisions, "weights": self.weights}
            AtomicCheckpointIO().save_checkpoint(stored, self.path)
