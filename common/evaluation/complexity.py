"""Parameters and multiply-adds of a network, spectral operators included.

    complexity = count(network, (1, 3, 16, 112, 112))
    print(complexity)                       # a table
    complexity.params, complexity.macs_paper, complexity.macs_full

The network is traced with fvcore on tensors without memory, so a 64-frame I3D takes a second and no multiply is
executed. An operator that is not known raises `UnknownOperatorError`; nothing is counted as zero by accident.

**What is counted.** The unit is one multiply-add of real numbers; a lone multiply, add, divide or function value
counts one too. Two columns:

- `macs_paper`, the convention of the papers: convolutions, linear layers and matrix products (einsum and attention
  included), a bias for free. A complex multiply-add counts one, as in most published counts.
- `macs_full`: the same with complex multiply-adds at their true 4 real ones (2 when one factor is real), plus all else:

  ==========================  =========================================================================
  batch norm                  1 per element (scale and shift of the running statistics)
  layer, group, instance norm 3 per element (mean, variance, normalise), 1 more with weights
  activation function         1 per element; ReLU and clamps only compare and count 0
  softmax                     4 per element (subtract the maximum, exponential, sum, divide)
  average pooling             1 per element of the window; maximum pooling compares and counts 0
  element-wise arithmetic     1 per element; complex: sum 2, product 4 (2 with a real factor), magnitude 3
  sum, mean, cumulative sum   1 per input element; variance 2; maximum, sorting 0
  interpolation               2, 4, 8 (linear in 1, 2, 3 dimensions) or 16 (bicubic) per element, nearest 0
  sampling at points          the same, plus its weights once per point
  FFT                         2.5 N log2 N for N complex points, half of it for real signals: half of the
                              usual 5 N log2 N operations, since a multiply-add is two operations; for
                              several dimensions N is the product of their lengths
  linear system               n^3 / 3, and n^2 per right-hand side
  copies, views, indexing     0; so do integer arithmetic and sign changes
  ==========================  =========================================================================

Fixed filters cost multiply-adds like any other weight but are no parameters; `fixed_values` counts them.
The layers of `common.spectral` are counted as defined (one plain convolution), not in their fast form.
"""

from __future__ import annotations

import copy
import io
import math
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from traceback import extract_tb
from typing import Any, NamedTuple

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.amp import autocast_mode
from torch.utils._python_dispatch import TorchDispatchMode

from common.spectral import reference_implementation

with warnings.catch_warnings(action="ignore", category=FutureWarning):  # it scripts a function when it is imported
    from fvcore.nn.jit_analysis import JitModelAnalysis


class Cost(NamedTuple):
    """Multiply-adds of one operator: `full` in real ones, `products` those that the papers count."""

    full: int
    products: int = 0


#: takes the inputs and outputs of a traced operator (`torch._C.Value`), gives its cost
Handle = Callable[[Sequence[Any], Sequence[Any]], Cost]


class UnknownOperatorError(NotImplementedError):
    """The network runs operators whose cost is not known."""


@dataclass(frozen=True)
class Complexity:
    """What `count` found. Multiply-adds are for the whole input, which is usually one clip.

    Attributes:
        params: trainable values (a complex one counts two).
        fixed_values: floating-point values in buffers that are no running statistics: the fixed filters.
        macs_paper, macs_full: multiply-adds in the two conventions of this module.
        by_operator: operator name to `(macs_paper, macs_full)`, most expensive first; free operators are left out.
        by_module: the same by module path, parents include their children; "" is the network.
        input_shapes: shapes of the inputs.
    """

    params: int
    fixed_values: int
    macs_paper: int
    macs_full: int
    by_operator: dict[str, tuple[int, int]]
    by_module: dict[str, tuple[int, int]]
    input_shapes: tuple[tuple[int, ...], ...]

    def over(self, base: Complexity) -> Complexity:
        """What this network has and costs more than `base`; without the lists by operator and module."""
        return replace(
            self,
            params=self.params - base.params,
            fixed_values=self.fixed_values - base.fixed_values,
            macs_paper=self.macs_paper - base.macs_paper,
            macs_full=self.macs_full - base.macs_full,
            by_operator={},
            by_module={},
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self)

    def __str__(self) -> str:
        shapes = ", ".join("x".join(map(str, shape)) for shape in self.input_shapes)
        table = Table("operator", title=f"multiply-adds for {shapes}")
        table.add_column("paper's convention", justify="right")
        table.add_column("full", justify="right")
        for name, (paper, full) in self.by_operator.items():
            table.add_row(name, f"{paper:,}" if paper else "-", f"{full:,}")
        table.add_section()
        table.add_row("total", f"{self.macs_paper:,}", f"{self.macs_full:,}")
        table.add_row("", f"{self.macs_paper / 1e9:.2f} G", f"{self.macs_full / 1e9:.2f} G")
        out = io.StringIO()
        console = Console(file=out, width=100, color_system=None)
        console.print(table)
        console.print(f"{self.params:,} trainable parameters, {self.fixed_values:,} fixed values", soft_wrap=True)
        return out.getvalue().rstrip()


def count(
    network: nn.Module,
    *inputs: Tensor | Sequence[int],
    handles: Mapping[str, Handle] | None = None,
    device: str = "meta",
) -> Complexity:
    """Count parameters and multiply-adds of `network(*inputs)` in evaluation mode.

    The network and its inputs are left as they are; a copy is traced.

    Args:
        network: any module whose forward takes tensors.
        inputs: tensors, or shapes of float32 ones, e.g. `(1, 3, 16, 112, 112)`.
        handles: costs of further operators, or other costs of known ones, by name such as `"aten::stft"`.
        device: where to trace. "meta" needs neither time nor memory; a network whose control flow depends on values
            needs "cpu". One that calls `torch.autocast` is always traced on the CPU.

    Raises:
        UnknownOperatorError: for an operator without a handle; names it and the module that runs it.
    """
    tensors = tuple(
        _moved(x, device) if isinstance(x, Tensor) else torch.zeros(tuple(x), device=device) for x in inputs
    )
    memo: dict[int, Any] = {id(t): _moved(t, device) for t in (*network.parameters(), *network.buffers())}
    analysis = JitModelAnalysis(copy.deepcopy(network, memo).eval(), tensors)
    analysis.unsupported_ops_warnings(False).uncalled_modules_warnings(False).tracer_warnings("none")
    analysis.clear_op_handles()
    for name, handle in {**HANDLES, **(handles or {})}.items():
        analysis.set_op_handle(name, _for_fvcore(name, handle))
    try:
        shapes_only = _ShapesOnly() if device == "meta" else nullcontext()
        quiet = warnings.catch_warnings(action="ignore")  # of the tracer
        with quiet, torch.no_grad(), torch.random.fork_rng(devices=[]), reference_implementation(), shapes_only:
            totals = analysis.by_operator()
    except UnknownOperatorError:
        raise
    except Exception as error:
        # Autocasting, which a network may switch off around a spectrum, does not exist for that device.
        if device == "meta" and extract_tb(error.__traceback__)[-1].filename == autocast_mode.__file__:
            return count(network, *inputs, handles=handles, device="cpu")
        shapes = ", ".join("x".join(map(str, x.shape)) for x in tensors)
        error.add_note(
            f"Raised while counting the multiply-adds of {type(network).__name__} for an input of {shapes}."
            + (" If the network runs on such an input, count with device='cpu'." if device == "meta" else "")
        )
        raise
    _refuse_unknown(analysis, network)

    operators = {name for name, _ in totals}
    by_operator = {name: (totals[name, "paper"], totals[name, "full"]) for name in operators}
    by_module = {}
    for path, counts in analysis.by_module_and_operator().items():
        sums = {column: sum(n for (_, which), n in counts.items() if which == column) for column in ("paper", "full")}
        by_module[path] = (sums["paper"], sums["full"])
    return Complexity(
        params=sum(p.numel() * (2 if p.is_complex() else 1) for p in network.parameters() if p.requires_grad),
        fixed_values=_fixed_values(network),
        macs_paper=by_module[""][0],
        macs_full=by_module[""][1],
        by_operator=dict(sorted(((k, v) for k, v in by_operator.items() if any(v)), key=lambda kv: -kv[1][1])),
        by_module=by_module,
        input_shapes=tuple(tuple(x.shape) for x in tensors),
    )


def _moved(tensor: Tensor, device: str) -> Tensor:
    """The tensor on a device; zeros where it has no values or needs none."""
    valueless = device == "meta" or tensor.is_meta
    moved = torch.zeros_like(tensor, device=device) if valueless else tensor.detach().to(device, copy=True)
    return nn.Parameter(moved, tensor.requires_grad) if isinstance(tensor, nn.Parameter) else moved


def _fixed_values(network: nn.Module) -> int:
    total = 0
    for module in network.modules():
        if not isinstance(module, nn.modules.batchnorm._NormBase):
            # The factors of a fixed filter's fast form are the filter a second time.
            buffers = (b for name, b in module.named_buffers(recurse=False) if name != "factors")
            floats = (b for b in buffers if b.is_floating_point() or b.is_complex())
            total += sum(b.numel() * (2 if b.is_complex() else 1) for b in floats)
    return total


def _refuse_unknown(analysis: JitModelAnalysis, network: nn.Module) -> None:
    unknown = analysis.unsupported_ops()
    if not unknown:
        return
    lines = []
    for operator, times in unknown.items():
        paths = [name for name, _ in network.named_modules() if analysis.unsupported_ops(name)[operator]]
        deepest = [p for p in paths if not any(q != p and q.startswith(f"{p}." if p else "") for q in paths)]
        where = ", ".join(p or "the network itself" for p in deepest[:3]) + (", ..." if len(deepest) > 3 else "")
        lines.append(f"  {operator}, {times} times, in {where}")
    example = next(iter(unknown))
    raise UnknownOperatorError(
        "The cost of these operators is not known:\n" + "\n".join(lines) + "\nGive it as "
        f'count(..., handles={{"{example}": lambda inputs, outputs: Cost(full=...)}}), '
        "or add a handle to common/evaluation/complexity.py."
    )


class _ShapesOnly(TorchDispatchMode):
    """Lets PyTorch's tracer record convolutions of tensors without memory.

    The tracer does not record `aten::convolution` but the `aten::_convolution` inside it, which only real devices call.
    """

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.convolution.default and torch._C._get_tracing_state() is not None:
            with torch.overrides.enable_reentrant_dispatch(), self:
                return torch._convolution(*args, False, False, False, False)  # type: ignore[call-overload]
        if func is torch.ops.aten._convolution.default:
            return torch.ops.aten.convolution.default(*args[:9])
        if func is torch.ops.aten.native_batch_norm.default:  # deriving its shapes takes milliseconds
            return torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        return func(*args, **(kwargs or {}))


def _for_fvcore(name: str, handle: Handle) -> Callable[[Any, Any], Counter[Any]]:
    short = name.rpartition("::")[2].strip("_")

    def counted(inputs: Sequence[Any], outputs: Sequence[Any]) -> Counter[Any]:
        try:
            cost = handle(inputs, outputs)
        except _UnsupportedError as error:
            raise UnknownOperatorError(f"The cost of {name} is not known {error}; see `handles` of count().") from None
        return Counter({(short, "paper"): int(cost.products), (short, "full"): int(cost.full)})

    return counted


# What a traced value tells


class _UnsupportedError(Exception):
    pass


def _shape(value: Any) -> tuple[int, ...]:
    return tuple(value.type().sizes())


def _numel(value: Any) -> int:
    return math.prod(_shape(value))


def _is_tensor(value: Any) -> bool:
    return isinstance(value.type(), torch._C.TensorType)


def _is_complex(value: Any) -> bool:
    return _is_tensor(value) and str(value.type().scalarType()).startswith("Complex")


def _is_float(value: Any) -> bool:
    return str(value.type().scalarType()) in ("Float", "Double", "Half", "BFloat16")


def _constant(value: Any) -> Any:
    """The value of a constant or of a list of constants; None where it is not constant."""
    if value.node().kind() == "prim::ListConstruct":
        return [_constant(v) for v in value.node().inputs()]
    return value.toIValue()


# Handles


def _products(n: int, *factors: Any) -> Cost:
    """`n` multiply-adds of two tensors, real or complex."""
    return Cost(full=n * 2 ** sum(map(_is_complex, factors)), products=n)


def _convolution(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
    x, weight = inputs[:2]
    transposed = len(inputs) > 7 and _constant(inputs[6])
    return _products(_numel(x if transposed else outputs[0]) * math.prod(_shape(weight)[1:]), x, weight)


def _matmul(first: int, second: int) -> Handle:
    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
        a, b = inputs[first], inputs[second]
        return _products(_numel(outputs[0]) * _shape(a)[-1], a, b)

    return handle


def _einsum(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
    """Two operands: the product of all index ranges. More: pairwise from the left, as PyTorch does without a path."""
    equation = str(_constant(inputs[0])).replace(" ", "")
    operands = list(inputs[1].node().inputs())
    left, _, right = equation.partition("->")
    terms = left.split(",")
    names = [term.replace("...", "") for term in terms]
    sizes: dict[str, int] = {}
    for i, (term, operand) in enumerate(zip(terms, operands, strict=True)):
        shape = _shape(operand)
        if "..." in term:  # the dimensions behind the dots, aligned at their right end
            hidden = len(shape) - len(names[i])
            dots = "".join(chr(0x100 + hidden - 1 - k) for k in range(hidden))
            names[i] = term.replace("...", dots)
        for name, n in zip(names[i], shape, strict=True):
            sizes[name] = max(n, sizes.get(name, 1))
    if not right and "->" not in equation:
        right = "".join(sorted(name for name in sizes if "".join(names).count(name) == 1))
    elif "..." in right:
        right = right.replace("...", "".join(sorted((n for n in sizes if ord(n) >= 0x100), reverse=True)))
    if len(operands) == 1:
        return Cost(full=(math.prod(sizes.values()) if set(names[0]) - set(right) else 0))
    total = Cost(0)
    current, value = names[0], operands[0]
    for i in range(1, len(operands)):
        merged = set(current) | set(names[i])
        step = _products(math.prod(sizes[n] for n in merged), value, operands[i])
        total = Cost(total.full + step.full, total.products + step.products)
        later = set(right).union(*names[i + 1 :])
        current = "".join(n for n in merged if n in later)
        value = value if _is_complex(value) else operands[i]
    return total


def _attention(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
    query, key, value = inputs[:3]
    scores = _numel(query) // _shape(query)[-1] * _shape(key)[-2]
    products = scores * (_shape(query)[-1] + _shape(value)[-1])
    return Cost(full=products + 5 * scores, products=products)  # 5: scale and softmax


def _per_output(n: int) -> Handle:
    return lambda inputs, outputs: Cost(full=n * _numel(outputs[0]))


def _per_input(n: int, which: int = 0) -> Handle:
    return lambda inputs, outputs: Cost(full=n * _numel(inputs[which]) * (2 if _is_complex(inputs[which]) else 1))


def _normalise(n: int, weight: int) -> Handle:
    return lambda inputs, outputs: Cost(full=(n + _is_tensor(inputs[weight])) * _numel(outputs[0]))


def _average_pool(dims: int) -> Handle:
    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
        window = _constant(inputs[1])
        window = window * dims if len(window) == 1 else window
        return Cost(full=_numel(outputs[0]) * math.prod(window))

    return handle


def _arithmetic(both_complex: int, one_complex: int) -> Handle:
    """Element-wise arithmetic: 1 for real numbers, else as given."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
        out = outputs[0]
        if not (_is_float(out) or _is_complex(out)):
            return Cost(0)
        each = (1, one_complex, both_complex)[sum(map(_is_complex, inputs))]
        return Cost(full=each * _numel(out))

    return handle


def _function(complex_cost: int | None = None) -> Handle:
    """One function value per element."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
        if not _is_complex(inputs[0]):
            return Cost(full=_numel(outputs[0]) if _is_float(outputs[0]) else 0)
        if complex_cost is None:
            raise _UnsupportedError("for complex numbers")
        return Cost(full=complex_cost * _numel(outputs[0]))

    return handle


def _solve(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
    """LU decomposition, n^3 / 3, and two triangular systems, n^2 / 2 each, for every right-hand side."""
    n = _shape(inputs[0])[-1]
    return Cost(full=math.prod(_shape(inputs[0])[:-2]) * n**3 // 3 + n * _numel(outputs[0]))


def _grid_sample(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
    corners = {0: 2 ** (len(_shape(inputs[0])) - 2), 1: 0, 2: 16}[_constant(inputs[2])]
    out = _shape(outputs[0])
    return Cost(full=corners * (math.prod(out) + out[0] * math.prod(out[2:])))


def _index_put(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
    return Cost(full=_numel(inputs[2]) if _constant(inputs[3]) else 0)


def fft_cost(points: int, transforms: int, real: bool) -> int:
    """Multiply-adds of fast Fourier transforms: 2.5 N log2 N each, half of it for real signals."""
    return math.ceil(transforms * (1.25 if real else 2.5) * points * math.log2(max(points, 1)))


def _fft(kind: str, dims: int | None) -> Handle:
    """kind: "c2c", "r2c" or "c2r"; dims: 1, 2, or None for all (or as many as sizes are given)."""

    def handle(inputs: Sequence[Any], outputs: Sequence[Any]) -> Cost:
        x, out = _shape(inputs[0]), _shape(outputs[0])
        sizes, axes = _constant(inputs[1]), _constant(inputs[2])
        if axes is None:
            n = dims if dims is not None else len(sizes) if sizes is not None else len(x)
            axes = list(range(-n, 0))
        axes = [axis % len(x) for axis in (axes if isinstance(axes, list) else [axes])]
        length = {axis: out[axis] for axis in axes}
        if kind == "r2c":  # the output has n // 2 + 1 points along the last axis
            half = out[axes[-1]]
            asked = sizes[-1] if isinstance(sizes, list) else sizes  # None too for a size that the network computes
            given = x[axes[-1]] if asked is None else asked
            length[axes[-1]] = given if given // 2 + 1 == half else 2 * (half - 1)
        others = math.prod(n for axis, n in enumerate(out) if axis not in length)
        real = kind != "c2c" or not _is_complex(inputs[0])
        return Cost(full=fft_cost(math.prod(length.values()), others, real))

    return handle


_FREE = str.split("""
    Int ScalarImplicit Bool FloatImplicit IntImplicit Float numel size dim alias arange as_strided
    bitwise_and bitwise_not bitwise_or __and__ __or__ logical_and logical_not logical_or broadcast_tensors
    broadcast_to bucketize cat chunk clamp clamp_min clamp_max clip clone complex concat conj _conj resolve_conj
    conj_physical resolve_neg constant_pad_nd contiguous copy_ copy detach detach_ diag diagonal diag_embed dropout
    dropout_ alpha_dropout feature_dropout dropout3d embedding empty empty_like eq expand expand_as eye fill fill_
    flatten flip floor ceil round trunc floor_divide frac full full_like gather ge gt hardtanh hardtanh_ imag im2col
    index index_select index_copy index_fill isfinite isinf isnan le lt lift_fresh linspace masked_fill masked_fill_
    masked_select max maximum min minimum amax amin aminmax argmax argmin argsort sort topk unique2 cummax cummin
    max_pool1d max_pool2d max_pool3d max_pool1d_with_indices max_pool2d_with_indices max_pool3d_with_indices
    adaptive_max_pool1d adaptive_max_pool2d adaptive_max_pool3d meshgrid movedim moveaxis narrow ne neg neg_
    new_empty new_full new_ones new_zeros nonzero numpy_T ones ones_like one_hot pad reflection_pad1d
    reflection_pad2d reflection_pad3d replication_pad1d replication_pad2d replication_pad3d permute pixel_shuffle
    pixel_unshuffle rand randn rand_like randn_like real relu relu_ relu6 relu6_ remainder repeat
    repeat_interleave reshape reshape_as roll scalar_tensor scatter scatter_ searchsorted select
    select_scatter slice slice_scatter split split_with_sizes squeeze squeeze_ stack swapaxes swapdims t take
    take_along_dim tensor_split threshold threshold_ tile to _to_copy transpose transpose_ tril triu type_as unbind
    unflatten unfold unsafe_chunk unsafe_split unsqueeze unsqueeze_ upsample_nearest1d upsample_nearest2d
    upsample_nearest3d _upsample_nearest_exact1d _upsample_nearest_exact2d _upsample_nearest_exact3d view view_as
    view_as_complex view_as_real where zero_ zeros zeros_like sign fft_fftshift fft_ifftshift fft_fftfreq
    fft_rfftfreq channel_shuffle hann_window hamming_window
    mH mT
""")

_ACTIVATIONS = str.split(
    "leaky_relu elu selu celu gelu silu mish softplus softsign sigmoid log_sigmoid tanh hardsigmoid hardswish "
    "prelu rrelu logit tanhshrink softshrink hardshrink glu"
)
_FUNCTIONS = str.split(
    "log log2 log10 log1p expm1 sqrt rsqrt reciprocal sin cos tan asin acos atan atan2 sinh cosh erf erfc pow square "
    "exp2 sinc xlogy hypot"
)

HANDLES: dict[str, Handle] = {
    **dict.fromkeys(_FREE, lambda inputs, outputs: Cost(0)),
    **{f"{name}{mark}": _function() for name in (*_ACTIVATIONS, *_FUNCTIONS) for mark in ("", "_")},
    **{f"{name}{mark}": _arithmetic(2, 1) for name in ("add", "sub", "rsub") for mark in ("", "_")},
    **{f"{name}{mark}": _arithmetic(4, 2) for name in ("mul", "multiply") for mark in ("", "_")},
    **{f"{name}{mark}": _arithmetic(8, 2) for name in ("div", "true_divide") for mark in ("", "_")},
    **{f"{name}{mark}": _per_output(2) for name in ("addcmul", "addcdiv", "lerp") for mark in ("", "_")},
    "abs": _function(3),
    "angle": _function(1),
    "exp": _function(5),
    "polar": _per_output(4),
    **dict.fromkeys(("_convolution", "_convolution_mode"), _convolution),
    **dict.fromkeys(("linear", "matmul", "mm", "bmm", "mv", "dot"), _matmul(0, 1)),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm"), _matmul(1, 2)),
    "einsum": _einsum,
    "scaled_dot_product_attention": _attention,
    "batch_norm": _per_output(1),
    **dict.fromkeys(("layer_norm", "group_norm"), _normalise(3, 2)),
    "instance_norm": _normalise(3, 1),
    "rms_norm": _normalise(2, 2),
    **dict.fromkeys(("softmax", "log_softmax"), _per_output(4)),
    **{f"avg_pool{n}d": _average_pool(n) for n in (1, 2, 3)},
    **{f"adaptive_avg_pool{n}d": _per_input(1) for n in (1, 2, 3)},
    **{name: _per_input(1) for name in ("sum", "mean", "cumsum", "cumprod", "prod", "norm", "linalg_vector_norm")},
    **{name: _per_input(2) for name in ("var", "std", "logsumexp")},
    "col2im": _per_input(1),
    "upsample_linear1d": _per_output(2),
    "upsample_bilinear2d": _per_output(4),
    "upsample_trilinear3d": _per_output(8),
    "upsample_bicubic2d": _per_output(16),
    "grid_sampler": _grid_sample,
    "linalg_solve": _solve,
    **{name: _per_input(1, 3) for name in ("scatter_add", "scatter_add_", "index_add", "index_add_")},
    **dict.fromkeys(("index_put", "index_put_"), _index_put),
    **{
        f"fft_{inverse}{name}": _fft("c2c", dims)
        for inverse in ("", "i")
        for name, dims in (("fft", 1), ("fft2", 2), ("fftn", None))
    },
    **{f"fft_{name}": _fft("r2c", dims) for name, dims in (("rfft", 1), ("rfft2", 2), ("rfftn", None), ("ihfft", 1))},
    **{f"fft_{name}": _fft("c2r", dims) for name, dims in (("irfft", 1), ("irfft2", 2), ("irfftn", None), ("hfft", 1))},
}
HANDLES = {f"aten::{name}": handle for name, handle in HANDLES.items()}
HANDLES["prim::PythonOp.SwishFunction"] = _function()  # pytorchvideo's own x * sigmoid(x)
