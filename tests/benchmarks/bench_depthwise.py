"""Trainable depthwise convolutions of the S-STFT, T-STFT and Fact.+DW blocks: ours against `torch.nn.Conv3d`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from common.backbones.blocks import DepthwiseConv3d
from common.evaluation.latency import measure_latency
from tests.networks import ChannelsLast

SHAPES = ((16, 24, 8, 16, 16), (2, 24, 16, 112, 112), (2, 64, 16, 56, 56), (2, 96, 16, 28, 28))
KERNELS = {"1x3x3": ((1, 3, 3), (0, 1, 1)), "3x1x1": ((3, 1, 1), (1, 0, 0))}


def main(argv: Sequence[str] | None = None) -> None:
    """Print forward + backward times and ratios of every shape and kernel."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small shapes and few rounds")
    parser.add_argument("--json", action="store_true", help="print JSON and nothing else")
    args = parser.parse_args(argv)
    records = []
    for batch, channels, *size in SHAPES[:1] if args.quick else SHAPES:
        for name, (kernel, padding) in KERNELS.items():
            stock = nn.Conv3d(channels, channels, kernel, padding=padding, groups=channels, bias=False)
            ours = DepthwiseConv3d(channels, channels, kernel, padding=padding)
            networks = {"stock": stock, "stock, channels-last": ChannelsLast(stock), "ours": ours}
            x = torch.randn(batch, channels, *size)
            measured = measure_latency(networks, x, repeats=3 if args.quick else 7, backward=True)
            shape = "x".join(map(str, x.shape))
            for network, latency in measured.items():
                ms, speed = 1000 * latency.seconds, measured["stock"].seconds / latency.seconds
                records.append({"kernel": name, "shape": shape, "network": network, "ms": ms, "speed": speed})
    if args.json:
        print(json.dumps(records, indent=2))
        return
    table = Table("kernel", "shape", "network", title="Depthwise convolutions, forward + backward on the CPU")
    table.add_column("ms", justify="right")
    table.add_column("speed", justify="right")
    for r in records:
        table.add_row(r["kernel"], r["shape"], r["network"], f"{r['ms']:.1f}", f"{r['speed']:.2f}x")
    Console(width=100).print(table)


if __name__ == "__main__":
    main()
