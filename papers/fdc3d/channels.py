"""The channel weights beta of Eq. 8, which say which input channels of a layer can go."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.fdc3d.layers import numeric_padding


class ChannelWeights:
    """beta of Eq. 8: Y as a least-squares combination of the channels' contributions X_i^T F_i, with an l1 penalty.

    Every batch adds to the sums of products; proximal gradient steps then move beta, and reach the exact zeros that
    plain gradient steps jump over. The error is relative to the squared norm of Y, and the penalty is `gamma` times the
    mean of |beta|.
    """

    def __init__(self, channels: int, gamma: float, device: torch.device | str = "cpu") -> None:
        self.gamma = gamma
        self.products = torch.zeros(channels, channels, dtype=torch.float64, device=device)
        self.targets = torch.zeros(channels, dtype=torch.float64, device=device)
        self.energy = 0.0
        self.beta = torch.ones(channels, dtype=torch.float64, device=device)

    def add(self, contributions: Tensor, outputs: Tensor) -> None:
        """Take in samples: contributions (c, positions, N) and outputs without bias (positions, N)."""
        z = contributions.flatten(1)
        self.products += (z @ z.T).double()
        self.targets += (z @ outputs.flatten()).double()
        self.energy += float(outputs.double().square().sum())

    def loss(self) -> float:
        """Both terms of Eq. 8."""
        return self.error(self.beta) + self.gamma * float(self.beta.abs().mean())

    def error(self, beta: Tensor) -> float:
        """||Y - sum beta_i X_i^T F_i||^2 / ||Y||^2."""
        if self.energy == 0:
            return 0.0
        return max(0.0, float(self.energy - 2 * beta @ self.targets + beta @ self.products @ beta)) / self.energy

    def step(self, times: int = 50) -> None:
        """Proximal gradient steps of the largest safe length."""
        largest = float(torch.linalg.eigvalsh(self.products)[-1])
        if largest <= 0:
            return
        shrink = self.gamma / len(self.beta) * self.energy / (2 * largest)
        for _ in range(times):
            moved = self.beta - (self.products @ self.beta - self.targets) / largest
            self.beta = moved.sign() * (moved.abs() - shrink).clamp_min(0)

    def keep(self, channels: int) -> Tensor:
        """Keep the channels of largest |beta| (step 10): their weights, (c,), and 0 elsewhere.

        The weights are fitted to Y again, without the penalty. Among channels of equal beta (above all those at 0) the
        larger contribution wins. Where all channels are kept, all weights are 1.
        """
        if channels == len(self.beta):
            return torch.ones_like(self.beta)
        weight, size = self.beta.abs().tolist(), self.products.diagonal().tolist()
        order = sorted(range(len(size)), key=lambda i: (-weight[i], -size[i], i))
        chosen = torch.tensor(sorted(order[:channels]), device=self.beta.device)
        beta = torch.zeros_like(self.beta)
        beta[chosen] = 1.0
        if self.energy > 0:
            part = self.products[chosen][:, chosen]
            # A small pull towards 1 settles what the samples leave open.
            ridge = 1e-4 * part.diagonal().mean() * torch.eye(channels, dtype=part.dtype, device=part.device)
            rest = self.targets[chosen] - part.sum(dim=1)
            fitted = 1 + torch.linalg.solve(part + ridge, rest)
            beta[chosen] = torch.where(fitted == 0, 1e-12, fitted)  # 0 would read as discarded
        return beta


def sample_contributions(
    conv: nn.Conv3d, x: Tensor, y: Tensor, positions: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Each input channel's part of the output at random positions of a batch.

    Args:
        conv: of one group and zero padding; x: its input (B,C,T,H,W); y: its output (B,N,T',H',W').
        positions: how many.

    Returns:
        (C, positions, N), and the output without bias (positions, N). The first sums to the second over C.
    """
    padding = numeric_padding(conv)
    assert padding is not None
    sizes = (y.shape[0], *y.shape[2:])
    where = [torch.randint(n, (positions,), generator=generator).to(x.device) for n in sizes]
    padded = F.pad(x, [p for p in reversed(padding) for _ in range(2)])
    axes = []
    for axis in range(3):
        taps = torch.arange(conv.kernel_size[axis], device=x.device) * conv.dilation[axis]
        index = where[axis + 1].unsqueeze(1) * conv.stride[axis] + taps  # (positions, taps)
        shape = [positions, 1, 1, 1]
        shape[axis + 1] = -1
        axes.append(index.view(shape))
    patches = padded.permute(0, 2, 3, 4, 1)[where[0].view(-1, 1, 1, 1), axes[0], axes[1], axes[2]]  # (P,t,d,d,C)
    patches = patches.flatten(1, 3).permute(2, 0, 1)  # (C, P, t d d)
    kernels = conv.weight.detach().flatten(2).permute(1, 2, 0)  # (C, t d d, N)
    outputs = y[where[0], :, where[1], where[2], where[3]]
    return torch.bmm(patches, kernels), outputs if conv.bias is None else outputs - conv.bias.detach()
