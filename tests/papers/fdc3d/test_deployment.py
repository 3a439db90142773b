"""Removing unread filters and folding batch norms leave what a network computes."""

import copy

import pytest
import torch
from torch import nn

from common.evaluation.complexity import count
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import fold_batch_norms, trim_producers
from papers.fdc3d.files import describe, load_compact, rebuild, save_compact, set_source
from papers.fdc3d.layers import EXECUTIONS, LAYOUTS, CompactConv3d
from tests.papers.fdc3d.test_compression import tiny_batches, tiny_network
from tests.papers.fdc3d.test_files import SOURCE


@pytest.fixture(scope="module")
def result():
    network = tiny_network()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):  # as after training
            nn.init.normal_(module.running_mean, std=0.3)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
    return compress(set_source(network, *SOURCE), tiny_batches(), rate=2, steps=2, progress=False)


# -- filters that nothing reads


def test_unread_filters_go(result, tmp_path):
    x = tiny_batches()[0][0]
    network = rebuild(describe(result.network))
    network.load_state_dict(result.network.state_dict())
    report = trim_producers(network, x)
    assert report.trimmed == {f"layer{i}.0.conv1": (8 * 2 ** (i - 1), 6 * 2 ** (i - 1)) for i in (1, 2, 3, 4)}
    assert report.kept["layer1.0.conv1"] == "more than this layer reads conv1"  # the first shortcut reads it too
    assert "sum" in report.kept["layer2.0.conv1"]
    assert "8 > 6 filters" in str(report)
    assert network.layer1[0].bn1.num_features == 6
    assert network.layer1[0].conv2.in_channels == network.layer1[0].conv2.kept_channels == 6
    with torch.no_grad():
        torch.testing.assert_close(network(x), result.network(x), rtol=1e-5, atol=1e-5)
    before = result.report.macs_compact
    counted = result.report.from_dict(result.report.to_dict())
    counted.recount(network)
    assert counted.macs_compact < before
    assert counted.macs_compact == count(network, (1, *x.shape[1:])).macs_paper
    loaded = load_compact(save_compact(network, tmp_path / "trimmed.pt"))
    with torch.no_grad():
        assert torch.equal(loaded(x), network(x))


def test_plain_producers_and_what_lies_between():
    class Chain(nn.Module):
        def __init__(self, between):
            super().__init__()
            self.first = nn.Conv3d(3, 8, 1)
            self.between = between
            self.second = nn.Conv3d(8, 4, 3, padding=1)
            self.third = nn.Conv3d(4, 4, 1)  # four channels: not pruned

        def forward(self, x):
            return self.third(self.second(self.between(self.first(x))))

    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, 6, 6)
    for between, trims in (
        (nn.Sequential(nn.BatchNorm3d(8), nn.ReLU(inplace=True), nn.MaxPool3d(2), nn.Dropout3d()), True),
        (nn.BatchNorm3d(8, affine=False, track_running_stats=False), True),
        (nn.GroupNorm(2, 8), False),
        (nn.Upsample(scale_factor=2), False),
    ):
        network = compress(Chain(between).eval(), [x], rate=2, steps=1, progress=False, method="dct").network
        expected = network(x)
        report = trim_producers(network, x)
        assert (report.trimmed == {"first": (8, 6)}) is trims
        torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
        assert network.first.out_channels == (6 if trims else 8)


# -- batch norms


def norms(network):
    return sum(isinstance(module, nn.BatchNorm3d) for module in network.modules())


@pytest.mark.parametrize("trimmed", [False, True])
def test_batch_norms_fold(result, tmp_path, trimmed):
    x = tiny_batches()[0][0]
    network = copy.deepcopy(result.network)
    if trimmed:
        trim_producers(network, x)
    with torch.no_grad():
        expected = network(x)
    before = norms(network)
    assert len(fold_batch_norms(network.train(), x)) == before == 12
    assert norms(network) == 0
    with torch.no_grad():
        loaded = load_compact(save_compact(network, tmp_path / "folded.pt"))
        for other in (network, loaded):
            torch.testing.assert_close(other(x), expected, rtol=1e-5, atol=1e-5)
        layers = [module for module in loaded.modules() if isinstance(module, CompactConv3d)]
        for execution in EXECUTIONS:
            for layout in LAYOUTS:
                for layer in layers:
                    layer.execution = execution
                    layer.set_layout(layout)
                torch.testing.assert_close(loaded(x), expected, rtol=1e-5, atol=1e-5)


def test_batch_norms_that_cannot_fold_stay():
    class Shared(nn.Module):
        """The first convolution is also read past its norm, the second norm is behind an activation."""

        def __init__(self):
            super().__init__()
            self.first, self.first_norm = nn.Conv3d(3, 8, 1), nn.BatchNorm3d(8)
            self.second, self.act, self.second_norm = nn.Conv3d(8, 8, 1), nn.ReLU(inplace=True), nn.BatchNorm3d(8)
            self.third, self.third_norm = nn.Conv3d(8, 8, 1), nn.BatchNorm3d(8, track_running_stats=False)
            self.fourth, self.fourth_norm = nn.Conv3d(8, 8, 1), nn.BatchNorm3d(8, affine=False)

        def forward(self, x):
            y = self.first(x)
            y = y + self.first_norm(y)
            y = self.second_norm(self.act(self.second(y)))
            return self.fourth_norm(self.fourth(self.third_norm(self.third(y))))

    torch.manual_seed(0)
    network = Shared()
    x = torch.randn(4, 3, 2, 5, 5)
    for _ in range(5):
        network(x)
    expected = network.eval()(x)
    assert fold_batch_norms(network, x) == ["fourth_norm"]
    torch.testing.assert_close(network(x), expected, rtol=1e-5, atol=1e-5)
