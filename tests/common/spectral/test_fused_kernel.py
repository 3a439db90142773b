"""The fused GPU kernel in Triton's interpreter, its operator, and the module around it."""

from __future__ import annotations

import inspect
import logging
import subprocess
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from common.spectral import STFTPointwise, fused_kernel, reference_implementation
from common.spectral.folding import scale_and_shift
from common.spectral.fused_kernel import fused_kernels, launch, negative_slope

triton = pytest.importorskip("triton")

from triton.backends.compiler import GPUTarget  # noqa: E402
from triton.compiler import ASTSource  # noqa: E402
from triton.runtime.interpreter import InterpretedFunction  # noqa: E402

from common.spectral import triton_kernel  # noqa: E402


def segment(channels: int, features: int, kernel_size: Sequence[int], **options: Any) -> STFTPointwise:
    """A segment in evaluation whose normalisation is not the identity."""
    torch.manual_seed(0)
    module = STFTPointwise(channels, features, kernel_size, **options).eval()
    with torch.no_grad():
        module.norm.weight.uniform_(-1, 1)
        module.norm.bias.uniform_(-1, 1)
        module.norm.running_mean.uniform_(-1, 1)
        module.norm.running_var.uniform_(0.5, 2)
    return module


def arguments(module: STFTPointwise, x: Tensor, bias: Tensor | None = None) -> list[Any]:
    weight = module.pointwise.weight.detach().flatten(1).to(x.dtype)
    affine = [t.detach() for t in scale_and_shift(module.norm)]
    slope = negative_slope(module.activation)
    return [x, module.stft.kernels.float(), *affine, slope, weight, bias, module.stft.stride, module.stft.padding]


def error(got: Tensor, wanted: Tensor) -> float:
    return float((got.double() - wanted).abs().max() / wanted.abs().max())


LAYOUTS = {
    "contiguous": lambda x: x,
    "channels last": lambda x: x.contiguous(memory_format=torch.channels_last_3d),
    "a view": lambda x: torch.cat([x, x], 3)[:, :, :, : x.shape[3]],
}


@pytest.mark.parametrize(
    ("kernel_size", "channels", "features", "options"),
    [
        ((3, 3, 3), 3, 70, {}),
        ((3, 1, 1), 11, 9, {"activation": nn.ReLU}),
        ((1, 3, 3), 5, 8, {"stride": 2, "activation": nn.Identity}),
        ((5, 3, 1), 2, 3, {"stride": (1, 2, 1), "padding": (0, 2, 1), "frequencies": [(1, 0.5, 0)]}),
    ],
    ids=str,
)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_kernel_equals_the_definition(
    kernel_size: Sequence[int], channels: int, features: int, options: dict[str, Any], layout: str, monkeypatch: Any
) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    module = segment(channels, features, kernel_size, **options)
    x = LAYOUTS[layout](torch.randn(2, channels, 5, 4, 7))
    bias = torch.randn(features) if layout == "a view" else None
    got = launch(interpreted(), *arguments(module, x, bias))
    with torch.no_grad(), reference_implementation():
        wanted = module.double()(x.double())
    wanted = wanted if bias is None else wanted + bias.double().view(-1, 1, 1, 1)
    assert got.shape == wanted.shape
    assert got.is_contiguous(memory_format=torch.channels_last_3d) == (layout == "channels last")
    assert error(got, wanted) < 2e-6


@pytest.mark.parametrize(("dims", "shape"), [(1, (3, 4, 70)), (2, (2, 4, 9, 8))])
def test_the_kernel_takes_half_precision_and_fewer_axes(dims: int, shape: tuple[int, ...]) -> None:
    # Not bfloat16: the interpreter keeps it as 16-bit integers and multiplies those.
    module = segment(4, 6, (3,) * dims)
    x = torch.randn(shape).half()
    got = launch(interpreted(), *arguments(module, x))
    with torch.no_grad():
        module.pointwise.weight.copy_(module.pointwise.weight.half())
        wanted = module.double()._plain(x.double())
    assert got.dtype == torch.float16
    assert error(got, wanted) < 4 * torch.finfo(torch.float16).eps


def interpreted() -> Any:
    """The kernel, run by Triton's interpreter on the CPU."""
    return InterpretedFunction(triton_kernel.stft_pointwise_kernel.fn)


def test_the_operator_is_known_to_pytorch() -> None:
    module = segment(3, 4, (3, 3, 3))
    x = torch.randn(2, 3, 4, 5, 6)
    torch.library.opcheck(fused_kernel.stft_pointwise, arguments(module, x))
    with torch.no_grad(), fused_kernels(), FlopCounterMode(display=False) as counter:
        fused_kernel.stft_pointwise(*arguments(module, x))
    with torch.no_grad(), reference_implementation(), FlopCounterMode(display=False) as stock:
        module(x)
    assert counter.get_total_flops() == stock.get_total_flops()


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator is used on the CPU, where it runs stock operators."""
    monkeypatch.setattr(fused_kernel, "reason_against", lambda *_: None)


@pytest.mark.usefixtures("pretended")
def test_the_module_uses_the_operator_in_evaluation_only() -> None:
    module, norm = segment(3, 4, (3, 1, 1)), nn.BatchNorm3d(4).eval()
    norm.running_mean.uniform_(-1, 1)  # type: ignore[union-attr]
    x = torch.randn(2, 3, 4, 5, 6)
    with torch.no_grad():
        wanted = norm(module(x))
    for replaced in (norm, nn.Sequential(norm)):  # folded, and not
        with torch.no_grad(), fused_kernels(), FlopCounterMode(display=False) as counter:
            assert torch.allclose(module(x, replaced), wanted, atol=1e-5)
        assert torch.ops.spectral_video.stft_pointwise in counter.get_flop_counts()["Global"]
    with fused_kernels():
        y = module(x)
        y.sum().backward()
        assert module.pointwise.weight.grad is not None
        with torch.no_grad(), pytest.raises(ValueError, match="takes"):
            module(torch.randn(2, 5, 4, 5, 6))
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            half = module(x)
        assert half.dtype == torch.bfloat16
        assert error(half, y.detach().double()) < 2e-2


@pytest.mark.usefixtures("pretended")
def test_the_module_compiles_with_the_operator() -> None:
    module = segment(3, 4, (3, 3, 3))
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for size in (4, 5, 6):
        x = torch.randn(2, 3, 4, size, 6)
        with torch.no_grad(), fused_kernels():
            assert torch.allclose(compiled(x), module(x), atol=1e-5)


def test_what_the_kernel_does_not_take_is_computed_otherwise(caplog: pytest.LogCaptureFixture) -> None:
    module, x = segment(3, 4, (3, 1, 1), activation=nn.SELU), torch.randn(2, 3, 4, 5, 6)
    with caplog.at_level(logging.DEBUG), torch.no_grad(), fused_kernels():
        y = module(x)
        with reference_implementation():
            assert torch.allclose(y, module(x), atol=1e-5)
    assert "the input is on cpu, not on a CUDA device" in caplog.text
    assert negative_slope(nn.SELU()) is None
    assert [negative_slope(a) for a in (nn.ReLU(), nn.LeakyReLU(0.2), nn.Identity())] == [0.0, 0.2, 1.0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("capability", "kernel_size", "dtype"), list(product((80, 90), ((3, 3, 3), (3, 1, 1)), ("fp32", "bf16"))), ids=str
)
def test_the_kernel_compiles_and_keeps_its_values_in_registers(
    capability: int, kernel_size: tuple[int, int, int], dtype: str, tmp_path: Path
) -> None:
    constants: dict[str, Any] = {}
    given: list[Any] = []

    class Recorder:
        """Takes the place of the kernel; what it is launched with is what to compile."""

        def __getitem__(self, grid: Any) -> Any:
            return lambda *args, **kwargs: (given.extend(args), constants.update(kwargs))

    module = segment(64, 64, kernel_size)
    x = torch.randn(1, 64, 4, 8, 8, dtype={"fp32": torch.float32, "bf16": torch.bfloat16}[dtype])
    launch(Recorder(), *arguments(module, x))
    options = {name: constants.pop(name) for name in ("num_warps", "num_stages")}
    names = list(inspect.signature(triton_kernel.stft_pointwise_kernel.fn).parameters)
    types = {Tensor: lambda v: "*" + {torch.float32: "fp32", torch.bfloat16: "bf16"}[v.dtype], int: lambda _: "i32"}
    signature = {n: types.get(type(v), lambda _: "fp32")(v) for n, v in zip(names, given, strict=False)}
    source = ASTSource(
        triton_kernel.stft_pointwise_kernel,
        signature | dict.fromkeys(constants, "constexpr"),
        {(names.index(name),): value for name, value in constants.items()},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options)
    assert compiled.metadata.shared < 48 * 1024
    (tmp_path / "kernel.cubin").write_bytes(compiled.asm["cubin"])
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    usage = subprocess.run([tool, "-res-usage", tmp_path / "kernel.cubin"], capture_output=True, text=True, check=True)
    assert "STACK:0 " in usage.stdout + usage.stderr, "registers are spilled"
