"""Times the fixed Depthwise-STFT layer on pictures against a trainable depthwise convolution with the same outputs.

    python -m tests.benchmarks.bench_stft2d [--quick]

Both make 8 channels of each one. The trainable layer also computes the gradient of its weights. How the numbers come
about: `bench_stft`, whose tables and allocator settings are used.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch
from torch import Tensor, nn

from common.spectral import DepthwiseSTFT
from tests.benchmarks.bench_stft import KEEP_MEMORY, Shape, Variants, steps, table

SHAPES: dict[str, Shape] = {"32x32": (16, 16, 32, 32), "16x16": (16, 64, 16, 16), "8x8": (16, 64, 8, 8)}


class ChannelsLast(nn.Module):
    """The input with its channels last in memory."""

    def forward(self, x: Tensor) -> Tensor:
        return x.contiguous(memory_format=torch.channels_last)


def trainable(layer: DepthwiseSTFT) -> nn.Conv2d:
    """The trainable layer, with the fixed filters as its weights so that results can be compared."""
    channels, n = layer.in_channels, layer.kernel_size[0]
    conv = nn.Conv2d(channels, layer.out_channels, n, padding=n // 2, groups=channels, bias=False)
    conv.weight = nn.Parameter(layer.kernels.repeat(channels, 1, 1, 1))
    return conv


def variants(n: int, shape: Shape, device: str) -> Variants:
    layer = DepthwiseSTFT(shape[1], (n, n)).to(device)
    last = nn.Sequential(ChannelsLast(), trainable(layer).to(memory_format=torch.channels_last))
    fixed = trainable(layer).requires_grad_(False)
    return {
        "trainable depthwise convolution": (trainable(layer), False),
        "trainable, channels last": (last, False),
        "fixed filters as a convolution": (fixed, False),
        "ours": (layer, False),
    }


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one small map, three rounds")
    parser.add_argument("--rounds", type=int, default=15, help="timed rounds per table")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    linux_cpu = options.device == "cpu" and sys.platform == "linux"
    if linux_cpu and any(os.environ.get(name) != value for name, value in KEEP_MEMORY.items()):
        command = [sys.executable, "-m", "tests.benchmarks.bench_stft2d", *arguments]
        return subprocess.run(command, env={**os.environ, **KEEP_MEMORY}, check=False).returncode
    shapes = {"8x8": (2, 8, 8, 8)} if options.quick else SHAPES
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    for n in (3, 5):
        for shape in shapes.values():
            for mode, label in (("forward", "forward"), ("both", "forward + backward")):
                functions = steps(variants(n, shape, options.device), shape, options.device, mode)
                title = f"Depthwise-STFT {n}x{n}, {'x'.join(map(str, shape))}, {label}"
                table(title, functions, 3 if options.quick else options.rounds, options.device, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
