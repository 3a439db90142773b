"""What every block of the paper must survive; see `tests.robustness`."""

from __future__ import annotations

import pytest
from torch import nn

from papers.stft3d import layers
from tests import robustness

CASES = {
    # A smooth activation: second derivatives are compared with differences.
    "st-stft": lambda: layers.STSTFTBlock(6, 8, 8, nn.SiLU),
    "t-stft": lambda: layers.TSTFTBlock(6, 8, 8, nn.SiLU),
    "s-stft": lambda: layers.SSTFTBlock(6, 8, 8, nn.SiLU),
    "st-stft-memory-efficient": lambda: layers.STSTFTBlock(6, 8, 8, nn.SiLU, memory_efficient=True),
    "s-stft-memory-efficient": lambda: layers.SSTFTBlock(6, 8, 8, nn.SiLU, memory_efficient=True),
    "fact-dw": lambda: layers.FactorizedDepthwiseBlock(6, 8, 8, nn.SiLU),
}
SHAPE, SIZES = (2, 6, 4, 6, 5), [(3, 6, 5, 8, 7), (5, 6, 6, 11, 12)]
every_block = pytest.mark.parametrize("build", CASES.values(), ids=CASES)


@robustness.every_quick_check
@every_block
def test_block(check, build):
    check(build, SHAPE)


@every_block
def test_other_sizes(build):
    robustness.takes_sizes(build, SHAPE, [(6, 1, 1, 1), (6, 1, 7, 9)])
    robustness.traces(build, SHAPE, SIZES)
    robustness.exports(build, SHAPE, [(3, 6, 4, 8, 7)])


@pytest.mark.slow
@every_block
def test_compiled_and_in_onnx(build, tmp_path):
    robustness.compiles(build, SHAPE, SIZES)
    robustness.exports_to_onnx(build, SHAPE, tmp_path, [(3, 6, 4, 8, 7)])
