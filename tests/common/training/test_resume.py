import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.training.cli import run

pytestmark = pytest.mark.slow


def kill_at(recipe: str, step: int, *args: str) -> None:
    """Train in a process of its own until it is killed after an optimiser step."""
    killer = ["--trainer.callbacks+", "tests.common.training.tiny.KillAt", "--trainer.callbacks.step", str(step)]
    command = [sys.executable, "-m", "common.training.cli", "fit", "--config", recipe, *args, *killer]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def state(folder: Path) -> dict[str, torch.Tensor]:
    """Weights and momenta at the end of a run."""
    content = torch.load(folder / "last.ckpt", weights_only=True)
    momenta = content["optimizer_states"][0]["state"]
    return {
        **content["state_dict"],
        **{f"momentum {k}": v["momentum_buffer"] for k, v in momenta.items()},
        "step": torch.tensor(content["global_step"]),
        "lr": torch.tensor(content["optimizer_states"][0]["param_groups"][0]["lr"]),
    }


def best_score(folder: Path) -> float:
    callbacks = torch.load(folder / "last.ckpt", weights_only=True)["callbacks"]
    [best] = [state for key, state in callbacks.items() if "val_top1" in key]
    return float(best["best_model_score"])


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
    expected, got = state(whole.run_dir), state(resumed.run_dir)
    assert expected["step"] == 12
    assert [key for key in expected if not torch.equal(expected[key], got[key])] == []
    assert best_score(whole.run_dir) == best_score(resumed.run_dir)
    assert Path("runs/killed/version_0/last.ckpt").exists()


def test_accumulated_steps_survive_a_kill(recipe):
    path = recipe(max_epochs=3, data={"batch_size": 2}, accumulate_grad_batches=2)  # 5 batches, 3 steps an epoch
    often = ["--checkpoint_every_n_steps", "1"]
    whole = run(["fit", "--config", path, "--name", "whole", *often])
    kill_at(path, 4, "--name", "killed", *often)
    resumed = run(["fit", "--config", path, "--name", "killed", "--ckpt_path", "last", *often])
    expected, got = state(whole.run_dir), state(resumed.run_dir)
    assert [key for key in expected if not torch.equal(expected[key], got[key])] == []
