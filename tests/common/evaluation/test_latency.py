"""What the timings record; no assertion on a time."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.evaluation.latency import measure_latency, one_thread


class Spy(nn.Module):
    def __init__(self, name: str, calls: list[tuple[str, bool]]) -> None:
        super().__init__()
        self.name, self.calls = name, calls
        self.weight = nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append((self.name, torch.is_grad_enabled()))
        return self.weight * x


def test_networks_take_turns() -> None:
    calls: list[tuple[str, bool]] = []
    x = torch.ones(3)
    found = measure_latency({"a": Spy("a", calls), "b": Spy("b", calls)}, x, repeats=5, warmup=2)
    assert [name for name, _ in calls[-10:]] == ["a", "b"] * 5
    assert not any(grad for _, grad in calls)
    assert list(found) == ["a", "b"]
    assert found["a"].ratio == 1
    assert found["b"].ratio == found["b"].seconds / found["a"].seconds
    for latency in found.values():
        assert 0 < latency.fastest <= latency.seconds


def test_backward_leaves_no_gradients() -> None:
    calls: list[tuple[str, bool]] = []
    network = Spy("a", calls)
    x = torch.ones(3)
    measure_latency({"a": network}, x, repeats=1, warmup=1, backward=True)
    assert all(grad for _, grad in calls)
    assert network.weight.grad is None


def test_nothing_to_measure() -> None:
    with pytest.raises(ValueError, match="0 networks"):
        measure_latency({}, torch.ones(1))


def test_one_thread_is_left_also_after_an_error() -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with one_thread():
            assert torch.get_num_threads() == 1
        with pytest.raises(ZeroDivisionError), one_thread():
            1 / 0  # noqa: B018
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
