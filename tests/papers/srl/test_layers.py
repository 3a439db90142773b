"""The SRL block and its competitors: the equations, what an output sees, identity at the start, counts, errors."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from common.evaluation.complexity import count
from common.spectral import LearnableTransform2d
from papers.srl.layers import (
    CompactNonLocalBlock,
    CrissCrossAttention,
    DoubleAttentionBlock,
    NonLocalBlock,
    RecurrentCrissCrossBlock,
    ResidualBlock,
    SpectralReLU,
    SRLBlock,
    TemporalConv,
)

TRANSFORMS = ["fourier", "orthogonal", "dct", "walsh-hadamard", "haar", "slant"]
OTHERS: dict[str, type[ResidualBlock]] = {
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
    conv = TemporalConv(3)
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


@pytest.mark.parametrize("name", [*TRANSFORMS, *OTHERS])
@pytest.mark.parametrize("frames", [None, 3])
def test_every_parameter_gets_a_gradient(name: str, frames: int | None) -> None:
    block = srl((8, 4), frames, transform=name) if name in TRANSFORMS else OTHERS[name](16)
    block = trained(block).double()
    x = torch.randn(2, 16, *([] if frames is None else [frames]), 8, 4, dtype=torch.float64, requires_grad=True)
    (block(x) * torch.randn(x.shape, dtype=torch.float64)).sum().backward()
    assert x.grad is not None
    for key, parameter in block.named_parameters():
        assert parameter.grad is not None, key
        assert parameter.grad.isfinite().all(), key
        assert parameter.grad.abs().sum() > 0 or name == "cgnl", key


@pytest.mark.parametrize("options", [{}, {"phi": "time"}, {"phi": "channel"}, {"conv_t": "pair"}, {"spectrum": "full"}])
def test_gradients_are_those_of_the_function(options: dict[str, str]) -> None:
    block = trained(srl((3, 2), 2, 4, groups=2, **options)).double().eval()
    x = torch.randn(1, 4, 2, 3, 2, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(block, (x,))


@pytest.mark.parametrize("size", [(7, 5), (1, 9), (14, 13)])
@pytest.mark.parametrize("transform", ["fourier", "orthogonal", "dct"])
def test_odd_sizes(transform: str, size: tuple[int, int]) -> None:
    block = trained(srl(size, 3, transform=transform))
    y = block(torch.randn(2, 16, 3, *size))
    assert y.shape == (2, 16, 3, *size)
    assert y.isfinite().all()


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

    conv, time, norm, relu = "Conv2d", "TemporalConv", "BatchNorm2d", "SpectralReLU"
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


@pytest.mark.parametrize("joint", [True, False])
@pytest.mark.parametrize("subsample", [True, False])
def test_non_local_block_is_attention_in_one_matrix(joint: bool, subsample: bool) -> None:
    torch.manual_seed(0)
    fused = trained(NonLocalBlock(8, subsample, joint)).eval()
    plain = copy.deepcopy(fused)
    plain.fused = False
    x = torch.randn(2, 8, 3, 5, 4)
    torch.testing.assert_close(fused(x), plain(x), atol=1e-5, rtol=1e-5)
    # by hand, for the first clip and its first frame
    frames = x[0].transpose(0, 1)
    theta, phi, g = fused.theta(frames), fused.pool(fused.phi(frames)), fused.pool(fused.g(frames))
    key, value = (t.transpose(0, 1).flatten(1) if joint else t[0].flatten(1) for t in (phi, g))
    y = value @ (theta[0].flatten(1).T @ key).softmax(1).T
    expected = x[0, :, 0] + fused.norm(fused.out(y.view(1, -1, 5, 4)))[0]
    torch.testing.assert_close(fused(x)[0, :, 0], expected, atol=1e-5, rtol=1e-5)


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


def test_criss_cross_attention_weights_add_up_to_one() -> None:
    attention = CrissCrossAttention(8)
    nn.init.ones_(attention.gamma)
    nn.init.zeros_(attention.value.weight)
    nn.init.ones_(attention.value.bias)
    x = torch.randn(1, 8, 5, 3)
    torch.testing.assert_close(attention(x) - x, torch.ones_like(x))


def test_compact_non_local_block_is_the_gaussian_kernel() -> None:
    """A high order gives the kernel itself, but for the terms that depend on one side alone."""
    torch.manual_seed(0)
    block = trained(CompactNonLocalBlock(8, groups=2, order=12, gamma=0.4)).double().eval()
    block.norm, block.out = nn.Identity(), nn.Identity()
    x = torch.randn(1, 8, 3, 2, dtype=torch.float64)
    theta, phi, g = (f(x).view(2, 2 * 6) for f in (block.theta, block.phi, block.g))
    kernel = torch.exp(0.8 * theta[:, :, None] * phi[:, None, :] - 0.8)  # gamma = 0.4, |a| = |b| = 1
    expected = torch.einsum("gij,gj->gi", kernel, g) / 12
    torch.testing.assert_close(block.branch(x, 1).flatten(), expected.flatten(), atol=1e-4, rtol=1e-4)


def test_double_attention_is_a_product_of_two_attentions() -> None:
    torch.manual_seed(0)
    block = trained(DoubleAttentionBlock(8)).eval()
    x = torch.randn(1, 8, 2, 3, 2)
    frames = x[0].transpose(0, 1)
    a, b, v = (f(frames).transpose(0, 1).flatten(1) for f in (block.features, block.gather, block.distribute))
    y = (a @ b.softmax(1).T) @ v.softmax(0)
    expected = block.out(y.view(-1, 2, 3, 2).transpose(0, 1))
    torch.testing.assert_close(block.branch(frames, 1), expected)


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


@pytest.mark.parametrize("name", [*TRANSFORMS, *OTHERS])
def test_every_block_can_be_counted(name: str) -> None:
    block = srl((8, 4), 3, transform=name) if name in TRANSFORMS else OTHERS[name](16)
    found = count(block, (1, 16, 3, 8, 4))
    assert found.macs_full > found.macs_paper > 0
