import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from common.training.checkpoints import CheckpointError
from common.training.cli import main, run
from tests.common.training.tiny import CutAt, PowerCutError, assert_equal_states, cut_and_resume, state


def signalled(recipe: str, step: int, number: int, *args: str) -> "subprocess.CompletedProcess[str]":
    """Train in a process of its own that gets a signal after an optimiser step."""
    callback = ["--trainer.callbacks+", "tests.common.training.tiny.SignalAt"]
    callback += ["--trainer.callbacks.step", str(step), "--trainer.callbacks.number", str(int(number))]
    command = [sys.executable, "-m", "common.training.cli", "fit", "--config", recipe, *args, *callback]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.run(command, env=environment, capture_output=True, text=True)


def kill_at(recipe: str, step: int, *args: str) -> None:
    """Train in a process of its own until it is killed after an optimiser step."""
    done = signalled(recipe, step, signal.SIGKILL, *args)
    assert done.returncode == -signal.SIGKILL, done.stderr


def best_score(folder: Path) -> float | None:
    """Of the checkpoints so far; None if nothing was validated."""
    callbacks = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
    [best] = [state for key, state in callbacks.items() if "val_top1" in key]
    score = best["best_model_score"]
    return None if score is None else float(score)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kill", "every", "num_workers"),
    [
        (2, 1, 0),  # in the first epoch
        (5, 2, 0),  # in the middle of the second epoch, one step after the checkpoint
        (5, 2, 2),
        (6, 1, 0),  # on the last step of the second epoch
        (7, None, 2),  # in the third epoch; the last checkpoint is the end of the second
    ],
)
def test_a_killed_run_ends_as_if_it_had_not_been_killed(recipe, kill, every, num_workers):
    path = recipe(max_epochs=4, data={"num_workers": num_workers, "batch_size": 4})  # 10 videos: 3 steps an epoch
    often = [] if every is None else ["--checkpoint_every_n_steps", str(every)]
    whole = run(["fit", "--config", path, "--name", "whole", *often])
    kill_at(path, kill, "--name", "killed", *often)
    resumed = run(["fit", "--config", path, "--name", "killed", "--ckpt_path", "last", *often])
    assert resumed.run_dir == Path("runs/killed/version_1")
    assert state(whole.run_dir)["step"] == 12
    assert_equal_states(whole.run_dir, resumed.run_dir)
    assert best_score(whole.run_dir) == best_score(resumed.run_dir)
    assert Path("runs/killed/version_0/last.ckpt").exists()


@pytest.mark.slow
def test_accumulated_steps_survive_a_kill(recipe):
    path = recipe(max_epochs=3, data={"batch_size": 2}, accumulate_grad_batches=2)  # 5 batches, 3 steps an epoch
    often = ["--checkpoint_every_n_steps", "1"]
    whole = run(["fit", "--config", path, "--name", "whole", *often])
    kill_at(path, 4, "--name", "killed", *often)
    resumed = run(["fit", "--config", path, "--name", "killed", "--ckpt_path", "last", *often])
    assert_equal_states(whole.run_dir, resumed.run_dir)


def assert_equal_end(whole: Path, resumed: Path) -> None:
    assert_equal_states(whole, resumed)
    assert best_score(whole) == best_score(resumed)


def test_a_cut_between_the_last_step_and_the_end_of_an_epoch(recipe):
    """The checkpoint of an epoch's last step would say that the epoch is not over."""
    path = recipe(max_epochs=3, data={"batch_size": 2})  # 5 steps an epoch
    often = ["--checkpoint_every_n_steps", "1"]
    whole = run(["fit", "--config", path, "--name", "whole", *often])
    ended = cut_and_resume(
        "cut", [CutAt(epoch=0), CutAt(step=8), CutAt(epoch=1), CutAt(step=11)], "--config", path, *often
    )
    assert state(whole.run_dir)["step"] == 15
    assert_equal_end(whole.run_dir, ended)


@pytest.mark.slow
@pytest.mark.parametrize("chain", range(20))
def test_chains_of_random_cuts(recipe, chain):
    rng = np.random.default_rng(chain)
    accumulate = int(rng.choice([1, 1, 2]))
    sizes = {"2": 1} if rng.random() < 0.3 else None
    data = {"batch_size": 2, "num_workers": int(rng.choice([0, 2])), "batch_size_by_epoch": sizes}
    path = recipe(max_epochs=4, data=data, accumulate_grad_batches=accumulate)
    often = [[], ["--checkpoint_every_n_steps", str(rng.integers(1, 5))]][chain % 2]
    if rng.random() < 0.4:  # a length in steps
        often += ["--trainer.max_epochs", "-1", "--trainer.max_steps", "15"]
        often += ["--trainer.check_val_every_n_epoch", str(rng.choice([1, 2, 100]))]
    whole = run(["fit", "--config", path, "--name", "whole", *often])
    steps = int(state(whole.run_dir)["step"])
    places = sorted(rng.choice(np.arange(1, steps), size=3, replace=False).tolist())
    cuts = [CutAt(step=place) for place in places]
    if rng.random() < 0.7:
        cuts.insert(0, CutAt(epoch=0))
    assert_equal_end(whole.run_dir, cut_and_resume("cut", cuts, "--config", path, *often))


@pytest.mark.slow
def test_sigterm_saves_and_says_that_the_training_has_not_ended(recipe):
    path = recipe(max_epochs=3, data={"batch_size": 2})
    whole = run(["fit", "--config", path, "--name", "whole"])
    done = signalled(path, 7, signal.SIGTERM, "--name", "stopped")
    assert done.returncode == 143, done.stderr
    assert "--ckpt_path last" in done.stderr
    assert torch.load("runs/stopped/version_0/last.ckpt", weights_only=True)["global_step"] == 7
    resumed = run(["fit", "--config", path, "--name", "stopped", "--ckpt_path", "last"])
    assert_equal_end(whole.run_dir, resumed.run_dir)


@pytest.mark.slow
def test_a_slurm_job_that_is_queued_again_goes_on(recipe, tmp_path, monkeypatch):
    """``scontrol`` is a stand-in that notes its arguments."""
    path = recipe(max_epochs=3, data={"batch_size": 2})
    whole = run(["fit", "--config", path, "--name", "whole"])
    scontrol = tmp_path / "bin" / "scontrol"
    scontrol.parent.mkdir()
    scontrol.write_text('#!/bin/sh\necho "$@" > queued\n')
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", f"{scontrol.parent}:{os.environ['PATH']}")
    slurm = {"JOB_ID": "7", "JOB_NAME": "train", "NTASKS": "1", "PROCID": "0", "LOCALID": "0", "NODEID": "0"}
    for key, value in slurm.items():
        monkeypatch.setenv(f"SLURM_{key}", value)
    done = signalled(path, 7, signal.SIGUSR1, "--name", "job")
    assert done.returncode == 143, done.stderr
    assert Path("queued").read_text() == "requeue 7\n"
    assert torch.load("runs/job/version_0/last.ckpt", weights_only=True)["global_step"] == 7
    monkeypatch.setenv("SLURM_JOB_ID", "8")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    other = run(["fit", "--config", path, "--name", "job"])  # of the same name, queued again before its first step
    assert other.config["fit"].ckpt_path is None
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    again = run(["fit", "--config", path, "--name", "job"])
    assert again.config["fit"].ckpt_path == "runs/job/version_0/last.ckpt"
    assert_equal_end(whole.run_dir, again.run_dir)


@pytest.mark.slow
def test_ctrl_c_ends_with_130(recipe):
    done = signalled(recipe(max_epochs=3, data={"batch_size": 2}), 7, signal.SIGINT, "--name", "stopped")
    assert done.returncode == 130, done.stderr
    assert "Traceback" not in done.stderr


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(recipe, capsys):
    path = recipe(max_epochs=3, data={"batch_size": 2})
    whole = run(["fit", "--config", path, "--name", "whole"])
    with pytest.raises(PowerCutError):
        run(["fit", "--config", path, "--name", "cut"], [CutAt(step=13)])
    last = Path("runs/cut/version_0/last.ckpt")
    assert torch.load(last.with_name("last-previous.ckpt"), weights_only=True)["global_step"] == 5
    last.write_bytes(last.read_bytes()[:-1000])
    with pytest.warns(UserWarning, match="last-previous"):
        resumed = run(["fit", "--config", path, "--name", "cut", "--ckpt_path", "last"])
    assert_equal_end(whole.run_dir, resumed.run_dir)


def test_only_damaged_checkpoints_are_an_error_that_names_them(recipe):
    path = recipe()
    run(["fit", "--config", path, "--name", "x"])
    for file in Path("runs/x/version_0").glob("last*.ckpt"):
        file.write_bytes(b"PK not a checkpoint")
    with pytest.raises(CheckpointError, match=r"version_0/last\.ckpt: not a checkpoint"):
        run(["fit", "--config", path, "--name", "x", "--ckpt_path", "last"])
    assert main(["fit", "--config", path, "--name", "none", "--ckpt_path", "last"]) == 1
