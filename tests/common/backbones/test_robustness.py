"""What every backbone must survive; see `tests.robustness`."""

from __future__ import annotations

import pytest
from torch import nn

from common.backbones import BNInception3d, C2DResNet, C2DSwin, ConvUnit3d, ResidualUNet3d, ResNet3d
from common.backbones.blocks import DepthwiseConv3d
from tests import robustness


def inception():
    def block(start, bottleneck, end):
        return nn.Sequential(ConvUnit3d(start, bottleneck), ConvUnit3d(bottleneck, end, (3, 3, 3)))

    return BNInception3d(ConvUnit3d(3, 8, (1, 7, 7), (1, 2, 2)), block, 5, nn.ReLU, width=0.125)


CASES = {
    "c2d": (lambda: C2DResNet(50, 5, width=0.125, layers=(1, 1, 1, 1), stem_stride=2), (2, 3, 4, 33, 40)),
    "resnet3d": (lambda: ResNet3d(10, 5, width=0.125, shortcut="A"), (2, 3, 4, 33, 40)),
    "swin": (
        lambda: C2DSwin("t", 5, embed_dim=12, depths=(2, 2), heads=(2, 3), stochastic_depth=0.0),
        (2, 3, 2, 64, 40),
    ),
    "unet-lee": (lambda: ResidualUNet3d("lee", 2, 3, width=0.2), (2, 2, 4, 18, 20)),
    "unet-isotropic": (lambda: ResidualUNet3d("isotropic", 2, 3, width=0.1, norm="group"), (2, 2, 17, 18, 20)),
    "inception": (inception, (2, 3, 4, 33, 40)),
    "depthwise-space": (lambda: DepthwiseConv3d(4, 4, (1, 3, 3), padding=(0, 1, 1)), (2, 4, 3, 6, 5)),
    "depthwise-time": (lambda: DepthwiseConv3d(4, 8, (3, 1, 1), padding=(1, 0, 0)), (2, 4, 3, 6, 5)),
}
# Rounding of half precision adds up in a deep network, and a step of differences passes a kink of its activations.
INEXACT = (robustness.keeps_precisions, robustness.has_second_derivatives_or_refuses)


@pytest.mark.parametrize("check", [c for c in robustness.QUICK if c not in INEXACT], ids=lambda check: check.__name__)
@pytest.mark.parametrize(("build", "shape"), CASES.values(), ids=CASES)
def test_backbone(check, build, shape):
    check(build, shape)


@pytest.mark.parametrize("name", ["depthwise-space", "depthwise-time"])
def test_depthwise_convolutions_of_changing_sizes(name):
    build, shape = CASES[name]
    sizes = [(3, 4, 4, 8, 7), (5, 4, 6, 11, 12)]
    robustness.traces(build, shape, sizes)
    robustness.compiles(build, shape, sizes)
