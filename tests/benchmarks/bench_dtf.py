"""Times the DTF block against a temporal convolution of its width, and against the obvious way of writing it.

    python -m tests.benchmarks.bench_dtf [--quick] [--threads N]

The obvious block unfolds k*k copies of the features, predicts a complex filter, repeats it over the channels that
share it and multiplies by it between two Fourier transforms; outputs and gradients are checked to be equal. The shapes
are those of ResNet-50 with clips of 16 frames at 256 x 256 (4 frames in the blocks), and of longer clips. How the
numbers come about: `bench_stft`, whose tables and allocator settings are used.
"""

from __future__ import annotations

import sys
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers.dtf.layers import DTFBlock
from tests.benchmarks.bench_stft import Shape, Step, run, steps, table
from tests.benchmarks.command import new_parser, parsed, restarted

SHAPES: dict[str, Shape] = {
    "res4": (2, 256, 4, 16, 16),
    "res5": (2, 512, 4, 8, 8),
    "res4, 32 frames": (2, 256, 8, 16, 16),
    "res5, 32 frames": (2, 512, 8, 8, 8),
    "res5, 64 frames": (2, 512, 16, 8, 8),
    "res2": (2, 64, 4, 64, 64),
    "res3": (2, 128, 4, 32, 32),
}


class Obvious(nn.Module):
    """A DTF block of stock operators, with the parameters of `block`."""

    def __init__(self, block: DTFBlock) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        block, options = self.block, self.block.options
        author = options.expand == "author"
        batch, channels, time, height, width = x.shape
        frames = x.transpose(1, 2).flatten(0, 1)
        copies = F.unfold(frames, 3, padding=1).view(batch, time, channels, 9, height, width)
        before = torch.cat([x[:, :, :1], x[:, :, :-1]], dim=2).transpose(1, 2)
        scores = (before.unsqueeze(3) * copies).mean(2)  # at the later frame
        sums = (scores.softmax(2).unsqueeze(2) * copies).sum(3).transpose(1, 2)
        enhanced = x + F.pad(sums[:, :, 1:], (0, 0, 0, 0, 0, 1))
        if not author:
            scores = F.pad(scores[:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
        features = torch.cat([enhanced.transpose(1, 2), scores], dim=2)
        numbers = block.predict(features.flatten(1, 2))
        if author:
            f = numbers.unsqueeze(2).expand(-1, -1, block.options.share, -1, -1)
            f = f.reshape(batch, channels, block.frequencies, 2, height, width)
        else:
            f = numbers.view(batch, block.frequencies, 2, channels // block.options.share, height, width)
            f = f.permute(0, 3, 1, 2, 4, 5).repeat_interleave(block.options.share, dim=1)
        f = torch.view_as_complex(f.movedim(3, -1).contiguous())
        y = torch.fft.rfft(enhanced, dim=2, norm=options.fft_norm) * f
        if block.mix is not None and block.norm is not None:
            y = torch.matmul(torch.view_as_complex(block.mix.movedim(0, -1).contiguous()), y.flatten(2)).view(y.shape)
            y = torch.view_as_complex(block.norm(torch.view_as_real(y).flatten(3)).view(*y.shape, 2))
        y = block.alpha.unsqueeze(1) * torch.fft.irfft(y, n=time, dim=2, norm=options.fft_norm)
        return (x if author else enhanced) + y + (0 if block.bias is None else block.bias.unsqueeze(1))


class LinesConv(nn.Conv2d):
    """A (3,1,1) convolution as a 2D one: time is the height, a frame the width."""

    def __init__(self, channels: int) -> None:
        super().__init__(channels, channels, (3, 1), padding=(1, 0), bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.flatten(3)).view_as(x)


def convolutions(shape: Shape, device: str, mode: str) -> dict[str, Step]:
    channels, frames = shape[1:3]
    modules = {
        "(3,1,1) convolution": nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), bias=False),
        "the same as a 2D convolution": LinesConv(channels),
        "DTF": DTFBlock(channels, frames),
        "DTF, author's preset": DTFBlock(channels, frames, preset="author"),
    }
    found = {}
    for name, module in modules.items():
        x = torch.randn(shape, device=device)
        if name.startswith("DTF"):
            x = x.transpose(1, 2).contiguous().transpose(1, 2)
        found[name] = partial(run, module.to(device), x.requires_grad_(mode == "both"))
    return found


def compositions(shape: Shape, device: str, mode: str, preset: str) -> dict[str, Step]:
    block = DTFBlock(shape[1], shape[2], preset=preset)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in (block.alpha, block.bias):
            if parameter is not None:
                parameter.normal_(std=0.1)
    block.to(device)
    return steps({"unfold + complex FFT": (Obvious(block), False), "ours": (block, False)}, shape, device, mode)


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parsed(new_parser(__doc__, "one small map, three rounds"), arguments)
    if (status := restarted("bench_dtf", arguments, options.device)) is not None:
        return status
    shapes = {"small": (2, 32, 4, 8, 8)} if options.quick else SHAPES
    rounds = 3 if options.quick else options.rounds
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    for name, shape in shapes.items():
        size = "x".join(map(str, shape))
        for mode, label in (("forward", "forward"), ("both", "forward + backward")):
            functions = convolutions(shape, options.device, mode)
            table(f"DTF block and temporal convolution, {name}, {size}, {label}", functions, rounds, options.device, {})
            for preset in ("paper", "author"):
                functions = compositions(shape, options.device, mode, preset)
                table(f"DTF block, preset {preset}, {name}, {size}, {label}", functions, rounds, options.device, {})
    return 0


if __name__ == "__main__":
    sys.exit(main())
