"""The paper's figures."""

from __future__ import annotations

import torch
from torch import nn

from common.evaluation.latency import peak_allocated
from common.reporting.page import png
from papers.srl import figures


def test_blocks_of_table_1_are_compared_with_their_branches_on() -> None:
    x = torch.randn(2, 64, 8, 8)
    for name, block in figures.blocks(8, 64).items():
        assert not torch.allclose(block(x), x), name


def test_figure_of_table_1() -> None:
    figure = figures.complexities(sizes=(4, 6), repeats=1)
    assert png(figure).startswith(b"\x89PNG")
    time, memory = figure.axes
    assert len(time.lines) == len(memory.lines) == 7
    assert all((line.get_ydata() > 0).all() for line in (*time.lines, *memory.lines))


def test_memory_of_a_step_is_counted_exactly() -> None:
    x = torch.randn(10, 10)
    assert peak_allocated(nn.Identity(), x) == 0
    assert peak_allocated(nn.Sequential(nn.ReLU(), nn.Sigmoid(), nn.Tanh()), x) == 2 * 400  # two at once
    assert peak_allocated(nn.Sequential(nn.Sigmoid(), nn.Tanh()), x.requires_grad_(), backward=True) >= 3 * 400


def test_the_block_holds_less_than_the_published_non_local_block() -> None:
    made = figures.blocks(28)
    x = torch.randn(1, figures.CHANNELS, 28, 28, requires_grad=True)
    assert peak_allocated(made["SRL-FFT"], x, backward=True) < peak_allocated(made["NL"], x, backward=True)
