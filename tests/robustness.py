"""What every layer and network must survive: one function for each property.

Each takes `build`, which makes the module from nothing, and the shape of an input, batch first. A module has one tensor
in and one out. A paper's tests use them so:

    CASES = {"block": (lambda: DTFBlock(32, 4), (2, 32, 4, 6, 5)), ...}

    @robustness.every_quick_check
    @pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)
    def test_block(check, build, shape):
        check(build, shape)
"""

from __future__ import annotations

import copy
import inspect
import io
import pickle
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from common.training.export import OnnxNetwork, export_network

Build = Callable[[], nn.Module]
Shape = Sequence[int]


def prepare(build: Build, shape: Shape) -> tuple[nn.Module, Tensor]:
    """The module in evaluation mode and an input of `shape`.

    No parameter is left at zero, where a new module may have a branch that does nothing, and batch normalisations hold
    the statistics of the module as it is.
    """
    torch.manual_seed(0)
    module, x = build(), torch.randn(*shape)
    with torch.no_grad():
        for parameter in module.parameters():
            # Relative to its size: noise of one size for all lets deep networks that multiply maps overflow.
            scale = parameter.abs().mean().item()
            parameter.add_(torch.randn_like(parameter), alpha=0.05 * scale if scale else 0.01)
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm)]
        momenta = [norm.momentum for norm in norms]
        for norm in norms:
            norm.momentum = None
        if norms:
            module.train()(torch.randn(4, *shape[1:]))
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    return module.eval(), x


def assert_same(actual: Tensor, expected: Tensor, tolerance: float = 1e-4, message: str = "") -> None:
    """Equal shapes, finite, and no further apart than `tolerance` times the largest expected value."""
    assert actual.shape == expected.shape, f"{message}: {tuple(actual.shape)} instead of {tuple(expected.shape)}"
    assert actual.isfinite().all(), f"{message}: not finite"
    if expected.numel() == 0:
        return
    scale = expected.detach().double().abs().max().clamp_min(1e-12)
    error = (actual.detach().double() - expected.detach().double()).abs().max() / scale
    assert error <= tolerance, f"{message}: {error:.2g} of the largest value apart"


def gradients(module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Of a smooth scalar of the output, for the input and every trainable parameter."""
    module.zero_grad()
    x = x.detach().clone().requires_grad_()
    module(x).square().mean().backward()
    assert x.grad is not None
    return {"input": x.grad} | {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def assert_same_gradients(
    actual: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float = 1e-3, message: str = ""
) -> None:
    assert actual.keys() == expected.keys(), message
    for name, gradient in expected.items():
        # Gradients that vanish (of a bias before a batch normalisation) are rounding errors.
        if gradient.abs().max() > 1e-6:
            assert_same(actual[name], gradient, tolerance, f"{message}: gradient of {name}")


# Construction and copies


def survives_meta_construction(build: Build, shape: Shape) -> None:
    """Made on the meta device, then given weights by assignment, or memory by `to_empty` and weights by copy."""
    module, x = prepare(build, shape)
    expected, state = module(x), module.state_dict()
    with torch.device("meta"):
        assigned, copied = build().eval(), build().eval()
    assigned.load_state_dict(state, assign=True)
    assert_same(assigned(x), expected, message="load_state_dict(assign=True) after the meta device")
    copied.to_empty(device="cpu").load_state_dict(state)
    assert_same(copied(x), expected, message="to_empty after the meta device")
    module.to_empty(device="cpu").load_state_dict(copied.state_dict())
    assert_same(module(x), expected, message="to_empty of a module with memory")


def survives_copies(build: Build, shape: Shape) -> None:
    """deepcopy, pickle, shared memory, a state dict saved and loaded with `weights_only`, and averaged weights."""
    module, x = prepare(build, shape)
    expected = module(x)
    assert_same(copy.deepcopy(module)(x), expected, 0, "deepcopy")
    assert_same(pickle.loads(pickle.dumps(module))(x), expected, 0, "pickle")
    averaged = torch.optim.swa_utils.AveragedModel(module)
    averaged.update_parameters(module)
    assert_same(averaged.eval()(x), expected, 1e-5, "AveragedModel")
    file = io.BytesIO()
    torch.save(module.state_dict(), file)
    file.seek(0)
    restored = build().eval()
    restored.load_state_dict(torch.load(file, weights_only=True))
    assert_same(restored(x), expected, 0, "state dict")
    assert_same(module.share_memory()(x), expected, 0, "share_memory")


# Precision


def keeps_precisions(build: Build, shape: Shape, dtypes: Sequence[torch.dtype] = (torch.half, torch.bfloat16)) -> None:
    """Converted modules keep their dtype and agree with double precision, as does autocast."""
    module, x = prepare(build, shape)
    exact = copy.deepcopy(module).double()(x.double())
    assert exact.dtype == torch.double
    assert_same(module(x), exact, 1e-3, "float32 beside float64")
    for dtype in dtypes:
        tolerance = 0.03 if dtype == torch.half else 0.15
        converted = copy.deepcopy(module).to(dtype)(x.to(dtype))
        assert converted.dtype == dtype
        assert_same(converted, exact, tolerance, f"converted to {dtype}")
        with torch.autocast("cpu", dtype=dtype):
            assert_same(module(x), exact, tolerance, f"autocast to {dtype}")
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = module.train()(x.requires_grad_()).float().square().mean()
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"autocast: gradient of {name}"
    back = copy.deepcopy(module).eval().double().float()
    assert_same(back(x), module.eval()(x), 1e-5, "to float64 and back")


# Inputs


def takes_an_empty_batch(build: Build, shape: Shape) -> None:
    module, x = prepare(build, shape)
    expected = module(x)
    empty = x[:0].clone().requires_grad_()
    out = module(empty)
    assert out.shape == (0, *expected.shape[1:])
    out.sum().backward()
    assert empty.grad is not None
    for name, parameter in module.named_parameters():
        assert parameter.grad is None or not parameter.grad.any(), name
    with torch.no_grad():
        assert module(x[:0]).shape == out.shape


def trains_on_one_example(build: Build, shape: Shape) -> None:
    """A batch of one in training mode gives finite outputs and gradients."""
    module, x = prepare(build, shape)
    module.train()(x[:1].requires_grad_()).square().mean().backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.isfinite().all(), name


def takes_sizes(build: Build, shape: Shape, sizes: Sequence[Shape]) -> None:
    """Inputs of other sizes: finite, every example by itself, forward and backward.

    Args:
        sizes: shapes without the batch.
    """
    module, _ = prepare(build, shape)
    for size in sizes:
        x = torch.randn(3, *size)
        out = module(x)
        assert_same(module(x[1:2]), out[1:2], message=f"one of a batch of {tuple(size)}")
        for name, gradient in gradients(module, x).items():
            assert gradient.isfinite().all(), f"{tuple(size)}: gradient of {name}"


def takes_any_memory_order(build: Build, shape: Shape) -> None:
    """Channels-last inputs and modules, and strided views, give the same outputs and gradients."""
    module, x = prepare(build, shape)
    expected = module(x)
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[x.dim()]
    exact, wide = copy.deepcopy(module).double(), torch.randn(*shape[:-1], 2 * shape[-1])
    wide[..., ::2] = x
    # In float64: rounding puts values on the other side of an activation's kink, which changes the gradient.
    gradient = gradients(exact, x.double())
    for name, view in {"channels last": x.contiguous(memory_format=last), "a strided view": wide[..., ::2]}.items():
        assert_same(module(view), expected, message=name)
    for view in (x.double().contiguous(memory_format=last), wide.double()[..., ::2]):
        assert_same_gradients(gradients(exact, view), gradient)
    if all(p.dim() != 4 for p in module.parameters()) or x.dim() == 4:
        module = module.to(memory_format=last)
        assert_same(module(x.contiguous(memory_format=last)), expected, message="a channels-last module")


# Derivatives


def has_functional_transforms(build: Build, shape: Shape) -> None:
    """torch.func: vmap over examples, gradients of each example, and forward-mode derivatives."""
    module, x = prepare(build, shape)
    module, x = module.double(), x.double()
    parameters = {n: p.detach() for n, p in module.named_parameters()}

    def call(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        return torch.func.functional_call(module, parameters, (example.unsqueeze(0),)).squeeze(0)

    def loss(parameters: dict[str, Tensor], example: Tensor) -> Tensor:
        return call(parameters, example).square().mean()

    assert_same(torch.vmap(call, (None, 0))(parameters, x), module(x), 1e-9, "vmap")
    each = torch.vmap(torch.func.grad(loss), (None, 0))(parameters, x)
    for i in range(len(x)):
        expected = gradients(module, x[i : i + 1])
        for name in parameters:
            if name in expected and expected[name].abs().max() > 1e-9:
                assert_same(each[name][i], expected[name], 1e-7, f"vmap of grad: {name}")
    # <u, J v> in forward mode is <J^T u, v> in reverse mode.
    v = torch.randn_like(x)
    out, forward = torch.func.jvp(module, (x,), (v,))  # type: ignore[misc]
    u = torch.randn_like(out)
    (reverse,) = torch.func.vjp(module, x)[1](u)
    assert_same((u * forward).sum(), (reverse * v).sum(), 1e-7, "jvp")


def has_second_derivatives_or_refuses(build: Build, shape: Shape) -> None:
    """The gradient of a gradient agrees with differences of gradients, or is an error; it is never left out."""
    module, x = prepare(build, shape)
    module, x = module.double(), x.double()
    tensors: tuple[Tensor, ...] = (x.requires_grad_(), *(p for p in module.parameters() if p.requires_grad))
    directions = tuple(torch.randn_like(t) for t in tensors)

    def first(create_graph: bool) -> tuple[Tensor, ...]:
        loss = module(x).square().mean()
        return torch.autograd.grad(loss, tensors, create_graph=create_graph, materialize_grads=True)

    along = torch.stack([(g * d).sum() for g, d in zip(first(True), directions, strict=True)]).sum()
    # `once_differentiable` alone does not do: its error is on no path to the tensors, and `grad` passes it by.
    try:
        second = torch.autograd.grad(along, tensors, materialize_grads=True)
    except RuntimeError as error:
        if "differentiate twice" not in str(error) and "once_differentiable" not in str(error):
            raise
        return
    step = 1e-9  # small enough to cross no kink of a ReLU; rounding makes errors of 1e-7
    sides = []
    for sign in (1, -1):
        with torch.no_grad():
            for tensor, direction in zip(tensors, directions, strict=True):
                tensor.add_(direction, alpha=sign * step)
        sides.append(first(False))
        with torch.no_grad():
            for tensor, direction in zip(tensors, directions, strict=True):
                tensor.sub_(direction, alpha=sign * step)
    size = max(g.abs().max() for g in second)
    for i, (actual, plus, minus) in enumerate(zip(second, *sides, strict=True)):
        expected = (plus - minus) / (2 * step)
        assert (actual - expected).abs().max() <= 1e-4 * size, f"second derivative of tensor {i} of {len(tensors)}"


def can_be_checkpointed(build: Build, shape: Shape) -> None:
    """Recomputation in the backward pass gives the same gradients."""
    module, x = prepare(build, shape)
    expected = gradients(module, x)
    module.zero_grad()
    x = x.clone().requires_grad_()
    torch.utils.checkpoint.checkpoint(module, x, use_reentrant=False).square().mean().backward()
    assert x.grad is not None
    actual = {"input": x.grad} | {n: p.grad for n, p in module.named_parameters() if p.grad is not None}
    assert_same_gradients(actual, expected)


# Compilers and files


def compiles(build: Build, shape: Shape, sizes: Sequence[Shape]) -> None:
    """One graph, forward and backward; the second shape makes it dynamic, and the rest compile nothing anew.

    PyTorch itself compiles anew where two sizes become equal or a convolution passes a batch of 16.

    Args:
        sizes: at least two further shapes, batch included, that differ from `shape` in every dynamic dimension.
    """
    module, x = prepare(build, shape)
    torch.compiler.reset()
    compiled: Any = torch.compile(module, fullgraph=True, backend="aot_eager")
    for number, size in enumerate([shape, *sizes]):
        x = torch.randn(*size, requires_grad=True)
        with torch.compiler.set_stance("default" if number < 2 else "fail_on_recompile"):
            assert_same(compiled(x), module(x), message=f"compiled, {tuple(size)}")
            actual = {n.removeprefix("_orig_mod."): g for n, g in gradients(compiled, x).items()}
        assert_same_gradients(actual, gradients(module, x))
    torch.compiler.reset()


def _dynamic(dynamic: Sequence[int]) -> tuple[dict[int, Any]]:
    return (dict.fromkeys(dynamic, torch.export.Dim.DYNAMIC),)


def exports(build: Build, shape: Shape, sizes: Sequence[Shape] = (), dynamic: Sequence[int] = (0, 3, 4)) -> None:
    """torch.export, for one shape and for dynamic dimensions.

    Args:
        shape: of the example; give at least two of everything.
        sizes: further shapes, batch included, that the dynamic program runs on.
        dynamic: dimensions that change.
    """
    module, x = prepare(build, shape)
    assert_same(torch.export.export(module, (x,)).module()(x), module(x), message="exported")
    program = torch.export.export(module, (x,), dynamic_shapes=_dynamic(dynamic)).module()
    for size in [shape, *sizes]:
        x = torch.randn(*size)
        assert_same(program(x), module(x), message=f"exported with dynamic dimensions, {tuple(size)}")


def exports_to_onnx(
    build: Build, shape: Shape, folder: Path, sizes: Sequence[Shape] = (), dynamic: Sequence[int] = (0, 3, 4)
) -> None:
    """ONNX as `spectral export` writes it, run by onnxruntime; the arguments are those of `exports`."""
    module, x = prepare(build, shape)
    export_network(module, x, folder / "network.onnx", dynamic=dynamic)
    exported = OnnxNetwork(folder / "network.onnx")
    for size in [shape, *sizes]:
        x = torch.randn(*size)
        assert_same(exported(x), module(x), message=f"ONNX, {tuple(size)}")


def traces(build: Build, shape: Shape, sizes: Sequence[Shape]) -> None:
    """A `torch.jit.trace` of one shape runs on others, batch included."""
    module, x = prepare(build, shape)
    with torch.no_grad():
        traced: Any = torch.jit.trace(module, x)
    for size in [shape, *sizes]:
        x = torch.randn(*size)
        assert_same(traced(x), module(x), message=f"traced, {tuple(size)}")


def traces_symbolically(build: Build, shape: Shape) -> None:
    """`torch.fx.symbolic_trace` of a network that holds the module: the same outputs and gradients."""
    module, x = prepare(build, shape)
    module, x = module.double(), x.double()  # in float32 rounding crosses kinks of deep networks
    traced = torch.fx.symbolic_trace(nn.Sequential(copy.deepcopy(module)))
    for batch in (x, x[:1]):
        assert_same(traced(batch), module(batch), 1e-9, f"{len(batch)} examples")
    actual = {name.removeprefix("0."): value for name, value in gradients(traced, x).items()}
    assert_same_gradients(actual, gradients(module, x))


def takes_its_input_by_name(build: Build, shape: Shape) -> None:
    """The input can be given by the name that `forward` has for it."""
    module, x = prepare(build, shape)
    [name, *_] = inspect.signature(module.forward).parameters
    assert_same(module(**{name: x}), module(x), message=name)


def converts_to_synchronised_norms(build: Build, shape: Shape) -> None:
    """`SyncBatchNorm.convert_sync_batchnorm` leaves the outputs in evaluation as they are."""
    module, x = prepare(build, shape)
    expected = module(x)
    assert_same(nn.SyncBatchNorm.convert_sync_batchnorm(module)(x), expected, message="synchronised norms")


# Several processes


def train_on_two_processes(cases: Sequence[tuple[str, Build, Shape]], folder: Path) -> None:
    """Replicated (DDP) and sharded (FSDP2) over two processes with half of a batch of two each, modules have the
    gradients of the whole batch, and none has a parameter that is not used.

    Args:
        cases: name, `build`, which can be pickled, and the shape of a batch of two.
        folder: where the processes meet; empty.
    """
    torch.multiprocessing.spawn(_train_as_one_of_two, (str(folder / "meeting"), cases), nprocs=2)


def _train_as_one_of_two(rank: int, meeting: str, cases: Sequence[tuple[str, Build, Shape]]) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=2)
    mesh = torch.distributed.device_mesh.init_device_mesh("cpu", (2,))
    for name, build, shape in cases:
        module, x = prepare(build, shape)
        module, x = module.double(), x.double()  # in float32 rounding crosses kinks of deep networks
        module.zero_grad()
        expected, half = gradients(module, x), x[rank : rank + 1]
        expected.pop("input")
        replicated = nn.parallel.DistributedDataParallel(copy.deepcopy(module))
        for _ in range(2):  # the second forward pass refuses parameters that the first has not used
            replicated.zero_grad()
            replicated(half).square().mean().backward()
        actual = {n: p.grad for n, p in replicated.module.named_parameters() if p.grad is not None}
        assert_same_gradients(actual, expected, 1e-7, f"{name}, replicated")
        del replicated
        sharded: Any = torch.distributed.fsdp.fully_shard(module, mesh=mesh)
        sharded.zero_grad()
        sharded(half).square().mean().backward()
        actual = {n: p.grad.full_tensor() for n, p in sharded.named_parameters() if p.grad is not None}  # type: ignore[attr-defined]
        assert_same_gradients(actual, expected, 1e-7, f"{name}, sharded")
    torch.distributed.destroy_process_group()


#: checks that take nothing but `build` and the shape, and cost little
QUICK = (
    survives_meta_construction,
    survives_copies,
    keeps_precisions,
    takes_an_empty_batch,
    trains_on_one_example,
    takes_any_memory_order,
    has_functional_transforms,
    has_second_derivatives_or_refuses,
    can_be_checkpointed,
    traces_symbolically,
    takes_its_input_by_name,
    converts_to_synchronised_norms,
)
every_quick_check = pytest.mark.parametrize("check", QUICK, ids=lambda check: check.__name__)
