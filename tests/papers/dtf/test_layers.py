"""The DTF block against slow float64 definitions, in its paper's and in the released code's reading."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from common.evaluation.complexity import count
from common.spectral import reference_implementation
from papers.dtf import layers
from papers.dtf.kernels import frame_aggregation, frame_correlation
from papers.dtf.layers import DTFBlock


def slow_correlation(query: Tensor, keys: Tensor, k: int) -> Tensor:
    """Eq. 6 for one pair of frames (C,H,W), every position and neighbour by itself."""
    _, height, width = query.shape
    out = query.new_zeros(k * k, height, width)
    for y, x, i in itertools.product(range(height), range(width), range(k * k)):
        v, u = y + i // k - k // 2, x + i % k - k // 2
        if 0 <= v < height and 0 <= u < width:
            out[i, y, x] = query[:, y, x] @ keys[:, v, u]
    return out


def slow_aggregation(weights: Tensor, keys: Tensor, k: int) -> Tensor:
    """Eq. 7 for one frame."""
    channels, height, width = keys.shape
    out = keys.new_zeros(channels, height, width)
    for y, x, i in itertools.product(range(height), range(width), range(k * k)):
        v, u = y + i // k - k // 2, x + i % k - k // 2
        if 0 <= v < height and 0 <= u < width:
            out[:, y, x] += weights[i, y, x] * keys[:, v, u]
    return out


def slow_circular_filter(f: Tensor, spectrum: Tensor) -> Tensor:
    """Eq. 4 and 5 for one channel at one position: sums of complex exponentials, half a spectrum completed."""
    time, filtered = len(f), torch.zeros(len(f), dtype=torch.complex128)
    t = torch.arange(time, dtype=torch.float64)
    for k in range(time):
        s = (f * torch.exp(-2j * torch.pi * k * t / time)).sum()
        m = min(k, time - k)
        value = spectrum[m] if k == m else spectrum[m].conj()
        if m == 0 or 2 * m == time:
            value = value.real + 0j
        filtered += s * value * torch.exp(2j * torch.pi * k * t / time) / time
    assert filtered.imag.abs().max() < 1e-10
    return filtered.real


def slow_block(block: DTFBlock, x: Tensor) -> Tensor:
    """The equations of the paper, one clip (C,T,H,W) and one position at a time."""
    channels, time, height, width = x.shape
    k, m = block.options.kernel_size, block.frequencies
    enhanced, scores = x.clone(), torch.zeros(k * k, time, height, width, dtype=x.dtype)
    for t in range(time - 1):
        scores[:, t] = slow_correlation(x[:, t], x[:, t + 1], k) / channels
        if block.options.aggregation:
            enhanced[:, t] = x[:, t] + slow_aggregation(scores[:, t].softmax(0), x[:, t + 1], k)
    out = enhanced.clone()
    weight = block.predict.weight[:, :, 0, 0]
    for y, u in itertools.product(range(height), range(width)):
        inputs = [
            torch.cat([enhanced[:, t, y, u]] + ([scores[:, t, y, u]] if block.options.correlation else []))
            for t in range(time)
        ]
        predicted = (weight @ torch.cat(inputs)).view(m, 2, -1)
        for c in range(channels):
            spectrum = torch.complex(*predicted[:, :, c // block.options.share].unbind(1))
            out[c, :, y, u] += block.alpha[c, 0, 0] * slow_circular_filter(enhanced[c, :, y, u], spectrum)
    return out


def slow_released(x: Tensor, p: dict[str, Tensor], k: int = 3, share: int = 16) -> Tensor:
    """What the released code computes, from its parameters under its names, written down from its facts.

    Clips (B,C,T,H,W). The correlation is kept at the later frame, the first frame is compared with itself; the filter's
    numbers are repeated along (channel, frequency, re/im); both transforms orthonormal; training mode.
    """
    batch, channels, time, height, width = x.shape
    m = time // 2 + 1
    scores = x.new_zeros(batch, k * k, time, height, width)
    enhanced = x.clone()
    for b, t in itertools.product(range(batch), range(time)):
        scores[b, :, t] = slow_correlation(x[b, :, max(t - 1, 0)], x[b, :, t], k) / channels
        if t:
            enhanced[b, :, t - 1] += slow_aggregation(scores[b, :, t].softmax(0), x[b, :, t], k)
    flat = torch.cat([enhanced, scores], dim=1).reshape(batch, -1, height, width)
    numbers = nn.functional.conv2d(flat, p["filter_g.weight"])
    filters = numbers.repeat_interleave(share, dim=1).view(batch, channels, m, 2, height, width)
    spectrum = torch.fft.rfft(enhanced, dim=2, norm="ortho") * torch.complex(filters[:, :, :, 0], filters[:, :, :, 1])
    mixed = torch.einsum("oi,bimhw->bomhw", torch.view_as_complex(p["linear1.complex_weight"]), spectrum)
    values = torch.view_as_real(mixed)
    mean = values.mean(dim=(0, 2, 3, 4, 5), keepdim=True)
    variance = values.var(dim=(0, 2, 3, 4, 5), keepdim=True, correction=0)
    normed = torch.view_as_complex(((values - mean) / (variance + 1e-5).sqrt()).contiguous())
    return x + torch.fft.irfft(normed * p["alpha1"], n=time, dim=2, norm="ortho") + p["bias"]


def trained(block: DTFBlock) -> DTFBlock:
    with torch.no_grad():
        block.alpha.normal_()
        if block.bias is not None:
            block.bias.normal_()
    return block.double()


@pytest.mark.parametrize("k", [1, 3, 5])
@pytest.mark.parametrize("shape", [(2, 3, 3, 5, 4), (1, 2, 2, 1, 1), (1, 1, 4, 2, 7), (2, 4, 1, 3, 3)])
def test_correlation_and_aggregation_equal_loops(shape: tuple[int, ...], k: int) -> None:
    batch, _, time, *_ = shape
    x = torch.randn(shape, dtype=torch.float64)
    scores = frame_correlation(x.transpose(1, 2), k)
    weights = torch.randn_like(scores)
    found = frame_aggregation(x.transpose(1, 2), weights, k).transpose(1, 2)
    expected = x.clone()
    assert scores.shape == (batch, time - 1, k * k, *shape[3:])
    for b, t in itertools.product(range(batch), range(time - 1)):
        torch.testing.assert_close(scores[b, t], slow_correlation(x[b, :, t], x[b, :, t + 1], k))
        expected[b, :, t] += slow_aggregation(weights[b, t], x[b, :, t + 1], k)
    torch.testing.assert_close(found, expected)
    with reference_implementation():
        torch.testing.assert_close(frame_correlation(x.transpose(1, 2), k), scores)
        torch.testing.assert_close(frame_aggregation(x.transpose(1, 2), weights, k), found.transpose(1, 2))


def test_no_copies_of_the_neighbourhood_are_kept() -> None:
    frames = torch.randn(1, 4, 8, 20, 20, requires_grad=True)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.untyped_storage().data_ptr())
        sizes[saved[-1]] = tensor.untyped_storage().nbytes()
        return tensor

    sizes: dict[int, int] = {}
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        frame_aggregation(frames, frame_correlation(frames).softmax(2))
    # Two padded clips, the weights and their softmax; nine copies would be 9 times the clip.
    assert sum(sizes.values()) < 6 * frames.numel() * 4


@pytest.mark.parametrize("time", [4, 5, 1])
@pytest.mark.parametrize(
    ("aggregation", "correlation"), [(True, True), (False, True), (True, False), (False, False)], ids=str
)
def test_block_equals_the_equations(time: int, aggregation: bool, correlation: bool) -> None:
    torch.manual_seed(0)
    block = trained(DTFBlock(4, time, share=2, aggregation=aggregation, correlation=correlation))
    x = torch.randn(2, 4, time, 3, 4, dtype=torch.float64)
    expected = torch.stack([slow_block(block, clip) for clip in x])
    torch.testing.assert_close(block(x), expected)
    with reference_implementation():
        torch.testing.assert_close(block(x), expected)


@pytest.mark.parametrize("time", [4, 7])
def test_author_preset_equals_the_released_code(time: int) -> None:
    torch.manual_seed(0)
    block = trained(DTFBlock(32, time, preset="author"))
    x = torch.randn(2, 32, time, 3, 4, dtype=torch.float64)
    # Columns of the predictor: ours run over frames, then channels; the released ones over channels, then frames.
    weight = block.predict.weight.detach().unflatten(1, (time, 41)).transpose(1, 2).flatten(1, 2)
    parameters = {
        "filter_g.weight": weight,
        "linear1.complex_weight": block.mix.detach().movedim(0, -1).contiguous(),
        "alpha1": block.alpha.detach()[None, :, None],
        "bias": block.bias.detach()[None, :, None],
    }
    expected = slow_released(x, parameters)
    torch.testing.assert_close(block(x), expected)
    with reference_implementation():
        torch.testing.assert_close(block(x), expected)


def test_literal_products_without_softmax() -> None:
    block = trained(DTFBlock(4, 3, share=2, correlation_norm="none"))
    x = torch.randn(1, 4, 3, 3, 3, dtype=torch.float64)
    scores = slow_correlation(x[0, :, 0], x[0, :, 1], 3)
    enhanced, kept = block.aggregate(x)
    torch.testing.assert_close(kept[0, 0], scores)
    torch.testing.assert_close(enhanced[0, 0], x[0, :, 0] + slow_aggregation(scores, x[0, :, 1], 3))
    block(x)


@pytest.mark.parametrize("time", [4, 5, 8, 9, 20])
def test_a_constant_filter_is_a_circular_convolution(time: int) -> None:
    """The convolution theorem (Eq. 3): one filter everywhere is the circular convolution with its inverse transform."""
    block = trained(DTFBlock(4, time, dynamic=False, aggregation=False))
    x = torch.randn(2, 4, time, 3, 2, dtype=torch.float64)
    kernel = torch.fft.irfft(torch.complex(block.filter[:, 0], block.filter[:, 1]), n=time, dim=0)  # (T,C)
    padded = torch.cat([x[:, :, 1:], x], dim=2).flatten(3)
    weight = kernel.T.flip(1)[:, None, :, None]
    convolved = nn.functional.conv2d(padded, weight, groups=4).view_as(x)
    torch.testing.assert_close(block(x), x + block.alpha[None, :, None] * convolved)
    torch.testing.assert_close(block.kernel(x), kernel.T[None, :, :, None, None].expand_as(x))


@pytest.mark.parametrize("time", [4, 20])
def test_filter_spectrum_is_what_is_applied(time: int) -> None:
    block = trained(DTFBlock(8, time, share=4))
    x = torch.randn(1, 8, time, 3, 3, dtype=torch.float64)
    spectrum = block.filter_spectrum(x)
    assert spectrum.shape == (1, 2, time // 2 + 1, 3, 3)
    assert block.kernel(x).shape == (1, 2, time, 3, 3)
    enhanced = block.aggregate(x)[0].transpose(1, 2)
    filtered = torch.fft.irfft(torch.fft.rfft(enhanced, dim=2) * spectrum.repeat_interleave(4, 1), n=time, dim=2)
    torch.testing.assert_close(block(x), enhanced + block.alpha[None, :, None] * filtered)


OPTIONS = {
    "paper": {},
    "author": {"preset": "author"},
    "long": {"frames": 18},
    "one filter": {"dynamic": False},
    "plain": {"aggregation": False, "correlation": False},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_gradients(name: str) -> None:
    torch.manual_seed(0)
    block = trained(DTFBlock(4, **{"frames": 4, "share": 4, **OPTIONS[name]}))
    x = torch.randn(2, 4, block.frames, 2, 3, dtype=torch.float64, requires_grad=True)
    names, values = zip(*((n, p.detach().requires_grad_()) for n, p in block.named_parameters()), strict=True)

    def function(x: Tensor, *parameters: Tensor) -> Tensor:
        return torch.func.functional_call(block, dict(zip(names, parameters, strict=True)), x)

    buffers = block.norm
    if buffers is not None:
        buffers.track_running_stats = False
        buffers.running_mean = buffers.running_var = None
    assert torch.autograd.gradcheck(function, (x, *values), fast_mode=True)


def test_circular_convolution_and_transforms_have_equal_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    block = trained(DTFBlock(8, 6, share=4))
    x = torch.randn(2, 8, 6, 4, 4, dtype=torch.float64, requires_grad=True)
    assert block.convolves(x)
    found = []
    for convolves in (True, False):
        monkeypatch.setattr(block, "convolves", lambda frames, value=convolves: value)
        block.zero_grad()
        x.grad = None
        block(x).square().sum().backward()
        found.append([x.grad.clone()] + [p.grad.clone() for p in block.parameters()])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other)


def test_identity_at_initialisation() -> None:
    x = torch.randn(2, 32, 4, 5, 5)
    assert DTFBlock(32, 4, preset="author")(x).equal(x)
    assert DTFBlock(32, 4, aggregation=False)(x).equal(x)
    assert DTFBlock(32, 4, aggregation=False, dynamic=False)(x).equal(x)
    # With the paper's skip connection, what is added to is the aggregated feature.
    block = DTFBlock(32, 4)
    assert block(x).equal(block.aggregate(x)[0].transpose(1, 2))
    assert layers.CorrelationBlock(32, 4)(x).equal(x)


@pytest.mark.parametrize("preset", ["paper", "author"])
def test_every_parameter_gets_a_gradient_after_one_step(preset: str) -> None:
    torch.manual_seed(0)
    block = DTFBlock(32, 4, preset=preset)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    for _ in range(2):
        optimizer.zero_grad()
        block(torch.randn(2, 32, 4, 6, 6)).pow(3).mean().backward()
        optimizer.step()
    for name, parameter in block.named_parameters():
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


@pytest.mark.parametrize("preset", ["paper", "author"])
def test_half_precision_agrees_with_float32(preset: str) -> None:
    """The filtered feature moves by less than 5 %, and by less than 3 % where the predictor alone is in bfloat16."""
    torch.manual_seed(0)
    block = DTFBlock(32, 4, preset=preset).eval()
    nn.init.constant_(block.alpha, 0.05)
    x = torch.randn(2, 32, 4, 6, 6)
    expected = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed, half = block(x), block(x.bfloat16())
    converted = block.bfloat16()(x.bfloat16())
    for found, dtype, bound in (
        (mixed, torch.float32, 0.03),
        (half, torch.bfloat16, 0.05),
        (converted, torch.bfloat16, 0.05),
    ):
        assert found.dtype == dtype
        assert (found - expected).abs().mean() < bound * (expected - x).abs().mean()


@pytest.mark.filterwarnings("ignore::torch.jit.TracerWarning")
@pytest.mark.parametrize("preset", ["paper", "author"])
def test_compiled_and_traced_blocks_are_equal(preset: str) -> None:
    torch.manual_seed(0)
    block = trained(DTFBlock(32, 5, preset=preset)).eval()
    x = torch.randn(1, 32, 5, 4, 3, dtype=torch.float64)
    expected = block(x)
    torch.testing.assert_close(torch.compile(block, backend="aot_eager", fullgraph=True)(x), expected)
    torch.testing.assert_close(torch.jit.trace(block, x)(x), expected)


def test_frames_may_come_first_in_memory() -> None:
    block = trained(DTFBlock(8, 4, share=4))
    x = torch.randn(2, 8, 4, 5, 3, dtype=torch.float64)
    torch.testing.assert_close(block(x.transpose(1, 2).contiguous().transpose(1, 2)), block(x))


@pytest.mark.parametrize("preset", ["paper", "author"])
@pytest.mark.parametrize(("old", "new"), [(4, 8), (8, 4), (5, 8), (4, 5), (8, 16)])
def test_resampled_filters(preset: str, old: int, new: int) -> None:
    torch.manual_seed(0)
    block = trained(DTFBlock(32, old, preset=preset))
    longer = block.resampled(new)
    assert longer.frames == new
    longer(torch.randn(1, 32, new, 2, 2, dtype=torch.float64))
    # A clip without motion is given the same filter at the frequencies that both lengths have.
    picture = torch.randn(1, 32, 1, 2, 2, dtype=torch.float64)
    assert longer.options == block.options
    torch.testing.assert_close(longer.alpha, block.alpha)
    if preset == "paper":
        plain = trained(DTFBlock(32, old, aggregation=False, correlation=False))
        stretched = plain.resampled(new)
        one, other = (b.filter_spectrum(picture.expand(-1, -1, b.frames, -1, -1)) for b in (plain, stretched))
        for m in range(old // 2 + 1):
            if m * new % old == 0 and m * new // old <= new // 2:
                end = m == 0 or 2 * m == old
                torch.testing.assert_close(other[:, :, m * new // old].real, one[:, :, m].real)
                if not end:
                    torch.testing.assert_close(other[:, :, m * new // old].imag, one[:, :, m].imag)


def test_resampling_a_fixed_filter_keeps_its_response() -> None:
    block = trained(DTFBlock(4, 8, dynamic=False))
    back = block.resampled(16).resampled(8)
    torch.testing.assert_close(back.filter[1:-1], block.filter[1:-1])
    torch.testing.assert_close(back.filter[:, 0], block.filter[:, 0])


def test_cost_and_parameters() -> None:
    """Section 1.2 of the derivation: 2 C M (C + 9) T / G for the predictor, 2 C^2 for the mixing, 2 C else."""
    c, t, m, h = 64, 4, 3, 7
    predictor = 2 * c * m * (c + 9) * t // 16
    around = 2 * 9 * c * (t - 1) * h * h  # Eq. 6 and 7
    paper = count(DTFBlock(c, t), (1, c, t, h, h))
    assert paper.params == predictor + c
    assert paper.macs_paper == predictor * h * h + around
    author = count(DTFBlock(c, t, preset="author"), (1, c, t, h, h))
    assert author.params == predictor + 2 * c * c + 2 * c
    assert author.macs_paper == predictor * h * h + c * c * m * h * h + around + 9 * c * h * h
    assert author.macs_full > paper.macs_full > paper.macs_paper


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="share=16 channels per filter does not divide the 24 channels"):
        DTFBlock(24, 4)
    with pytest.raises(ValueError, match="odd kernel_size"):
        DTFBlock(16, 4, kernel_size=2)
    with pytest.raises(ValueError, match="preset 'autor' is not known"):
        DTFBlock(16, 4, preset="autor")
    with pytest.raises(ValueError, match=r"takes \(batch, 16, 4 frames, height, width\), not \(1, 16, 5, 2, 2\)"):
        DTFBlock(16, 4)(torch.zeros(1, 16, 5, 2, 2))


def test_dynamic_temporal_convolution_is_as_defined() -> None:
    """DTF_1d+: mixing the outputs of all kernels is what a kernel of its own at every position gives."""
    layer = layers.DynamicTemporalConv(nn.Conv2d(6, 4, 1, bias=False), temperature=1.0).double()
    x = torch.randn(2, 6, 5, 3, 4, dtype=torch.float64)
    with reference_implementation():
        expected = layer(x)
    torch.testing.assert_close(layer(x), expected)
    assert layers.DynamicTemporalConv(nn.Conv2d(6, 4, 3, 2, 1))(torch.randn(1, 6, 3, 7, 8)).shape == (1, 4, 3, 4, 4)
