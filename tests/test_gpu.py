"""What `make gpu` does, as far as it can run without a GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn

from common.reporting.ledger import Network
from tests import gpu


class Wavering(nn.Module):
    """Gives another result at every call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.weight * x * torch.rand(())


def test_the_networks_of_every_paper_are_listed() -> None:
    names = [name.split()[0] for name, _, _ in gpu.networks()]
    assert set(names) == {path.parent.name for path in (gpu.ROOT / "papers").glob("*/ledger.yaml")}


def test_a_difference_is_seen() -> None:
    cpu = torch.device("cpu")
    same = gpu.compare(Network("papers.srl.layers.SRLBlock", {"channels": 16, "size": [6, 5]}), [1, 16, 6, 5], cpu)
    assert same["output"] == same["gradients"] == 0 < same["bfloat16"] < 0.1
    other = gpu.compare(Network("tests.test_gpu.Wavering"), [1, 3, 4, 8, 8], cpu)
    assert other["output"] > 1e-3
    assert other["gradients"] > 1e-2


def test_the_fused_kernel_is_compared_and_timed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu, "milliseconds", lambda call, repeats: float(len(call())))
    report = gpu.Report(tmp_path, "a device", limit=60)
    report.step("fused", "small", lambda: gpu.fused((3, 1, 1), 4, 6, torch.device("cpu")))
    found = report.data["fused"]["small"]
    assert found["float32, fused, error"] < 1e-6
    assert found["bfloat16, stock, error"] < 2e-2
    assert found["float32, fused, ms"] == found["bfloat16, stock, ms"] == 8
    assert "| small | " in (tmp_path / "gpu.md").read_text()


def test_channels_last_changes_nothing_but_the_memory() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv3d(3, 4, 3), nn.Flatten(0, 1), nn.Conv2d(8, 2, 1)).eval()
    weights = [parameter.clone() for parameter in network.parameters()]
    gpu.channels_last(network)
    assert network[0].weight.is_contiguous(memory_format=torch.channels_last_3d)
    assert all(torch.equal(a, b) for a, b in zip(weights, network.parameters(), strict=True))


def test_failed_and_late_steps_stand_in_the_page(tmp_path: Path) -> None:
    report = gpu.Report(tmp_path, "a device", limit=60)
    errors = {"output": 1e-6, "gradients": 2e-6, "bfloat16": 3e-3}
    report.step("networks", "good", lambda: errors)
    report.step("networks", "bad", lambda: 1 / 0)
    report.end = 0
    report.step("networks", "late", lambda: errors)
    report.write()
    stored = json.loads((tmp_path / "gpu.json").read_text())
    assert stored["networks"] == {"good": errors}
    assert list(stored["failed"]) == ["networks: bad"]
    page = (tmp_path / "gpu.md").read_text()
    assert "| good | 1.0e-06 | 2.0e-06 | 3.0e-03 |" in page
    assert "* networks: bad: ZeroDivisionError" in page
    assert "* networks: late" in page


def test_without_a_gpu_the_command_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit, match="no CUDA GPU is available"):
        gpu.main([])
