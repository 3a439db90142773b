"""What every block of the paper must survive; see `tests.robustness`."""

from __future__ import annotations

import pytest

from papers.stft2d import layers
from tests import robustness

CASES = {
    "separable": lambda: layers.DepthwiseSTFTSeparable(8, 8, 3),
    "block1": lambda: layers.Block1(8, 8, 8),
    "block2": lambda: layers.Block2(8, 8),
    "block2-fit": lambda: layers.Block2(8, 8, fit=True),
    "relpu": lambda: layers.ReLPUBlock(8, 8),
}
SHAPE, SIZES = (2, 8, 6, 5), [(3, 8, 8, 7), (5, 8, 11, 12)]
every_block = pytest.mark.parametrize("build", CASES.values(), ids=CASES)


@robustness.every_quick_check
@every_block
def test_block(check, build):
    check(build, SHAPE)


@every_block
def test_other_sizes(build):
    robustness.takes_sizes(build, SHAPE, [(8, 1, 1), (8, 7, 9)])
    robustness.traces(build, SHAPE, SIZES)
    robustness.exports(build, SHAPE, SIZES, dynamic=(0, 2, 3))


@pytest.mark.slow
@every_block
def test_compiled_and_in_onnx(build, tmp_path):
    robustness.compiles(build, SHAPE, SIZES)
    robustness.exports_to_onnx(build, SHAPE, tmp_path, SIZES, dynamic=(0, 2, 3))
