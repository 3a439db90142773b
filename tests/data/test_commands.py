import subprocess
import sys

import pytest


@pytest.mark.parametrize("command", ["prepare", "check", "browse", "resize", "shards", "demo.__main__"])
def test_help_needs_no_torch(command: str) -> None:
    code = f"import sys; sys.modules['torch.nn'] = None; from data.{command} import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout
