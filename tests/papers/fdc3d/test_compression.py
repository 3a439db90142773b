import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common.backbones.resnet3d import ResNet3d
from common.evaluation.complexity import count
from common.spectral.transforms import dct_matrix, random_orthogonal
from papers.fdc3d import compression
from papers.fdc3d.compression import compress
from papers.fdc3d.layers import CompactConv3d
from papers.fdc3d.learning import ChannelWeights, learn_transform, row_norms, sample_contributions, temporal_products
from papers.fdc3d.methods import METHODS, CompressionError
from papers.fdc3d.rates import CompressionOptions, rates_of
from papers.fdc3d.report import CompressionReport
from papers.fdc3d.timing import choose_executions, measure


def tiny_network(seed=0, width=0.125):
    torch.manual_seed(seed)
    network = ResNet3d(10, num_classes=4, width=width)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm3d):  # as after training
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    return network.eval()


def tiny_batches(count=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [(torch.randn(2, 3, 8, 20, 24, generator=generator), torch.tensor([0, k % 4])) for k in range(count)]


# -- the transform


@pytest.mark.parametrize("taps", [2, 3, 5, 7])
@pytest.mark.parametrize("importance", ["paper", "energy"])
def test_learned_transform_is_orthogonal_and_never_above_the_dct(taps, importance):
    torch.manual_seed(taps)
    products = temporal_products(torch.randn(6, 5, taps, 3, 3), importance)
    start = dct_matrix(taps)
    for sweeps in (0, 1, 2, 3, 20):
        transform, values = learn_transform(products, start, sweeps)
        assert (transform @ transform.T - torch.eye(taps)).abs().max() < 1e-5
        assert values == sorted(values, reverse=True)
        assert values[-1] <= values[0] == pytest.approx(float(row_norms(dct_matrix(taps).double(), products).sum()))
    # The l2,1 norm of S G is least where it is the sum of the singular values of G.
    least = float(torch.linalg.eigvalsh(products).clamp_min(0).sqrt().sum())
    assert values[-1] == pytest.approx(least, rel=1e-9)


def test_importance_is_that_of_section_3_1():
    torch.manual_seed(0)
    weight = torch.randn(5, 4, 3, 2, 2, dtype=torch.float64)
    s = random_orthogonal(3)
    f = [weight[:, c, :, y, x].T for c in range(4) for y in range(2) for x in range(2)]  # f_j, (t,N)
    of_sum = sum(s @ each for each in f).norm(dim=1)
    of_all = torch.cat([s @ each for each in f], dim=1).norm(dim=1)
    torch.testing.assert_close(row_norms(s, temporal_products(weight, "paper")), of_sum)
    torch.testing.assert_close(row_norms(s, temporal_products(weight, "energy")), of_all)


def test_no_rows_keep_more_of_a_kernel_than_the_learned_ones():
    """With `energy` the kept rows are the best approximation of rank t' (Eckart and Young); the sum has no bound."""
    torch.manual_seed(0)
    weight = torch.randn(6, 5, 5, 3, 3, dtype=torch.float64)
    flat = weight.transpose(1, 2).flatten(2).transpose(0, 1).flatten(1)  # (t, N d^2 c)
    best = torch.linalg.svdvals(flat).square()
    for kept in (1, 3, 4):
        lost = {}
        for importance in ("energy", "paper"):
            products = temporal_products(weight, importance)
            transform, _ = learn_transform(products, dct_matrix(5))
            rows = transform[row_norms(transform, products).argsort(descending=True)[:kept]]
            lost[importance] = float((flat - rows.T @ rows @ flat).square().sum())
        assert lost["energy"] == pytest.approx(float(best[kept:].sum()), rel=1e-9)
        assert lost["energy"] < lost["paper"]


def test_the_default_is_what_works():
    assert CompressionOptions().importance == "energy"


def test_a_zero_kernel_is_no_trouble():
    transform, values = learn_transform(torch.zeros(3, 3), dct_matrix(3))
    torch.testing.assert_close(transform, dct_matrix(3).double())
    assert set(values) == {0.0}


# -- the channels


@pytest.mark.parametrize("bias", [True, False])
def test_contributions_add_up_to_the_output(bias):
    torch.manual_seed(1)
    conv = nn.Conv3d(5, 6, 3, (2, 1, 2), (1, 0, 2), (1, 2, 1), bias=bias).double()
    x = torch.randn(3, 5, 7, 9, 8, dtype=torch.float64)
    z, y = sample_contributions(conv, x, conv(x).detach(), 50, torch.Generator().manual_seed(0))
    assert z.shape == (5, 50, 6)
    torch.testing.assert_close(z.sum(dim=0), y)


def test_beta_minimises_equation_8():
    torch.manual_seed(2)
    z = torch.randn(6, 40, 5, dtype=torch.float64)
    z[2] *= 0.01
    z[4] = 0
    y = z.sum(dim=0)
    weights = ChannelWeights(6, gamma=0.3)
    weights.add(z, y)
    before = weights.loss()
    for _ in range(40):
        weights.step()
        assert weights.loss() <= before + 1e-12
        before = weights.loss()
    beta = weights.beta.clone().requires_grad_()
    fit = (y - (beta.view(-1, 1, 1) * z).sum(dim=0)).square().sum() / y.square().sum()
    fit.backward()
    assert float(fit.detach() + 0.3 * beta.detach().abs().mean()) == pytest.approx(before)
    zero = weights.beta == 0
    assert zero.tolist() == [False, False, True, False, True, False]
    torch.testing.assert_close(beta.grad[~zero], torch.full((4,), -0.3 / 6, dtype=torch.float64))
    assert beta.grad[zero].abs().max() <= 0.3 / 6
    kept = weights.keep(5)
    assert (kept == 0).tolist() == [False, False, False, False, True, False]  # of two zeros the larger contribution
    assert torch.equal(weights.keep(6), torch.ones(6, dtype=torch.float64))


def test_kept_channels_make_up_for_the_others():
    torch.manual_seed(3)
    z = torch.randn(1, 30, 4).repeat(3, 1, 1)  # three channels that do the same
    z = torch.cat([z, torch.randn(2, 30, 4)])
    weights = ChannelWeights(5, gamma=0.2)
    weights.add(z, z.sum(dim=0))
    weights.beta = torch.tensor([0.9, 0.1, -0.2, 0.8, 0.7], dtype=torch.float64)
    torch.testing.assert_close(weights.keep(3), torch.tensor([3.0, 0, 0, 1, 1]).double(), rtol=0, atol=0.01)
    assert weights.error(weights.keep(3)) < 1e-5


# -- whole networks


def test_rates_of_the_paper():
    assert rates_of(2) == pytest.approx((1 / 4, 1 / 3))
    assert rates_of(4) == pytest.approx((5 / 8, 1 / 3))
    assert rates_of(2, "channels") == (0.5, 0.0)
    assert rates_of(1.0) == (0.0, 0.0)
    with pytest.raises(CompressionError, match="at least 1"):
        rates_of(0.5)


@pytest.mark.parametrize("method", METHODS)
def test_compact_networks_equal_their_masks(method):
    network, batches = tiny_network(), tiny_batches()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    result = compress(network, batches, rate=2, method=method, steps=4, progress=False)
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    x = batches[0][0]
    with torch.no_grad():
        torch.testing.assert_close(result.network(x), result.masked(x), rtol=1e-5, atol=1e-5)
    temporal = method in ("fdc3d", "dct", "identity")
    for layer in result.report.layers:
        decision = result.decisions.get(layer.name)
        if decision is None:
            assert (layer.kept_channels, layer.kept_rows) == (layer.channels, layer.rows)
            continue
        identity = torch.eye(layer.rows)
        assert (decision.transform @ decision.transform.T - identity).abs().max() < 1e-5
        assert int((decision.scale != 0).sum()) == layer.kept_channels
        assert int(decision.rows.sum()) == layer.kept_rows
        assert 0 <= layer.error < 2
        if temporal and layer.rows > 1:
            assert layer.kept_rows == {3: 2, 7: 4}[layer.rows]
        if method == "fdc3d":
            assert layer.loss <= layer.loss_start + 1e-9
    by_name = {layer.name: layer for layer in result.report.layers}
    assert by_name["conv1"].note == "channels kept: reads 3"
    assert "kernel of one frame" in by_name["layer2.0.downsample.0"].note
    inner = by_name["layer2.0.conv2"]
    assert inner.formula == 2.0
    assert inner.macs_compact == count(result.network, result.report.input_shape).by_module["layer2.0.conv2"][0]


def test_learned_transform_has_no_higher_loss_than_the_dct():
    network, batches = tiny_network(), tiny_batches()
    learned, dct = (
        compress(network, batches, temporal_rate=1 / 3, method=method, importance="energy", steps=2, progress=False)
        for method in ("fdc3d", "dct")
    )
    for mine, theirs in zip(learned.report.layers, dct.report.layers, strict=True):
        if mine.rows > 1:
            assert mine.loss <= theirs.loss + 1e-9
            assert mine.loss_start == pytest.approx(theirs.loss)
    # Fewer rows hold more of the energy, so the kernels lose less.
    for name in ("conv1", "layer1.0.conv1", "layer3.0.conv2"):
        conv = network.get_submodule(name)
        kernels = [result.masked.get_submodule(name).masked_weight() for result in (learned, dct)]
        lost = [float((kernel - conv.weight).norm().detach()) for kernel in kernels]
        assert lost[0] <= lost[1] + 1e-6


def test_nothing_pruned_gives_the_same_outputs():
    network, batches = tiny_network(), tiny_batches(1)
    result = compress(network, batches, channel_rate=0, temporal_rate=0, steps=1, progress=False)
    assert not result.decisions
    with torch.no_grad():
        assert torch.equal(result.network(batches[0][0]), network(batches[0][0]))
    assert result.report.formula == result.report.multiply_adds == 1


@pytest.mark.parametrize(("keep_temporal", "rows"), [("figure3", 4), ("floor", 5)])
def test_rows_of_the_first_convolution(keep_temporal, rows):
    result = compress(
        tiny_network(), tiny_batches(1), rate=4, keep_temporal=keep_temporal, steps=1, progress=False, method="dct"
    )
    assert result.network.conv1.kept_rows == rows
    assert result.network.layer2[0].conv2.kept_channels == 6
    assert result.report.layers[0].formula == 7 / rows


def test_rates_per_layer_and_target_speedup():
    network, batches = tiny_network(), tiny_batches(1)
    result = compress(
        network, batches, channel_rate={"layer1.0.conv2": 0.5}, temporal_rate={"conv1": 5 / 7}, steps=1, progress=False
    )
    assert set(result.decisions) == {"layer1.0.conv2", "conv1"}
    assert result.network.layer1[0].conv2.kept_channels == 4
    assert result.network.conv1.kept_rows == 2
    for method, speedup in (("dct", 1.7), ("channels", 1.08)):
        result = compress(network, batches, speedup=speedup, method=method, steps=1, progress=False)
        assert speedup <= result.report.multiply_adds < 1.05 * speedup
        exact = count(network, result.report.input_shape).macs_paper
        assert result.report.multiply_adds == exact / count(result.network, result.report.input_shape).macs_paper
    with pytest.raises(CompressionError, match="cannot be reached"):
        compress(network, batches, speedup=50, steps=1, progress=False)


def test_l1_and_taylor_drop_the_channels_of_their_definitions():
    network, batches = tiny_network(), tiny_batches(2)
    name = "layer2.0.conv2"
    conv = network.get_submodule(name)
    result = compress(network, batches, rate=2, method="l1", progress=False)
    weakest = conv.weight.detach().abs().sum(dim=(0, 2, 3, 4)).argsort()[:8]
    assert sorted((result.decisions[name].scale == 0).nonzero().flatten().tolist()) == sorted(weakest.tolist())

    result = compress(network, batches, rate=2, method="taylor", steps=2, progress=False)
    scores = torch.zeros(16)
    for x, label in batches:
        seen = []
        handle = conv.register_forward_pre_hook(lambda module, args, seen=seen: seen.append(args[0]))
        loss = F.cross_entropy(network(x), label)
        handle.remove()
        (gradient,) = torch.autograd.grad(loss, seen)
        scores += (gradient * seen[0]).mean(dim=(2, 3, 4)).abs().mean(dim=0)
    expected = sorted(scores.argsort()[:8].tolist())
    assert (result.decisions[name].scale == 0).nonzero().flatten().tolist() == expected


def test_growing_penalties_shrink_what_is_dropped():
    network, batches = tiny_network(), tiny_batches(2)
    result = compress(network, batches, rate=2, method="regularisation", steps=20, progress=False)
    layer = result.masked.layer2[0].conv2
    norms = layer.weight.detach().abs().sum(dim=(0, 2, 3, 4))
    assert norms[layer.scale == 0].max() < norms[layer.scale != 0].min()
    assert norms[layer.scale == 0].median() < 0.05 * norms[layer.scale != 0].min()


def test_growing_penalties_follow_their_rule():
    """Of Zhang et al.: by the rank r of N channels of which n go, the decay changes by A (1 - r/n) below n and by
    -A (r - n) / (N - n - 1) from n on; A is such that the decay of rank 0 adds up to exp(-7) in all steps."""
    network, steps, rate = tiny_network(), 12, CompressionOptions().learning_rate
    weights = {
        name: conv.weight.detach().double().clone()
        for name, conv in network.named_modules()
        if isinstance(conv, nn.Conv3d)
    }
    no_gradient = {"loss": lambda output, batch: 0 * output.sum()}
    options = {"rate": 2, "method": "regularisation", "steps": steps, "progress": False}
    result = compress(network, tiny_batches(2), **options, **no_gradient)
    layers = {name: conv for name, conv in result.masked.named_modules() if hasattr(conv, "scale")}
    assert layers
    for name, layer in layers.items():
        weight, dropped, channels = weights[name], int((layer.scale == 0).sum()), layer.in_channels
        decay = torch.zeros(channels, dtype=torch.float64)
        for _ in range(steps):
            ranks = weight.abs().sum(dim=(0, 2, 3, 4)).argsort().argsort()
            for channel, r in enumerate(ranks.tolist()):
                share = 1 - r / dropped if r < dropped else -(r - dropped) / max(channels - dropped - 1, 1)
                decay[channel] = max(0.0, decay[channel] + 14 / (rate * steps**2) * share)
            weight = weight * (1 - rate * decay).clamp(min=0)[None, :, None, None, None]
        torch.testing.assert_close(layer.weight.double(), weight, rtol=1e-4, atol=1e-7)


def test_layers_that_cannot_be_pruned_are_named():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.grouped = nn.Conv3d(8, 8, 3, padding=1, groups=4)
            self.mirrored = nn.Conv3d(8, 8, 3, padding=1, padding_mode="replicate")
            self.same = nn.Conv3d(8, 8, 3, padding="same")
            self.unused = nn.Conv3d(8, 8, 3)

        def forward(self, x):
            return self.same(self.mirrored(self.grouped(x))).mean(dim=(2, 3, 4))

    torch.manual_seed(0)
    x = torch.randn(2, 8, 6, 9, 9)
    result = compress(Odd(), [{"video": x}], rate=2, steps=1, progress=False)
    notes = {layer.name: layer.note for layer in result.report.layers}
    assert notes["grouped"] == "channels kept: 4 groups"
    assert notes["mirrored"] == "left alone: padding (1, 1, 1), mode 'replicate'"
    assert notes["unused"] == "left alone: not called"
    assert notes["same"] == ""
    assert (result.network.grouped.kept_rows, result.network.grouped.kept_channels) == (2, 8)
    assert isinstance(result.network.mirrored, nn.Conv3d)
    assert (result.network.same.kept_rows, result.network.same.kept_channels) == (2, 6)
    torch.testing.assert_close(result.network(x), result.masked(x), rtol=1e-5, atol=1e-5)


# -- going on, speed, reports


def test_an_interrupted_compression_goes_on(tmp_path, monkeypatch):
    network, batches = tiny_network(), tiny_batches()
    whole = compress(network, batches, rate=2, steps=2, progress=False)
    state = tmp_path / "state.pt"
    decide, done = compression.decide, []

    def killed(model, layer, *args):
        if len(done) == 5:
            raise KeyboardInterrupt
        done.append(layer.name)
        return decide(model, layer, *args)

    monkeypatch.setattr(compression, "decide", killed)
    with pytest.raises(KeyboardInterrupt):
        compress(network, batches, rate=2, steps=2, state=state, progress=False)
    first, done = done, []
    monkeypatch.setattr(compression, "decide", lambda m, layer, *a: done.append(layer.name) or decide(m, layer, *a))
    again = compress(network, batches, rate=2, steps=2, state=state, progress=False)
    assert len(first) == 5
    assert not set(first) & set(done)
    for name, decision in whole.decisions.items():
        for key in ("transform", "rows", "scale"):
            assert torch.equal(getattr(decision, key), getattr(again.decisions[name], key))
    with pytest.raises(CompressionError, match="belongs to the compression of another network"):
        compress(network, batches, rate=4, steps=2, state=state, progress=False)
    with pytest.raises(CompressionError, match="belongs to the compression of another network"):
        compress(tiny_network(5), batches, rate=2, steps=2, state=state, progress=False)


def test_regularisation_goes_on_with_the_trained_weights(tmp_path, monkeypatch):
    network, batches = tiny_network(), tiny_batches(2)
    options = {"rate": 2, "method": "regularisation", "steps": 3, "progress": False}
    whole = compress(network, batches, **options)
    state = tmp_path / "state.pt"
    compress(network, batches, state=state, **options)
    monkeypatch.setattr(type(METHODS["regularisation"]), "train", None)  # must not be called again
    again = compress(network, batches, state=state, **options)
    x = batches[0][0]
    assert torch.equal(whole.network(x), again.network(x))


def test_executions_are_chosen_and_measured():
    network, batches = tiny_network(), tiny_batches(1)
    result = compress(network, batches, rate=2, steps=1, progress=False)
    x = batches[0][0]
    with torch.no_grad():
        expected = result.network(x)
        choose_executions(result.network, x, repeats=1)
        torch.testing.assert_close(result.network(x), expected, rtol=1e-5, atol=1e-5)
    layouts = {m.layout for m in result.network.modules() if isinstance(m, CompactConv3d)}
    assert len(layouts) == 1
    report = measure(result.report, network, result.network, x, repeats=2)
    assert report.measured > 0
    assert all(layer.seconds > 0 and layer.seconds_compact > 0 for layer in report.layers)
    shown = str(report)
    assert "by the paper's formula" in shown
    assert "measured on this machine" in shown
    assert "layer4.0.conv2" in shown
    assert CompressionReport.from_dict(report.to_dict()) == report
    assert math.isfinite(report.multiply_adds)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"method": "svd"}, "unknown method 'svd'"),
        ({"importance": "size"}, "unknown importance 'size'"),
        ({"rate": None}, "give one of"),
        ({"speedup": 2.0}, "give one of"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"rate": None, "channel_rate": 1.0}, r"lies in \[0, 1\)"),
        ({"rate": None, "channel_rate": {"conv9": 0.5}}, "no convolution 'conv9'"),
        ({"rate": None, "temporal_rate": 0.3, "method": "channels"}, "prunes channels only"),
    ],
)
def test_wrong_settings_are_named(change, message):
    with pytest.raises(CompressionError, match=message):
        compress(tiny_network(), tiny_batches(1), **{"rate": 2, "progress": False, **change})


def test_wrong_data_is_named():
    network = tiny_network()
    with pytest.raises(CompressionError, match="no batches"):
        compress(network, [], rate=2)
    with pytest.raises(CompressionError, match="mapping with frames"):
        compress(network, [{"frames": torch.zeros(1)}], rate=2)
    with pytest.raises(CompressionError, match="needs a loss"):
        compress(network, [torch.randn(1, 3, 8, 16, 16)], rate=2, method="taylor", progress=False)
    with pytest.raises(CompressionError, match=r"no torch\.nn\.Conv3d"):
        compress(nn.Flatten(), [torch.zeros(1, 2)], rate=2)


def test_progress_is_shown(capsys):
    compress(tiny_network(), tiny_batches(1), rate=2, steps=1, progress=True, method="l1")
    assert "l1" in capsys.readouterr().err
