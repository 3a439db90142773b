"""`make gpu`: every network on the GPU against the CPU, and its speed next to library networks.

Each step runs by itself: what fails is named in the result, and the command fails at its end. `gpu.json` and `gpu.md`
go to the folder `$OUT`, or `runs/gpu`.
"""

from __future__ import annotations

import argparse
import copy
import itertools
import json
import os
import platform
import statistics
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from common.reporting.ledger import Network, load
from common.spectral import STFTPointwise
from common.spectral.fused_kernel import fused_kernels
from tests.networks import SPEED, channels_last, networks_of, small

ROOT = Path(__file__).resolve().parents[1]


def networks() -> Iterator[tuple[str, Network, list[int]]]:
    """The networks of all ledgers, with the shape of their input there; the papers take turns."""
    ledgers = [load(path) for path in sorted((ROOT / "papers").glob("*/ledger.yaml"))]
    for turn in itertools.zip_longest(*(networks_of(ledger) for ledger in ledgers)):
        for ledger, entry in zip(ledgers, turn, strict=True):
            if entry is not None:
                yield f"{ledger.paper} {entry[0]}", ledger.network(entry[1]), entry[1].input


def error(a: Tensor, b: Tensor) -> float:
    """Norm of the difference over the norm of `b`."""
    a, b = a.double().cpu(), b.double().cpu()
    return float((a - b).norm() / b.norm().clamp_min(1e-12))


def compare(network: Network, shape: list[int], device: torch.device) -> dict[str, float]:
    """Errors of the output and of the gradients on the GPU relative to the CPU, float32 and bfloat16 autocast."""
    built, x = small(network, shape)
    built.eval()
    output = built(x)
    output.square().mean().backward()
    moved = copy.deepcopy(built).to(device)
    moved.zero_grad()
    on_gpu = moved(x.to(device))
    on_gpu.square().mean().backward()
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
        half = moved(x.to(device))
    pairs = zip(moved.parameters(), built.parameters(), strict=True)
    grads = [(p.grad, q.grad) for p, q in pairs if p.grad is not None and q.grad is not None]
    flat = [torch.cat([pair[i].flatten().cpu() for pair in grads]) for i in (0, 1)] if grads else []
    if not half.isfinite().all():
        raise ValueError("the output under bfloat16 autocast is not finite")
    return {
        "output": error(on_gpu.detach(), output.detach()),
        "gradients": error(*flat) if flat else 0.0,
        "bfloat16": error(half, output.detach()),
    }


def milliseconds(call: Callable[[], Any], repeats: int) -> float:
    """Median time of a call by CUDA events, after three calls to warm up."""
    for _ in range(3):
        call()
    times = []
    for _ in range(repeats):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        call()
        end.record()
        end.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times)


def speed(function: str, arguments: dict[str, Any], device: torch.device) -> dict[str, float]:
    """Clips per second in inference and training, and peak memory, under bfloat16 autocast; 8 clips a step."""
    torch.manual_seed(0)
    network = Network(function, arguments).build().to(device)
    x = torch.randn(8, 3, 16, 112, 112, device=device)
    result: dict[str, float] = {}
    forms: dict[str, tuple[nn.Module, Tensor]] = {
        "eager": (network, x),
        "channels last": (
            channels_last(copy.deepcopy(network)),
            x.to(memory_format=torch.channels_last_3d),
        ),
    }
    for name, (form, clips) in forms.items():
        form.eval()

        def infer(form: nn.Module = form, clips: Tensor = clips) -> None:
            with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
                form(clips)

        def train(form: nn.Module = form, clips: Tensor = clips) -> None:
            with torch.autocast(device.type, torch.bfloat16):
                loss = form(clips).float().square().mean()
            loss.backward()
            form.zero_grad(set_to_none=True)

        result[f"inference, {name}"] = 8000 / milliseconds(infer, 15)
        form.train()
        torch.cuda.reset_peak_memory_stats(device)
        result[f"training, {name}"] = 8000 / milliseconds(train, 8)
        result[f"peak GiB, {name}"] = torch.cuda.max_memory_allocated(device) / 2**30
    return result


def fused(kernel_size: tuple[int, int, int], channels: int, size: int, device: torch.device) -> dict[str, float]:
    """The fused kernel of an STFT segment: errors against float64, and milliseconds with and without it."""
    torch.manual_seed(0)
    module = STFTPointwise(channels, 2 * channels, kernel_size).eval()
    module.norm.running_mean.uniform_(-1, 1)
    x = torch.randn(8, channels, 16, size, size)
    with torch.no_grad():
        wanted = copy.deepcopy(module).double()(x[:1, :, :4].double())
        module, x = module.to(device), x.to(device)
        result = {}
        for name, dtype in (("float32", None), ("bfloat16", torch.bfloat16)):
            with torch.autocast(device.type, dtype, enabled=dtype is not None):
                for kernel, enabled in (("fused", True), ("stock", False)):
                    with fused_kernels(enabled):
                        result[f"{name}, {kernel}, error"] = error(module(x[:1, :, :4]), wanted)
                        result[f"{name}, {kernel}, ms"] = milliseconds(partial(module, x), 15)
    return result


class Report:
    """Results of the steps, written after each one."""

    def __init__(self, folder: Path, device: str, limit: float) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.end = folder, time.monotonic() + limit
        self.data: dict[str, Any] = {
            "device": device,
            "torch": torch.__version__,
            "python": platform.python_version(),
            "networks": {},
            "speed": {},
            "fused": {},
            "failed": {},
            "left out": [],
        }

    def step(self, part: str, name: str, call: Callable[[], Any]) -> None:
        """Run one step; what fails is recorded, what there is no time for is named."""
        if time.monotonic() > self.end:
            self.data["left out"].append(f"{part}: {name}")
            return
        try:
            self.data[part][name] = call()
            print(f"{part}: {name}: {self.data[part][name]}", flush=True)
        except Exception as failure:  # every step runs, whatever the others did
            self.data["failed"][f"{part}: {name}"] = "".join(traceback.format_exception_only(failure)).strip()
            print(f"FAILED {part}: {name}: {failure}", flush=True)
        torch.cuda.empty_cache()
        self.write()

    def write(self) -> None:
        """`gpu.json` and `gpu.md`."""
        (self.folder / "gpu.json").write_text(json.dumps(self.data, indent=1))
        lines = [f"# {self.data['device']}, torch {self.data['torch']}, Python {self.data['python']}", ""]
        lines += [
            "Clips per second under bfloat16 autocast, 8 clips of 16 x 112 x 112 a step; the best form of each.",
            "",
        ]
        lines += ["| network | inference | training | peak memory of training (GiB) |", "|---|---|---|---|"]
        for name, values in self.data["speed"].items():
            inference, training = (
                max(value for key, value in values.items() if key.startswith(kind))
                for kind in ("inference", "training")
            )
            lines.append(f"| {name} | {inference:.0f} | {training:.0f} | {values['peak GiB, eager']:.2f} |")
        if self.data["fused"]:
            columns = list(next(iter(self.data["fused"].values())))
            lines += ["", "An STFT segment in evaluation with the fused kernel and without it.", ""]
            lines += ["| window, input | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
        for name, values in self.data["fused"].items():
            lines.append(f"| {name} | " + " | ".join(f"{value:.2g}" for value in values.values()) + " |")
        lines += ["", "Relative errors of the GPU against the CPU, in float32 without TF32 unless named.", ""]
        lines += ["| network | output | gradients | output, bfloat16 |", "|---|---|---|---|"]
        for name, errors in self.data["networks"].items():
            lines.append(f"| {name} | " + " | ".join(f"{value:.1e}" for value in errors.values()) + " |")
        for title, entries in (
            ("Failed", [f"{k}: {v}" for k, v in self.data["failed"].items()]),
            ("Left out: no time", self.data["left out"]),
        ):
            if entries:
                lines += ["", f"## {title}", "", *(f"* {entry}" for entry in entries)]
        (self.folder / "gpu.md").write_text("\n".join(lines) + "\n")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__)
    parser.add_argument("--seconds", type=float, default=450, help="start no step after this time")
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        sys.exit("no CUDA GPU is available to PyTorch here; `make test` needs none")
    report = Report(Path(os.environ.get("OUT", ROOT / "runs" / "gpu")), torch.cuda.get_device_name(), options.seconds)
    device = torch.device("cuda")
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    for name, (function, given) in SPEED.items():
        report.step("speed", name, partial(speed, function, given, device))
        with torch.device("meta"):
            segments = [m for m in Network(function, given).build().modules() if isinstance(m, STFTPointwise)]
        if segments:
            with fused_kernels():
                report.step("speed", f"{name}, fused kernel", partial(speed, function, given, device))
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    for kernel_size, (channels, size) in itertools.product(((3, 3, 3), (3, 1, 1)), ((32, 56), (64, 28), (128, 14))):
        name = f"{kernel_size}, 8 x {channels} x 16 x {size} x {size}"
        report.step("fused", name, partial(fused, kernel_size, channels, size, device))
    for name, network, shape in networks():
        report.step("networks", name, partial(compare, network, shape, device))
    report.write()
    limits = {"output": 1e-3, "gradients": 1e-2, "bfloat16": 0.1}
    wrong = [n for n, e in report.data["networks"].items() if not all(e[key] <= limits[key] for key in limits)]
    for name in wrong:
        print(f"differs from the CPU: {name} {report.data['networks'][name]}")
    for name, values in report.data["fused"].items():
        if values["float32, fused, error"] > 1e-5 or values["bfloat16, fused, error"] > 2e-2:
            wrong.append(name)
            print(f"the fused kernel differs: {name} {values}")
    if report.data["failed"] or wrong:
        differ = f"{len(wrong)} networks or kernels differ"
        sys.exit(f"{len(report.data['failed'])} steps failed, {differ}; see {report.folder}/gpu.md")


if __name__ == "__main__":
    main()
