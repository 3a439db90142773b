"""Several processes of one run: SIGTERM stops them at the same step, and none of them outlives the others for long."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import distributed

LAUNCHER = "SPECTRAL_LAUNCHER"  # environment variable: id of the process from which Lightning starts the others
GRACE = 10  # seconds that a process has to end by itself after another one
GO_ON = "what it printed says why; --ckpt_path last resumes a training"
LOST = re.compile(r"Connection (closed|reset) by peer|Broken pipe|remote process exited|Timed out waiting")
LOST_WORKER = (
    "a loader process was killed, perhaps because the memory was full: lower data.num_workers or data.batch_size; "
    "--ckpt_path last resumes a training"
)


class LostProcessError(Exception):
    """Another process of the run has ended or does not answer."""


def is_lost_worker(error: BaseException) -> bool:
    """Whether a process that loads data was killed."""
    if isinstance(error, (ConnectionError, EOFError)):  # while its batch was being read, before its end was noticed
        return any(code.f_code.co_name == "_try_get_data" for code, _ in traceback.walk_tb(error.__traceback__))
    return isinstance(error, RuntimeError) and str(error).startswith("DataLoader worker (pid")


def is_lost_process(error: BaseException) -> bool:
    """Whether a collective operation failed because another process has ended or does not answer."""
    return isinstance(error, RuntimeError) and distributed.is_initialized() and bool(LOST.search(str(error)))


def resumes_up_to_rounding(trainer: L.Trainer) -> bool:
    """Whether a training that resumes may differ in its last bits from one that was not interrupted.

    DDP rearranges its buckets of gradients after the first step, unless it looks for unused parameters, and the place
    in a bucket decides in which order three or more processes are summed.
    """
    strategy = trainer.strategy
    rearranges = isinstance(strategy, DDPStrategy) and not strategy._ddp_kwargs.get("find_unused_parameters")
    return rearranges and trainer.world_size > 2


class StopTogether(Callback):
    """Stops all processes of a run at the same step when SIGTERM reaches any of them.

    Lightning's handler starts a broadcast wherever its process is, which meets another operation of the other
    processes, and then each process stops at the step where it got the signal. Here the handler only takes note, and
    the processes agree after every optimiser step. A stop in an evaluation, which saves nothing, needs no agreement.

    The signal by which SLURM announces the end of a job stops them in the same way, and ``job_ends`` says so; Lightning
    would save the state in the middle of a step, where the job does not find it when it has been queued again.
    """

    def __init__(self) -> None:
        self.asked = False
        self.job_ends = False
        self.stepped = False  # whether a training batch is done

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        connector: Any = trainer._signal_connector

        def end_job(*_: Any) -> None:
            self.job_ends = True
            connector._sigterm_notifier_fn(signal.SIGTERM, None)

        connector._slurm_sigusr_handler_fn = end_job
        if trainer.world_size == 1:
            return
        launcher: Any = trainer.strategy.launcher

        def note(*_: Any) -> None:
            if not self.asked and launcher is not None:
                launcher.kill(signal.SIGTERM)
            self.asked = True

        connector._sigterm_notifier_fn = note
        # In place of a broadcast of what rank 0 knows, before every batch, that hides the loss of a process.
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
        if started := getattr(launcher, "procs", []):
            watch_started(started)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.stepped = True
        whole_step = (batch_idx + 1) % trainer.accumulate_grad_batches == 0 or trainer.is_last_batch
        if trainer.world_size > 1 and whole_step and trainer.strategy.reduce_boolean_decision(self.asked, all=False):
            trainer._signal_connector.received_sigterm = True

    def on_validation_batch_end(self, *_: Any) -> None:
        if self.asked:
            raise SIGTERMException

    def on_test_batch_end(self, *_: Any) -> None:
        self.on_validation_batch_end()


def slurm_job() -> str | None:
    """Number of the SLURM job, or of the task of a job array, that this process belongs to; None outside of SLURM."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")


def queue_again() -> None:
    """Put this SLURM job back into the queue, and say on standard error whether that worked."""
    command = ["scontrol", "requeue", str(slurm_job())]
    try:
        subprocess.run(command, check=True, capture_output=True, text=True)
        print("the job is queued again, and then resumes the training", file=sys.stderr)
    except (OSError, subprocess.CalledProcessError) as error:
        reason = str(getattr(error, "stderr", "") or error).strip()
        print(f"error: {shlex.join(command)} failed ({reason}); submit the job again", file=sys.stderr)


def begun_before_requeue(runs: Path) -> Path | None:
    """The folder in which this SLURM job wrote its newest checkpoint before it was queued again; None if there is none.

    Args:
        runs: the folder of all runs of this name.
    """
    if os.environ.get("SLURM_RESTART_COUNT", "0") == "0":
        return None
    files = sorted(runs.glob("version_*/last.ckpt"), key=lambda path: path.stat().st_mtime_ns, reverse=True)
    for folder in (path.parent for path in files):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            if json.loads((folder / "run.json").read_text(encoding="utf-8")).get("slurm_job") == slurm_job():
                return folder
    return None


def watch_launcher() -> None:
    """End this process soon after the one that started it, if that was Lightning's rank 0 or torchrun."""
    launcher = os.environ.get(LAUNCHER) if os.environ.get("LOCAL_RANK", "0") != "0" else None
    if distributed.is_available() and distributed.is_torchelastic_launched():
        launcher = str(os.getppid())
    if launcher is None:
        os.environ[LAUNCHER] = str(os.getpid())
    else:
        _end_after(lambda: None if os.getppid() == int(launcher) else "the process that started this one")


def watch_started(processes: list[Any]) -> None:
    """End this process soon after one that Lightning started from it fails.

    Lightning's own thread does so too, but with SIGKILL and without waiting for a checkpoint or an error message.
    """
    for thread in threading.enumerate():
        if thread.name == "child-process-observer":
            thread._child_processes = []  # type: ignore[attr-defined]

    def failed() -> str | None:
        codes = [process.poll() for process in processes]
        bad = [f"process {rank} ({_how(code)})" for rank, code in enumerate(codes, 1) if code]
        return bad[0] if bad else None if None in codes else ""

    _end_after(failed)


def _end_after(ended: Callable[[], str | None]) -> None:
    """End this process with one line once ``ended`` says who has failed; stop asking when it says ''."""

    def wait() -> None:
        while (who := ended()) is None:
            time.sleep(1)
        if who:
            time.sleep(GRACE)
            print(f"error: {who} has ended; {GO_ON}", file=sys.stderr, flush=True)
            os._exit(1)

    threading.Thread(target=wait, daemon=True, name="other-processes").start()


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit status {code}"
