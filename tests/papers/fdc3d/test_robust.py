"""What researchers do to a network works with compact layers and compact networks."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from common.spectral.transforms import random_orthogonal
from papers.fdc3d.compression import compress
from papers.fdc3d.deployment import fold_batch_norms
from papers.fdc3d.files import describe, rebuild
from papers.fdc3d.layers import EXECUTIONS, LAYOUTS, CompactConv3d, MaskedConv3d
from tests.papers.fdc3d.test_compression import tiny_batches, tiny_network

EVERY = [(execution, layout) for execution in EXECUTIONS for layout in LAYOUTS]


def compact_layer(execution="transform", layout="contiguous"):
    torch.manual_seed(0)
    masked = MaskedConv3d(nn.Conv3d(6, 4, 3, (1, 2, 1), padding=1), random_orthogonal(3))
    masked.rows[1] = False
    masked.scale[::3] = 0
    layer = masked.compact().eval()
    layer.execution = execution
    layer.set_layout(layout)
    return layer


@pytest.fixture(scope="module")
def network():
    return compress(tiny_network(), tiny_batches(1), rate=2, steps=1, progress=False).network


@pytest.fixture
def x():
    return tiny_batches(1)[0][0]


def test_meta_construction_with_assigned_weights(network, x):
    with torch.device("meta"):
        layer = CompactConv3d(6, 4, 3, (1, 2, 1), 1, kept_channels=4, kept_rows=2).eval()
    original = compact_layer()
    layer.load_state_dict(original.state_dict(), assign=True)
    video = torch.randn(1, 6, 5, 9, 7)
    torch.testing.assert_close(layer(video), original(video))
    with torch.device("meta"):
        meta = rebuild(describe(network), tiny_network())
    assert all(parameter.is_meta for parameter in meta.parameters())
    meta.load_state_dict(network.state_dict(), assign=True)
    with torch.no_grad():
        assert torch.equal(meta(x), network(x))


def test_copies(network, x):
    file = io.BytesIO()
    torch.save(network, file)
    file.seek(0)
    with torch.no_grad():
        expected = network(x)
        for other in (
            copy.deepcopy(network),
            pickle.loads(pickle.dumps(network)),
            torch.load(file, weights_only=False),
            copy.deepcopy(network).share_memory(),
            copy.deepcopy(network).to_empty(device="cpu"),
        ):
            other.load_state_dict(network.state_dict())
            assert torch.equal(other(x), expected)


@pytest.mark.parametrize(("execution", "layout"), EVERY)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_precisions(execution, layout, dtype):
    layer = compact_layer(execution, layout)
    x = torch.randn(2, 6, 5, 9, 7)
    expected = layer(x)
    with torch.no_grad():
        layer(x)  # prepares kernels in single precision
        result = layer.to(dtype)(x.to(dtype))
    assert result.dtype == dtype
    tolerance = {torch.float16: 1e-2, torch.bfloat16: 5e-2, torch.float64: 1e-6}[dtype]
    torch.testing.assert_close(result.float(), expected, rtol=tolerance, atol=tolerance)


def test_prepared_kernels_follow_a_change_of_precision():
    layer = compact_layer("taps")
    x = torch.randn(1, 6, 5, 9, 7)
    with torch.no_grad():
        layer(x)
        layer.half().float()
        kernel = layer._kernel()
        torch.testing.assert_close(layer(x), layer._taps(layer._gathered(x), kernel), rtol=0, atol=0)


@pytest.mark.parametrize(("execution", "layout"), EVERY)
def test_odd_inputs(execution, layout):
    layer = compact_layer(execution, layout)
    whole = torch.randn(3, 6, 5, 9, 7)
    expected = layer(whole)
    assert layer(whole[:0]).shape == (0, *expected.shape[1:])
    torch.testing.assert_close(layer(whole[1:2]), expected[1:2])
    strided = torch.stack([whole, whole], dim=-1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(layer(strided), expected)
    assert layer(torch.randn(1, 6, 1, 1, 1)).shape == (1, 4, 1, 1, 1)


@pytest.mark.parametrize(("execution", "layout"), EVERY)
def test_transforms_of_functions(execution, layout):
    layer = compact_layer(execution, layout).double()
    x = torch.randn(2, 1, 6, 3, 4, 3, dtype=torch.float64)
    with torch.no_grad():
        expected = torch.stack([layer(each) for each in x])
        torch.testing.assert_close(torch.vmap(layer)(x), expected)
    one, tangent = x[0], torch.randn_like(x[0])
    _, slope = torch.func.jvp(layer, (one,), (tangent,))
    torch.testing.assert_close(slope, layer(tangent) - layer(torch.zeros_like(tangent)))
    weights = dict(layer.named_parameters())
    gradient = torch.func.grad(lambda w: torch.func.functional_call(layer, w, (one,)).square().sum())(weights)
    assert all(torch.isfinite(g).all() and g.abs().max() > 0 for g in gradient.values())
    assert torch.autograd.gradgradcheck(layer, (one.clone().requires_grad_(),), fast_mode=True)


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_compile_without_breaks_and_without_recompiling_per_batch(execution):
    layer = compact_layer(execution)
    torch._dynamo.reset()
    graphs = []

    def backend(graph, _):
        graphs.append(graph)
        return graph

    compiled = torch.compile(layer, fullgraph=True, backend=backend)
    for shape in ((2, 6, 5, 9, 7), (3, 6, 5, 9, 7), (4, 6, 5, 9, 7), (5, 6, 5, 11, 8), (6, 6, 5, 12, 9)):
        x = torch.randn(shape)
        torch.testing.assert_close(compiled(x), layer(x))
    assert len(graphs) <= 3  # static, dynamic batch, dynamic height and width


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


@pytest.mark.parametrize("execution", EXECUTIONS)
def test_export_with_dynamic_sizes(execution):
    layer = compact_layer(execution)
    sizes = {0: torch.export.Dim("batch"), 3: torch.export.Dim.AUTO, 4: torch.export.Dim.AUTO}
    exported = torch.export.export(layer, (torch.randn(2, 6, 5, 9, 7),), dynamic_shapes=(sizes,)).module()
    for shape in ((1, 6, 5, 9, 7), (3, 6, 5, 12, 10)):
        x = torch.randn(shape)
        torch.testing.assert_close(exported(x), layer(x), rtol=1e-4, atol=1e-5)


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


def test_averaged_and_checkpointed_training(network, x):
    average = torch.optim.swa_utils.AveragedModel(network)
    average.update_parameters(network)
    with torch.no_grad():
        torch.testing.assert_close(average.eval()(x), network(x))
    layer = compact_layer()
    video = torch.randn(1, 6, 5, 9, 7, requires_grad=True)
    gradients = []
    for run in (layer, lambda v: torch.utils.checkpoint.checkpoint(layer, v, use_reentrant=False)):
        gradients.append(torch.autograd.grad(run(video).square().sum(), (video, layer.weight)))
    torch.testing.assert_close(*gradients)
