"""The progress bar of ``spectral fit``, ``validate`` and ``test`` in terminals of several widths."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Iterator

import pytest
import rich
from lightning.pytorch.callbacks import RichProgressBar

from common.training.cli import main, run


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[int], Terminal]]:
    """Makes standard output a terminal with a number of columns."""

    def make(width: int) -> Terminal:
        monkeypatch.setattr("sys.stdout", screen := Terminal())
        monkeypatch.setenv("TERM", "xterm")
        monkeypatch.setenv("COLUMNS", str(width))
        return screen

    yield make
    monkeypatch.undo()
    rich.reconfigure()  # Lightning makes rich's global console anew for every bar


def bars(screen: Terminal) -> list[str]:
    """The lines with a bar. Nothing else may be on the screen that a bar would leave there when it wraps."""
    text = screen.getvalue()
    assert "\x1b[1A\x1b[2K\x1b[1A" not in text, "there are two lines at most, of the training and its validation"
    lines = re.split(r"[\r\n]+", re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text))
    assert not [line for line in lines if line.startswith("  ") and line.strip()], "the rest of a line that wrapped"
    found = [line.rstrip() for line in lines if re.search("[━╸╺]", line)]
    screen.seek(0)
    screen.truncate()
    return found


@pytest.mark.parametrize("width", [50, 80, 140])
def test_every_bar_is_one_line(recipe, terminal, width) -> None:
    screen = terminal(width)
    path = recipe(max_epochs=2, log_every_n_steps=1, enable_progress_bar=True)
    assert main(["fit", "--config", path]) == 0
    found = bars(screen)
    assert all(len(line) <= width for line in found)
    assert {line.split()[0] for line in found} <= {"Sanity", "Epoch", "Validation"}
    shown = found[-1]
    assert re.match(r"Epoch 1/1 +━+ 3/3 0:\d\d:\d\d • 00:00 loss", shown)
    cut = {50: r" loss.*…$", 80: r" loss \d\.\d{3} val_top1 .*…$", 140: r" top1 \d\.\d{3} wait \d\.\d{3}$"}
    assert re.search(cut[width], shown)
    assert main(["test", "--config", path, "--ckpt_path", "last"]) == 0
    found = [line for line in bars(screen) if "Testing" in line]
    assert found
    assert all(len(line) <= width for line in found)


def test_the_bar_of_a_recipe_wins(recipe) -> None:
    path = recipe(enable_progress_bar=True)
    arguments = ["fit", "--config", path, "--trainer.fast_dev_run", "1", "--trainer.callbacks"]
    assert type(run([*arguments, "RichProgressBar"]).trainer.progress_bar_callback) is RichProgressBar
