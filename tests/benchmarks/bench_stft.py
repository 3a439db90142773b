"""Times the STFT layers and blocks against the stock ways of writing them.

    python -m tests.benchmarks.bench_stft [--quick] [--json FILE]

Every table is one run: in each round all variants take their turn, times are medians over the rounds, and "x" is the
median over the rounds of (first row's time / this row's time), so 2.00 means twice as fast as the first row. Every
variant is first checked against the first row. "kept" are the bytes autograd holds between the passes (parameters not
counted) and "peak" is the rise of memory during one step; both are multiples of the input's bytes.

On a CPU glibc gives large tensors back to the system after every use, and the page faults outweigh most choices of
kernel. The times are therefore taken in a process with the allocator settings below (`--system-allocator` leaves them
out); the peak is measured in another process where every freed tensor is given back at once.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils.checkpoint import checkpoint

from common.spectral import DepthwiseSTFT, STFTPointwise
from tests.benchmarks.command import KEEP_MEMORY, new_parser, parsed, restarted

RETURN_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "65536"}
KERNELS = {"T": (3, 1, 1), "S": (1, 3, 3), "ST": (3, 3, 3)}
SHAPES: dict[str, Shape] = {"small": (2, 32, 8, 28, 28), "large": (2, 16, 16, 56, 56), "tiny": (2, 8, 4, 14, 14)}

Shape = tuple[int, ...]
Step = Callable[[], list[Tensor]]
# By name: the function, and whether its input is given channels last.
Variants = dict[str, tuple[Callable[[Tensor], Tensor], bool]]
Row = dict[str, Any]


def grouped(layer: DepthwiseSTFT) -> nn.Conv3d:
    """The stock layer: a convolution with one group per channel and the fixed filters as its weight."""
    channels = layer.in_channels
    sizes: Any = layer.kernel_size
    padding: Any = layer.padding
    conv = nn.Conv3d(channels, layer.out_channels, sizes, padding=padding, groups=channels, bias=False)
    conv.weight = nn.Parameter(layer.kernels.repeat(channels, 1, 1, 1, 1), requires_grad=False)
    return conv


def unfold_product(layer: DepthwiseSTFT) -> Callable[[Tensor], Tensor]:
    """Windows by `Tensor.unfold`, then one matrix product."""
    matrix = layer.kernels.flatten(1)

    def run(x: Tensor) -> Tensor:
        batch, channels, *spatial = x.shape
        pad = [p for size in reversed(layer.padding) for p in (size, size)]
        windows = F.pad(x, pad)
        for axis, n in enumerate(layer.kernel_size):
            windows = windows.unfold(2 + axis, n, 1)
        columns = windows.permute(0, 1, 5, 6, 7, 2, 3, 4).reshape(batch, channels, matrix.shape[1], -1)
        return torch.matmul(matrix, columns).reshape(batch, -1, *spatial)

    return run


def folded_convolution(layer: DepthwiseSTFT) -> Callable[[Tensor], Tensor]:
    """The channels as a batch, so that the convolution has one input channel and no groups."""

    def run(x: Tensor) -> Tensor:
        batch, channels, *spatial = x.shape
        out = F.conv3d(x.reshape(batch * channels, 1, *spatial), layer.kernels, padding=layer.padding)
        return out.reshape(batch, -1, *spatial)

    return run


def layer_variants(kernel: str, shape: Shape, device: str, compiled: bool) -> Variants:
    layer = DepthwiseSTFT(shape[1], KERNELS[kernel]).to(device)
    stock = grouped(layer)
    last = grouped(layer).to(memory_format=torch.channels_last_3d)
    variants: Variants = {
        "grouped convolution": (stock, False),
        "grouped convolution, channels last": (last, True),
        "channels folded into the batch": (folded_convolution(layer), False),
        "unfold + matrix product": (unfold_product(layer), False),
    }
    if compiled:
        variants["grouped convolution, torch.compile"] = (torch.compile(stock), False)
        variants["unfold + product, torch.compile"] = (torch.compile(unfold_product(layer)), False)
    variants["ours"] = (layer, False)
    return variants


def stock_block(block: STFTPointwise, inplace: bool) -> nn.Sequential:
    """The stock composition, sharing the parameters of `block`."""
    return nn.Sequential(grouped(block.stft), block.norm, nn.LeakyReLU(0.01, inplace=inplace), block.pointwise)


class Checkpointed(nn.Module):
    """Stock checkpointing of a whole block."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.inner, x, use_reentrant=False)


def training_variants(kernel: str, shape: Shape, outputs: int, device: str, compiled: bool) -> Variants:
    block = STFTPointwise(shape[1], outputs, KERNELS[kernel]).to(device)
    efficient = STFTPointwise(shape[1], outputs, KERNELS[kernel], memory_efficient=True).to(device)
    efficient.load_state_dict(block.state_dict())
    stock, inplace = stock_block(block, False), stock_block(block, True)
    # The parameters stay as they are; the batch normalisation has one running average for all variants.
    variants: Variants = {
        "grouped convolution": (stock, False),
        "in-place activation": (inplace, False),
        "in-place, channels last": (inplace, True),
        "in-place, checkpoint (statistics twice)": (Checkpointed(inplace), False),
    }
    if compiled:
        variants["torch.compile"] = (torch.compile(stock), False)
    variants["ours"] = (block, False)
    variants["ours, memory_efficient"] = (efficient, False)
    return variants


def inference_variants(kernel: str, shape: Shape, outputs: int, device: str, compiled: bool) -> Variants:
    block = STFTPointwise(shape[1], outputs, KERNELS[kernel]).to(device).eval()
    stock = stock_block(block, False).eval()
    conv = grouped(block.stft).eval()
    fused = nn.Sequential(fuse_conv_bn_eval(conv, block.norm), nn.LeakyReLU(0.01, inplace=True), block.pointwise)
    last = nn.Sequential(fuse_conv_bn_eval(conv, block.norm), nn.LeakyReLU(0.01, inplace=True), block.pointwise)
    last = last.eval().to(memory_format=torch.channels_last_3d)
    variants: Variants = {
        "grouped convolution": (stock, False),
        "norm fused": (fused.eval(), False),
        "norm fused, channels last": (last, True),
    }
    if compiled:
        variants["torch.compile"] = (torch.compile(stock), False)
    variants["ours"] = (block, False)
    return variants


def run(function: Callable[[Tensor], Tensor], leaf: Tensor) -> list[Tensor]:
    """Forward, and where the input wants a gradient backward: the output, then the gradients, the input's first."""
    if not leaf.requires_grad:
        with torch.no_grad():
            return [function(leaf)]
    module = function if isinstance(function, nn.Module) else nn.Module()
    parameters = [p for p in module.parameters() if p.requires_grad]
    y = function(leaf)
    return [y.detach(), *torch.autograd.grad(y, [leaf, *parameters], weights(y))]


def steps(variants: Variants, shape: Shape, device: str, mode: str) -> dict[str, Step]:
    """One callable per variant that runs its pass or passes; each is checked against the first variant."""
    torch.compiler.reset()  # or the compiler gives up after so many variants of one function
    torch.manual_seed(0)
    x = torch.randn(shape, device=device)
    result: dict[str, Step] = {}
    expected: list[Tensor] | None = None
    for name, (function, channels_last) in variants.items():
        leaf = x.clone(memory_format=torch.channels_last_3d if channels_last else torch.contiguous_format)
        leaf.requires_grad_(mode == "both")
        step = partial(run, function, leaf)
        found = step()[:2]
        if expected is None:
            expected = found
        for a, b in zip(found, expected, strict=True):
            # By norm: at an activation's kink rounding may take the other branch in single elements.
            error = float((a - b).norm() / b.norm())
            if not error < 1e-3:
                raise SystemExit(f"{name} differs from {next(iter(variants))} by {error:.1e} of the norm")
        result[name] = step
    return result


_weights: dict[tuple[int, ...], Tensor] = {}


def weights(like: Tensor) -> Tensor:
    """The same random gradient for every variant, dense and made only once."""
    key = tuple(like.shape)
    if key not in _weights:
        _weights.clear()
        _weights[key] = torch.randn(key, generator=torch.Generator().manual_seed(1)).to(like)
    return _weights[key]


def interleaved_times(functions: dict[str, Step], rounds: int, device: str) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in functions}
    for number in range(rounds + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if device == "cuda":
                torch.cuda.synchronize()
            if number:  # the first round warms up
                times[name].append(time.perf_counter() - start)
    return times


def kept_bytes(function: Callable[[Tensor], Tensor], x: Tensor) -> int:
    """Bytes of the different tensors that autograd keeps after the forward pass, parameters not counted."""
    module = function if isinstance(function, nn.Module) else nn.Module()
    known = {t.untyped_storage().data_ptr() for t in [*module.parameters(), *module.buffers()]}
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        function(x.detach().requires_grad_())
    return sum(storage.nbytes() for storage in kept.values())


def peak_bytes(step: Step, device: str) -> int | None:
    """Rise of memory during one step: of the allocator on CUDA, of the resident set on Linux, else None."""
    step()
    gc.collect()
    if device == "cuda":
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        return torch.cuda.max_memory_allocated() - before
    try:
        Path("/proc/self/clear_refs").write_text("5")
        before = resident("VmRSS")
        step()
        return resident("VmHWM") - before
    except OSError:
        return None


def resident(field: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status has no {field}")


def table(title: str, functions: dict[str, Step], rounds: int, device: str, extra: dict[str, Row]) -> list[Row]:
    times = interleaved_times(functions, rounds, device)
    base = next(iter(times.values()))
    rows = []
    for name, values in times.items():
        ratio = statistics.median(b / v for b, v in zip(base, values, strict=True))
        row: Row = {"table": title, "variant": name, "ms": statistics.median(values) * 1e3, "x": ratio}
        rows.append(row | extra.get(name, {}))
    columns = ["ms", "x", *(key for key in ("kept", "peak") if any(key in row for row in rows))]
    width = max(len(row["variant"]) for row in rows)
    print(f"\n{title}")
    print(" " * width + "".join(f"{column:>10}" for column in columns))
    for row in rows:
        cells = (f"{row[column]:>10.2f}" if row.get(column) is not None else f"{'-':>10}" for column in columns)
        print(f"{row['variant']:<{width}}" + "".join(cells), flush=True)
    return rows


def memory_in_child(arguments: list[str]) -> dict[str, dict[str, float | None]]:
    """Peaks per table and variant, measured in a process that gives memory back at once."""
    command = [sys.executable, "-m", "tests.benchmarks.bench_stft", *arguments, "--measure-peaks"]
    environment = {name: value for name, value in os.environ.items() if name not in KEEP_MEMORY} | RETURN_MEMORY
    done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def parse(arguments: list[str]) -> argparse.Namespace:
    parser = new_parser(__doc__, "tiny maps, three rounds, no torch.compile")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["small", "large"])
    parser.add_argument("--kernels", nargs="+", choices=list(KERNELS), default=list(KERNELS))
    parser.add_argument("--parts", nargs="+", choices=["layer", "training", "inference"], default=None)
    parser.add_argument("--outputs", type=int, default=64, help="channels after the 1x1 convolution of the blocks")
    parser.add_argument("--no-compile", action="store_true", help="leave out the torch.compile rivals")
    parser.add_argument("--system-allocator", action="store_true", help="keep the allocator's settings as they are")
    parser.add_argument("--json", type=Path, default=None, help="also write all rows to this file")
    parser.add_argument("--measure-peaks", action="store_true", help=argparse.SUPPRESS)
    options = parsed(parser, arguments)
    options.parts = options.parts or ["layer", "training", "inference"]
    if options.quick:
        options.shapes, options.rounds, options.no_compile = ["tiny"], 3, True
    return options


def main(argv: list[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if argv is None else argv)
    options = parse(arguments)
    linux_cpu = options.device == "cpu" and sys.platform == "linux"
    as_it_is = options.system_allocator or options.measure_peaks
    if not as_it_is and (status := restarted("bench_stft", arguments, options.device)) is not None:
        return status

    device, compiled = options.device, not options.no_compile
    blocks: list[tuple[str, str, Shape, Variants]] = []
    for kernel in options.kernels:
        for name in options.shapes:
            shape = SHAPES[name]
            where = f"{kernel}-STFT {'x'.join(map(str, shape))}"
            if "training" in options.parts:
                variants = training_variants(kernel, shape, options.outputs, device, compiled)
                blocks.append(
                    (f"training block {where} -> {options.outputs}, forward + backward", "both", shape, variants)
                )
            if "inference" in options.parts:
                variants = inference_variants(kernel, shape, options.outputs, device, compiled)
                blocks.append((f"inference block {where} -> {options.outputs}", "forward", shape, variants))

    peaks: dict[str, dict[str, float | None]] = {}
    if options.measure_peaks or not linux_cpu:
        for title, mode, shape, variants in blocks:
            size = torch.Size(shape).numel() * 4
            measured = {n: peak_bytes(s, device) for n, s in steps(variants, shape, device, mode).items()}
            peaks[title] = {n: None if value is None else value / size for n, value in measured.items()}
        if options.measure_peaks:
            print(json.dumps(peaks))
            return 0
    elif blocks:
        peaks = memory_in_child(arguments)

    print(
        f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads, {options.rounds} interleaved rounds"
    )
    rows: list[Row] = []
    for kernel in options.kernels if "layer" in options.parts else []:
        for name in options.shapes:
            shape = SHAPES[name]
            variants = layer_variants(kernel, shape, device, compiled)
            for mode, label in (("forward", "forward"), ("both", "forward + backward")):
                title = f"layer {kernel}-STFT {'x'.join(map(str, shape))}, {label}"
                rows += table(title, steps(variants, shape, device, mode), options.rounds, device, {})
    for title, mode, shape, variants in blocks:
        size = torch.Size(shape).numel() * 4
        functions = steps(variants, shape, device, mode)
        extra: dict[str, Row] = {n: {"peak": peaks[title].get(n)} for n in functions}
        if mode == "both":
            for n, (function, _) in variants.items():
                extra[n]["kept"] = kept_bytes(function, torch.randn(shape, device=device)) / size
        rows += table(title, functions, options.rounds, device, extra)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
