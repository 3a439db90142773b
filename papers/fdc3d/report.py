"""What a compression did to every layer, and the three speed-ups of the network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from rich.console import Console
from rich.table import Table
from torch import nn

from common.evaluation.complexity import count
from papers.fdc3d.layers import CompactConv3d


@dataclass
class LayerReport:
    """What happened to one convolution.

    Attributes:
        name: of the module.
        kernel: (t,d,d); channels, rows: before; kept_channels, kept_rows: after.
        note: why it is not pruned, or not in all ways; empty if it is.
        macs: multiply-adds of the dense layer for one input; macs_compact: after, with the temporal transform.
        params, params_compact: values of the weights, the transform included (Eq. 14).
        loss_start, loss: Eq. 9 (without the part that does not depend on S and beta), with the DCT and with the learned
            S; NaN for methods that do not learn.
        error: norm of the change of the layer's output over that of the output, on the last batch.
        seconds, seconds_compact: time of the layer, where it was measured; execution: the one that was chosen then.
    """

    name: str
    kernel: tuple[int, int, int]
    channels: int
    rows: int
    kept_channels: int
    kept_rows: int
    note: str = ""
    macs: int = 0
    macs_compact: int = 0
    params: int = 0
    params_compact: int = 0
    loss_start: float = math.nan
    loss: float = math.nan
    error: float = 0.0
    seconds: float = math.nan
    seconds_compact: float = math.nan
    execution: str = ""

    @property
    def formula(self) -> float:
        """Speed-up of the layer by Eq. 13, c t / c' t', without the transform."""
        return self.channels * self.rows / (self.kept_channels * self.kept_rows)

    def cells(self) -> dict[str, str]:
        """The row of the printed table, by column."""
        speedup = self.seconds / self.seconds_compact
        return {
            "layer": self.name,
            "kernel": "x".join(map(str, self.kernel)),
            "channels": f"{self.channels} > {self.kept_channels}",
            "rows": f"{self.rows} > {self.kept_rows}",
            "formula": f"{self.formula:.2f}x",
            "multiply-adds": f"{self.macs / max(self.macs_compact, 1):.2f}x",
            "measured": "-" if math.isnan(speedup) else f"{speedup:.2f}x {self.execution}",
            "error": f"{self.error:.3f}",
            "note": self.note,
        }


@dataclass
class CompressionReport:
    """One row per 3D convolution, and three speed-ups of the network that must not be confused.

    Attributes:
        method, importance, channel_rate, temporal_rate: the settings.
        layers: in the order in which they are called.
        formula: the paper's speed-up: multiply-adds of all 3D convolutions over those of Eq. 13, without the transform.
        multiply_adds: speed-up in multiply-adds of the whole network, the transforms included.
        measured: seconds of the dense network over those of the compact one; NaN before `timing.measure`.
        macs, macs_compact: multiply-adds of the network for one input; params, params_compact: its parameters.
        input_shape: of that input.
    """

    method: str
    importance: str
    channel_rate: Any
    temporal_rate: Any
    layers: list[LayerReport] = field(default_factory=list)
    formula: float = math.nan
    multiply_adds: float = math.nan
    measured: float = math.nan
    macs: int = 0
    macs_compact: int = 0
    params: int = 0
    params_compact: int = 0
    input_shape: tuple[int, ...] = ()

    def recount(self, network: nn.Module) -> None:
        """Count the compact network again, for instance after unread filters were removed."""
        complexity = count(network, self.input_shape)
        self.macs_compact, self.params_compact = complexity.macs_paper, complexity.params
        self.formula = sum(layer.macs for layer in self.layers) / sum(
            layer.macs / layer.formula for layer in self.layers
        )
        self.multiply_adds = self.macs / max(self.macs_compact, 1)
        for layer in self.layers:
            layer.macs_compact = complexity.by_module.get(layer.name, (layer.macs_compact, 0))[0]
            module = network.get_submodule(layer.name)
            layer.params_compact = sum(p.numel() for p in module.parameters())
            if isinstance(module, CompactConv3d) and layer.kept_rows < layer.rows:
                layer.params_compact += module.transform.numel()

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON and checkpoints."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> CompressionReport:
        """The inverse of `to_dict`."""
        layers = [LayerReport(**{**layer, "kernel": tuple(layer["kernel"])}) for layer in values["layers"]]
        return cls(**{**values, "layers": layers, "input_shape": tuple(values["input_shape"])})

    def __str__(self) -> str:
        table = Table(title=f"{self.method}: {len(self.layers)} convolutions")
        rows = [layer.cells() for layer in self.layers]
        for name in rows[0]:
            table.add_column(name, justify="left" if name in ("layer", "note") else "right", overflow="fold")
        for row in rows:
            table.add_row(*row.values())
        console = Console(width=150, color_system=None)
        with console.capture() as capture:
            console.print(table)
        measured = "not measured" if math.isnan(self.measured) else f"{self.measured:.2f}x measured on this machine"
        return (
            f"{capture.get()}"
            f"speed-up: {self.formula:.2f}x by the paper's formula (convolutions alone, no transform), "
            f"{self.multiply_adds:.2f}x in multiply-adds of the network with the transform, {measured}\n"
            f"multiply-adds {self.macs:,} > {self.macs_compact:,}; parameters {self.params:,} > {self.params_compact:,}"
        )
