"""What every block of the SRL paper must survive; see `tests.robustness`."""

from __future__ import annotations

import pytest
import torch

from papers.srl.layers import (
    CompactNonLocalBlock,
    DoubleAttentionBlock,
    NonLocalBlock,
    RecurrentCrissCrossBlock,
    SRLBlock,
)
from tests import robustness


def strong_cgnl():
    """With weights for which its affinities differ from a constant in float32."""
    block = CompactNonLocalBlock(16)
    for conv in (block.theta, block.phi, block.g):
        torch.nn.init.normal_(conv.weight, std=10)
    return block


CLIPS, IMAGES = (2, 16, 3, 6, 5), (2, 16, 6, 5)
CASES = {
    "srl-fft": (lambda: SRLBlock(16, (6, 5), 3), CLIPS),
    "srl-fft-full": (lambda: SRLBlock(16, (6, 5), 3, spectrum="full"), CLIPS),
    "srl-lo": (lambda: SRLBlock(16, (6, 5), None, "orthogonal"), IMAGES),
    "srl-dct-time": (lambda: SRLBlock(16, (6, 5), 3, "dct", phi="time"), CLIPS),
    "nl": (lambda: NonLocalBlock(16, "before", fused=False), CLIPS),
    "a2": (lambda: DoubleAttentionBlock(16), CLIPS),
    "cgnl": (strong_cgnl, CLIPS),
    "rcca": (lambda: RecurrentCrissCrossBlock(16), CLIPS),
    "rcca-released": (lambda: RecurrentCrissCrossBlock(16, released=True), IMAGES),
}
every_block = pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)


@robustness.every_quick_check
@every_block
def test_block(check, build, shape):
    check(build, shape)


def test_fused_attention_under_functional_transforms():
    robustness.has_functional_transforms(lambda: NonLocalBlock(16, "before"), CLIPS)


@pytest.mark.parametrize(
    ("build", "shape"),
    [
        pytest.param(*case, id=name, marks=[] if name == next(iter(CASES)) else pytest.mark.slow)
        for name, case in CASES.items()
    ],
)
def test_traced_and_exported_batches(build, shape):
    sizes = [(size, *shape[1:]) for size in (1, 3, 5)]
    robustness.traces(build, shape, sizes)
    robustness.exports(build, shape, sizes[1:], dynamic=(0,))


@pytest.mark.slow
@every_block
def test_compiled_and_in_onnx(build, shape, tmp_path):
    sizes = [(size, *shape[1:]) for size in (3, 5)]
    robustness.compiles(build, shape, sizes)
    robustness.exports_to_onnx(build, shape, tmp_path, sizes, dynamic=(0,))
