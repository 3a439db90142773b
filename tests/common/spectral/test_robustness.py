"""What every spectral layer must survive; see `tests.robustness`."""

from __future__ import annotations

import pytest
import torch

from common.spectral import DepthwiseSTFT, FixedTransform2d, RealDFT, STFTPointwise, transform2d
from tests import robustness

CASES = {
    "stft-3x3x3": (lambda: DepthwiseSTFT(3, (3, 3, 3)), (2, 3, 4, 5, 6)),
    "stft-1x3x3": (lambda: DepthwiseSTFT(3, (1, 3, 3)), (2, 3, 4, 5, 6)),
    "stft-3x1x1": (lambda: DepthwiseSTFT(3, (3, 1, 1)), (2, 3, 4, 5, 6)),
    "stft-5x5": (lambda: DepthwiseSTFT(3, (5, 5)), (2, 3, 7, 6)),
    "stft-pointwise": (lambda: STFTPointwise(3, 8, (3, 3, 3)), (2, 3, 4, 5, 6)),
    "dft": (lambda: RealDFT(6), (2, 6, 3, 5, 4)),
    **{
        name: (lambda name=name: transform2d(name, (8, 4)), (2, 3, 8, 4))
        for name in ("fourier", "dct", "walsh-hadamard", "haar", "slant", "orthogonal")
    },
}
every_layer = pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)


@robustness.every_quick_check
@every_layer
def test_layer(check, build, shape):
    # Spectra of half precision are float32.
    if check is not robustness.keeps_precisions or isinstance(build(), (DepthwiseSTFT, STFTPointwise)):
        check(build, shape)


def test_constants_are_never_on_the_meta_device():
    with torch.device("meta"):
        made_there = FixedTransform2d("dct", (4, 6))
        assert made_there(torch.empty(2, 3, 4, 6)).is_meta
    moved_there = FixedTransform2d("dct", (4, 6)).to("meta")
    x = torch.randn(2, 3, 4, 6)
    for transform in (made_there, moved_there):
        assert transform.left.device.type == "cpu"
        torch.testing.assert_close(transform.inverse(transform(x)), x)
