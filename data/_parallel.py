"""Map a function over many files in several processes, with a progress bar."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")
Result = TypeVar("Result")

FILES_PER_PROCESS = 256  # fewer are read before another process has started
CHUNK = 16


def map_files(
    function: Callable[[Item], Result],
    items: Sequence[Item],
    description: str,
    workers: int | None = None,
    chunk: int = CHUNK,
) -> list[Result]:
    """``[function(item) for item in items]``, in order.

    Args:
        function: must be importable (no lambda).
        items: its arguments.
        description: of the progress bar.
        workers: number of processes; 0 or 1: this process alone; None: chosen from the CPUs and the number of items.
        chunk: number of items that a process gets at a time; 1 for those that take long.
    """
    if workers is None:
        workers = min(os.cpu_count() or 1, len(items) // (FILES_PER_PROCESS if chunk > 1 else 1))
    console = Console(stderr=True)
    if workers <= 1:
        return [function(item) for item in track(items, description, console=console, transient=True)]
    # Spawned, not forked: the parent has threads of torch, with which a forked child can hang.
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        try:
            results = pool.map(function, items, chunksize=chunk)
            return list(track(results, description, total=len(items), console=console, transient=True))
        except BaseException:  # including KeyboardInterrupt: drop the rest of the list
            pool.shutdown(wait=False, cancel_futures=True)
            raise
