"""Parts of the spectrum are taken away exactly, and a network that needs none of them does not notice."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch import Tensor, nn

from common.evaluation import frequency_use
from common.evaluation.frequency_use import SPATIAL_EDGES, accuracies, perturbations
from common.reporting.plots import frequency_use as figure_of

CLIPS = torch.randn(3, 2, 8, 12, 10, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("frames", [1, 7, 8])
def test_all_keep_shape_and_are_finite(frames: int) -> None:
    clips = CLIPS[:, :, :frames]
    for group in perturbations(frames).values():
        for change in group.values():
            assert change(clips).shape == clips.shape
            assert change(clips).isfinite().all()


def test_temporal_bands_add_up_to_what_changes_over_time() -> None:
    taken = sum(CLIPS - frequency_use.temporal_band_stop(CLIPS, f) for f in range(1, 5))
    torch.testing.assert_close(taken, CLIPS - CLIPS.mean(2, keepdim=True))
    spectrum = torch.fft.rfft(frequency_use.temporal_band_stop(CLIPS, 3), dim=2)
    assert spectrum[:, :, 3].abs().max() < 1e-5


def test_spatial_bands_add_up_to_all_but_the_mean() -> None:
    bands = itertools.pairwise(SPATIAL_EDGES)
    taken = sum(CLIPS - frequency_use.spatial_band_stop(CLIPS, *band) for band in bands)
    torch.testing.assert_close(taken, CLIPS - CLIPS.mean((3, 4), keepdim=True))


def test_phase_only_has_a_flat_spectrum_and_the_moments_of_the_clip() -> None:
    changed = frequency_use.phase_only(CLIPS)
    magnitude = torch.fft.fftn(changed.double(), dim=(2, 3, 4)).abs().flatten(2)[..., 1:]
    torch.testing.assert_close(magnitude.std(-1) / magnitude.mean(-1), torch.zeros(3, 2).double(), atol=1e-3, rtol=0)
    for moment in (Tensor.mean, Tensor.std):
        torch.testing.assert_close(moment(changed, (2, 3, 4)), moment(CLIPS, (2, 3, 4)))


class ByDirection(nn.Module):
    """Class 0 where the later half of a clip is brighter."""

    def forward(self, x: Tensor) -> Tensor:
        early, late = x.mean((1, 3, 4)).chunk(2, dim=1)
        rise = late.mean(1) - early.mean(1)
        return torch.stack([rise, -rise], dim=1)


def test_accuracies_say_what_a_network_uses() -> None:
    rise = torch.linspace(-1, 1, 8)[None, None, :, None, None]
    clips = torch.cat([rise, -rise]).expand(2, 3, 8, 6, 6) + 0.01 * CLIPS[:2, :1, :, :6, :6]
    found = accuracies({"net": ByDirection()}, clips, torch.tensor([0, 1]), batch=1)["net"]
    assert (found["order"]["as it is"], found["order"]["reversed"]) == (1.0, 0.0)
    assert set(found["spatial"].values()) == {1.0}  # it averages over space
    assert found["temporal"]["3"] == 1.0
    assert len(figure_of({"net": found}, 2).axes) == 3
