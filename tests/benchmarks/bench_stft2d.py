"""Times the fixed Depthwise-STFT layer on pictures against a trainable depthwise convolution with the same outputs.

    python -m tests.benchmarks.bench_stft2d [--quick] [--threads N]

Both make 8 channels of each one. The trainable layer also computes the gradient of its weights. How the numbers come
about: `bench_stft`, whose tables and allocator settings are used.
"""

from __future__ import annotations

import sys

import torch
from torch import nn

from common.spectral import DepthwiseSTFT
from tests.benchmarks.bench_stft import Shape, Variants, steps, table
from tests.benchmarks.command import new_parser, parsed, restarted
from tests.networks import ChannelsLast

SHAPES: dict[str, Shape] = {"32x32": (16, 16, 32, 32), "16x16": (16, 64, 16, 16), "8x8": (16, 64, 8, 8)}


def trainable(layer: DepthwiseSTFT) -> nn.Conv2d:
    """The trainable layer, with the fixed filters as its weights so that results can be compared."""
    channels, n = layer.in_channels, layer.kernel_size[0]
    conv = nn.Conv2d(channels, layer.out_channels, n, padding=n // 2, groups=channels, bias=False)
    conv.weight = nn.Parameter(layer.kernels.repeat(channels, 1, 1, 1))
    return conv


def variants(n: int, shape: Shape, device: str) -> Variants:
    layer = DepthwiseSTFT(shape[1], (n, n)).to(device)
    fixed = trainable(layer).requires_grad_(False)
    return {
        "trainable depthwise convolution": (trainable(layer), False),
        "trainable, channels last": (ChannelsLast(trainable(layer)), False),
        "fixed filters as a convolution": (fixed, False),
        "ours": (layer, False),
    }


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parsed(new_parser(__doc__, "one small map, three rounds"), arguments)
    if (status := restarted("bench_stft2d", arguments, options.device)) is not None:
        return status
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
