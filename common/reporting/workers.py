"""Processes that count or train for a command."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import signal
import threading
from concurrent.futures import ProcessPoolExecutor

import torch


def pool(processes: int, threads: int = 1) -> ProcessPoolExecutor:
    """Processes that each have a number of threads, at least one, and that end when this process is killed."""
    return ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _begin, (max(1, threads),))


def _begin(threads: int) -> None:
    """Set up a process of a pool: its threads, and that it ends when the process that it works for was killed."""
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    if parent is not None:
        threading.Thread(target=_end_after, args=(parent.sentinel,), daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an idle process has nothing to interrupt


def _end_after(sentinel: int) -> None:
    multiprocessing.connection.wait([sentinel])
    os._exit(1)
