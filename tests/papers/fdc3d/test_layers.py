import copy
import itertools

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.evaluation.complexity import count
from common.spectral.transforms import random_orthogonal
from papers.fdc3d.layers import EXECUTIONS, LAYOUTS, CompactConv3d, MaskedConv3d

#: stride, padding, dilation, groups; None stands for t // 2
SETTINGS = [
    (1, None, 1, 1),
    (2, None, 1, 1),
    (1, 0, 1, 1),
    ((2, 1, 3), (0, 2, 1), 1, 1),
    (1, None, (2, 1, 1), 1),
    ((1, 2, 2), None, 1, 2),
    ((3, 1, 1), (4, 1, 1), (2, 1, 2), 1),
    (1, None, 1, 4),
]


def masked_layer(taps, settings, bias=True):
    stride, padding, dilation, groups = settings
    padding = (taps // 2, 1, 1) if padding is None else padding
    conv = nn.Conv3d(4, 8, (taps, 3, 3), stride, padding, dilation, groups, bias=bias).double()
    layer = MaskedConv3d(conv, random_orthogonal(taps))
    layer.rows[: taps // 2] = False
    if groups == 1:
        layer.scale.copy_(torch.tensor([0.7, 0.0, 1.3, 0.0]))
    return conv, layer


@pytest.mark.parametrize("taps", [1, 3, 4, 5, 7])
@pytest.mark.parametrize("frames", [1, 2, 5, 8])
def test_every_execution_gives_the_masked_convolution(taps, frames):
    torch.manual_seed(taps * 10 + frames)
    x = torch.randn(2, 4, frames, 7, 9, dtype=torch.float64)
    inputs = (x, x.contiguous(memory_format=torch.channels_last_3d))
    tried = 0
    for settings in SETTINGS:
        conv, masked = masked_layer(taps, settings)
        if min((n + 2 * p - d * (k - 1) - 1) // s + 1 for n, k, s, p, d in _axes(conv, x)) < 1:
            continue
        tried += 1
        # The definition: keep the rows of S f, transform back, scale the channels.
        kept = masked.transform[masked.rows]
        weight = torch.einsum("kt,ku,ncuhw->ncthw", kept, kept, conv.weight)
        if conv.groups == 1:
            weight = weight * masked.scale.view(1, -1, 1, 1, 1)
        expected = F.conv3d(x, weight, conv.bias, conv.stride, conv.padding, conv.dilation, conv.groups)
        torch.testing.assert_close(masked(x), expected, rtol=0, atol=1e-12)
        compact = masked.compact()
        for execution, layout, given, gradients in itertools.product(EXECUTIONS, LAYOUTS, inputs, (True, False)):
            compact.execution = execution
            compact.set_layout(layout)
            with torch.set_grad_enabled(gradients):
                torch.testing.assert_close(compact(given), expected, rtol=0, atol=1e-12, msg=f"{settings} {execution}")
    assert tried


def _axes(conv, x):
    return zip(x.shape[2:], conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)


def test_single_precision_is_within_1e_5():
    torch.manual_seed(0)
    conv = nn.Conv3d(32, 24, 3, padding=1)
    masked = MaskedConv3d(conv, random_orthogonal(3))
    masked.rows[1] = False
    masked.scale[::3] = 0
    x = torch.randn(2, 32, 6, 11, 13)
    compact, expected = masked.compact(), masked(x)
    assert compact.kept_channels == 21
    for compact.execution in EXECUTIONS:
        for layout in LAYOUTS:
            compact.set_layout(layout)
            torch.testing.assert_close(compact(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
def test_nothing_pruned_is_the_same_to_the_last_bit(groups):
    torch.manual_seed(1)
    conv = nn.Conv3d(6, 4, (5, 3, 3), (1, 2, 2), (2, 1, 1), groups=groups)
    x = torch.randn(1, 6, 7, 9, 8)
    masked = MaskedConv3d(conv, random_orthogonal(5))
    compact = masked.compact()
    assert torch.equal(masked(x), conv(x))
    for execution in compact.executions():
        compact.execution = execution
        assert torch.equal(compact(x), conv(x))


def test_gradients_flow_to_what_is_kept_and_to_nothing_else():
    torch.manual_seed(2)
    conv, masked = masked_layer(3, SETTINGS[0])
    x = torch.randn(1, 4, 3, 5, 4, dtype=torch.float64, requires_grad=True)
    for execution in EXECUTIONS:
        compact = masked.compact()
        compact.execution = execution
        call = lambda x, w, compact=compact: torch.func.functional_call(compact, {"weight": w}, (x,))  # noqa: E731
        assert torch.autograd.gradcheck(call, (x, compact.weight), fast_mode=True)
    masked(x).square().sum().backward()
    gradient = torch.einsum("kt,nct...->nck...", masked.transform, conv.weight.grad)
    assert gradient[:, :, ~masked.rows].abs().max() < 1e-12
    assert gradient[:, masked.scale == 0].abs().max() == 0
    assert gradient[:, 0, masked.rows].abs().min() > 0


def test_prepared_kernels_follow_the_weights():
    torch.manual_seed(3)
    _, masked = masked_layer(3, SETTINGS[0])
    compact = masked.compact().eval()
    x = torch.randn(1, 4, 3, 5, 4, dtype=torch.float64)
    for compact.execution in ("taps", "dense", "transform"):
        with torch.no_grad():
            before = compact(x)
            assert compact(x) is not before
            compact.weight.mul_(2)
            torch.testing.assert_close(compact(x) - compact.bias.view(-1, 1, 1, 1), 2 * (before - _bias(compact)))
            compact.load_state_dict(masked.compact().state_dict())
            torch.testing.assert_close(compact(x), before)
        other = copy.deepcopy(compact)
        torch.testing.assert_close(other(x), compact(x))
        assert not other._prepared


def _bias(layer):
    return layer.bias.view(-1, 1, 1, 1)


def test_counted_multiply_adds_are_those_of_equation_12():
    layer = CompactConv3d(8, 12, 3, (2, 1, 1), 1, kept_channels=5, kept_rows=2)
    frames, after, side = 9, 5, 7
    products = 12 * 5 * 2 * 9 * after * side * side
    transform = 5 * 3 * 2 * after * side * side  # every tap, at every pixel of the frames that it reads
    for layer.execution in EXECUTIONS:
        complexity = count(layer, (1, 8, frames, side, side))
        assert complexity.macs_paper == products + transform
        assert complexity.params == 12 * 5 * 2 * 9 + 12
    whole = CompactConv3d(8, 12, 3, (2, 1, 1), 1, kept_channels=5)
    assert count(whole, (1, 8, frames, side, side)).macs_paper == 12 * 5 * 3 * 9 * after * side * side


def test_half_precision_transforms_in_single():
    torch.manual_seed(4)
    _, masked = masked_layer(3, SETTINGS[0])
    compact = masked.compact().float()
    x = torch.randn(1, 4, 4, 6, 6)
    expected = compact(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        for compact.execution in EXECUTIONS:
            torch.testing.assert_close(compact(x).float(), expected, rtol=0.05, atol=0.05)


def test_runs_on_meta_and_under_compile_export():
    layer = CompactConv3d(6, 4, 3, padding=1, kept_channels=4, kept_rows=2)
    with torch.device("meta"):
        meta = CompactConv3d(6, 4, 3, padding=1, kept_channels=4, kept_rows=2)
    assert meta(torch.empty(2, 6, 5, 9, 7, device="meta")).shape == (2, 4, 5, 9, 7)
    x = torch.randn(1, 6, 5, 9, 7)
    exported = torch.export.export(layer.eval(), (x,)).module()
    torch.testing.assert_close(exported(x), layer(x), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kept_channels": 0}, "keep 0 of 4 channels"),
        ({"kept_channels": 2, "groups": 2}, "keep 2 of 4 channels in 2 groups"),
        ({"groups": 3}, "3 groups do not divide"),
        ({"kept_rows": 4}, "keep 4 of 3 rows"),
        ({"execution": "fast"}, "transform, depthwise"),
        ({"layout": "fast"}, "contiguous, channels_last"),
        ({"stride": (1, 2)}, "stride must be one number or three"),
    ],
)
def test_wrong_arguments_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        CompactConv3d(**{"in_channels": 4, "out_channels": 6, "kernel_size": 3, **change})


def test_wrong_inputs_are_named():
    layer = CompactConv3d(4, 6, 3)
    with pytest.raises(ValueError, match=r"takes \(batch, 4, frames"):
        layer(torch.randn(1, 3, 5, 5, 5))
    with pytest.raises(ValueError, match="does not fit"):
        layer(torch.randn(1, 4, 2, 5, 5))
    with pytest.raises(ValueError, match="zero padding"):
        MaskedConv3d(nn.Conv3d(2, 2, 3, padding=1, padding_mode="reflect"))
    with pytest.raises(ValueError, match="3 taps needs a transform of"):
        MaskedConv3d(nn.Conv3d(2, 2, 3), torch.eye(5))


@pytest.mark.parametrize(("channels", "kept"), [(6, [0, 1, 2, 6]), (6, [-1, 0, 1, 2]), (2**70, [0, 1, 2, 3])])
def test_weights_that_keep_other_channels_than_the_layer_has_are_refused(channels: int, kept: list[int]) -> None:
    state = CompactConv3d(6, 4, 3, kept_channels=4).state_dict() | {"kept": torch.tensor(kept)}
    layer = CompactConv3d(channels, 4, 3, kept_channels=4)
    if channels == 6:
        with pytest.raises(RuntimeError, match=r"kept names channels outside of 0\.\.5"):
            layer.load_state_dict(state)
    else:
        layer.load_state_dict(state)
        assert layer.kept.tolist() == kept
