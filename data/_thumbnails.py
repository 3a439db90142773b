"""What a video or image looks like: as it is stored, and as the network gets it."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import yaml
from jsonargparse import ArgumentError, ArgumentParser
from PIL import Image
from torch import Tensor

from common.command_line import without_dump
from common.datamodules import ImageDataModule, VideoDataModule
from common.datamodules.errors import DatasetError, ReadError
from common.datamodules.image_dataset import ImageAugmentation, ImageDataset, ImageSpec, read_image
from common.datamodules.loading import sample_generator
from common.datamodules.manifest import Entry, Item
from common.datamodules.video_clips import ClipSpec, make_views, segment_indices
from common.datamodules.video_dataset import ClipAugmentation, make_training_clip
from common.datamodules.video_reader import DEFAULT_FPS, FrameFolderReader, open_video
from data.check import count_problem

THUMBNAIL = 128  # pixels, longest side
COLUMNS = 4
STORED = 4  # frames of a video that are shown as they are
SHOWN = 8  # frames of a clip that are shown
GAP = 2  # pixels between thumbnails
GREY = (128, 128, 128)


@dataclass(frozen=True)
class Thumbnails:
    """The file of an entry: what it says about itself, its images as JPEG files, and what is wrong with it."""

    entry: Entry
    facts: tuple[str, ...] = ()
    stored: bytes = b""
    network: bytes = b""
    caption: str = ""
    problem: str = ""


@dataclass(frozen=True)
class VideoTransforms:
    """From a video to a clip, in training and in validation."""

    train: ClipSpec
    val: ClipSpec
    augmentation: ClipAugmentation

    def describe(self) -> str:
        """In words."""
        spec, random = self.train, self.augmentation
        frames = "one from each part" if spec.sampling == "segments" else f"{spec.stride} apart"
        flip = "half of them mirrored" if random.horizontal_flip else "not mirrored"
        return f"{spec.num_frames} frames, {frames}; random crops of {spec.crop_size} pixels, {flip}"

    def look(self, entry: Entry, item: Item) -> Thumbnails:
        """Open a video, show frames of it and a clip."""
        try:
            with open_video(item.path, item.fps) as video:
                count = video.num_frames
                stored = video.get_frames(segment_indices(count, min(count, STORED)).tolist())
                height, width = stored.shape[1:3]
                facts = [f"{count} frames", f"{width} × {height}"]
                if item.fps or not isinstance(video, FrameFolderReader):
                    facts += [f"{video.duration:.4g} s", f"{video.fps:.4g} fps"]
                else:
                    facts += [f"frame rate unknown (taken as {DEFAULT_FPS:g})"]
                spec = self.train if entry.split == "train" else self.val
                if entry.split == "train":
                    generator = sample_generator(self.augmentation.seed, 0, 0)
                    clip, _ = make_training_clip(count, video.get_frames, spec, self.augmentation, generator)
                else:
                    clip = make_views(count, video.get_frames, spec)[0]
        except ReadError as error:
            return Thumbnails(entry, problem=error.reason or str(error))
        short = f"too short: {count} frames, a clip takes {spec.span}; frames are repeated" if count < spec.span else ""
        problems = [text for text in (count_problem(count, entry.num_frames), short) if text]
        chosen = segment_indices(spec.num_frames, min(spec.num_frames, SHOWN)).tolist()
        kind = "training clip" if entry.split == "train" else "validation clip"
        part = f", {len(chosen)} of {spec.num_frames} frames" if len(chosen) < spec.num_frames else ""
        network = [spec.denormalise(clip[:, index]) for index in chosen]
        sheets = _sheet(list(stored.permute(0, 3, 1, 2))), _sheet(network)
        return Thumbnails(entry, tuple(facts), *sheets, kind + part, "; ".join(problems))


@dataclass(frozen=True)
class ImageTransforms:
    """From an image to the network's input. ``size`` None: all images have the size of the first one, ``stored``."""

    size: int | None
    stored: tuple[int, int]
    augmentation: ImageAugmentation

    def describe(self) -> str:
        """In words."""
        random = self.augmentation
        size = f"resized to {self.size} pixels" if self.size else "as large as they are"
        flip = "half of them mirrored" if random.horizontal_flip else "not mirrored"
        return f"{size}; {flip}, shifted by up to {random.shift:g} of the side, turned by up to {random.rotation:g}°"

    def look(self, entry: Entry, item: Item) -> Thumbnails:
        """Read an image, show it and four training images made from it."""
        # Mean and deviation are undone for display, so any will do.
        spec = ImageSpec(*((self.size, self.size) if self.size else self.stored), (0.0,) * 3, (1.0,) * 3)
        dataset = ImageDataset([item], spec, None, self.augmentation, fixed_size=self.size is None)
        train = entry.split == "train"
        try:
            image = read_image(item.path)
            facts = (f"{image.shape[2]} × {image.shape[1]}",)
            keys: list[int | tuple[int, int]] = [(epoch, 0) for epoch in range(COLUMNS)] if train else [0]
            network = [spec.denormalise(dataset[key]["image"]) for key in keys]
        except ReadError as error:
            return Thumbnails(entry, problem=error.reason or str(error))
        caption = f"{COLUMNS} training images" if train else "validation image"
        return Thumbnails(entry, facts, _sheet([image]), _sheet(network), caption)


Transforms = VideoTransforms | ImageTransforms


def look(job: tuple[Transforms, Entry, Item]) -> Thumbnails:
    """Call ``look`` of the transforms; a function, for other processes."""
    transforms, entry, item = job
    return transforms.look(entry, item)


def read_transforms(recipe: Path | None, root: Path, kind: str, items: Sequence[Item]) -> Transforms:
    """The transforms of the data module in a recipe, or of one without options.

    Raises:
        DatasetError: the recipe cannot be read, has a wrong option, or is for another kind of data.
    """
    module = _data_module(recipe, root, kind)
    if isinstance(module, VideoDataModule):
        return VideoTransforms(module.train_spec, module.val_spec, module.augmentation)
    size = module.image_size
    return ImageTransforms(size, _first_size(items) if size is None else (size, size), module.augmentation)


def _data_module(recipe: Path | None, root: Path, kind: str) -> VideoDataModule | ImageDataModule:
    if recipe is None:
        return VideoDataModule(str(root)) if kind == "video" else ImageDataModule(str(root))
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(VideoDataModule if kind == "video" else ImageDataModule, "data", required=True)
    try:
        data = yaml.safe_load(recipe.read_text(encoding="utf-8"))["data"]
        data = {**data, "init_args": {**data.get("init_args", {}), "root": str(root)}}
        return parser.instantiate_classes(parser.parse_object({"data": data})).data
    except OSError as error:
        raise DatasetError(f"{recipe} cannot be read: {error.strerror}.") from error
    except (yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        raise DatasetError(f"{recipe} is not a recipe: it lacks a key `data` as in `spectral fit`.") from error
    except (ArgumentError, ValueError) as error:
        lines = [line.strip().removeprefix("- ") for line in without_dump(str(error)).splitlines()]
        reason = " ".join(line for line in lines if not line.startswith('Parser key "data"'))
        raise DatasetError(f"{recipe}, for the {kind}s of {root}: {reason}") from error


def _first_size(items: Sequence[Item]) -> tuple[int, int]:
    """Height and width of the first image that can be read."""
    for item in items:
        try:
            height, width = read_image(item.path).shape[1:]
            return height, width
        except ReadError:
            continue
    return 1, 1


def _sheet(images: Sequence[Tensor]) -> bytes:
    """Small copies of uint8 images (3, H, W) of one size, in rows, as a JPEG file."""
    larger = max(1, THUMBNAIL // max(images[0].shape[1:]))  # times: tiny images would hardly be seen
    small = []
    for pixels in images:
        image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        small.append(image.resize((image.width * larger, image.height * larger), Image.Resampling.NEAREST))
    width, height = (side + GAP for side in small[0].size)
    columns, rows = min(COLUMNS, len(small)), -(-len(small) // COLUMNS)
    sheet = Image.new("RGB", (columns * width - GAP, rows * height - GAP), GREY)
    for number, image in enumerate(small):
        sheet.paste(image, (number % COLUMNS * width, number // COLUMNS * height))
    buffer = io.BytesIO()
    sheet.save(buffer, "JPEG", quality=80)
    return buffer.getvalue()
