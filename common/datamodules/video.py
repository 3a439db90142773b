"""The Lightning data module for video classification."""

import re
import warnings
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch.utilities.rank_zero import rank_zero_info

from common.datamodules.base import LabelledDataModule
from common.datamodules.datasets import with_dataset
from common.datamodules.errors import DatasetError
from common.datamodules.folders import find_files, read_class_folders
from common.datamodules.manifest import MANIFEST_FILE, Item, Manifest, shorten
from common.datamodules.remote_shards import RemoteShards, is_url
from common.datamodules.spec import IMAGENET_MEAN, IMAGENET_STD, check_choice, check_range
from common.datamodules.video_clips import SCALES, ClipSpec, CropPlaces
from common.datamodules.video_dataset import ClipAugmentation, EvalVideos, TrainVideos


class VideoDataModule(LabelledDataModule):
    """Videos with one label each, from a manifest or from a folder with one sub-folder per class.

    A training batch is a dict: ``video`` float32 (B, 3, T, S, S), ``label`` int64 (B,), ``video_index`` int64 (B,).
    Validation, test and prediction batches hold whole videos, with an entry per view: ``video`` (sum of V, 3, T, S, S),
    ``label``, ``video_index``, ``path`` (list of str) and ``repeated``, how many views of the video equal an earlier
    one because it is too short; ``unreadable`` has the messages of videos that were left out, by index. Validation uses
    one central view, test and prediction ``num_clips * num_crops`` views. ``label`` is -1 if it is not known
    (prediction).

    Args:
        root: folder of the videos, or a URL of a folder of `python -m data.shards`, for any protocol that fsspec knows,
            such as ``s3://bucket/shards``; its files are fetched into ``cache``.
        manifest: CSV file (see :mod:`common.datamodules.manifest`), relative to ``root`` or to the current folder.
            None: ``manifest.csv`` in ``root`` if it exists; otherwise the folders of ``root`` are the classes, below
            ``train/``, ``val/`` and ``test/`` if those exist.
        dataset: a known dataset, whose entry in ``common/datamodules/datasets.yaml`` gives what is not given here:
            root, manifest, test split, whether clips may be mirrored. None: your own videos.
        num_frames: T, frames of a clip.
        crop_size: S, side of a clip in pixels.
        resize: short side in pixels before the test crops; None: the paper's crop of the short side.
        sampling: ``segments`` (one frame from each of T parts) or ``dense`` (T frames, ``frame_stride`` apart).
        frame_stride: distance of the frames in dense sampling.
        num_clips: test views in time.
        num_crops: test views in space, 1 or 3.
        horizontal_flip: mirror half of the training clips (default False). With ``swap_left_right`` a mirrored clip
            takes the class whose name has left and right, or clockwise and counterclockwise, the other way round; plain
            mirroring is not for such classes.
        scales: multi-scale cropping in training, fractions of the short side (default 1, 0.84, 0.59, 0.5).
        resize_range: in training the short side is resized to a random number of pixels in this range before the crop,
            in place of ``scales``; ``[256, 340]`` for example.
        crop_places: training crops lie ``anywhere`` in the frame, or in one of the four ``corners`` or the centre.
        train_crop_size: side of a training clip in pixels; None: ``crop_size``.
        mean, std: normalisation per colour on the scale 0..1.
        on_read_error: ``raise``, or ``replace`` an unreadable training video by another one, with a warning and a
            count in :attr:`read_errors`. Validation and test then leave such videos out and name them next to the
            scores; more than a tenth of them is an error. Prediction always raises.
        on_missing: ``raise`` if a listed file is missing, or ``drop`` it with a warning that says "N of M videos". A
            shard that is missing at a URL is an error when it is read.
        cache_decoded: keep decoded videos in memory; for small datasets.
        class_names: the class list, in place of ``classes.txt``.
        cache: folder for what is fetched from a URL, each in a folder of its own; None: ``spectral-video`` in the
            user's cache directory (``~/.cache``). Shards are fetched when they are first read, and stay there.
        **loading: see :class:`~common.datamodules.base.BaseDataModule`.
    """

    kind = "video"
    demo = "motion"

    def __init__(
        self,
        root: str | None = None,
        manifest: str | None = None,
        dataset: str | None = None,
        num_frames: int = 16,
        crop_size: int = 112,
        resize: int | None = None,
        sampling: Literal["segments", "dense"] = "segments",
        frame_stride: int = 1,
        num_clips: int = 1,
        num_crops: int = 1,
        horizontal_flip: bool | Literal["swap_left_right"] | None = None,
        scales: tuple[float, ...] | None = None,
        resize_range: tuple[int, int] | None = None,
        crop_places: CropPlaces = "anywhere",
        train_crop_size: int | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        on_read_error: Literal["raise", "replace"] = "raise",
        on_missing: Literal["raise", "drop"] = "raise",
        cache_decoded: bool = False,
        class_names: list[str] | None = None,
        cache: str | None = None,
        **loading: Any,
    ) -> None:
        super().__init__(**loading)
        card = with_dataset(
            dataset,
            "video",
            root=root,
            manifest=manifest,
            horizontal_flip=horizontal_flip,
            scales=scales,
            resize=resize,
            test_split=self.test_split,
        )
        check_range(1, None, train_crop_size=train_crop_size)
        check_choice("raise", "replace", on_read_error=on_read_error)
        check_choice("raise", "drop", on_missing=on_missing)
        scales = SCALES if card["scales"] is None else tuple(card["scales"])
        self.train_size = train_crop_size or crop_size
        if resize_range is not None and resize_range[0] < self.train_size:
            raise ValueError(f"resize_range is {tuple(resize_range)}; clips of {self.train_size} do not fit into it.")
        self.remote = RemoteShards.at(card["root"], cache) if is_url(card["root"]) else None
        self.root = self.remote.folder if self.remote is not None else Path(card["root"])
        self.dataset, self.manifest_path = dataset, card["manifest"]
        self.on_read_error, self.on_missing, self.cache_decoded = on_read_error, on_missing, cache_decoded
        self.test_split = card["test_split"]
        self.spec: ClipSpec = ClipSpec(
            num_frames, sampling, frame_stride, num_clips, num_crops, crop_size, card["resize"], mean, std
        )
        sides = None if resize_range is None else (int(resize_range[0]), int(resize_range[1]))
        flip = card["horizontal_flip"]
        self.swap_left_right = isinstance(flip, str)
        if self.swap_left_right:
            check_choice("swap_left_right", horizontal_flip=flip)
        self.augmentation = ClipAugmentation(scales, bool(flip), self.seed, sides, crop_places)
        self._given_names = class_names

    @property
    def train_spec(self) -> ClipSpec:
        """Length, sampling and size of a training clip."""
        return replace(self.spec, num_clips=1, num_crops=1, crop_size=self.train_size, resize=None)

    @property
    def val_spec(self) -> ClipSpec:
        """How the one central view of a validation video is made."""
        return replace(self.spec, num_clips=1, num_crops=1)

    def facts(self) -> dict[str, Any]:
        """The number of classes, and length and side of a clip."""
        return {**super().facts(), "num_frames": self.spec.num_frames, "input_size": self.spec.crop_size}

    @property
    def read_errors(self) -> int:
        """Number of unreadable training videos that were replaced so far, in this process and its workers."""
        return self.train_dataset.read_errors if self.train_dataset is not None else 0

    # -- parts ------------------------------------------------------------------------------------------------------

    @cached_property
    def _loaded(self) -> Manifest:
        if self.remote is not None:
            rank_zero_info(f"{self.remote.url}: shards are fetched into {self.root} when they are first read")
            return self.remote.read_manifest(self.manifest_path, self._given_names)
        self._check_root()
        path = self.root / (self.manifest_path or MANIFEST_FILE)
        if self.manifest_path is None and not path.is_file():
            return read_class_folders(self.root, self._given_names)
        if not path.is_file() and Path(str(self.manifest_path)).is_file():
            path = Path(str(self.manifest_path))
        if not path.is_file() and self.dataset is not None:
            raise DatasetError(
                f"{path} does not exist: {self._remedy()}, or, for your own videos in a folder with one sub-folder per "
                "class, set data.dataset to null."
            )
        return Manifest.read(path, self.root, class_names=self._given_names)

    def _splits(self) -> Sequence[str]:
        return self._loaded.splits()

    def _scored_split(self) -> str:
        manifest = self._loaded
        return "test" if "test" in manifest.splits() and not manifest.split("test").unlabelled() else "val"

    def _present(self, split: str) -> Manifest:
        """The entries of a split whose files exist; of remote shards, all."""
        if self.remote is not None:
            return self._loaded.split(split)
        manifest, missing = self._loaded.split(split).present()
        if missing:
            lines = shorten([f"  {entry.path}" for entry in missing])
            text = f"{manifest.source}, split {split}: {manifest.counts()} are in {manifest.root}; missing:\n{lines}"
            if self.on_missing == "raise" or not manifest.entries:
                raise DatasetError(f"{text}\nCorrect `root`, add the files, or set on_missing to drop.")
            warnings.warn(text, stacklevel=3)
        return manifest

    def _train_dataset(self) -> TrainVideos:
        part = self._present("train")
        counts = part.class_counts()
        if empty := [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]:
            names = shorten(empty).replace("\n", ", ")
            warnings.warn(f"{len(empty)} classes have no training videos: {names}.", stacklevel=2)
        replaced = self.on_read_error == "replace"
        labels = mirrored_labels(self.class_names) if self.swap_left_right else None
        options = (replaced, part.expected, self.cache_decoded, labels, self.remote)
        return TrainVideos(part.items(), self.train_spec, self.augmentation, *options)

    def _eval_dataset(self, split: str, stage: str) -> EvalVideos:
        part = self._present(split)
        if stage != "predict" and (bare := part.unlabelled()):
            raise DatasetError(
                f"{part.source}:{bare[0].line}: {len(bare)} videos of split {split} lack a label, so they cannot be "
                "scored; predict them, or set test_split to another split."
            )
        spec = self.val_spec if stage == "validate" else self.spec
        leave_out = self.on_read_error == "replace" and stage != "predict"
        return EvalVideos(part.items(), spec, part.expected, self.cache_decoded, leave_out, self.remote)

    def _files_dataset(self, paths: Sequence[str]) -> EvalVideos:
        return EvalVideos([Item(str(path)) for path in find_files(paths, "video")], self.spec)


#: words that a mirror exchanges
MIRRORED = {"left": "right", "right": "left", "clockwise": "counterclockwise", "counterclockwise": "clockwise"}
_SIDE = re.compile(rf"(?<![a-z])({'|'.join(MIRRORED)})(?![a-z])", re.IGNORECASE)


def mirrored_labels(class_names: Sequence[str]) -> list[int]:
    """For each class, that of its mirrored clips: itself, or the one whose name has the words of `MIRRORED` exchanged.

    Raises:
        DatasetError: that class does not exist, or no class name has such a word.
    """

    def mirrored(name: str) -> str:
        return _SIDE.sub(lambda word: MIRRORED[word[0].lower()], name.lower())

    places = {name.lower(): label for label, name in enumerate(class_names) if _SIDE.search(name)}
    if missing := [name for name in class_names if _SIDE.search(name) and mirrored(name) not in places]:
        raise DatasetError(
            "horizontal_flip is swap_left_right, but these classes have no counterpart: "
            f"{', '.join(missing[:5])}. Set it to false."
        )
    if not places:
        raise DatasetError("horizontal_flip is swap_left_right, but no class name says left or right. Set it to true.")
    return [places[mirrored(name)] if _SIDE.search(name) else label for label, name in enumerate(class_names)]
