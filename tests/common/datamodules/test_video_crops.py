"""Crops, resizing and normalisation on clips of every shape."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from common.datamodules.loading import sample_generator
from common.datamodules.video_clips import SCALES, ClipSpec, load_views, random_multi_scale_crop, square_crops
from common.datamodules.video_dataset import ClipAugmentation
from tests import media

SHAPES = [(48, 64), (64, 48), (17, 5), (1, 1), (2, 3), (240, 135), (112, 112)]


def coordinates(height: int, width: int, frames: int = 2) -> torch.Tensor:
    """A clip whose red is the row and whose green is the column; blue is the frame."""
    y, x = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    clip = torch.stack([torch.stack([y, x, torch.full_like(x, t)], dim=-1) for t in range(frames)])
    return clip.to(torch.uint8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("size", [1, 32, 112])
def test_multi_scale_crop_of_every_shape(shape, size):
    clip = coordinates(*shape)
    for seed in range(5):
        out = random_multi_scale_crop(clip, size, sample_generator(seed))
        assert out.shape == (2, 3, size, size)
        assert out.dtype == torch.uint8
        assert (out[0, 2] == 0).all()
        assert (out[1, 2] == 1).all()
        assert torch.equal(out[0, :2], out[1, :2])  # one crop for the whole clip


def test_the_papers_scales():
    assert SCALES == (1.0, 2**-0.25, 2**-0.75, 0.5)


def test_crops_are_squares_of_the_scales_anywhere():
    clip = coordinates(100, 200)
    sides, corners = [], []
    for seed in range(300):
        # Crops of side 100, 84, 59 and 50; red and green of the corners tell where the crop was.
        out = random_multi_scale_crop(clip, 200, sample_generator(seed))[0].int()
        rows, columns = out[0, -1, 0] - out[0, 0, 0] + 1, out[1, 0, -1] - out[1, 0, 0] + 1
        assert abs(rows - columns) <= 1
        sides.append(int(rows))
        corners.append((int(out[0, 0, 0]), int(out[1, 0, 0])))
    for side in (100, 84, 59, 50):
        assert 40 < sum(abs(found - side) <= 1 for found in sides) < 110  # 75 expected of each
    assert max(row for row, _ in corners) >= 45
    assert max(column for _, column in corners) >= 140
    assert min(row + column for row, column in corners) < 20


def test_crops_in_the_corners_and_the_centre():
    clip = coordinates(100, 200)
    seen = set()
    for seed in range(60):
        out = random_multi_scale_crop(clip, 50, sample_generator(seed), scales=[0.5], places="corners")[0]
        seen.add((int(out[0, 0, 0]), int(out[1, 0, 0])))
    assert seen == {(0, 0), (0, 150), (50, 0), (50, 150), (25, 75)}


def test_resize_range_crops_as_if_the_short_side_were_resized_first():
    clip = coordinates(100, 200, 1)
    sides, columns = [], []
    for seed in range(200):
        out = random_multi_scale_crop(clip, 80, sample_generator(seed), resize_range=(80, 160))[0].float()
        sides.append(float(out[0, -1, 0] - out[0, 0, 0]) + 1)
        columns.append(float(out[1, 0, 0]))
    assert 48 <= min(sides) < 55  # 80 of 160 pixels of the short side
    assert 95 < max(sides) <= 100  # all of it
    # uniform in the size, so the side has a mean of 100 * log(2), not 75
    assert abs(sum(sides) / len(sides) - 69.3) < 3
    assert min(columns) < 10
    assert max(columns) > 130


def test_resize_range_is_a_resized_crop():
    y, x = np.mgrid[0:120, 0:160]
    grey = (128 + 60 * np.sin(x / 9) + 60 * np.cos(y / 11)).astype(np.uint8)
    clip = torch.from_numpy(np.repeat(grey[None, ..., None], 3, axis=-1).copy())
    # 240 pixels, twice as many: the crop of 240 is the square of the short side, anywhere along the long one
    crop = random_multi_scale_crop(clip, 240, sample_generator(3), resize_range=(240, 240)).float()
    whole = interpolate(clip.permute(0, 3, 1, 2).float(), size=(240, 320), mode="bilinear", antialias=True)
    errors = [(whole[..., left : left + 240] - crop).abs().mean() for left in range(81)]
    assert min(errors) < 1


def test_flip_half_of_the_clips_and_only_if_enabled():
    clip = coordinates(32, 32, 1)
    count = 0
    for seed in range(200):
        plain, never = ClipAugmentation(SCALES, False, 0).crop(clip, 16, sample_generator(seed))
        flipped, mirrored = ClipAugmentation(SCALES, True, 0).crop(clip, 16, sample_generator(seed))
        assert not never
        assert plain[0, 1, 0, 0] < plain[0, 1, 0, -1]
        assert torch.equal(flipped, plain.flip(-1) if mirrored else plain)
        count += mirrored
    assert 70 < count < 130


def test_crop_of_the_right_size_is_not_resampled():
    clip = torch.randint(256, (3, 112, 112, 3), dtype=torch.uint8)
    out = random_multi_scale_crop(clip, 112, sample_generator(0), scales=(1.0,))
    assert torch.equal(out, clip.permute(0, 3, 1, 2))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("resize", [None, 40])
@pytest.mark.parametrize("crops", [1, 3])
def test_square_crops_of_every_shape(shape, resize, crops):
    out = square_crops(coordinates(*shape), 32, crops, resize)
    assert out.shape == (crops, 2, 3, 32, 32)
    if crops == 3:
        assert torch.equal(out[1], square_crops(coordinates(*shape), 32, 1, resize)[0])


@pytest.mark.parametrize(("height", "width"), [(40, 90), (90, 40)])
def test_place_of_the_squares(height, width):
    crops = square_crops(coordinates(height, width), 40, 3)[:, 0]
    long = 0 if height > width else 1
    for crop, start in zip(crops, (0, 25, 50), strict=True):
        assert int(crop[long].min()) == start
        assert int(crop[long].max()) == start + 39
        assert int(crop[1 - long].min()) == 0
        assert int(crop[1 - long].max()) == 39


def test_the_papers_inference_is_the_centre_square_resized():
    clip = torch.randint(256, (2, 60, 90, 3), dtype=torch.uint8)
    out = square_crops(clip, 30)[0].double()
    square = clip[:, :, 15:75].permute(0, 3, 1, 2).double()
    expected = interpolate(square, (30, 30), mode="bilinear", antialias=True)
    assert (out - expected).abs().max() <= 1  # rounding to uint8


def test_normalise_is_its_definition():
    clip = torch.randint(256, (4, 3, 5, 6), dtype=torch.uint8)
    mean, std = (0.1, 0.5, 0.7), (0.2, 0.3, 1.0)
    spec = ClipSpec(mean=mean, std=std)
    out = spec.normalise(clip)
    expected = (clip.double() / 255 - torch.tensor(mean, dtype=torch.float64).view(1, 3, 1, 1)) / torch.tensor(
        std, dtype=torch.float64
    ).view(1, 3, 1, 1)
    assert out.dtype == torch.float32
    assert out.is_contiguous()
    torch.testing.assert_close(out.double(), expected.transpose(0, 1), rtol=0, atol=2e-6)
    assert torch.equal(spec.normalise(clip[1]), out[:, 1])


def test_clip_spec_round_trip():
    spec = ClipSpec(8, "dense", 2, 10, 3, 224, 256, (0.1, 0.2, 0.3), (1, 1, 1))
    assert ClipSpec.from_dict(spec.to_dict()) == spec
    assert spec.num_views == 30
    assert all(isinstance(value, int | str | list) for value in spec.to_dict().values())
    with pytest.raises(ValueError, match=r"unknown keys.*crop"):
        ClipSpec.from_dict({"crop": 3})


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"num_frames": 10**9}, "1 views of 3 x 1000000000 x 112 x 112 are more than 1073741824 numbers"),
        ({"num_clips": 10**9}, "1000000000 views of"),
        ({"crop_size": 10**6}, "more than"),
        ({"resize": 10**9}, "resize is 1000000000, too large"),
        ({"num_frames": "x"}, "num_frames is 'x'; it must be a whole number"),
    ],
)
def test_clips_that_would_fill_the_memory_are_refused(values, words):
    with pytest.raises(ValueError, match=words):
        ClipSpec.from_dict(values)


@pytest.mark.parametrize(
    "values",
    [
        {"num_frames": 0},
        {"sampling": "all"},
        {"num_crops": 2},
        {"crop_size": 0},
        {"resize": 100},
        {"std": (1, 0, 1)},
        {"mean": (1, 0)},
        {"num_clips": 0},
        {"stride": 0},
    ],
)
def test_clip_spec_names_wrong_values(values):
    with pytest.raises(ValueError, match=next(iter(values))):
        ClipSpec(**values)


def test_load_views(tmp_path):
    path = media.write_video(tmp_path / "a.mp4", num_frames=40, width=80, height=48)
    reference = media.decode_all(path)
    spec = ClipSpec(num_frames=4, num_clips=2, num_crops=3, crop_size=48, mean=(0, 0, 0), std=(1, 1, 1))
    views = load_views(path, spec)
    assert views.shape == (6, 3, 4, 48, 48)
    for clip, offset in enumerate((2, 7)):  # positions 1/4 and 3/4 of segments of 10 frames
        for crop, left in enumerate((0, 16, 32)):
            expected = reference[offset::10, :, left : left + 48].transpose(3, 0, 1, 2)
            assert np.array_equal((views[3 * clip + crop] * 255).round().numpy(), expected)
