"""What is learned for a layer: the transform S (Eq. 7) and the channel weights beta (Eq. 8)."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from papers.fdc3d.layers import numeric_padding

#: `energy`: l2 norms of the rows of all S f_j; `paper`: of the sum of S f_j over j, as Section 3.1 prints it
Importance = Literal["paper", "energy"]


def temporal_products(weight: Tensor, importance: Importance) -> Tensor:
    """A = G G^T in float64, (t,t), so that row i of S G has the norm sqrt(s_i A s_i^T).

    Args:
        weight: F, (N,C,t,d,d).
        importance: with `energy`, G (t, d^2 c N) holds every f_j side by side, so the first rows of the learned S keep
            as much of the squared norm of the kernel as any rows can. With `paper`, G (t,N) is the sum of f_j over j,
            as in V and the l2,1 term; the contributions of different positions can cancel.
    """
    f = weight.detach().double().transpose(1, 2).flatten(2)  # (N,t,d^2 c)
    if importance == "paper":
        g = f.sum(dim=2).T
        return g @ g.T
    return torch.einsum("ntj,nuj->tu", f, f)


def row_norms(transform: Tensor, products: Tensor) -> Tensor:
    """V_i of Section 3.1: the l2 norms of the rows of S G, (t,)."""
    return torch.einsum("it,tu,iu->i", transform, products, transform).clamp_min(0).sqrt()


def learn_transform(products: Tensor, start: Tensor, sweeps: int = 20) -> tuple[Tensor, list[float]]:
    """Minimise the l2,1 norm of S G over orthogonal S (Eq. 7) by rotations of two rows at a time.

    The norm of two rows is least when they are rotated so that their product vanishes; a sweep does this for every
    pair. S stays orthogonal, and the norm never rises above that of `start`. Its only local minimum is the global one,
    the sum of the singular values of G, to which the sweeps converge. Plain gradient steps stall on the way, where the
    norm of a row approaches 0.

    Args:
        products: G G^T, (t,t), see `temporal_products`.
        start: the initial S, (t,t) orthogonal.
        sweeps: at most.

    Returns:
        S in float64, and the norm at the start and after every sweep.
    """
    a, s = products.double(), start.detach().to(products.device, torch.float64).clone()
    values = [float(row_norms(s, a).sum())]
    for _ in range(sweeps):
        before = s.clone()
        for i, j in itertools.combinations(range(len(s)), 2):
            pair = s[[i, j]]
            b = pair @ a @ pair.T
            # At most 45 degrees, so that rows keep their places, low frequencies first.
            half = torch.atan2(2 * b[0, 1], (b[0, 0] - b[1, 1]).abs()) / 2 * (1 if b[0, 0] >= b[1, 1] else -1)
            cos, sin = half.cos(), half.sin()
            s[[i, j]] = torch.stack([torch.stack([cos, sin]), torch.stack([-sin, cos])]) @ pair
        u, _, v = torch.linalg.svd(s)
        s = u @ v  # the nearest orthogonal matrix, so that rounding errors do not add up
        value = float(row_norms(s, a).sum())
        if value > values[-1]:  # only rounding is left
            return before, values
        values.append(value)
        if values[-2] - value <= 1e-12 * value:
            break
    return s, values


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
