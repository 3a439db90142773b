"""A paper folder of its own: one table, two figures, and a demo that trains in seconds."""

from __future__ import annotations

from pathlib import Path

import pytest

LEDGER = """\
paper: tiny
title: A tiny paper
authors: Nobody
labels: {ours: the network that is meant}
networks:
  linear: {function: torch.nn.Linear, arguments: {in_features: 8, out_features: 4}}
tables:
  - id: table1
    title: Accuracy | cost
    note: Made up.
    columns:
      - {key: frames, name: Frames}
      - {key: params, name: Params, measure: params}
      - {key: flops, name: FLOPs, measure: macs}
      - {key: top1, name: Top 1, measure: top1, scale: 0.01, dataset: real}
    shared:
      statuses: [computed, recipe]
      input: [1, 8]
      recipes: {real: {file: demo.yaml}}
    rows:
      - id: a
        name: A
        values: ["8", "0.04K", "32", "50.0"]
        networks: {ours: {network: linear}, wide: {network: linear, arguments: {out_features: 8}}}
        overrides: [--data.batch_size, "2"]
        note: A row of its own.
      - [b, <B>, "-", "-", "-", "-"]
figures:
  - {id: figure1, title: A drawing, statuses: [diagram], location: nowhere}
  - {id: figure2, title: A curve, statuses: [computed], location: here, function: curve}
demos:
  - id: demo
    title: Two motions
    text: Two networks.
    data: [motion, --size, "32", --frames, "8", --train, "3", --val, "2", --test, "2", --classes, move_left, move_right]
    recipe: demo.yaml
    rows:
      - {id: demo/one, name: One, table_row: table1/a}
      - {id: demo/two, name: Two, table_row: table1/a, overrides: [--model.dropout, "0.5"]}
"""

RECIPE = """\
model:
  class_path: tests.common.training.tiny.TinyModule
  init_args: {num_classes: null}
data:
  class_path: common.datamodules.VideoDataModule
  init_args:
    {root: missing, batch_size: 2, num_workers: 0, num_frames: 4, crop_size: 24}
trainer: {max_epochs: 2, accelerator: cpu, devices: 1}
"""

README = """\
# Tiny

<!-- tables: begin (written by a program) -->
old
<!-- tables: end -->

More.
"""


@pytest.fixture
def paper(tmp_path: Path) -> Path:
    """The folder of the tiny paper."""
    folder = tmp_path / "tiny"
    (folder / "recipes").mkdir(parents=True)
    (folder / "ledger.yaml").write_text(LEDGER)
    (folder / "recipes" / "demo.yaml").write_text(RECIPE)
    (folder / "README.md").write_text(README)
    return folder
