"""Networks in `torch.fx`: what is recorded, and what users of it get."""

from __future__ import annotations

import pytest
import torch
from torch import fx, nn
from torchvision.models.feature_extraction import create_feature_extractor

from common.spectral import DepthwiseSTFT
from papers.dtf import DTFBlock
from papers.dtf.networks import dtf_net
from papers.stft3d.networks import t_stft


def test_a_layer_is_one_node_that_keeps_its_checks() -> None:
    traced = fx.symbolic_trace(nn.Sequential(DepthwiseSTFT(2, (3, 3, 3)), nn.ReLU()))
    assert [str(node.target) for node in traced.graph.nodes if node.op == "call_module"] == ["0", "1"]
    with pytest.raises(ValueError, match="takes"):
        traced(torch.randn(1, 3, 4, 5, 6))


def test_the_input_of_a_layer_can_be_named() -> None:
    class Named(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = DepthwiseSTFT(2, (3, 3, 3))

        def forward(self, clip: torch.Tensor) -> torch.Tensor:
            return self.layer(x=clip)

    network, x = Named(), torch.randn(1, 2, 4, 5, 6)
    torch.testing.assert_close(fx.symbolic_trace(network)(x), network(x))
    with pytest.raises(TypeError, match="missing 1 required positional argument: 'x'"):
        network.layer()


def test_a_layer_alone_is_refused() -> None:
    with pytest.raises(TypeError, match="trace a network that contains it"):
        fx.symbolic_trace(DTFBlock(16, 4))


@pytest.mark.parametrize(
    ("network", "nodes"),
    [
        (lambda: t_stft(5, width=0.125), ["features.block2", "features.inception9"]),
        (lambda: dtf_net(5, num_frames=8, depth=18), ["layer1", "layer4.1.mid", "fc"]),
    ],
    ids=["t-stft", "dtf-net"],
)
def test_torchvision_extracts_features(network, nodes: list[str]) -> None:
    torch.manual_seed(0)
    model, x = network().eval(), torch.randn(2, 3, 8, 32, 32)
    expected: dict[str, torch.Tensor] = {}
    handles = [
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: expected.__setitem__(name, output)
        )
        for name in nodes
    ]
    model(x)
    for handle in handles:
        handle.remove()
    features = create_feature_extractor(model, nodes)(x)
    assert list(features) == nodes
    for name in nodes:
        torch.testing.assert_close(features[name], expected[name], rtol=1e-4, atol=1e-4)
