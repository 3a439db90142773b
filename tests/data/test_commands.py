import subprocess
import sys
from importlib import import_module

import pytest


@pytest.mark.parametrize("command", ["prepare", "check", "browse", "resize", "shards", "demo.__main__"])
def test_help_needs_no_torch(command: str) -> None:
    code = f"import sys; sys.modules['torch.nn'] = None; from data.{command} import main; main(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "usage: " in done.stdout


@pytest.mark.parametrize("command", ["check", "browse", "resize", "shards"])
def test_a_url_is_refused(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        import_module(f"data.{command}").main(["s3://bucket/videos"])
    assert "s3://bucket/videos is a URL: this command reads and writes local folders" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        import_module(f"data.{command}").main(["videos", "--out" if command != "check" else "--root", "http://host/x"])
    assert "http://host/x is a URL" in capsys.readouterr().err
