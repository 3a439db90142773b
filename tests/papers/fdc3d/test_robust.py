"""What researchers do to a network works with compact layers and compact networks; see `tests.robustness`."""

from __future__ import annotations

import copy
import functools

import pytest
import torch
from torch import nn

from common.spectral.transforms import random_orthogonal
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import fold_batch_norms
from papers.fdc3d.files import describe, rebuild
from papers.fdc3d.layers import EXECUTIONS, LAYOUTS, CompactConv3d, MaskedConv3d
from tests import robustness
from tests.papers.fdc3d.test_compression import tiny_batches, tiny_network


def compact_layer(execution="transform", layout="contiguous"):
    torch.manual_seed(0)
    kept = {"kept_channels": 4, "kept_rows": 2}
    layer = CompactConv3d(6, 4, 3, (1, 2, 1), 1, **kept, execution=execution, layout=layout)
    layer.kept.copy_(torch.tensor([1, 2, 4, 5]))
    layer.transform.copy_(random_orthogonal(3)[::2])
    return layer.eval()


CASES = {f"{way}-{order}": functools.partial(compact_layer, way, order) for way in EXECUTIONS for order in LAYOUTS}
SHAPE, SIZES = (2, 6, 5, 9, 7), [(3, 6, 5, 8, 7), (5, 6, 6, 11, 12)]
every_layer = pytest.mark.parametrize("build", CASES.values(), ids=CASES)


@robustness.every_quick_check
@every_layer
def test_layer(check, build):
    check(build, SHAPE)


def masked_layer():
    torch.manual_seed(0)
    layer = MaskedConv3d(nn.Conv3d(6, 4, 3, (1, 2, 1), 1), random_orthogonal(3))
    layer.rows.copy_(torch.tensor([True, False, True]))
    layer.scale.copy_(torch.tensor([0.0, 1, 0.5, 0, 2, 1]))
    return layer.eval()


@robustness.every_quick_check
def test_masked_layer(check):
    check(masked_layer, SHAPE)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@every_layer
def test_other_sizes(build):
    robustness.takes_sizes(build, SHAPE, [(6, 1, 1, 1), (6, 1, 7, 9)])
    robustness.traces(build, SHAPE, SIZES)


@every_layer
def test_export(build):
    robustness.exports(build, SHAPE, [(3, 6, 5, 8, 7)])


@pytest.mark.slow
@every_layer
def test_compiled(build):
    # All but `depthwise` prepare something for a number of frames: another number is compiled anew.
    robustness.compiles(build, SHAPE, [(3, 6, 5, 8, 6), (5, 6, 5, 11, 12)])


@pytest.fixture(scope="module")
def network():
    return compress(tiny_network(), tiny_batches(1), rate=2, steps=1, progress=False).network


@pytest.fixture
def x():
    return tiny_batches(1)[0][0]


def test_meta_construction(network, x):
    with torch.device("meta"):
        meta = rebuild(describe(network), tiny_network())
    assert all(parameter.is_meta for parameter in meta.parameters())
    meta.load_state_dict(network.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(meta(x), network(x))


def test_prepared_kernels_follow_a_change_of_precision():
    layer = compact_layer("taps")
    x = torch.randn(1, 6, 5, 9, 7)
    with torch.no_grad():
        layer(x)
        layer.half().float()
        kernel = layer._kernel()
        torch.testing.assert_close(layer(x), layer._taps(layer._gathered(x), kernel), rtol=0, atol=0)


@pytest.mark.slow
def test_inductor_trains_a_compact_network(network):
    for module in (compact_layer(), copy.deepcopy(network)):
        torch._dynamo.reset()
        eager = copy.deepcopy(module)
        compiled = torch.compile(module, fullgraph=True)
        x = torch.randn(2, 6, 5, 9, 7) if isinstance(module, CompactConv3d) else tiny_batches(1)[0][0]
        for one in (eager, compiled):
            one(x).square().sum().backward()
        for (name, mine), theirs in zip(eager.named_parameters(), module.parameters(), strict=True):
            torch.testing.assert_close(theirs.grad, mine.grad, rtol=1e-3, atol=1e-3, msg=name)


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
def test_export_and_trace_a_network(network, x):
    folded = copy.deepcopy(network)
    fold_batch_norms(folded, x)
    with torch.no_grad():
        expected = network(x)
        for one in (network, folded):
            exported = torch.export.export(one, (x,), dynamic_shapes=({0: torch.export.Dim("batch")},)).module()
            torch.testing.assert_close(exported(x), expected, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(exported(x[:1]), expected[:1], rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(torch.jit.trace(one, x)(x), expected, rtol=1e-4, atol=1e-5)
        assert network(x[:0]).shape == (0, 4)


def test_averaged_weights(network, x):
    average = torch.optim.swa_utils.AveragedModel(network)
    average.update_parameters(network)
    with torch.no_grad():
        torch.testing.assert_close(average.eval()(x), network(x))
