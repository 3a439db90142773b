"""Parameters and multiply-adds counted as the paper does, found by fitting its tables; the ledger names `published`.

Tables 2, 3 and 8 agree, nearly everywhere to the last digit, with these rules:

- parameters are those of convolutions, linear layers and normalisation, and the learnable P and Q; the weights and
  biases of spectral ReLUs and alpha are left out (as are those that scale attention);
- a deconvolution costs as many multiply-adds per output as a convolution has per input: four times the true cost;
- a Fourier transform costs log2(HW) per value of the feature map, there and back;
- CGNL also counts the powers of its Taylor series, one each for theta, phi and the sum;
- one printed K is 1024 (Table 8), one printed M is 10^6, one printed G is 2^30.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from common.evaluation.complexity import Complexity, count
from common.spectral import FourierTransform2d, LearnableTransform2d
from papers.srl.layers import CompactNonLocalBlock, SRLBlock, TemporalMixing

_COUNTED = (
    nn.Conv2d,
    nn.ConvTranspose2d,
    nn.Linear,
    nn.BatchNorm2d,
    nn.GroupNorm,
    TemporalMixing,
    LearnableTransform2d,
)


def published(network: nn.Module, *inputs: Sequence[int]) -> Complexity:
    """Count `network` for one clip or image as the paper does; `macs_full` stays the true number of operations.

    Args:
        network: one of `papers.srl.networks`.
        inputs: shape of its input, as for `common.evaluation.complexity.count`.
    """
    true = count(network, *inputs)
    more = 0.0
    for name, module in network.named_modules():
        if isinstance(module, nn.ConvTranspose2d):
            more += (math.prod(module.stride) - 1) * true.by_module[name][0]
        if isinstance(module, SRLBlock) and isinstance(module.transform, FourierTransform2d):
            height, width = module.size
            values = inputs[0][0] * module.channels * (module.frames or 1) * height * width
            more += 2 * values * math.log2(height * width)
        if isinstance(module, CompactNonLocalBlock):
            # its three 1x1 convolutions have C times as many products as there are values of theta, phi and g
            values = true.by_module[f"{name}.theta"][0] // module.theta.in_channels
            more += 3 * module.order * values
    params = sum(p.numel() for m in network.modules() if isinstance(m, _COUNTED) for p in m.parameters(recurse=False))
    return replace(true, params=params, macs_paper=true.macs_paper + round(more), by_operator={}, by_module={})
