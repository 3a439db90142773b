"""STFTPointwise and checkpoint_once: the same function in every mode, with less kept for the backward pass."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from common.spectral import DepthwiseSTFT, STFTPointwise, checkpoint_once, reference_implementation


class SavedBytes:
    """Counts the bytes of the different tensors that autograd keeps, parameters not counted."""

    def __init__(self, module: nn.Module) -> None:
        self.parameters = {p.untyped_storage().data_ptr() for p in module.parameters()}
        self.parameters |= {b.untyped_storage().data_ptr() for b in module.buffers()}
        self.kept: dict[int, tuple[int, torch.UntypedStorage]] = {}

    def pack(self, tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in self.parameters:
            # The storage is held so that its address is not used again.
            self.kept[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    def __enter__(self) -> SavedBytes:
        self.hooks = torch.autograd.graph.saved_tensors_hooks(self.pack, lambda t: t)
        self.hooks.__enter__()
        return self

    def __exit__(self, *error) -> None:
        self.hooks.__exit__(*error)

    @property
    def total(self) -> int:
        return sum(size for size, _ in self.kept.values())


def pair(activation=nn.LeakyReLU, channels: int = 11, kernel_size=(3, 3, 3), **options):
    """The plain and the memory-efficient block with equal parameters that are not the initial ones."""
    torch.manual_seed(0)
    plain = STFTPointwise(channels, 7, kernel_size, activation=activation, **options)
    with torch.no_grad():
        plain.norm.weight.uniform_(0.5, 1.5)
        plain.norm.bias.uniform_(-1, 1)
        plain.norm.running_mean.uniform_(-1, 1)
    efficient = copy.deepcopy(plain)
    efficient.memory_efficient = True
    return plain, efficient


def train_step(block: nn.Module, x: torch.Tensor, weight: torch.Tensor, autocast: bool = False):
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = block(x)
    (y.float() * weight).sum().backward()
    return y.detach(), x.grad, {name: p.grad for name, p in block.named_parameters()}


class Cube(nn.Module):
    """An activation that the library does not know."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x**3


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize(
    "activation",
    [nn.LeakyReLU, nn.ReLU, lambda: nn.LeakyReLU(0.3, inplace=True), nn.SELU, nn.ELU, nn.PReLU, Cube, nn.RReLU],
)
def test_memory_efficient_training_equals_plain(activation, autocast):
    plain, efficient = pair(activation)
    x, weight = torch.randn(2, 11, 3, 5, 4), torch.randn(2, 7, 3, 5, 4)
    for _ in range(2):  # twice: the running statistics of the first step enter the second
        torch.manual_seed(1)
        y, grad, grads = train_step(plain, x, weight, autocast)
        torch.manual_seed(1)
        y2, grad2, grads2 = train_step(efficient, x, weight, autocast)
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-4, "atol": 1e-4}
    assert y.dtype == y2.dtype
    torch.testing.assert_close(y2, y, **tolerance)
    torch.testing.assert_close(grad2, grad, **tolerance)
    torch.testing.assert_close(grads2, grads, rtol=tolerance["rtol"], atol=10 * tolerance["atol"])
    assert efficient.norm.num_batches_tracked == 2
    torch.testing.assert_close(efficient.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (3, 1, 1), (5, 5), (7,)])
def test_memory_efficient_gradients_in_float64(kernel_size, monkeypatch):
    monkeypatch.setattr("common.spectral.fused._SLICE_BYTES", 1)  # one channel at a time
    _, efficient = pair(channels=3, kernel_size=kernel_size)
    efficient = efficient.double()
    x = torch.randn(2, 3, *[4, 3, 2][: len(kernel_size)], dtype=torch.float64, requires_grad=True)
    parameters = list(efficient.parameters())

    def function(x: torch.Tensor, *_: torch.Tensor) -> torch.Tensor:
        return efficient(x)

    assert torch.autograd.gradcheck(function, (x, *parameters))


@pytest.mark.parametrize(("kernel_size", "expected"), [((3, 3, 3), 78), ((1, 3, 3), 24), ((3, 1, 1), 6)])
def test_kept_memory(kernel_size, expected):
    """The plain composition keeps 3 x 2K input-sized tensors, the memory-efficient block one."""
    plain, efficient = pair(kernel_size=kernel_size, channels=8)
    x = torch.randn(2, 8, 4, 12, 12, requires_grad=True)
    size = x.numel() * x.element_size()
    with SavedBytes(plain) as saved:
        plain(x)
    assert expected <= saved.total / size < expected + 1
    with SavedBytes(efficient) as saved:
        efficient(x)
    assert saved.total == size
    with SavedBytes(plain) as saved:
        checkpoint_once(plain, x)
    assert saved.total == size


def test_kept_memory_of_an_unknown_activation():
    _, efficient = pair(Cube, channels=8)
    x = torch.randn(2, 8, 4, 12, 12, requires_grad=True)
    with SavedBytes(efficient) as saved:
        efficient(x)
    assert saved.total == x.numel() * x.element_size()


@pytest.mark.parametrize("change", ["cumulative", "untracked", "frozen", "replaced", "no input gradient", "half input"])
def test_unusual_normalisation_and_inputs(change):
    blocks = pair()
    x, weight = torch.randn(2, 11, 3, 5, 4), torch.randn(2, 7, 3, 5, 4)
    for block in blocks:
        if change == "cumulative":
            block.norm.momentum = None
        elif change == "untracked":
            block.norm = nn.BatchNorm3d(block.stft.out_channels, track_running_stats=False)
        elif change == "frozen":
            block.norm.eval()
        elif change == "replaced":
            block.norm = nn.GroupNorm(11, block.stft.out_channels)
    results = []
    for block in blocks:
        leaf = x.clone().requires_grad_(change != "no input gradient")
        low = change == "half input"
        with torch.autocast("cpu", torch.bfloat16, enabled=low):
            y = block(leaf.bfloat16() if low else leaf)
        (y.float() * weight).sum().backward()
        results.append((y.float().detach(), leaf.grad, {n: p.grad for n, p in block.named_parameters()}))
    tolerance = 2e-2 if change == "half input" else 1e-4
    torch.testing.assert_close(results[1][:2], results[0][:2], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(results[1][2], results[0][2], rtol=tolerance, atol=10 * tolerance)
    torch.testing.assert_close(blocks[1].state_dict(), blocks[0].state_dict(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("kernel_size", [(3, 3, 3), (1, 3, 3), (3, 1, 1), (5, 5), (7,)])
@pytest.mark.parametrize("activation", [nn.LeakyReLU, nn.ReLU, nn.SELU])
def test_folded_evaluation_equals_plain(activation, kernel_size, autocast):
    plain, _ = pair(activation, kernel_size=kernel_size)
    plain.eval()
    out_norm = nn.modules.batchnorm.__dict__[f"BatchNorm{len(kernel_size)}d"](7).eval()
    nn.init.uniform_(out_norm.weight, 0.5, 2)
    nn.init.normal_(out_norm.running_mean)
    x = torch.randn(2, 11, *[5, 6, 7][: len(kernel_size)])
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {"rtol": 1e-4, "atol": 1e-5}
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        torch.testing.assert_close(plain(x), plain._plain(x), **tolerance)
        torch.testing.assert_close(plain(x, out_norm), out_norm(plain._plain(x)), **tolerance)
        # The fold follows the parameters.
        plain.norm.weight *= 2
        plain.norm.running_var += 1
        torch.testing.assert_close(plain(x), plain._plain(x), **tolerance)
    with torch.inference_mode():
        plain(x)


@pytest.mark.parametrize("part", ["stft", "norm", "activation", "pointwise"])
def test_evaluation_runs_the_hooks_of_its_parts(part):
    plain, _ = pair()
    calls = []
    getattr(plain.eval(), part).register_forward_hook(lambda *_: calls.append(part))
    with torch.no_grad():
        plain(torch.randn(1, 11, 3, 4, 5))
    assert calls == [part]


def test_folded_evaluation_leaves_input_alone():
    plain, _ = pair(lambda: nn.ReLU(inplace=True))
    x = torch.randn(1, 11, 3, 4, 5)
    before = x.clone()
    with torch.no_grad():
        plain.eval()(x)
    assert torch.equal(x, before)


def test_evaluation_with_gradients():
    plain, efficient = pair()
    x, weight = torch.randn(2, 11, 3, 5, 4), torch.randn(2, 7, 3, 5, 4)
    a, b = train_step(plain.eval(), x, weight), train_step(efficient.eval(), x, weight)
    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(efficient.state_dict(), plain.state_dict())


def test_training_without_gradients_updates_statistics_once():
    plain, efficient = pair()
    x = torch.randn(2, 11, 3, 5, 4)
    with torch.no_grad():
        torch.testing.assert_close(plain(x), efficient(x))
    assert efficient.norm.num_batches_tracked == 1


def test_state_dict_is_the_same_in_every_mode():
    plain, efficient = pair()
    names = ["norm.weight", "norm.bias", "norm.running_mean", "norm.running_var"]
    names += ["norm.num_batches_tracked", "pointwise.weight"]
    assert list(plain.state_dict()) == list(efficient.state_dict()) == names
    efficient.load_state_dict(plain.state_dict())


def test_second_derivatives_are_those_of_the_plain_composition():
    results = []
    for block in pair():
        block = block.double()
        x = torch.linspace(-1, 1, 2 * 11 * 3 * 4 * 5, dtype=torch.float64).sin().view(2, 11, 3, 4, 5).requires_grad_()
        tensors = (x, *block.parameters())
        first = torch.autograd.grad(block(x).square().sum(), tensors, create_graph=True)
        results.append(torch.autograd.grad(sum(g.square().sum() for g in first), tensors))
    torch.testing.assert_close(results[1], results[0])


def test_stride():
    plain, efficient = pair(stride=(1, 2, 2))
    x, weight = torch.randn(2, 11, 3, 5, 4), torch.randn(2, 7, 3, 3, 2)
    a, b = train_step(plain, x, weight), train_step(efficient, x, weight)
    torch.testing.assert_close(a[:2], b[:2], rtol=1e-4, atol=1e-4)


def test_errors_name_the_input():
    _, efficient = pair()
    for block in (efficient, efficient.eval()):
        with pytest.raises(ValueError, match=r"\(1, 4, 3, 3, 3\)"):
            block(torch.zeros(1, 4, 3, 3, 3))
    with torch.no_grad(), pytest.raises(ValueError, match=r"\(1, 4, 3, 3, 3\)"):
        efficient(torch.zeros(1, 4, 3, 3, 3))


def segment() -> nn.Sequential:
    """The S-STFT segment: STFT, then a trainable depthwise temporal convolution, each normalised and activated."""
    torch.manual_seed(0)
    stft = DepthwiseSTFT(4, (1, 3, 3))
    channels = stft.out_channels
    return nn.Sequential(
        stft,
        nn.BatchNorm3d(channels),
        nn.LeakyReLU(inplace=True),
        nn.Conv3d(channels, channels, (3, 1, 1), padding=(1, 0, 0), groups=channels, bias=False),
        nn.BatchNorm3d(channels, momentum=None),
        nn.LeakyReLU(),
        nn.Dropout(0.5),
        nn.Conv3d(channels, 6, 1, bias=False),
    )


def test_checkpoint_once_equals_the_module():
    plain, recomputed = segment(), segment()
    x, weight = torch.randn(2, 4, 4, 5, 6), torch.randn(2, 6, 4, 5, 6)
    for seed in range(2):
        torch.manual_seed(seed)
        a = train_step(plain, x, weight)
        torch.manual_seed(seed)
        b = train_step(Recomputed(recomputed), x, weight)
        torch.testing.assert_close(b[:2], a[:2])
    torch.testing.assert_close({n: p.grad for n, p in recomputed.named_parameters()}, a[2])
    torch.testing.assert_close(recomputed.state_dict(), plain.state_dict())
    assert all(m.track_running_stats for m in recomputed.modules() if isinstance(m, nn.BatchNorm3d))


class Recomputed(nn.Module):
    """Runs a module through checkpoint_once."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return checkpoint_once(self.inner, x)


def test_checkpoint_once_keeps_only_the_input():
    module = segment()
    x = torch.randn(2, 4, 4, 12, 12, requires_grad=True)
    with SavedBytes(module) as plain:
        module(x)
    with SavedBytes(module) as saved:
        checkpoint_once(module, x)
    assert saved.total == x.numel() * x.element_size()
    assert plain.total > 40 * saved.total


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_distributed_training(memory_efficient, tmp_path):
    """Gradients and running statistics are those without the wrapper; every parameter's gradient is reduced."""
    x, weight = torch.randn(2, 11, 3, 5, 4), torch.randn(2, 7, 3, 5, 4)
    plain, block = pair()
    block.memory_efficient = memory_efficient
    inner = nn.Sequential(block, Recomputed(nn.Sequential(nn.Conv3d(7, 7, 1), nn.BatchNorm3d(7))))
    alone = nn.Sequential(plain, copy.deepcopy(inner[1].inner))
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path}/store", rank=0, world_size=1)
    try:
        parallel = nn.parallel.DistributedDataParallel(inner)
        for _ in range(2):
            a, b = train_step(alone, x, weight), train_step(parallel, x, weight)
            torch.testing.assert_close(b[:2], a[:2], rtol=1e-4, atol=1e-4)
    finally:
        torch.distributed.destroy_process_group()
    torch.testing.assert_close(list(b[2].values()), list(a[2].values()), rtol=1e-4, atol=1e-3)
    torch.testing.assert_close(list(inner.buffers()), list(alone.buffers()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("memory_efficient", [False, True])
def test_compiled_block_equals_plain(memory_efficient):
    plain, block = pair()
    block.memory_efficient = memory_efficient
    x, weight = torch.randn(2, 11, 3, 5, 4), torch.randn(2, 7, 3, 5, 4)
    compiled = torch.compile(block, backend="aot_eager", fullgraph=True)
    a, b = train_step(plain, x, weight), train_step(compiled, x, weight)
    torch.testing.assert_close(b[:2], a[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(block.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)
    compiled.eval(), plain.eval()
    with torch.no_grad():
        torch.testing.assert_close(compiled(x), plain(x), rtol=1e-4, atol=1e-4)


def test_compiled_segment_equals_plain():
    plain, inner = segment(), segment()
    for module in (plain, inner):
        module[6] = nn.Identity()  # compiled random numbers differ
        module[4].momentum = 0.1  # a cumulative average depends on data, which the compiler does not take
    x, weight = torch.randn(2, 4, 4, 5, 6), torch.randn(2, 6, 4, 5, 6)
    compiled = torch.compile(Recomputed(inner), backend="aot_eager", fullgraph=True)
    a, b = train_step(plain, x, weight), train_step(compiled, x, weight)
    torch.testing.assert_close(b[:2], a[:2], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(inner.state_dict(), plain.state_dict(), rtol=1e-5, atol=1e-5)


def test_reference_implementation_runs_stock_operators():
    """Inside the context no custom autograd function is recorded, and the results are the same."""
    x = torch.randn(2, 11, 3, 5, 4, requires_grad=True)
    for block in pair():
        with reference_implementation():
            y = block(x)
        seen, queue = set(), [y.grad_fn]
        while queue:
            node = queue.pop()
            seen.add(node.name())
            queue += [n for n, _ in node.next_functions if n is not None]
        assert seen == {"ConvolutionBackward0", "LeakyReluBackward0", "NativeBatchNormBackward0"} | {
            "torch::autograd::AccumulateGrad"
        }
