"""Which frequencies of a clip a trained network needs: its accuracy after parts of the spectrum were taken away.

Every function maps clips (B,C,T,H,W) to clips of the same shape and keeps their mean.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

Perturbation = Callable[[Tensor], Tensor]

#: edges of the bands of spatial frequency, in cycles per pixel; the last holds the corners of the spectrum
SPATIAL_EDGES = (0.0, 1 / 16, 1 / 8, 1 / 4, 1.0)


def phase_only(clips: Tensor) -> Tensor:
    """The phases of the spectrum over time and space with equal magnitudes, at the mean and deviation of the clip."""
    spectrum = torch.fft.fftn(clips.double(), dim=(2, 3, 4))
    flat = torch.fft.ifftn(torch.exp(1j * spectrum.angle()), dim=(2, 3, 4)).real
    dims = (2, 3, 4)
    flat = (flat - flat.mean(dims, keepdim=True)) / flat.std(dims, keepdim=True).clamp_min(1e-12)
    return (flat * clips.double().std(dims, keepdim=True) + clips.double().mean(dims, keepdim=True)).to(clips.dtype)


def temporal_band_stop(clips: Tensor, frequency: int) -> Tensor:
    """Takes away one frequency over time, in cycles per clip, from 1 to T // 2."""
    spectrum = torch.fft.rfft(clips.double(), dim=2)
    spectrum[:, :, frequency] = 0
    return torch.fft.irfft(spectrum, n=clips.shape[2], dim=2).to(clips.dtype)


def spatial_band_stop(clips: Tensor, low: float, high: float) -> Tensor:
    """Takes away the spatial frequencies whose length, in cycles per pixel, lies in (`low`, `high`]."""
    height, width = clips.shape[-2:]
    fy, fx = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    radius = (fy[:, None] ** 2 + fx**2).sqrt()
    kept = (radius <= low) | (radius > high)
    spectrum = torch.fft.rfft2(clips.double()) * kept.to(clips.device)
    return torch.fft.irfft2(spectrum, s=(height, width)).to(clips.dtype)


def perturbations(frames: int) -> dict[str, dict[str, Perturbation]]:
    """All of them, in three groups: `order`, `temporal` (one frequency each) and `spatial` (one band each)."""
    bands, middle = itertools.pairwise(SPATIAL_EDGES), frames // 2
    order = torch.randperm(frames, generator=torch.Generator().manual_seed(0))  # the same for all clips
    return {
        "order": {
            "as it is": lambda clips: clips,
            "reversed": lambda clips: clips.flip(2),  # the power spectrum stays
            "shuffled": lambda clips: clips[:, :, order],
            "middle frame": lambda clips: clips[:, :, middle : middle + 1].expand_as(clips),  # only frequency 0 is left
            "phase only": phase_only,
        },
        "temporal": {str(f): partial(temporal_band_stop, frequency=f) for f in range(1, frames // 2 + 1)},
        "spatial": {
            f"{low:.3g}–{min(high, 0.71):.3g}": partial(spatial_band_stop, low=low, high=high) for low, high in bands
        },
    }


@torch.inference_mode()
def accuracies(
    networks: Mapping[str, nn.Module], clips: Tensor, labels: Tensor, batch: int = 25
) -> dict[str, dict[str, dict[str, float]]]:
    """Network -> group -> perturbation -> share of clips that are classified right.

    Args:
        networks: in evaluation mode, (B,C,T,H,W) -> logits (B,classes).
        clips: (N,C,T,H,W), as the networks take them.
        labels: (N,).
        batch: clips that are classified at a time.
    """
    found: dict[str, dict[str, dict[str, float]]] = {name: {} for name in networks}
    for group, members in perturbations(clips.shape[2]).items():
        for title, change in members.items():
            changed = change(clips)
            for name, network in networks.items():
                answers = torch.cat([network(part).argmax(1) for part in changed.split(batch)])
                found[name].setdefault(group, {})[title] = float((answers == labels).float().mean())
    return found
