"""The Lightning data module for image classification."""

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from PIL import Image
from torch import Generator, Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from common.datamodules.clip_spec import Spec
from common.datamodules.datasets import with_dataset
from common.datamodules.folders import find_files, read_class_folders
from common.datamodules.image_archives import ImageArchive, read_cifar, read_fashion_mnist
from common.datamodules.loading import Item, LabelledDataModule, manifest_items, path_items
from common.datamodules.manifest import Manifest, ManifestError
from common.datamodules.readers import ImageReadError
from common.datamodules.sampling import sample_generator
from common.datamodules.transforms import normalise

#: readers of the datasets that come as archives
ARCHIVES: dict[str, Callable[[Path], ImageArchive]] = {
    "cifar10": partial(read_cifar, dataset="cifar10"),
    "cifar100": partial(read_cifar, dataset="cifar100"),
    "fashion-mnist": read_fashion_mnist,
}


@dataclass(frozen=True)
class ImageSpec(Spec):
    """How an image becomes the network's input. It is stored in a checkpoint, so that the checkpoint can predict.

    Attributes:
        height, width: in pixels. An image of another size is resized until it covers them, and its centre is taken.
        mean, std: per colour, on the scale 0..1.

    Raises:
        ValueError: a value is out of its range; the message names it.
    """

    height: int
    width: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_views: ClassVar[int] = 1

    def __post_init__(self) -> None:
        for name in ("height", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1.")
        self._check_colours()

    @property
    def size(self) -> tuple[int, int]:
        """Height and width."""
        return self.height, self.width

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one image with its batch axis."""
        return 1, 3, self.height, self.width


def open_image(path: str | Path) -> Image.Image:
    """An image file as it is stored, in RGB; grey is repeated. Raises ImageReadError if it cannot be read."""
    try:
        with Image.open(path) as image:
            return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "there is no such file" if isinstance(error, FileNotFoundError) else f"no readable image ({error})"
        raise ImageReadError(path, f"{reason}.") from error


def read_image(path: str | Path) -> Tensor:
    """An image file as uint8 (3, H, W), RGB; grey is repeated. Raises ImageReadError if it cannot be read."""
    return torch.from_numpy(np.array(open_image(path))).permute(2, 0, 1).contiguous()


def fit_image(image: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (3, H, W) to (3, *size): resized (bilinear, antialiased) until it covers the size, then its centre."""
    height, width = image.shape[-2:]
    if (height, width) == size:
        return image
    scale = max(size[0] / height, size[1] / width)
    cover = [max(size[0], round(height * scale)), max(size[1], round(width * scale))]
    return F.center_crop(F.resize(image, cover, antialias=True), list(size))


def load_image(path: str | Path, spec: ImageSpec) -> Tensor:
    """One image file as the network takes it: float32 (3, H, W). Raises ImageReadError if it cannot be read."""
    return normalise(fit_image(read_image(path), spec.size)[None], spec.mean, spec.std)[:, 0]


@dataclass(frozen=True)
class Augmentation:
    """Random changes of a training image; ``seed`` is that of the run.

    Attributes:
        horizontal_flip: mirror half of the images.
        shift: largest shift along each axis as a fraction of the side; uniform, not rounded to pixels.
        rotation: largest turn in degrees to either side; uniform.
    """

    horizontal_flip: bool
    shift: float
    rotation: float
    seed: int

    def __call__(self, image: Tensor, generator: Generator) -> Tensor:
        """uint8 (3, H, W) to the same shape, float on the scale 0..255 if it was moved (bilinear interpolation).

        Pixels from beyond the border repeat its nearest pixel.
        """
        # All are drawn always: one option does not change what another one does.
        mirror, turn, right, down = torch.rand(4, generator=generator).tolist()
        if self.horizontal_flip and mirror < 0.5:
            image = F.horizontal_flip(image)
        if not self.shift and not self.rotation:
            return image
        height, width = image.shape[-2:]
        angle = (2 * turn - 1) * self.rotation
        moves = [(2 * right - 1) * self.shift * width, (2 * down - 1) * self.shift * height]
        # The corner moves by no more than the angle times its distance, and by the shift.
        reach = np.deg2rad(abs(angle)) * np.hypot(height, width) / 2 + max(map(abs, moves))
        margin = int(np.ceil(reach)) + 1
        padded = torch.nn.functional.pad(image[None].float(), [margin] * 4, mode="replicate")
        moved = F.affine(padded, angle, moves, 1.0, [0.0, 0.0], interpolation=InterpolationMode.BILINEAR)
        return moved[0, :, margin : margin + height, margin : margin + width]


class ImageDataset(Dataset):
    """Images by index, from files or from memory. A key (epoch, index) gives a training image.

    Args:
        items: the images.
        spec: what they become.
        pixels: uint8 (N, 1 or 3, H, W) in the order of the items; None: read from their files.
        augmentation: for keys with an epoch; None: none.
        fixed_size: an image of another size than the spec's is an error.
        expected: how many images the published data set has here.
    """

    def __init__(
        self,
        items: Sequence[Item],
        spec: ImageSpec,
        pixels: Tensor | None = None,
        augmentation: Augmentation | None = None,
        fixed_size: bool = False,
        expected: int | None = None,
    ) -> None:
        self.items, self.spec, self.pixels, self.augmentation = list(items), spec, pixels, augmentation
        self.fixed_size = fixed_size
        self.videos_expected = len(self.items) if expected is None else expected

    def __len__(self) -> int:
        return len(self.items)

    def image(self, index: int) -> Tensor:
        """uint8 (3, height, width) of the spec. Raises ImageReadError with the file's name."""
        if self.pixels is not None:
            return fit_image(self.pixels[index].expand(3, -1, -1), self.spec.size)
        item = self.items[index]
        image = read_image(item.path)
        if self.fixed_size and tuple(image.shape[-2:]) != self.spec.size:
            height, width = image.shape[-2:]
            raise ImageReadError(
                item.path,
                f"it has {height} x {width} pixels, the first image {self.spec.height} x {self.spec.width}; "
                "set image_size, and all images are resized to it.",
            )
        return fit_image(image, self.spec.size)

    def __getitem__(self, key: int | tuple[int, int]) -> dict[str, Any]:
        index = key[1] if isinstance(key, tuple) else key
        image = self.image(index)
        if isinstance(key, tuple) and self.augmentation is not None:
            image = self.augmentation(image, sample_generator(self.augmentation.seed, *key))
        item = self.items[index]
        return {
            "image": normalise(image[None], self.spec.mean, self.spec.std)[:, 0],
            "label": item.label,
            "image_index": index,
            "path": item.name,
        }


class ImageDataModule(LabelledDataModule):
    """Images with one label each: CIFAR-10, CIFAR-100, Fashion-MNIST, or a folder with one sub-folder per class.

    A batch is a dict: ``image`` float32 (B, 3, H, W), ``label`` int64 (B,), ``image_index`` int64 (B,) and ``path``
    (list of str). Grey images are repeated in the three colours. ``label`` is -1 where it is not known (prediction).

    The trainer must be made with ``use_distributed_sampler=False``; the samplers share the images out themselves.

    Args:
        root: folder of the data.
        dataset: a known dataset, whose entry in ``common/datamodules/datasets.yaml`` gives what is not given here:
            ``cifar10`` and ``cifar100`` (archive or unpacked folder of the binary or the Python version),
            ``fashion-mnist`` (idx files), or ``digits``. None: your own jpg and png files below a folder for each
            class, these below ``train/``, ``val/`` and ``test/`` if those exist; otherwise one image in five is held
            out.
        batch_size: training images per step and process.
        batch_size_by_epoch: batch size from an epoch on, such as ``{300: 128}``.
        image_size: side in pixels that images are brought to; None: as stored, all alike.
        horizontal_flip: mirror half of the training images (default False).
        shift: largest shift of a training image along each axis, as a fraction of the side.
        rotation: largest rotation of a training image in degrees.
        mean, std: normalisation per colour on the scale 0..1; None: those of the training images, which are computed
            for a folder and known for the others.
        train_per_class: train on so many images of each class, chosen by the seed; those of a smaller number are
            among those of a larger one. None: all.
        val_per_class: hold the last so many training images of each class out for validation, where the data set has
            no validation images of its own.
        num_workers: loader processes.
        eval_batch_size: images per evaluation batch; None: ``batch_size``.
        seed: of the order, the choice and the augmentation; None: that of `seed_everything`, 0 without one.
        drop_last: leave out a last training step that is not full.
        cache_decoded: keep the decoded images of a folder in memory.
        test_split: split to test on; None: ``test`` if there is one, otherwise ``val``.
        predict_paths: files, folders or .txt lists to predict; None: the test split.

    Raises:
        ValueError, ManifestError: in the constructor for values out of range, in :meth:`setup` for wrong data.
    """

    kind = "image"

    def __init__(
        self,
        root: str | None = None,
        dataset: str | None = None,
        batch_size: int = 64,
        batch_size_by_epoch: dict[int, int] | None = None,
        image_size: int | None = None,
        horizontal_flip: bool | None = None,
        shift: float = 0.0,
        rotation: float = 0.0,
        mean: tuple[float, float, float] | None = None,
        std: tuple[float, float, float] | None = None,
        train_per_class: int | None = None,
        val_per_class: int = 0,
        num_workers: int = 2,
        eval_batch_size: int | None = None,
        seed: int | None = None,
        drop_last: bool = False,
        cache_decoded: bool = False,
        test_split: Literal["train", "val", "test"] | None = None,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, drop_last, batch_size_by_epoch)
        known = with_dataset(
            dataset, "image", root=root, horizontal_flip=horizontal_flip, mean=mean, std=std, counts=None
        )
        if not 0 <= shift < 1:
            raise ValueError(f"shift is {shift}; it is a fraction of the side, at least 0 and below 1.")
        if not 0 <= rotation <= 180:
            raise ValueError(f"rotation is {rotation}; it is in degrees, from 0 to 180.")
        if (mean is None) != (std is None):
            raise ValueError("give mean and std together, or neither.")
        for name, value, low in (
            ("image_size", image_size, 1),
            ("train_per_class", train_per_class, 1),
            ("val_per_class", val_per_class, 0),
        ):
            if value is not None and value < low:
                raise ValueError(f"{name} is {value}; it must be at least {low}.")
        if dataset not in ARCHIVES and val_per_class:
            raise ValueError("val_per_class is for data sets without validation images; a folder has its own rule.")
        self.dataset, self.root, self.image_size = dataset, Path(known["root"]), image_size
        self.augmentation = Augmentation(bool(known["horizontal_flip"]), shift, rotation, self.seed)
        self.train_per_class, self.val_per_class = train_per_class, val_per_class
        self.cache_decoded, self.test_split, self.predict_paths = cache_decoded, test_split, predict_paths
        self._colours = None if known["mean"] is None else (tuple(known["mean"]), tuple(known["std"]))
        self._published: dict[str, int] = known["counts"] or {}
        self._source: Manifest | ImageArchive | None = None
        self._spec: ImageSpec | None = None
        self._parts: dict[str, tuple[list[Item], Tensor | None]] = {}

    # -- facts after setup ------------------------------------------------------------------------------------------

    @property
    def spec(self) -> ImageSpec:
        """Size and normalisation, as ``image_spec``."""
        return self.image_spec

    @property
    def image_spec(self) -> ImageSpec:
        """Size and normalisation. Those of a folder are found by reading its training images."""
        if self._spec is None:
            name = next(name for name in ("train", "val", "test") if name in self._splits())
            items, pixels = self._part(name)
            first = read_image(items[0].path) if pixels is None else pixels[0]
            height, width = (self.image_size,) * 2 if self.image_size else first.shape[-2:]
            if self._colours is None and name != "train":
                raise ManifestError(f"{self.root} has no training images to compute mean and std from; give them.")
            mean, std = self._colours or ((0.0,) * 3, (1.0,) * 3)
            spec = ImageSpec(height, width, mean, std)  # type: ignore[arg-type]
            if self._colours is None:
                mean, std = colour_statistics(self._images("train", spec))
                spec = replace(spec, mean=mean, std=std)
            self._spec = spec
        return self._spec

    def describe(self) -> str:
        """What was found, in lines for printing: classes, images per split, the hash."""
        lines = []
        if self._source is not None:
            lines.append(
                f"{self.dataset or 'images'} in {self.root}: {self.num_classes} classes, {self.manifest_hash[:12]}"
            )
        for name in ("train", "val", "test", "predict"):
            if (dataset := getattr(self, f"{name}_dataset")) is not None:
                size = f"{dataset.spec.height} x {dataset.spec.width}"
                lines.append(f"{name}: {len(dataset)} of {dataset.videos_expected} images of {size}")
        return "\n".join(lines)

    # -- Lightning --------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the data and make the datasets of the stage (fit, validate, test, predict; None: all).

        Raises:
            ManifestError: no root, missing or wrong files, no images for the stage.
            ImageReadError: an image of a folder that has to be read now cannot be.
        """
        if stage == "predict" and self.predict_paths is not None:
            items = path_items(find_files(self.predict_paths, "image"))
            self.predict_dataset = ImageDataset(items, self.image_spec)
            return
        have = self._splits()
        if stage in (None, "fit") and self.train_dataset is None:
            self.train_dataset = self._make("train", self.augmentation)
        if stage in (None, "fit", "validate") and self.val_dataset is None and ("val" in have or stage == "validate"):
            self.val_dataset = self._make("val")
        test = self.test_split or ("test" if "test" in have else "val")
        if stage in (None, "test") and self.test_dataset is None and (stage or test in have):
            self.test_dataset = self._make(test)
        if stage == "predict" and self.predict_dataset is None:
            self.predict_dataset = self._make(test)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _loaded(self) -> Manifest | ImageArchive:
        if self._source is None:
            read = ARCHIVES.get(self.dataset or "")
            self._source = read(self.root) if read else read_class_folders(self.root, kind="image")
            if isinstance(self._source, ImageArchive):
                for split, expected in self._published.items():
                    if (count := len(self._source.splits[split][1])) != expected:
                        warnings.warn(
                            f"{self.root}: {count} of {expected} {split} images of {self.dataset}.", stacklevel=2
                        )
        return self._source

    def _splits(self) -> tuple[str, ...]:
        source = self._loaded()
        if isinstance(source, Manifest):
            return source.splits()
        return ("train", "val", "test") if self.val_per_class else ("train", "test")

    def _part(self, split: str) -> tuple[list[Item], Tensor | None]:
        """Items of a split and, where they are in memory, their images."""
        if split not in self._parts:
            source = self._loaded()
            if isinstance(source, Manifest):
                items, pixels = manifest_items(source.split(split)), None
                chosen = torch.arange(len(items))
            else:
                if split not in self._splits():
                    raise ManifestError(
                        f"{self.dataset} has no images in split {split!r}; hold some out with val_per_class."
                    )
                name = "test" if split == "test" else "train"
                pixels, labels = source.splits[name]
                items = [
                    Item("", f"{name}[{index}]", label, str(self.root)) for index, label in enumerate(labels.tolist())
                ]
                chosen = torch.arange(len(items))
                if name == "train" and self.val_per_class:
                    groups = class_members(labels, len(source.class_names))
                    if (least := min(map(len, groups))) <= self.val_per_class:
                        raise ManifestError(
                            f"val_per_class is {self.val_per_class}; a class has only {least} training images."
                        )
                    side = slice(-self.val_per_class, None) if split == "val" else slice(-self.val_per_class)
                    chosen = torch.cat([group[side] for group in groups]).sort().values
            if split == "train" and self.train_per_class is not None:
                chosen = self._fewer(chosen, items)
            items = [items[index] for index in chosen.tolist()]
            self._parts[split] = items, None if pixels is None else pixels[chosen]
        return self._parts[split]

    def _fewer(self, chosen: Tensor, items: Sequence[Item]) -> Tensor:
        """``train_per_class`` of the chosen items of each class."""
        assert self.train_per_class is not None
        kept = []
        groups = class_members([items[index].label for index in chosen.tolist()], self.num_classes)
        for label, group in enumerate(groups):
            if len(group) < self.train_per_class:
                raise ManifestError(
                    f"train_per_class is {self.train_per_class}; class {self.class_names[label]!r} has only "
                    f"{len(group)} training images."
                )
            generator = sample_generator(self.seed, label, 0, 0)  # no training sample has a key of this length
            kept.append(group[torch.randperm(len(group), generator=generator)[: self.train_per_class]])
        return chosen[torch.cat(kept).sort().values]

    def _images(self, split: str, spec: ImageSpec) -> Tensor:
        """All images of a split, uint8 (N, 3, H, W); kept with ``cache_decoded``."""
        items, pixels = self._part(split)
        dataset = ImageDataset(items, spec, pixels, fixed_size=self.image_size is None)
        images = torch.stack([dataset.image(index) for index in range(len(items))])
        if self.cache_decoded:
            self._parts[split] = items, images
        return images

    def _make(self, split: str, augmentation: Augmentation | None = None) -> ImageDataset:
        spec = self.image_spec
        if self.cache_decoded and self._part(split)[1] is None:
            self._images(split, spec)
        items, pixels = self._part(split)
        expected = self._published.get(split) if not (self.val_per_class and split == "train") else None
        if split == "train" and self.train_per_class is not None:
            expected = None
        return ImageDataset(items, spec, pixels, augmentation, self.image_size is None, expected)


def class_members(labels: Tensor | Sequence[int], classes: int) -> list[Tensor]:
    """Positions of the members of each class, ascending."""
    labels = torch.as_tensor(labels)
    return [torch.nonzero(labels == k).flatten() for k in range(classes)]


def colour_statistics(images: Tensor) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per colour of uint8 images (N, 3, H, W), on the scale 0..1; exact integer sums.

    The deviation of a colour that never changes is given as 1, so that it can be divided by.
    """
    count = images.numel() // 3
    mean, std = [], []
    for colour in images.unbind(1):
        histogram = torch.bincount(colour.flatten(), minlength=256).double()
        values = torch.arange(256, dtype=torch.float64) / 255
        average = float(histogram @ values) / count
        spread = float((histogram @ (values - average) ** 2 / count).sqrt())
        mean.append(average)
        std.append(spread or 1.0)
    return tuple(mean), tuple(std)  # type: ignore[return-value]
