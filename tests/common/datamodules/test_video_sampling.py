"""Frame sampling: the properties that section 5.2 of the STFT paper states, for every length."""

from __future__ import annotations

import pytest
import torch

from common.datamodules.loading import sample_generator
from common.datamodules.video_clips import ClipSpec, dense_indices, segment_indices, view_indices

LENGTHS = [1, 2, 3, 7, 8, 9, 15, 16, 17, 33, 100, 301]


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("segments", [1, 4, 8, 16])
def test_one_frame_from_each_segment(frames, segments):
    centre = segment_indices(frames, segments)
    if frames < segments:  # loop padding
        assert centre.tolist() == [index % frames for index in range(segments)]
        assert torch.equal(segment_indices(frames, segments, sample_generator(0)), centre)
        return
    edges = [index * frames // segments for index in range(segments + 1)]
    for seed in range(20):
        indices = segment_indices(frames, segments, sample_generator(seed)).tolist()
        assert all(low <= index < high for low, index, high in zip(edges, indices, edges[1:], strict=False))
    gaps = centre[1:] - centre[:-1]
    assert (gaps >= frames // segments).all()
    assert (gaps <= -(-frames // segments)).all()


def test_random_segments_reach_every_frame():
    seen = torch.cat([segment_indices(12, 4, sample_generator(seed)) for seed in range(300)])
    counts = torch.bincount(seen, minlength=12)
    assert counts.min() > 60  # 100 expected of each
    assert counts.max() < 140


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("stride", [1, 2, 5])
def test_dense(frames, stride):
    length = 8
    span = (length - 1) * stride + 1
    for seed in range(10):
        indices = dense_indices(frames, length, stride, sample_generator(seed))
        if frames >= span:
            assert (indices[1:] - indices[:-1] == stride).all()
            assert 0 <= indices[0] <= indices[-1] < frames
        else:
            assert indices.tolist() == [index * stride % frames for index in range(length)]
    centre = dense_indices(frames, length, stride)
    if frames >= span:
        assert abs(int(centre[0]) - (frames - 1 - int(centre[-1]))) <= 1


def test_dense_starts_reach_both_ends():
    starts = {int(dense_indices(12, 4, 2, sample_generator(seed))[0]) for seed in range(200)}
    assert starts == set(range(6))


@pytest.mark.parametrize("frames", LENGTHS)
@pytest.mark.parametrize("sampling", ["segments", "dense"])
@pytest.mark.parametrize("clips", [1, 2, 10])
def test_multi_view(frames, sampling, clips):
    views = view_indices(frames, ClipSpec(8, sampling, 2, clips))
    assert views.shape == (clips, 8)
    assert 0 <= views.min() <= views.max() < frames
    if clips == 1:
        single = segment_indices(frames, 8) if sampling == "segments" else dense_indices(frames, 8, 2)
        assert torch.equal(views[0], single)
    elif frames >= 100:
        assert (views[1:] > views[:-1]).any(dim=1).all()  # clips differ and move forward
    if sampling == "dense" and clips > 1 and frames >= 15:
        assert (views[0, 0], views[-1, -1]) == (0, frames - 1)


def test_generators_depend_on_the_key_only():
    def draw(*key):
        return torch.rand(4, generator=sample_generator(*key)).tolist()

    assert draw(1, 2, 3) == draw(1, 2, 3)
    keys = [(0,), (0, 0), (0, 0, 0), (1, 2), (1, 2, 0), (2, 1), (0, 1, 2), (0, 2, 1)]
    assert len({tuple(draw(*key)) for key in keys}) == len(keys)
