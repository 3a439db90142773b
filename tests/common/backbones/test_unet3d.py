"""The residual U-Net: counts of both layouts, any size, reach."""

from __future__ import annotations

import pytest
import torch

from common.backbones import ResidualUNet3d
from common.evaluation.complexity import count


# Parameters in millions and multiply-adds in billions at 4x160x192x128.
@pytest.mark.parametrize(
    ("layout", "width", "params", "macs"),
    [("lee", 1, 1.46, 680), ("isotropic", 1, 35.3, 1149), ("isotropic", 2, 141.2, 4567), ("isotropic", 0.5, 8.8, 291)],
)
def test_counts(layout: str, width: float, params: float, macs: float) -> None:
    with torch.device("meta"):
        found = count(ResidualUNet3d(layout, width=width), (1, 4, 160, 192, 128))  # type: ignore[arg-type]
    assert found.params / 1e6 == pytest.approx(params, rel=4e-3)
    assert found.macs_paper / 1e9 == pytest.approx(macs, abs=0.6)


@pytest.mark.parametrize("layout", ["lee", "isotropic"])
@pytest.mark.parametrize("norm", ["batch", "group"])
@pytest.mark.parametrize("shape", [(2, 4, 8, 16, 16), (1, 4, 5, 17, 23), (1, 4, 3, 1, 2), (1, 4, 1, 40, 1)])
def test_any_size(layout: str, norm: str, shape: tuple[int, ...]) -> None:
    network = ResidualUNet3d(layout, width=1 / 8, norm=norm).eval()  # type: ignore[arg-type]
    with torch.no_grad():
        logits = network(torch.randn(shape))
    assert logits.shape == (shape[0], 3, *shape[2:])
    assert logits.isfinite().all()


def test_a_slice_of_the_lee_layout_sees_its_neighbours_and_no_pooling_mixes_slices() -> None:
    network = ResidualUNet3d("lee", width=1 / 8, norm="batch").double().eval()
    volume = torch.randn(1, 4, 60, 8, 8, dtype=torch.float64, requires_grad=True)
    network(volume)[0, :, 30].square().sum().backward()
    assert volume.grad is not None
    reached = volume.grad.abs().sum(dim=(0, 1, 3, 4)).nonzero().flatten()
    # Nine residual modules of two 3-slice kernels each.
    assert (int(reached[0]), int(reached[-1])) == (30 - 18, 30 + 18)


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"layout 'u'.*lee, isotropic"):
        ResidualUNet3d("u")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="norm 'none'"):
        ResidualUNet3d(norm="none")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\(batch, 4, depth, height, width\), not \(1, 3, 8, 8, 8\)"):
        ResidualUNet3d(width=1 / 8)(torch.zeros(1, 3, 8, 8, 8))
