"""Datasets of videos: random clips to train on, whole videos with all their views to evaluate."""

from __future__ import annotations

import multiprocessing
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2.functional import horizontal_flip

from common.datamodules.errors import VideoReadError
from common.datamodules.loading import sample_generator
from common.datamodules.manifest import Item
from common.datamodules.remote_shards import RemoteShards
from common.datamodules.spec import check_choice
from common.datamodules.video_clips import (
    ClipSpec,
    CropPlaces,
    clip_indices,
    make_views,
    random_multi_scale_crop,
    view_indices,
)
from common.datamodules.video_reader import open_video

REPLACEMENTS = 10  # videos tried in succession in place of one that cannot be read
REMEDY = "remove it, or, to train and test without it, set data.on_read_error to replace"

T = TypeVar("T")
Frames = Callable[[list[int]], Tensor]


class VideoDataset(Dataset):
    """Videos by index; the base of the training and the evaluation dataset.

    Args:
        items: the videos.
        spec: how a clip is made.
        expected: how many videos were listed before missing ones were left out.
        cache_decoded: keep every decoded video in memory (uint8, per loader worker).
        remote: where the shards of the videos are fetched from; None: all is local.
    """

    def __init__(
        self,
        items: Sequence[Item],
        spec: ClipSpec,
        expected: int | None = None,
        cache_decoded: bool = False,
        remote: RemoteShards | None = None,
    ) -> None:
        self.items, self.spec, self.remote = items, spec, remote
        self.videos_expected = len(self.items) if expected is None else expected
        self._cache: dict[str, Tensor] | None = {} if cache_decoded else None

    def __len__(self) -> int:
        return len(self.items)

    def _read(self, index: int, use: Callable[[int, Frames], T]) -> T:
        """Open video ``index`` and return ``use(number of frames, frame getter)``; errors name video and index."""
        item = self.items[index]
        if self.remote is not None:
            self.remote.fetch(item.name)  # its errors are not those of a video, which another could replace
        try:
            if self._cache is None:
                with open_video(item.path, item.fps) as video:
                    return use(video.num_frames, video.get_frames)
            if item.path not in self._cache:
                with open_video(item.path, item.fps) as video:
                    self._cache[item.path] = video.get_frames(range(video.num_frames))
            frames = self._cache[item.path]
            return use(len(frames), lambda indices: frames[indices])
        except VideoReadError as error:
            raise VideoReadError(item.path, f"{error.reason} (video {index}, listed in {item.where})") from error


@dataclass(frozen=True)
class ClipAugmentation:
    """Random crops of a training clip, and whether it is mirrored; see `VideoDataModule`."""

    scales: tuple[float, ...]
    horizontal_flip: bool
    seed: int
    resize_range: tuple[int, int] | None = None
    crop_places: CropPlaces = "anywhere"

    def __post_init__(self) -> None:
        if not self.scales or not all(0 < scale <= 1 for scale in self.scales):
            raise ValueError(f"scales is {self.scales}; give fractions of the short side, above 0 and at most 1.")
        if self.resize_range is not None and not 0 < self.resize_range[0] <= self.resize_range[1]:
            raise ValueError(f"resize_range is {self.resize_range}; give the smallest and the largest short side.")
        check_choice("anywhere", "corners", crop_places=self.crop_places)

    def crop(self, clip: Tensor, size: int, generator: Generator) -> tuple[Tensor, bool]:
        """uint8 (T, H, W, 3) to (T, 3, size, size), and whether it was mirrored."""
        out = random_multi_scale_crop(clip, size, generator, self.scales, self.resize_range, self.crop_places)
        mirrored = self.horizontal_flip and bool(torch.rand((), generator=generator) < 0.5)
        return (horizontal_flip(out) if mirrored else out), mirrored


class TrainVideos(VideoDataset):
    """Random clips. The key of a sample is (epoch, index); a plain index means epoch 0.

    ``read_errors`` counts the videos that could not be read and were replaced, over all workers of this process. A
    mirrored clip of class c has the label ``mirrored_labels[c]`` if these are given.
    """

    def __init__(
        self,
        items: Sequence[Item],
        spec: ClipSpec,
        augmentation: ClipAugmentation,
        replace_unreadable: bool = False,
        expected: int | None = None,
        cache_decoded: bool = False,
        mirrored_labels: Sequence[int] | None = None,
        remote: RemoteShards | None = None,
    ) -> None:
        super().__init__(items, spec, expected, cache_decoded, remote)
        self.augmentation, self.replace_unreadable = augmentation, replace_unreadable
        self.mirrored_labels = mirrored_labels
        self._errors = multiprocessing.Value("q", 0)

    @property
    def read_errors(self) -> int:
        """Number of unreadable videos so far."""
        return self._errors.value

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        epoch, index = key if isinstance(key, tuple) else (0, key)
        generator = sample_generator(self.augmentation.seed, epoch, index)
        for _ in range(REPLACEMENTS):
            try:
                video, mirrored = self._read(
                    index,
                    lambda count, frames: make_training_clip(count, frames, self.spec, self.augmentation, generator),
                )
                label = self.items[index].label
                if mirrored and self.mirrored_labels is not None and label is not None:
                    label = self.mirrored_labels[label]
                return {"video": video, "label": label, "video_index": index}
            except VideoReadError as error:
                if not self.replace_unreadable:
                    raise VideoReadError(error.path, f"{error.reason}; {REMEDY}") from error
                with self._errors.get_lock():
                    self._errors.value += 1
                last, index = error, int(torch.randint(len(self), (), generator=generator))
                warnings.warn(f"{error}; training uses {self.items[index].name} in its place", stacklevel=2)
        raise VideoReadError(last.path, f"{last.reason}; {REPLACEMENTS} videos in succession cannot be read") from last


def make_training_clip(
    num_frames: int, get_frames: Frames, spec: ClipSpec, augmentation: ClipAugmentation, generator: Generator
) -> tuple[Tensor, bool]:
    """A random clip of a video, given its length and a function from indices to uint8 frames: (3, T, S, S), and whether
    it is mirrored."""
    indices = clip_indices(num_frames, spec.num_frames, spec.sampling, spec.stride, generator)
    clip = get_frames(indices.tolist())
    crop, mirrored = augmentation.crop(clip, spec.crop_size, generator)
    return spec.normalise(crop), mirrored


class EvalVideos(VideoDataset):
    """Whole videos with all their views, for validation, test and prediction.

    ``repeated`` of a sample is the number of its views that equal an earlier one because the video is too short. With
    ``leave_out`` the sample of a video that cannot be read is ``{"unreadable": {index: message}}``.
    """

    def __init__(
        self,
        items: Sequence[Item],
        spec: ClipSpec,
        expected: int | None = None,
        cache_decoded: bool = False,
        leave_out: bool = False,
        remote: RemoteShards | None = None,
    ) -> None:
        super().__init__(items, spec, expected, cache_decoded, remote)
        self.leave_out = leave_out

    def __getitem__(self, index: int) -> dict[str, Any]:
        spec = self.spec
        try:
            views, clips = self._read(index, lambda n, frames: (make_views(n, frames, spec), view_indices(n, spec)))
        except VideoReadError as error:
            if self.leave_out:
                return {"unreadable": {index: str(error)}}
            raise VideoReadError(error.path, f"{error.reason}; {REMEDY}") from error
        repeated = (len(clips) - len(clips.unique(dim=0))) * spec.num_crops
        item = self.items[index]
        return {"video": views, "label": item.label, "video_index": index, "path": item.name, "repeated": repeated}

    @staticmethod
    def collate(samples: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join whole videos into a batch with an entry per view: video (sum of V, 3, T, S, S), label, ...; without
        those that cannot be read, whose messages by index are ``unreadable``."""
        unreadable = {index: text for sample in samples for index, text in sample.get("unreadable", {}).items()}
        samples = [sample for sample in samples if "unreadable" not in sample]
        if not samples:
            return {"video_index": torch.empty(0, dtype=torch.int64), "unreadable": unreadable}
        views = torch.tensor([len(sample["video"]) for sample in samples])
        return {
            "video": torch.cat([sample["video"] for sample in samples]),
            "path": [sample["path"] for sample in samples for _ in range(len(sample["video"]))],
            **{
                name: torch.tensor([sample[name] for sample in samples]).repeat_interleave(views)
                for name in ("label", "video_index", "repeated")
            },
            **({"unreadable": unreadable} if unreadable else {}),
        }
