"""The orthogonal transform S of a layer: the importance of its rows (Section 3.1) and how it is learned (Eq. 7)."""

from __future__ import annotations

import itertools
from typing import Literal

import torch
from torch import Tensor

#: `paper`: l2 norms of the rows of the sum of S f_j over j, as Section 3.1 writes it; `energy`: of all S f_j
Importance = Literal["paper", "energy"]


def temporal_products(weight: Tensor, importance: Importance) -> Tensor:
    """A = G G^T in float64, (t,t), so that row i of S G has the norm sqrt(s_i A s_i^T).

    Args:
        weight: F, (N,C,t,d,d).
        importance: with `paper`, G (t,N) is the sum of f_j over j, as in V and the l2,1 term; the contributions of
            different positions can cancel. With `energy`, G (t, d^2 c N) holds every f_j side by side.
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
