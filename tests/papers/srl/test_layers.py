"""The SRL block and its competitors: the equations, what an output sees, identity at the start, counts, errors."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch import Tensor, nn

from common.spectral import LearnableTransform2d
from papers.srl.layers import (
    CompactNonLocalBlock,
    CrissCrossAttention,
    DoubleAttentionBlock,
    FeatureBlock,
    NonLocalBlock,
    RecurrentCrissCrossBlock,
    SpectralReLU,
    SRLBlock,
    TemporalMixing,
)

TRANSFORMS = ["fourier", "orthogonal", "dct", "walsh-hadamard", "haar", "slant"]
OTHERS: dict[str, type[FeatureBlock]] = {
    "nl": NonLocalBlock,
    "a2": DoubleAttentionBlock,
    "cgnl": CompactNonLocalBlock,
    "rcca": RecurrentCrissCrossBlock,
}


def trained(block: nn.Module) -> nn.Module:
    """As if it had been trained: no parameter has the value that it starts with."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for module in block.modules():
            if isinstance(module, LearnableTransform2d):
                continue
            for parameter in module.parameters(recurse=False):
                parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype))
    return block


def srl(size: tuple[int, int] = (8, 4), frames: int | None = None, channels: int = 16, **options: object) -> SRLBlock:
    torch.manual_seed(0)
    return SRLBlock(channels, size, frames, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize("transform", TRANSFORMS)
def test_both_forms_of_equation_1_agree(transform: str) -> None:
    block = trained(srl(transform=transform)).double().eval()
    f = block.transform
    if isinstance(f, LearnableTransform2d):
        f.reorthogonalize_()
    x = torch.randn(2, 16, 8, 4, dtype=torch.float64)
    spectrum = f(x)
    residual = block.alpha * block.phi(spectrum)
    torch.testing.assert_close(f.inverse(residual + spectrum), block(x))
    torch.testing.assert_close(f.inverse(residual) + x, block(x))
    if transform != "fourier":  # phi approximates the residual in the spectrum, phi(f(X)) = f(Y - X)
        torch.testing.assert_close(f(block(x) - x), residual)


def test_phi_of_pictures_is_that_of_figure_2() -> None:
    block = trained(srl(transform="dct", groups=1)).eval()
    reduce, norm1, relu, expand, norm2 = block.phi
    z = torch.randn(2, 16, 8, 4)
    y = torch.einsum("kc,nchw->nkhw", reduce.weight[:, :, 0, 0], z)
    y = (relu.weight * norm1(y) + relu.bias).clamp(min=0)  # Eq. 6
    y = norm2(torch.einsum("ck,nkhw->nchw", expand.weight[:, :, 0, 0], y))
    torch.testing.assert_close(block.phi(z), y)
    assert relu.weight.shape == relu.bias.shape == (8, 4)


def test_temporal_convolution_mixes_the_frames_of_each_clip() -> None:
    conv = TemporalMixing(3)
    torch.testing.assert_close(conv.weight, torch.eye(3))
    nn.init.normal_(conv.weight)
    x = torch.randn(2, 3, 5, 4, 2)  # clips, frames, channels, H, W
    expected = torch.einsum("st,btchw->bschw", conv.weight, x)
    torch.testing.assert_close(conv(x.flatten(0, 1)), expected.flatten(0, 1))


def depends(block: nn.Module, shape: tuple[int, ...]) -> Tensor:
    """(positions, positions): which output position depends on which input position, by derivatives at a few inputs."""
    total = 0
    for seed in range(3):
        x = torch.randn(1, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
        total += torch.autograd.functional.jacobian(lambda x: block(x).sum(1).flatten(), x).abs().sum(2).flatten(1)
    return total > 1e-12


@pytest.mark.parametrize("transform", TRANSFORMS)
@pytest.mark.parametrize("frames", [None, 2])
def test_every_position_sees_every_position(transform: str, frames: int | None) -> None:
    channels = 8
    shape = (channels, 4, 4) if frames is None else (channels, frames, 4, 4)
    block = trained(srl((4, 4), frames, channels, transform=transform, groups=2)).double().eval()
    assert depends(block, shape).all()
    # The same convolutions without the transform see nothing but their own position.
    local = block.phi[0].double()
    if transform not in ("fourier",) and frames is None:
        assert torch.equal(depends(local, shape), torch.eye(16, dtype=torch.bool))


def test_without_the_block_a_network_sees_less() -> None:
    conv = nn.Conv2d(8, 8, 3, padding=1).double()
    assert not depends(conv, (8, 4, 4)).all()
    with_block = nn.Sequential(conv, trained(srl((4, 4), channels=8)).double().eval())
    assert depends(with_block, (8, 4, 4)).all()


@pytest.mark.parametrize("name", [*TRANSFORMS, *OTHERS])
@pytest.mark.parametrize("shape", [(16, 8, 4), (16, 3, 8, 4)])
def test_starts_as_the_identity(name: str, shape: tuple[int, ...]) -> None:
    frames = shape[1] if len(shape) == 4 else None
    block = srl((8, 4), frames, transform=name) if name in TRANSFORMS else OTHERS[name](16)
    x = torch.randn(2, *shape)
    for mode in (True, False):
        torch.testing.assert_close(block.train(mode)(x), x, atol=0, rtol=0)
    assert not torch.allclose(trained(block)(x), x)


@pytest.mark.parametrize("options", [{}, {"phi": "time"}, {"phi": "channel"}, {"conv_t": "pair"}, {"spectrum": "full"}])
def test_gradients_are_those_of_the_function(options: dict[str, str]) -> None:
    block = trained(srl((3, 2), 2, 4, groups=2, **options)).double().eval()
    x = torch.randn(1, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


@pytest.mark.parametrize("name", ["fourier", "orthogonal", *OTHERS])
def test_autocast(name: str) -> None:
    block = trained(srl((6, 5), 2, transform=name) if name in ("fourier", "orthogonal") else OTHERS[name](16)).eval()
    x = torch.randn(2, 16, 2, 6, 5)
    exact = block(x)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = block(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), exact, atol=0.15, rtol=0.1)


def test_variants_of_phi() -> None:
    def kinds(**options: object) -> list[str]:
        return [type(module).__name__ for module in srl(frames=4, **options).phi]

    conv, time, norm, relu = "Conv2d", "TemporalMixing", "BatchNorm2d", "SpectralReLU"
    assert kinds() == [conv, norm, relu, time, norm, relu, conv, norm]
    assert kinds(conv_t="pair") == [conv, time, norm, relu, conv, time, norm]
    assert kinds(phi="channel") == [conv, norm, relu, conv, norm]
    assert kinds(phi="time") == [time, norm, relu, time, norm]
    assert [type(m).__name__ for m in srl().phi] == [conv, norm, relu, conv, norm]


def test_channels_and_groups() -> None:
    fourier, orthogonal = srl(channels=32), srl(channels=32, transform="orthogonal")
    assert (fourier.phi[0].in_channels, fourier.phi[0].out_channels, fourier.phi[0].groups) == (64, 32, 8)
    assert (orthogonal.phi[0].in_channels, orthogonal.phi[0].out_channels, orthogonal.phi[0].groups) == (32, 16, 2)
    assert srl(channels=32, reduction=4, groups=1).phi[0].weight.shape == (16, 64, 1, 1)
    assert fourier.phi[2].weight.shape == (8, 3)
    assert srl(spectrum="full").phi[2].weight.shape == (8, 4)


def test_every_group_sees_real_and_imaginary_part_of_its_channels() -> None:
    block = srl(channels=16).eval()
    x = torch.zeros(1, 16, 8, 4)
    x[0, :2] = torch.randn(2, 8, 4)  # the channels of the first group
    z = block.phi[0](block.transform(x))[0]
    assert z[:2].abs().amin() > 0
    assert z[2:].abs().amax() == 0


@pytest.mark.parametrize(
    ("block", "params"),
    [(NonLocalBlock(256), 394_752), (DoubleAttentionBlock(256), 196_608), (CompactNonLocalBlock(256), 308_736)],
)
def test_parameters_of_three_competitors_in_table_3(block: nn.Module, params: int) -> None:
    assert 3 * sum(p.numel() for p in block.parameters()) == params


# The blocks that SRL is compared with, against their equations written out for float64.


def pointwise(conv: nn.Module, x: Tensor) -> Tensor:
    """A bias-free 1x1 convolution of (B,C,...), in groups."""
    weight = conv.weight.flatten(1).view(conv.groups, -1, conv.in_channels // conv.groups)  # type: ignore[operator,arg-type]
    return torch.einsum("gkc,bgc...->bgk...", weight, x.unflatten(1, (conv.groups, -1))).flatten(1, 2)


def normalised(norm: nn.Module, y: Tensor) -> Tensor:
    """Batch normalisation of (B,C,...) in evaluation."""
    shape = (1, -1, *[1] * (y.dim() - 2))
    mean, var, gamma, beta = (
        t.view(shape)
        for t in (norm.running_mean, norm.running_var, norm.weight, norm.bias)  # type: ignore[operator]
    )
    return (y - mean) / (var + norm.eps).sqrt() * gamma + beta


def exact(block: nn.Module) -> nn.Module:
    """In float64, as if it had been trained, with statistics of batches that it has seen."""
    block = trained(block).double()
    for norm in (m for m in block.modules() if isinstance(m, nn.BatchNorm2d)):
        nn.init.uniform_(norm.running_mean)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    return block.eval()


@pytest.mark.parametrize("shape", [(2, 8, 4, 3), (2, 8, 3, 5, 4)])
@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("pool", [None, "before", "after"])
def test_non_local_block(shape: tuple[int, ...], fused: bool, scaled: bool, pool: str | None) -> None:
    """x_i + BN(W sum_j softmax_j(theta_i . phi_j / sqrt(C / 2)) g_j), as in the released code; the text has no root."""
    torch.manual_seed(0)
    block = exact(NonLocalBlock(8, pool, scaled, fused))  # type: ignore[arg-type]
    x = torch.randn(shape, dtype=torch.float64)

    def pooled(z: Tensor) -> Tensor:  # a last odd row or column is left out
        corners = [
            z[..., i : 2 * (z.shape[-2] // 2) : 2, j : 2 * (z.shape[-1] // 2) : 2] for i in (0, 1) for j in (0, 1)
        ]
        return torch.stack(corners).amax(0)

    attended = pooled(x) if pool == "before" else x
    phi, g = pointwise(block.phi, attended), pointwise(block.g, attended)
    if pool == "after":
        phi, g = pooled(phi), pooled(g)
    theta, phi, g = (z.flatten(2) for z in (pointwise(block.theta, x), phi, g))
    y = torch.zeros_like(theta)
    for b in range(len(x)):
        for i in range(theta.shape[2]):
            affinity = torch.stack([theta[b, :, i] @ phi[b, :, j] for j in range(phi.shape[2])])
            weight = (affinity / (4**0.5 if scaled else 1)).exp()
            y[b, :, i] = sum(w * g[b, :, j] for j, w in enumerate(weight / weight.sum()))
    y = y.view(2, 4, *shape[2:])
    torch.testing.assert_close(block(x), x + normalised(block.norm, pointwise(block.out, y)), atol=1e-12, rtol=1e-10)


def test_a_map_of_one_row_is_pooled_along_it_only() -> None:
    block = exact(NonLocalBlock(8, "before"))
    for size in ((1, 5), (4, 1), (1, 1)):
        assert block(torch.randn(2, 8, 3, *size, dtype=torch.float64)).isfinite().all()


@pytest.mark.parametrize("shape", [(2, 16, 3, 4), (2, 16, 2, 3, 2)])
def test_double_attention(shape: tuple[int, ...]) -> None:
    """Eq. 3 to 5 of A2: descriptors G_m = sum_j softmax_j(B_m) A_j, handed out as Z_i = sum_m softmax_m(V_i) G_m."""
    torch.manual_seed(0)
    block = exact(DoubleAttentionBlock(16))
    x = torch.randn(shape, dtype=torch.float64)
    a, b, v = (pointwise(f, x).flatten(2) for f in (block.features, block.gather, block.distribute))
    z = torch.zeros_like(a)
    for n in range(2):
        descriptors = []
        for m in range(4):
            weight = b[n, m].exp()
            descriptors.append(sum(w * a[n, :, j] for j, w in enumerate(weight / weight.sum())))
        for i in range(a.shape[2]):
            weight = v[n, :, i].exp()
            z[n, :, i] = sum(w * g for w, g in zip(weight / weight.sum(), descriptors, strict=True))
    torch.testing.assert_close(block(x), x + pointwise(block.out, z.view(2, 4, *shape[2:])), atol=1e-12, rtol=1e-10)


@pytest.mark.parametrize("scale", [1, 1e-3, 100])  # small ones show the eps of the norm, large ones the high powers
@pytest.mark.parametrize("time", [1, 3])
def test_compact_generalised_non_local_block(scale: float, time: int) -> None:
    """y_i = sum_p (2 gamma)^p / p! exp(-2 gamma) theta_i^p sum_j phi_j^p g_j over all values of a group, P = 3."""
    torch.manual_seed(0)
    block = exact(CompactNonLocalBlock(16, groups=2))
    x = scale * torch.randn(2, 16, time, 3, 4, dtype=torch.float64)
    theta, phi, g = (pointwise(f, x) for f in (block.theta, block.phi, block.g))
    y = torch.zeros_like(theta)
    for b in range(2):
        for group in (slice(0, 4), slice(4, 8)):
            for p in range(4):
                alpha = 2e-4**p / math.factorial(p) * math.exp(-2e-4)
                y[b, group] += alpha * theta[b, group] ** p * (phi[b, group] ** p * g[b, group]).sum()
    y = pointwise(block.out, y).transpose(1, 2).unflatten(2, (2, 8))  # (B,T,groups,C/groups,H,W)
    mean, var = y.mean((3, 4, 5), keepdim=True), y.var((3, 4, 5), keepdim=True, unbiased=False)
    y = ((y - mean) / (var + 1e-5).sqrt()).flatten(2, 3).transpose(1, 2)
    expected = x + y * block.norm.weight.view(-1, 1, 1, 1) + block.norm.bias.view(-1, 1, 1, 1)
    torch.testing.assert_close(block(x), expected, atol=1e-11, rtol=1e-9)


def criss_cross(attention: nn.Module, x: Tensor) -> Tensor:
    """gamma sum_j softmax_j(q_i . k_j) v_j + x_i over the H + W - 1 positions of a row and a column."""
    query, key, value = (
        torch.einsum("kc,bchw->bkhw", f.weight.flatten(1), x) + f.bias.view(-1, 1, 1)  # type: ignore[operator]
        for f in (attention.query, attention.key, attention.value)
    )
    y = x.clone()
    for b, i, j in product(range(len(x)), range(x.shape[2]), range(x.shape[3])):
        cross = [(k, j) for k in range(x.shape[2]) if k != i] + [(i, k) for k in range(x.shape[3])]
        weight = torch.stack([query[b, :, i, j] @ key[b, :, k, m] for k, m in cross]).exp()
        total = sum(w * value[b, :, k, m] for w, (k, m) in zip(weight / weight.sum(), cross, strict=True))
        y[b, :, i, j] += attention.gamma * total
    return y


@pytest.mark.parametrize("released", [True, False])
def test_recurrent_criss_cross_attention(released: bool) -> None:
    torch.manual_seed(0)
    block = exact(RecurrentCrissCrossBlock(16, released))
    x = torch.randn(2, 16, 4, 3, dtype=torch.float64)

    def conv3x3(part: nn.Module, z: Tensor) -> Tensor:
        y = normalised(part[1], nn.functional.conv2d(z, part[0].weight, padding=1))  # type: ignore[index]
        return torch.where(y > 0, y, 0.01 * y)

    y = conv3x3(block.reduce, x)
    for attention in block.passes:
        y = criss_cross(attention, y)
    if released:
        assert block.passes[0] is block.passes[1]
        expected = conv3x3(block.merge, torch.cat([x, conv3x3(block.after, y)], dim=1))
    else:
        assert block.passes[0] is not block.passes[1]
        expected = x + normalised(block.norm, nn.functional.conv2d(y, block.out.weight, padding=1))
    torch.testing.assert_close(block(x), expected, atol=1e-12, rtol=1e-10)


def test_criss_cross_attention_sees_its_row_and_column_and_twice_everything() -> None:
    torch.manual_seed(0)
    attention = CrissCrossAttention(8).double()
    nn.init.ones_(attention.gamma)
    seen = depends(attention, (8, 3, 4)).view(3, 4, 3, 4)
    for row in range(3):
        for column in range(4):
            cross = torch.zeros(3, 4, dtype=torch.bool)
            cross[row], cross[:, column] = True, True
            assert torch.equal(seen[row, column], cross)
    assert depends(nn.Sequential(attention, attention), (8, 3, 4)).all()


def test_errors_name_the_block_and_what_it_takes() -> None:
    block = srl((8, 4), 3, name="layer2.0.after")
    with pytest.raises(ValueError, match=r"layer2.0.after was built for .*\(batch, 16, 3, 8, 4\).*\(2, 16, 3, 8, 6"):
        block(torch.zeros(2, 16, 3, 8, 6))
    with pytest.raises(ValueError, match="input_size, and num_frames"):
        block(torch.zeros(2, 16, 8, 4))
    with pytest.raises(ValueError, match="layer1: 8 groups do not divide the 24 and 12 channels"):
        srl(channels=12, name="layer1")
    with pytest.raises(ValueError, match="phi='time' needs frames"):
        srl(phi="time")
    with pytest.raises(ValueError, match="not 'space' and 'mid'"):
        srl(phi="space")
    with pytest.raises(ValueError, match="powers of two, not 14"):
        srl((14, 14), transform="haar")
    with pytest.raises(ValueError, match="8 groups do not divide the 6 inner channels of 12"):
        CompactNonLocalBlock(12)
    with pytest.raises(ValueError, match=r"NonLocalBlock takes .*\(2, 8\)"):
        NonLocalBlock(8)(torch.zeros(2, 8))


def test_spectral_relu_of_equation_6() -> None:
    relu = SpectralReLU((2, 3))
    z = torch.randn(4, 5, 2, 3)
    torch.testing.assert_close(relu(z), z.clamp(min=0))
    trained(relu)
    for i, j, k in ((0, 0, 0), (1, 2, 4)):
        expected = max(relu.weight[i, j] * z[1, k, i, j] + relu.bias[i, j], torch.tensor(0.0))
        torch.testing.assert_close(relu(z)[1, k, i, j], expected)


def test_learnable_block_stays_orthogonal() -> None:
    block = trained(srl(transform="orthogonal"))
    optimizer = torch.optim.SGD(block.parameters(), lr=1.0)
    for _ in range(3):
        block(torch.randn(2, 16, 8, 4)).square().mean().backward()
        optimizer.step()
    assert block.transform.orthogonality_error() > 1e-3  # type: ignore[operator]
    block.reorthogonalize_()
    assert block.transform.orthogonality_error() < 1e-6  # type: ignore[operator]
    srl().reorthogonalize_()  # nothing to do
