"""Kills of a training of two processes, and of one of them."""

import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch.utils.data import DataLoader

from common.training.processes import is_lost_worker
from tests.common.training.tiny import assert_equal_states, state

pytestmark = pytest.mark.slow

LAUNCHERS = {
    "lightning": ["-m", "common.training.cli"],
    "torchrun": ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "common.training.cli"],
}
KILL, TERM = int(signal.SIGKILL), int(signal.SIGTERM)


def left(mark: str) -> list[int]:
    """The processes that have a mark in their environment."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/environ"):
        try:
            found += [int(entry.parent.name)] if mark.encode() in entry.read_bytes() else []
        except OSError:  # it has ended, or is another user's
            continue
    return found


def fit(launcher: str, recipe: str, *words: str, **signal_at: int | bool | None) -> "subprocess.CompletedProcess[str]":
    """Train in two processes, which get a signal; all processes must have ended soon after the command."""
    options = [f"--trainer.callbacks.{key}={value}" for key, value in signal_at.items() if value is not None]
    callback = ["--trainer.callbacks+", "tests.common.training.tiny.SignalAt", *options] if options else []
    mark = f"TEST_MARK={uuid.uuid4()}"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    environment |= dict([mark.split("=")])
    ddp = ["--trainer.strategy", "ddp", "--trainer.devices", "2"]
    command = [sys.executable, *LAUNCHERS[launcher], "fit", "--config", recipe, *ddp, *words, *callback]
    with Path("stdout").open("w+") as out, Path("stderr").open("w+") as err:  # a pipe would wait for every process
        code = subprocess.run(command, env=environment, stdout=out, stderr=err, timeout=300).returncode
        end = time.monotonic() + 60
        while left(mark) and time.monotonic() < end:
            time.sleep(0.2)
    done = subprocess.CompletedProcess(command, code, Path("stdout").read_text(), Path("stderr").read_text())
    assert not left(mark), done.stderr
    return done


def resume(name: str) -> list[str]:
    """The option that resumes a run, if it has been killed after its first checkpoint."""
    return ["--ckpt_path", "last"] if list(Path(f"runs/{name}").glob("version_*/last.ckpt")) else []


def logged(name: str) -> dict[tuple[str, int], float]:
    """The scores of every validation and the loss of every step; those of a later run replace an earlier one's."""
    found = {}
    for folder in sorted(Path(f"runs/{name}").glob("version_*")):
        events = EventAccumulator(str(folder))
        events.Reload()
        for tag in events.Tags()["scalars"]:
            if tag.startswith("val_") or tag == "train_loss_step":
                found |= {(tag, event.step): event.value for event in events.Scalars(tag)}
    return found


def assert_equal_ends(name: str) -> None:
    """The last run of a name has ended as the run ``whole``, to the last bit."""
    last = max(Path(f"runs/{name}").glob("version_*/last.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    whole = Path("runs/whole/version_0")
    assert_equal_states(whole, last.parent)
    one, other = (torch.load(folder / "last.ckpt", weights_only=True) for folder in (whole, last.parent))
    assert one["epoch"] == other["epoch"]
    assert one["lr_schedulers"] == other["lr_schedulers"]
    assert logged("whole") == logged(name)


@pytest.mark.parametrize("chain", range(6))
def test_chains_of_kills(recipe, chain):
    """Both processes or one of them are killed, or stopped by SIGTERM, at random places."""
    rng = np.random.default_rng(chain)
    launcher = ["lightning", "lightning", "torchrun"][chain % 3]
    often = [[], ["--checkpoint_every_n_steps", str(rng.integers(1, 3))]][chain % 2]
    data = {"batch_size": 1, "num_workers": [0, 2, 2][chain % 3]}  # 10 videos: 5 batches an epoch
    path = recipe(max_epochs=3, data=data, accumulate_grad_batches=1 + chain // 2 % 2, log_every_n_steps=1)
    assert fit("lightning", path, "--name", "whole").returncode == 0
    steps = int(state(Path("runs/whole/version_0"))["step"])
    epoch = int(rng.integers(2))
    places = [{"step": int(step)} for step in rng.choice(np.arange(1, steps), size=2, replace=False)]
    places.append({"epoch": epoch})
    for place in sorted(places, key=lambda place: place.get("step", (epoch + 1) * steps // 3)):
        kill = {**place, "number": int(rng.choice([KILL, KILL, TERM])), "rank": [None, 0, 1][rng.integers(3)]}
        done = fit(launcher, path, "--name", "cut", *often, *resume("cut"), **kill)
        assert done.returncode != 0, (kill, done.stderr)
    done = fit(launcher, path, "--name", "cut", *often, *resume("cut"))
    assert done.returncode == 0, done.stderr
    assert_equal_ends("cut")


def test_three_processes_resume_to_the_last_bit_if_ddp_keeps_its_buckets(recipe):
    model = {"width": 64}  # sums of small networks are the same in any order too often
    path = recipe(max_epochs=2, model=model, data={"batch_size": 1}, log_every_n_steps=1)  # 4 steps an epoch
    often = ["--checkpoint_every_n_steps", "1"]
    keep = ["--trainer.devices", "3", "--trainer.strategy", "ddp_find_unused_parameters_true"]
    assert fit("lightning", path, "--name", "whole", *keep).returncode == 0
    assert fit("lightning", path, "--name", "cut", *keep, *often, number=KILL, rank=2, step=6).returncode == 1
    resumed = fit("lightning", path, "--name", "cut", *keep, *often, *resume("cut"))
    assert resumed.returncode == 0, resumed.stderr
    assert "may differ in its last bits" not in resumed.stderr
    assert_equal_ends("cut")


@pytest.mark.parametrize("launcher", LAUNCHERS)
@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_dies_ends_the_others_with_one_line(recipe, launcher, rank):
    path = recipe(max_epochs=3, data={"batch_size": 1, "num_workers": 2}, log_every_n_steps=1)
    assert fit("lightning", path, "--name", "whole").returncode == 0
    started = time.monotonic()
    done = fit(launcher, path, "--name", "cut", number=KILL, rank=rank, step=7)
    assert time.monotonic() - started < 120
    assert done.returncode != 0
    assert launcher == "torchrun" or "Traceback" not in done.stderr  # torchrun shows its own
    lines = [line for line in done.stderr.splitlines() if "--ckpt_path last" in line]
    assert len(lines) == 1, done.stderr
    assert fit(launcher, path, "--name", "cut", "--ckpt_path", "last").returncode == 0
    assert_equal_ends("cut")


@pytest.mark.parametrize(
    ("launcher", "to"),
    [
        ("lightning", {"rank": 0}),
        ("lightning", {"rank": 1}),
        ("lightning", {}),
        ("torchrun", {"rank": 0, "to_parent": True}),
    ],
)
def test_sigterm_stops_all_processes_at_the_same_step(recipe, launcher, to):
    data = {"batch_size": 1, "num_workers": 1}  # torchrun sends the signal to loader workers as well
    path = recipe(max_epochs=3, data=data, accumulate_grad_batches=2, log_every_n_steps=1)
    assert fit("lightning", path, "--name", "whole").returncode == 0
    done = fit(launcher, path, "--name", "cut", number=TERM, step=5, **to)  # the second of three steps of the epoch
    assert done.returncode == {"lightning": 143, "torchrun": 1}[launcher], done.stderr
    assert "stopped by SIGTERM; --ckpt_path last resumes the training" in done.stderr
    assert torch.load("runs/cut/version_0/last.ckpt", weights_only=True)["global_step"] == 5
    assert fit(launcher, path, "--name", "cut", "--ckpt_path", "last").returncode == 0
    assert_equal_ends("cut")


def test_processes_end_after_torchrun_is_killed(recipe):
    path = recipe(max_epochs=100_000, data={"batch_size": 1, "num_workers": 2})
    done = fit("torchrun", path, number=KILL, rank=0, to_parent=True, step=7)
    assert done.returncode == -KILL
    assert "the process that started this one has ended" in done.stderr


class Unreadable:
    """Raises ``error`` where it is unpickled, as a tensor does whose sender is gone."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __reduce__(self):
        return raise_error, (self.error,)


def raise_error(error: Exception) -> None:
    raise error


@pytest.mark.parametrize("error", [ConnectionResetError(104, "reset"), ConnectionRefusedError(111, "no"), EOFError()])
def test_a_batch_whose_sender_is_gone_means_a_killed_loader_process(error):
    loader = DataLoader([0], num_workers=1, collate_fn=lambda items: Unreadable(error))
    with pytest.raises(type(error)) as caught:
        next(iter(loader))
    assert is_lost_worker(caught.value)
    with pytest.raises(type(error)) as caught:
        raise_error(error)
    assert not is_lost_worker(caught.value.with_traceback(None))
