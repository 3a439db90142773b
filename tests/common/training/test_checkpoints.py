import os
import pickle
import signal
import subprocess
import sys

import pytest
import torch

from common.training.checkpoints import AtomicCheckpointIO, CheckpointError, find_checkpoint, read_checkpoint

WRITER = """
import resource, signal, sys, torch
from common.training.checkpoints import AtomicCheckpointIO, CheckpointError
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
for path in sys.argv[1:]:
    try:
        AtomicCheckpointIO().save_checkpoint({"x": torch.ones(1_000_000)}, path)
    except CheckpointError as error:
        print(error)
"""


def test_a_full_disk_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(3)}, path)
    new = tmp_path / "new.ckpt"
    done = subprocess.run([sys.executable, "-c", WRITER, str(path), str(new)], capture_output=True, text=True)
    for line, target, kept in zip(
        done.stdout.splitlines(),
        (path, new),
        ("the previous last.ckpt is intact", "no checkpoint was there"),
        strict=True,
    ):
        assert f"cannot write the checkpoint {target}" in line
        assert kept in line
    assert torch.equal(read_checkpoint(path)["x"], torch.zeros(3))
    assert os.listdir(tmp_path) == ["last.ckpt"]


KILLED = """
import os, signal, sys, torch
from common.training.checkpoints import AtomicCheckpointIO
os.fsync = lambda handle: os.kill(os.getpid(), signal.SIGKILL)  # everything is written, nothing is renamed yet
AtomicCheckpointIO().save_checkpoint({"x": torch.ones(1000)}, sys.argv[1])
"""


def test_a_killed_writer_leaves_the_old_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    AtomicCheckpointIO().save_checkpoint({"x": torch.zeros(3)}, path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)])
    assert done.returncode == -signal.SIGKILL
    assert torch.equal(AtomicCheckpointIO().load_checkpoint(path)["x"], torch.zeros(3))


def test_checkpoints_are_as_readable_as_other_files(tmp_path):
    AtomicCheckpointIO().save_checkpoint({}, tmp_path / "a.ckpt")
    (tmp_path / "b").touch()
    assert (tmp_path / "a.ckpt").stat().st_mode == (tmp_path / "b").stat().st_mode


class Code:
    def __reduce__(self):
        return os.mkdir, (os.environ["SPECTRAL_TEST_FOLDER"],)


def test_a_file_cannot_run_code(tmp_path, monkeypatch):
    monkeypatch.setenv("SPECTRAL_TEST_FOLDER", str(tmp_path / "made"))
    torch.save({"state_dict": Code()}, tmp_path / "a.ckpt")
    (tmp_path / "b.ckpt").write_bytes(pickle.dumps(Code()))
    (tmp_path / "c.ckpt").write_bytes(b"no checkpoint")
    AtomicCheckpointIO().save_checkpoint({"x": torch.ones(1000)}, tmp_path / "d.ckpt")
    with (tmp_path / "d.ckpt").open("r+b") as file:
        file.truncate(2000)
    for name in "abcd":
        with pytest.raises(CheckpointError, match=rf"{name}.ckpt: not a checkpoint that can be read safely"):
            read_checkpoint(tmp_path / f"{name}.ckpt")
    assert not (tmp_path / "made").exists()
    torch.save([1], tmp_path / "e.ckpt")
    with pytest.raises(CheckpointError, match="holds a list"):
        read_checkpoint(tmp_path / "e.ckpt")


def test_a_folder_stands_for_its_newest_checkpoint(tmp_path):
    with pytest.raises(CheckpointError, match=r"has no best.ckpt, nor do its version"):
        find_checkpoint(tmp_path)
    with pytest.raises(CheckpointError, match=r"gone.ckpt does not exist"):
        find_checkpoint(tmp_path / "gone.ckpt")
    for k in (1, 0):
        (tmp_path / f"version_{k}").mkdir()
        (tmp_path / f"version_{k}" / "best.ckpt").touch()
        os.utime(tmp_path / f"version_{k}" / "best.ckpt", (100 - k, 100 - k))
    assert find_checkpoint(tmp_path) == tmp_path / "version_0" / "best.ckpt"
    assert find_checkpoint(tmp_path / "version_1") == tmp_path / "version_1" / "best.ckpt"
    assert find_checkpoint(tmp_path / "version_1" / "best.ckpt") == tmp_path / "version_1" / "best.ckpt"


def test_weights_that_were_damaged_are_refused(tmp_path):
    path = tmp_path / "a.ckpt"
    torch.save({"state_dict": {"weight": torch.arange(4096.0)}}, path)
    content = bytearray(path.read_bytes())
    at = content.index(torch.tensor(1000.0).numpy().tobytes())
    content[at + 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"the checksum of its part .*data/0 is wrong"):
        read_checkpoint(path)
