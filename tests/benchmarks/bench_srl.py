"""Times the SRL-FFT block against the non-local block and its rivals, and the half against the full spectrum.

    python -m tests.benchmarks.bench_srl [--quick] [--json]

Every line is one run in which the blocks take turns, forward and backward. "time" and "memory" are the other block's
over those of SRL-FFT, so 2.00 means that SRL-FFT takes half; memory is the most that is held at once of the tensors
that PyTorch makes, beside input and weights.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from common.evaluation.latency import measure_latency, peak_allocated
from papers.srl.figures import blocks
from papers.srl.layers import NonLocalBlock, SRLBlock

#: batch, channels, size: feature maps of ResNets on pictures and clips
MAPS = ((2, 128, 28), (2, 256, 28), (2, 64, 40), (1, 256, 56))
CLIPS = ((2, 128, 4, 28), (2, 256, 4, 28))
SPECTRA = ((16, 128, 28, 28), (16, 256, 14, 14), (4, 256, 64, 48))


def _record(title: str, shape: Sequence[int], networks: Mapping[str, nn.Module], repeats: int) -> list[dict[str, Any]]:
    """Times and memory of all networks over those of the last one."""
    x = torch.randn(*shape, requires_grad=True)
    times = measure_latency(networks, x, repeats=repeats, backward=True)
    memory = {name: peak_allocated(network, x, backward=True) for name, network in networks.items()}
    ours = list(networks)[-1]
    return [
        {
            "comparison": title,
            "input": "x".join(map(str, shape)),
            "block": name,
            "ms": 1000 * times[name].seconds,
            "time": times[name].seconds / times[ours].seconds,
            "memory": memory[name] / memory[ours],
        }
        for name in networks
    ]


def main(argv: Sequence[str] | None = None) -> None:
    """Print times, and the ratios of time and memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small map each and few rounds")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    args = parser.parse_args(argv)
    repeats = 2 if args.quick else 7
    records = []
    for batch, channels, size in MAPS[:1] if args.quick else MAPS:
        records += _record("pictures", (batch, channels, size, size), blocks(size, channels), repeats)
    for batch, channels, frames, size in CLIPS[:1] if args.quick else CLIPS:
        pooled = {
            "NL, keys pooled 2x2": NonLocalBlock(channels, "before", fused=False),
            "NL, keys pooled 2x2, fused": NonLocalBlock(channels, "before"),
            "SRL-FFT": SRLBlock(channels, (size, size), frames),
        }
        for network in pooled.values():
            for parameter in network.parameters():
                nn.init.normal_(parameter, std=0.1)
        records += _record("clips", (batch, channels, frames, size, size), pooled, repeats)
    for batch, channels, height, width in SPECTRA[1:2] if args.quick else SPECTRA:
        spectra = {
            f"SRL-FFT, {spectrum} spectrum": SRLBlock(channels, (height, width), spectrum=spectrum)  # type: ignore[arg-type]
            for spectrum in ("full", "half")
        }
        records += _record("spectrum", (batch, channels, height, width), spectra, repeats)
    if args.json:
        print(json.dumps(records, indent=2))
        return
    table = Table("comparison", "input", "block", title=f"Forward + backward, {torch.get_num_threads()} threads")
    for name in ("ms", "time", "memory"):
        table.add_column(name, justify="right")
    for r in records:
        if r["input"] != (records[max(0, records.index(r) - 1)])["input"]:
            table.add_section()
        row = (r["comparison"], r["input"], r["block"], f"{r['ms']:.1f}", f"{r['time']:.2f}x", f"{r['memory']:.2f}x")
        table.add_row(*row)
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
