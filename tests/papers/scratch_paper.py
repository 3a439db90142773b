"""A sixth paper, complete and small: what a reader writes to add one, and what the contract is tested on."""

from __future__ import annotations

from pathlib import Path

FILES = {
    "__init__.py": '''
"""Mixing Neighbouring Frames. A paper for tests."""

from {package}.networks import MixOptions, mix_net

__all__ = ["MixOptions", "mix_net"]
''',
    "layers.py": '''
"""The operator of the paper."""

import torch
from torch import Tensor, nn


class FrameMix(nn.Module):
    """Adds a weighted difference of neighbouring frames, (B,C,T,H,W) -> the same (Eq. 1).

    Args:
        channels: C.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.weight * (x - x.roll(1, 2))
''',
    "networks.py": '''
"""The network of Table 1."""

from dataclasses import dataclass
from typing import Any

from common.backbones import C2DResNet
from common.backbones.options import changed
from {package}.layers import FrameMix


@dataclass(frozen=True)
class MixOptions:
    """Options of the network.

    Attributes:
        depth: 18 or 50.
        width: multiplies the number of channels.
        stage: the stage whose blocks mix frames.
    """

    depth: int = 18
    width: float = 1.0
    stage: int = 5


def mix_net(num_classes: int = 8, options: MixOptions = MixOptions(), **changes: Any) -> C2DResNet:
    """Clips (B,3,T,H,W) -> logits (B,num_classes)."""
    options = changed(options, changes)

    def mid_block(channels: int, stage: int, index: int) -> FrameMix | None:
        return FrameMix(channels) if stage == options.stage else None

    return C2DResNet(options.depth, num_classes, 0.0, width=options.width, mid_block=mid_block)
''',
    "lightning_module.py": '''
"""Training by SGD with a cosine schedule (Section 4)."""

from typing import Any

from lightning.pytorch.utilities.types import OptimizerLRSchedulerConfig
from torch import nn

from common.training.schedules import cosine_over_training, sgd
from common.training.classification import VideoClassificationModule
from {package}.networks import MixOptions, mix_net


class {name}MixModule(VideoClassificationModule):
    """The network of Table 1.

    Args:
        network: its options.
        num_classes: taken from the data by `spectral`.
        learning_rate, momentum, weight_decay: of SGD.
        kwargs: arguments of the task.
    """

    def __init__(
        self,
        network: MixOptions = MixOptions(),
        num_classes: int | None = None,
        learning_rate: float = 0.02,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        **kwargs: Any,
    ) -> None:
        super().__init__(num_classes, **kwargs)

    def build_network(self) -> nn.Module:
        return mix_net(self.hparams["num_classes"], MixOptions(**self.hparams["network"]))

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        return cosine_over_training(self, sgd(self), 1.0)
''',
    "figures.py": '''
"""The figures of the paper."""

from matplotlib.figure import Figure

from common.reporting.runs import Job


def figure1(job: Job | None = None) -> Figure:
    """How the weights of neighbouring frames add up."""
    figure = Figure()
    figure.subplots().plot([0, 1, 0])
    return figure
''',
    "reproduce.py": '''
"""The tables and figures of the paper; see `common.reporting.reproduce`."""

import sys
from pathlib import Path

from common.reporting.reproduce import main

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent, "{package}.figures"))
''',
    "recipes/demo.yaml": """
# At demo size on generated clips: python -m data.demo motion --out runs/demo/motion
model:
  class_path: {package}.lightning_module.{name}MixModule
  init_args:
    network: {{width: 0.125}}
data:
  class_path: common.datamodules.VideoDataModule
  init_args:
    dataset: motion
    num_frames: 8
    crop_size: 32
    batch_size: 8
    num_workers: 0
trainer:
  max_epochs: 2
""",
    "recipes/mix_c2d-r18_8f_jester.yaml": """
model:
  class_path: {package}.lightning_module.{name}MixModule
data:
  class_path: common.datamodules.VideoDataModule
  init_args:
    dataset: jester
    num_frames: 8
    crop_size: 112
    batch_size: 8
trainer:
  max_epochs: 30
""",
    "recipes/mix_c2d-r18_8f_diving48_from-jester.yaml": """
model:
  class_path: {package}.lightning_module.{name}MixModule
  init_args:
    pretrained: runs/mix_c2d-r18_8f_jester
data:
  class_path: common.datamodules.VideoDataModule
  init_args:
    dataset: diving48
    num_frames: 8
    crop_size: 112
    batch_size: 8
trainer:
  max_epochs: 30
""",
    "ledger.yaml": """
paper: {folder}
title: Mixing Neighbouring Frames
authors: A. Author
networks:
  mix: {{function: {package}.networks.mix_net, arguments: {{num_classes: 27}}}}
tables:
  - id: table1
    title: Jester and Diving-48
    columns:
      - {{key: params, name: Params, measure: params}}
      - {{key: jester, name: Jester, measure: top1, scale: 0.01, dataset: jester}}
      - {{key: diving48, name: Diving-48, measure: top1, scale: 0.01, dataset: diving48}}
    shared:
      statuses: [computed, recipe]
      input: [1, 3, 8, 112, 112]
      networks: {{ours: mix}}
      recipes: {{jester: {{file: mix_c2d-r18_8f_jester.yaml}}}}
    rows:
      - {{id: mix, name: Mix, values: [11.19M, "90.1", "-"]}}
      - {{id: mix-transferred, name: Mix from Jester, values: [11.20M, "-", "50.0"], arguments: {{num_classes: 48}},
         recipes: {{diving48: {{file: mix_c2d-r18_8f_diving48_from-jester.yaml}}}}}}
      - {{id: mix-res4, name: Mix in res4, values: [11.19M, "89.0", "-"], arguments: {{stage: 4}},
         overrides: [--model.network.stage, "4"]}}
figures:
  - {{id: figure1, title: The weights, statuses: [computed], function: figure1, location: layers.FrameMix}}
""",
    "README.md": """
# Mixing neighbouring frames

```bash
spectral fit --config papers/stft3d/recipes/demo.yaml --trainer.max_epochs 1
```

```python
import torch

from {package} import mix_net

logits = mix_net(num_classes=5, width=0.125)(torch.randn(1, 3, 4, 32, 32))
```
""",
}


def write_paper(parent: Path, folder: str) -> Path:
    """Write the paper as a package below `parent`, which becomes one too; the paper's folder."""
    place = parent / folder
    (place / "recipes").mkdir(parents=True)
    (parent / "__init__.py").touch()
    about = {"package": f"{parent.name}.{folder}", "name": folder.title().replace("_", ""), "folder": folder}
    for name, text in FILES.items():
        (place / name).write_text(text.lstrip("\n").format(**about))
    return place


def change(path: Path, old: str, new: str) -> None:
    """Exchange a text that stands in a file once."""
    content = path.read_text()
    assert content.count(old) == 1, f"{path} has {old!r} {content.count(old)} times"
    path.write_text(content.replace(old, new))
