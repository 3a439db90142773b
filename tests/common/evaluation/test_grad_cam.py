"""Grad-CAM against its definition, on clips, images and folded frames."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from common.evaluation.grad_cam import grad_cam


class Net(nn.Module):
    """Convolution, mean, linear: Grad-CAM of the last features is known in closed form."""

    def __init__(self, folded: bool = False, dims: int = 3) -> None:
        super().__init__()
        self.folded = folded
        convolution = nn.Conv2d if folded or dims == 2 else nn.Conv3d
        self.features = convolution(3, 4, 3, padding=1)
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        batch = len(x)
        if self.folded:
            x = x.transpose(1, 2).flatten(0, 1)
        y = self.features(x).relu()
        y = y.unflatten(0, (batch, -1)).transpose(1, 2) if self.folded else y
        return self.fc(self.dropout(y.flatten(2).mean(2)))


@pytest.mark.parametrize("folded", [False, True])
def test_is_the_definition(folded: bool) -> None:
    torch.manual_seed(0)
    network, clip = Net(folded), torch.randn(1, 3, 4, 6, 5)
    network.requires_grad_(False)
    heat, logits = grad_cam(network, network.features, clip, target=2)
    network.eval()
    torch.testing.assert_close(logits, network(clip)[0])
    frames = clip[0].transpose(0, 1)
    features = network.features(frames) if folded else network.features(clip)[0].transpose(0, 1)
    # the gradient at a feature is the classifier's weight over the number of places, where the feature is positive
    gradient = (features > 0) * network.fc.weight[2][None, :, None, None] / (4 * 6 * 5)
    expected = (features * gradient.mean((0, 2, 3), keepdim=True)).sum(1).relu()
    torch.testing.assert_close(heat, expected / expected.max())
    assert heat.shape == (4, 6, 5)
    assert heat.max() == 1


def test_the_predicted_class_by_default_and_the_network_stays_as_it_is() -> None:
    torch.manual_seed(1)
    network, clip = Net(), torch.randn(1, 3, 2, 4, 4)
    network.train()
    with torch.no_grad():
        heat, logits = grad_cam(network, network.features, clip)
    again, _ = grad_cam(network, network.features, clip, target=int(logits.argmax()))
    assert torch.equal(heat, again)
    assert network.training
    assert not network.features._forward_hooks
    assert all(p.grad is None for p in network.parameters())


def test_images() -> None:
    network = Net(dims=2)
    assert grad_cam(network, network.features, torch.randn(1, 3, 7, 8))[0].shape == (1, 7, 8)


def test_wrong_use_is_named() -> None:
    network, clip = Net(), torch.randn(1, 3, 2, 4, 4)
    with pytest.raises(ValueError, match="no class 5; the network has 5"):
        grad_cam(network, network.features, clip, target=5)
    with pytest.raises(ValueError, match="Conv2d was not called"):
        grad_cam(network, nn.Conv2d(1, 1, 1), clip)
    with pytest.raises(ValueError, match=r"Linear was called 1 times, output \(1, 5\)"):
        grad_cam(network, network.fc, clip)
    with pytest.raises(ValueError, match="not a batch of 2"):
        grad_cam(network, network.features, clip.repeat(2, 1, 1, 1, 1))
    assert not network.features._forward_hooks
