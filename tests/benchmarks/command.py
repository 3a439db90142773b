"""What the command lines of the benchmarks share."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys

import torch

KEEP_MEMORY = {"MALLOC_MMAP_MAX_": "0", "MALLOC_TRIM_THRESHOLD_": "17179869184", "MALLOC_TOP_PAD_": "268435456"}


def new_parser(description: str | None, quick: str, rounds: int = 15) -> argparse.ArgumentParser:
    """With the options `--quick`, which does what `quick` says, `--rounds`, `--threads` and `--device`."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help=quick)
    parser.add_argument("--rounds", type=int, default=rounds, help="timed rounds per table (default %(default)s)")
    parser.add_argument("--threads", type=int, help="threads of torch on the CPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    return parser


def parsed(parser: argparse.ArgumentParser, arguments: list[str]) -> argparse.Namespace:
    """The options; the number of threads is set."""
    options = parser.parse_args(arguments)
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device is available")
    if options.threads:
        torch.set_num_threads(options.threads)
    return options


def restarted(module: str, arguments: list[str], device: str) -> int | None:
    """The exit status of this benchmark in a process with the allocator's settings `KEEP_MEMORY`, which glibc reads
    when a process starts; None where they do not matter, or hold already.
    """
    held = all(os.environ.get(name) == value for name, value in KEEP_MEMORY.items())
    if held or device != "cpu" or sys.platform != "linux":
        return None
    command = [sys.executable, "-m", f"tests.benchmarks.{module}", *arguments]
    return subprocess.run(command, env={**os.environ, **KEEP_MEMORY}, check=False).returncode
