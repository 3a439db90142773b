"""The Lightning data module for video classification."""

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from common.datamodules.clip_spec import ClipSpec
from common.datamodules.datasets import with_dataset
from common.datamodules.folders import find_files, read_class_folders
from common.datamodules.loading import (
    EvalDataset,
    LabelledDataModule,
    TrainDataset,
    manifest_items,
    path_items,
)
from common.datamodules.manifest import MAX_REPORTED, Manifest, ManifestError
from common.datamodules.transforms import IMAGENET_MEAN, IMAGENET_STD, SCALES


class VideoDataModule(LabelledDataModule):
    """Videos with one label each, from a manifest or from a folder with one sub-folder per class.

    A training batch is a dict: ``video`` float32 (B, 3, T, S, S), ``label`` int64 (B,), ``video_index`` int64 (B,).
    Validation, test and prediction batches hold whole videos, an entry per view: ``video`` (sum of V, 3, T, S, S),
    ``label``, ``video_index`` and ``path`` (list of str). Validation uses one central view, test and prediction
    ``num_clips * num_crops`` views. ``label`` is -1 where it is not known (prediction).

    The trainer must be made with ``use_distributed_sampler=False``; the samplers share the videos out themselves.

    Args:
        dataset: a known dataset, whose entry in ``common/datamodules/datasets.yaml`` gives what is not given here:
            root, manifest, test split, whether clips may be mirrored. None: your own videos.
        root: folder of the videos.
        manifest: CSV file (see :mod:`common.datamodules.manifest`), relative to ``root`` or to the current folder.
            None: ``manifest.csv`` in ``root`` if there is one; otherwise the folders of ``root`` are the classes,
            below ``train/``, ``val/`` and ``test/`` if those exist.
        batch_size: training videos per step and process.
        num_frames: T, frames of a clip.
        crop_size: S, side of a clip in pixels.
        resize: short side in pixels before the test crops; None: the paper's crop of the short side.
        sampling: ``segments`` (one frame from each of T parts) or ``dense`` (T frames, ``frame_stride`` apart).
        frame_stride: distance of the frames in dense sampling.
        num_clips: test views in time.
        num_crops: test views in space, 1 or 3.
        horizontal_flip: mirror half of the training clips (default False). Not for classes that differ by left and
            right.
        scales: multi-scale cropping in training, fractions of the short side (default 1, 0.875, 0.75, 0.66).
        resize_range: in training the short side is resized to a random number of pixels in this range before the crop,
            in place of ``scales``; ``[256, 340]`` for example.
        train_crop_size: side of a training clip in pixels; None: ``crop_size``.
        mean, std: normalisation per colour on the scale 0..1.
        num_workers: loader processes.
        eval_batch_size: videos per evaluation batch; None: as many as give about ``batch_size`` views.
        on_read_error: ``raise``, or ``replace`` an unreadable training video by another one, with a warning and a
            count in :attr:`read_errors`. Evaluation always raises.
        on_missing: ``raise`` if a listed file is missing, or ``drop`` it with a warning that says "N of M videos".
        seed: of the order and of the augmentation; None: that of `seed_everything`, 0 without one.
        drop_last: leave out a last training step that is not full.
        cache_decoded: keep decoded videos in memory; for small data sets.
        test_split: split to test on; None: ``test`` if its videos have labels, otherwise ``val``.
        class_names: the class list, before ``classes.txt``.
        predict_paths: files, folders or .txt lists to predict; None: the test split.

    Raises:
        ValueError, ManifestError: in the constructor for values out of range, in :meth:`setup` for wrong data.
    """

    kind = "video"

    def __init__(
        self,
        root: str | None = None,
        manifest: str | None = None,
        dataset: str | None = None,
        batch_size: int = 32,
        num_frames: int = 16,
        crop_size: int = 112,
        resize: int | None = None,
        sampling: Literal["segments", "dense"] = "segments",
        frame_stride: int = 1,
        num_clips: int = 1,
        num_crops: int = 1,
        horizontal_flip: bool | None = None,
        scales: tuple[float, ...] | None = None,
        resize_range: tuple[int, int] | None = None,
        train_crop_size: int | None = None,
        mean: tuple[float, float, float] = IMAGENET_MEAN,
        std: tuple[float, float, float] = IMAGENET_STD,
        num_workers: int = 2,
        eval_batch_size: int | None = None,
        on_read_error: Literal["raise", "replace"] = "raise",
        on_missing: Literal["raise", "drop"] = "raise",
        seed: int | None = None,
        drop_last: bool = False,
        cache_decoded: bool = False,
        test_split: Literal["train", "val", "test"] | None = None,
        class_names: list[str] | None = None,
        predict_paths: list[str] | None = None,
    ) -> None:
        super().__init__(batch_size, eval_batch_size, num_workers, seed, drop_last)
        known = with_dataset(
            dataset,
            "video",
            root=root,
            manifest=manifest,
            horizontal_flip=horizontal_flip,
            scales=scales,
            resize=resize,
            test_split=test_split,
        )
        scales = SCALES if known["scales"] is None else known["scales"]
        resize, test_split = known["resize"], known["test_split"]
        if not scales or not all(0 < scale <= 1 for scale in scales):
            raise ValueError(f"scales is {tuple(scales)}; give fractions of the short side, above 0 and at most 1.")
        if train_crop_size is not None and train_crop_size < 1:
            raise ValueError(f"train_crop_size is {train_crop_size}; it must be at least 1.")
        if resize_range is not None and not (train_crop_size or crop_size) <= resize_range[0] <= resize_range[1]:
            raise ValueError(
                f"resize_range is {tuple(resize_range)}; give the smallest and the largest short side, "
                f"neither below the side of a training clip ({train_crop_size or crop_size})."
            )
        if on_read_error not in ("raise", "replace"):
            raise ValueError(f"on_read_error is {on_read_error!r}; it must be raise or replace.")
        if on_missing not in ("raise", "drop"):
            raise ValueError(f"on_missing is {on_missing!r}; it must be raise or drop.")
        self.dataset = dataset
        self.root, self.manifest_path = Path(known["root"]), known["manifest"]
        self.horizontal_flip = bool(known["horizontal_flip"])
        self.scales, self.cache_decoded = tuple(scales), cache_decoded
        self.resize_range = None if resize_range is None else (int(resize_range[0]), int(resize_range[1]))
        self.on_read_error, self.on_missing, self.test_split = on_read_error, on_missing, test_split
        self.predict_paths = predict_paths
        self._given_names = class_names
        self.clip_spec = ClipSpec(
            num_frames, sampling, frame_stride, num_clips, num_crops, crop_size, resize, mean, std
        )
        self.val_spec = replace(self.clip_spec, num_clips=1, num_crops=1)
        self.train_spec = replace(self.val_spec, crop_size=train_crop_size or crop_size, resize=None)
        self.manifest: Manifest | None = None

    # -- facts after setup ------------------------------------------------------------------------------------------

    @property
    def spec(self) -> ClipSpec:
        """How the test views of a video are made."""
        return self.clip_spec

    def facts(self) -> dict[str, Any]:
        """What a module takes from the data: the number of classes, and length and side of a clip."""
        spec = self.clip_spec
        return {**super().facts(), "num_frames": spec.num_frames, "input_size": spec.crop_size}

    @property
    def read_errors(self) -> int:
        """Unreadable training videos that were replaced so far, in this process and its workers."""
        return self.train_dataset.read_errors if self.train_dataset is not None else 0

    def describe(self) -> str:
        """What was found, in lines for printing: classes, videos per split, the manifest's hash."""
        lines = []
        if self.manifest is not None:
            manifest = self.manifest
            lines.append(f"{manifest.source}: {len(manifest.class_names)} classes, manifest {manifest.hash[:12]}")
        for name in ("train", "val", "test", "predict"):
            dataset = getattr(self, f"{name}_dataset")
            if dataset is not None:
                shape = f"{dataset.spec.num_views} x " if name in ("test", "predict") else ""
                lines.append(
                    f"{name}: {len(dataset)} of {dataset.videos_expected} videos, {shape}{dataset.spec.num_frames} "
                    f"frames of {dataset.spec.crop_size} x {dataset.spec.crop_size}"
                )
        if self.read_errors:
            lines.append(f"{self.read_errors} unreadable training videos were replaced")
        return "\n".join(lines)

    # -- Lightning --------------------------------------------------------------------------------------------------

    def setup(self, stage: str | None = None) -> None:
        """Read and check the manifest and make the datasets of the stage (fit, validate, test, predict; None: all).

        Raises:
            ManifestError: no root, wrong lines, missing files, labels outside the class list, no videos for the stage.
        """
        if stage == "predict" and self.predict_paths is not None:
            items = path_items(find_files(self.predict_paths, "video"))
            self.predict_dataset = EvalDataset(items, self.clip_spec)
            return
        if self.manifest is None:
            self.manifest = self._read_manifest()
        have = self.manifest.splits()
        if stage in (None, "fit") and self.train_dataset is None:
            part = self._present("train")
            counts = part.class_counts()
            if empty := [name for name, count in zip(self.class_names, counts, strict=True) if count == 0]:
                shown = ", ".join(empty[:MAX_REPORTED]) + (", ..." if len(empty) > MAX_REPORTED else "")
                warnings.warn(f"{len(empty)} classes have no training videos: {shown}.", stacklevel=2)
            self.train_dataset = TrainDataset(
                manifest_items(part),
                self.train_spec,
                self.scales,
                self.horizontal_flip,
                self.seed,
                self.on_read_error == "replace",
                part.expected,
                self.cache_decoded,
                self.resize_range,
            )
        if stage in (None, "fit", "validate") and self.val_dataset is None and ("val" in have or stage == "validate"):
            self.val_dataset = self._eval_dataset("val", self.val_spec)
        if stage in (None, "test") and self.test_dataset is None and (stage or self._test_split() in have):
            self.test_dataset = self._eval_dataset(self._test_split(), self.clip_spec)
        if stage == "predict" and self.predict_dataset is None:
            split = self.test_split or ("test" if "test" in have else "val")
            self.predict_dataset = self._eval_dataset(split, self.clip_spec, labelled=False)

    # -- parts ------------------------------------------------------------------------------------------------------

    def _loaded(self) -> Manifest:
        if self.manifest is None:
            self.manifest = self._read_manifest()
        return self.manifest

    def _read_manifest(self) -> Manifest:
        path = self.root / (self.manifest_path or "manifest.csv")
        if self.manifest_path is None and not path.is_file():
            return read_class_folders(self.root, self._given_names)
        if not path.is_file() and Path(str(self.manifest_path)).is_file():
            path = Path(str(self.manifest_path))
        if not path.is_file() and self.dataset is not None:
            raise ManifestError(
                f"{path} does not exist: prepare the dataset with `python -m data.prepare {self.dataset}`, or, for "
                "your own videos in a folder with one sub-folder per class, set data.dataset to null"
            )
        return Manifest.read(path, self.root, class_names=self._given_names)

    def _present(self, split: str) -> Manifest:
        """The entries of a split whose files exist."""
        manifest, missing = self._loaded().split(split).present()
        if missing:
            shown = "\n".join(f"  {entry.path}" for entry in missing[:MAX_REPORTED])
            text = f"{manifest.source}, split {split}: {manifest.counts()} are in {manifest.root}; missing:\n{shown}"
            text += f"\n  and {len(missing) - MAX_REPORTED} more" if len(missing) > MAX_REPORTED else ""
            if self.on_missing == "raise" or not manifest.entries:
                raise ManifestError(f"{text}\nCorrect `root`, add the files, or set on_missing to drop.")
            warnings.warn(text, stacklevel=3)
        return manifest

    def _test_split(self) -> str:
        if self.test_split is not None:
            return self.test_split
        entries = [entry for entry in self._loaded().entries if entry.split == "test"]
        return "test" if entries and all(entry.label is not None for entry in entries) else "val"

    def _eval_dataset(self, split: str, spec: ClipSpec, labelled: bool = True) -> EvalDataset:
        part = self._present(split)
        if labelled and (bare := [entry for entry in part.entries if entry.label is None]):
            raise ManifestError(
                f"{part.source}:{bare[0].line}: {len(bare)} videos of split {split} have no label, so they cannot be "
                f"scored; predict them, or set test_split to another split."
            )
        return EvalDataset(manifest_items(part), spec, part.expected, self.cache_decoded)
