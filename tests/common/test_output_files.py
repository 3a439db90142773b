"""Files of results on a disk that is full."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from common.output_files import new_files, save_json, save_rows

WRITERS = {
    "x.csv": 'write_rows(Path("x.csv"), [{"a": "b" * 100}] * 1000)',
    "rows.csv": 'with row_writer(Path("rows.csv"), ["a"]) as write: [write({"a": "b" * 100}) for _ in range(1000)]',
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
from common.output_files import new_file, row_writer, write_json, write_rows, written_whole

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
    assert left == (["rows.csv"] if name == "rows.csv" else []), "only rows that are written as they come stay"


def test_of_several_files_all_appear_or_none(tmp_path: Path) -> None:
    first, second = tmp_path / "a.csv", tmp_path / "b.json"
    first.write_text("old")

    def write(content: Any) -> None:
        with new_files(overwrite=True) as new:
            save_rows(new(first), [{"a": 1}])
            save_json(new(second), content)
            assert first.read_text() == "old"

    with pytest.raises(TypeError):
        write({(): "JSON has no such keys"})
    assert (first.read_text(), list(tmp_path.iterdir())) == ("old", [first])
    write([2])
    assert (first.read_text().split(), second.read_text().split()) == (["a", "1"], ["[", "2", "]"])


def test_links_and_pipes_are_written_in_place(tmp_path: Path) -> None:
    link, file, pipe = tmp_path / "link", tmp_path / "file", tmp_path / "pipe"
    file.touch()
    link.symlink_to(file)
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    with new_files(overwrite=True) as new:
        save_json(new(link), 1)
        save_json(new(pipe), 2)
    assert (link.is_symlink(), file.read_text(), os.read(reader, 9)) == (True, "1\n", b"2\n")
    os.close(reader)
