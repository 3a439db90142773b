from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from common.training.cli import main
from data.demo.motion import generate_motion
from tests.common.training.colours import COLOURS, SPEC, MeanColour


@pytest.fixture(scope="session")
def motion(tmp_path_factory) -> Path:
    """A manifest of real mp4 files: two classes, 5 training, 3 validation and 3 test clips each."""
    out = tmp_path_factory.mktemp("data") / "motion"
    return generate_motion(out, size=32, frames=8, train=5, val=3, test=3, classes=["move_left", "move_right"])


@pytest.fixture
def recipe(tmp_path, monkeypatch, motion):
    """Writes a recipe that trains a tiny network on those files; the working directory is a fresh folder.

    Keyword arguments go to ``trainer``; ``model`` and ``data`` are dicts of further arguments.
    """
    monkeypatch.chdir(tmp_path)

    def write(name: str = "tiny", model: dict | None = None, data: dict | None = None, **trainer: Any) -> str:
        content = {
            "model": {
                "class_path": "tests.common.training.tiny.TinyModule",
                "init_args": {"num_classes": 2, "dropout": 0.2, **(model or {})},
            },
            "data": {
                "class_path": "common.datamodules.VideoDataModule",
                "init_args": {
                    **{"root": str(motion.parent), "manifest": str(motion), "batch_size": 4, "num_workers": 0},
                    **{"num_frames": 4, "crop_size": 24, **(data or {})},
                },
            },
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, **trainer},
        }
        path = tmp_path / f"{name}.yaml"
        path.write_text(yaml.safe_dump(content))
        return str(path)

    return write


@pytest.fixture
def predict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Runs ``spectral predict`` with a checkpoint that knows three colours, in an empty folder."""
    monkeypatch.chdir(tmp_path)
    module = MeanColour(num_classes=3)
    module.output_names, module.spec = COLOURS, SPEC.to_dict()
    checkpoint: dict[str, Any] = {"state_dict": module.state_dict(), "hyper_parameters": dict(module.hparams)}
    module.on_save_checkpoint(checkpoint)
    (tmp_path / "net").mkdir()
    torch.save(checkpoint, tmp_path / "net/best.ckpt")
    base = ["predict", "--checkpoint", "net", "--allow", "tests", "--device", "cpu"]
    return lambda *args: main([*base, *map(str, args)])
