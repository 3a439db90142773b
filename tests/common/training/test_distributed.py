import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from common.training.cli import run
from tests.common.training.test_cli import with_broken_videos

pytestmark = pytest.mark.slow


def spectral(*args: str) -> str:
    """Run the command in a process of its own, which starts the other ranks; returns what it printed."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "common.training.cli", *args]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def test_scores_are_the_same_on_any_number_of_processes(recipe):
    # 6 videos in batches of 4 and 2: with 3 processes one of them has nothing of its own
    path = recipe(data={"eval_batch_size": 4, "num_clips": 2})
    trained = run(["fit", "--config", path]).run_dir / "last.ckpt"
    torch.set_num_threads(1)
    results, tables = [], []
    for processes in (1, 2, 3):
        name = f"test{processes}"
        several = ["--trainer.devices", str(processes), *(["--trainer.strategy", "ddp"] if processes > 1 else [])]
        spectral("test", "--config", path, "--ckpt_path", str(trained), "--name", name, *several)
        assert os.listdir(f"runs/{name}") == ["version_0"]
        results.append(json.loads(Path(f"runs/{name}/version_0/result.json").read_text()))
        tables.append(Path(f"runs/{name}/version_0/predictions.csv").read_text())
    keys = ("top1", "top5", "mean_class", "loss", "videos", "videos_expected", "views")
    assert [[result[key] for key in keys] for result in results] == [[results[0][key] for key in keys]] * 3
    assert results[0]["videos"] == 6
    assert tables == [tables[0]] * 3


def test_a_process_that_can_read_none_of_its_videos_takes_part(recipe, motion, tmp_path):
    data = with_broken_videos(motion, tmp_path / "broken", "test/move_right/0002.mp4")  # the second batch of two
    path = recipe(data={**data, "on_read_error": "replace", "eval_batch_size": 5})
    torch.set_num_threads(1)
    with pytest.warns(UserWarning, match="test: 1 of 6 videos cannot be read"):
        one = run(["test", "--config", path]).result
    printed = spectral("test", "--config", path, "--trainer.devices", "2", "--trainer.strategy", "ddp")
    assert printed.count("test: 1 of 6 videos cannot be read") == 1
    two = json.loads(Path("runs/tiny/version_1/result.json").read_text())
    keys = ("top1", "loss", "videos", "videos_expected", "unreadable")
    assert [two[key] for key in keys] == [one[key] for key in keys]
    assert two["videos"] == 5


def test_the_recipe_trains_on_two_processes_unchanged(recipe):
    path = recipe(max_epochs=2, data={"batch_size": 2, "num_workers": 1}, accumulate_grad_batches=2)
    ddp = ["--trainer.strategy", "ddp", "--trainer.devices", "2", "--trainer.precision", "bf16-mixed"]
    printed = spectral("fit", "--config", path, *ddp)
    assert "Effective batch size: 8 clips (2 per batch x 2 processes x 2 accumulated batches)" in printed
    assert os.listdir("runs/tiny") == ["version_0"]
    content = torch.load("runs/tiny/version_0/last.ckpt", weights_only=True)
    assert content["global_step"] == 4  # 10 videos: 3 steps of 2 x 2, so 2 optimiser steps an epoch
    assert all(value.isfinite().all() for value in content["state_dict"].values())


def test_two_processes_equal_one_with_the_whole_batch(recipe):
    whole = run(["fit", "--config", recipe(model={"dropout": 0.0}, data={"batch_size": 4}, max_epochs=2)])
    path = recipe("two", model={"dropout": 0.0}, data={"batch_size": 2}, max_epochs=2)
    spectral("fit", "--config", path, "--trainer.strategy", "ddp", "--trainer.devices", "2")
    one = torch.load(whole.run_dir / "last.ckpt", weights_only=True)["state_dict"]
    two = torch.load("runs/two/version_0/last.ckpt", weights_only=True)["state_dict"]
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)


def test_two_machines_under_torchrun_equal_one_with_the_whole_batch(recipe):
    whole = run(["fit", "--config", recipe(model={"dropout": 0.0}, data={"batch_size": 4}, max_epochs=2)])
    path = recipe("machines", model={"dropout": 0.0}, data={"batch_size": 2}, max_epochs=2)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"]
    launch += ["--master-addr", "127.0.0.1", "--master-port", str(port)]
    fit = [
        "-m",
        "common.training.cli",
        "fit",
        "--config",
        path,
        "--trainer.strategy",
        "ddp",
        "--trainer.num_nodes",
        "2",
    ]
    agents = [
        subprocess.Popen(
            [*launch, "--node-rank", str(node), *fit], env=environment, stderr=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for node in (0, 1)
    ]
    outputs = [agent.communicate(timeout=300) for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], outputs
    assert os.listdir("runs/machines") == ["version_0"]
    one = torch.load(whole.run_dir / "last.ckpt", weights_only=True)["state_dict"]
    two = torch.load("runs/machines/version_0/last.ckpt", weights_only=True)["state_dict"]
    for key in one:
        torch.testing.assert_close(two[key], one[key], rtol=1e-4, atol=1e-5)
