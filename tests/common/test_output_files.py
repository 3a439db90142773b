"""Files of results on a disk that is full."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

WRITERS = {
    "x.csv": 'write_rows(Path("x.csv"), [{"a": "b" * 100}] * 1000)',
    "x.json": 'write_json(Path("x.json"), ["x" * 10_000])',
    "x.txt": 'with written_whole("x.txt") as file: file.write("x" * 10_000)',
    "x.npy": 'with new_file(Path("x.npy")) as new, new.open("wb") as file: np.save(file, np.zeros(10_000))',
    "x.npz": 'with new_file(Path("x.npz")) as new, new.open("wb") as file: np.savez(file, np.zeros(10_000))',
}


@pytest.mark.parametrize("name", WRITERS)
def test_the_error_of_a_full_disk_names_the_file(name: str, tmp_path: Path) -> None:
    program = f"""
import resource
from pathlib import Path
import numpy as np
from common.command_line import run_command
from common.output_files import new_file, write_json, write_rows, written_whole

resource.setrlimit(resource.RLIMIT_FSIZE, (5_000, 5_000))

def write():
    {WRITERS[name]}

raise SystemExit(run_command(write))
"""
    path = str(Path(__file__).parents[2])
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env={"PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 1
    [line] = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert f"free some space, or write elsewhere: '{name}'" in line
    left = [found.name for found in tmp_path.iterdir()]
    assert left == ([name] if name in ("x.csv", "x.json") else [])
