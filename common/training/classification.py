"""The bases of modules that classify videos and images: loss, metrics, multi-view testing, tables of predictions."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.pytorch.utilities.rank_zero import rank_zero_info, rank_zero_warn
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.classification import MulticlassAccuracy

from common.datamodules.image_dataset import ImageSpec, load_image
from common.datamodules.video_clips import ClipSpec, load_views
from common.evaluation.figures import clip_figure
from common.evaluation.scores import VideoResult, VideoScores, combine_views, prediction_table
from common.output_files import write_rows
from common.training.predict import ClassPredictor
from common.training.predict_windows import VideoClassPredictor
from common.training.task import TaskModule


class ClassificationModule(TaskModule):
    """Trains and tests a network on labelled videos or images.

    A batch is a dict, here for a subclass with ``kind = "video"``: ``video`` (N, ...) float, ``label`` (N,) int64,
    ``video_index`` (N,) int64 and, in evaluation, ``path`` (N strings). In evaluation N counts views; all views of a
    video lie in one batch. ``build_network`` makes a network (B, ...) -> logits (B, num_classes).

    A subclass sets ``kind`` and implements ``load_views``.

    Args:
        num_classes: number of classes, the length of the network's output; taken from the data by ``spectral``.
        views_per_forward: views passed through the network at once in evaluation. Bounds the memory, not the result.
        average: how the views of a video are combined: mean of ``"probabilities"`` or of ``"logits"``.
        label_smoothing: of :func:`torch.nn.functional.cross_entropy`, in [0, 1). Like ``class_weights``, it applies to
            the loss in training, validation and test, as in torchvision's references; other metrics do not change.
        class_weights: a positive weight for each class, its argument ``weight``; None: all are equal.
        kwargs: ``pretrained``, ``imagenet`` and ``compile`` of :class:`~common.training.task.TaskModule`.

    Raises:
        ValueError: ``num_classes`` is not given, or ``label_smoothing`` or ``class_weights`` is wrong.
    """

    output = "class"
    names_source = "classes.txt next to the manifest"
    score = "top1"
    predictor = ClassPredictor
    result: VideoResult
    class_weights: Tensor | None

    PICTURED_CLIPS = 4
    PICTURED_FRAMES = 8
    NAMED_CLASSES = 60  # above, the names on the axes of the confusion matrix would overlap

    def __init__(
        self,
        num_classes: int | None = None,
        *,
        views_per_forward: int = 32,
        average: Literal["probabilities", "logits"] = "probabilities",
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if num_classes is None:
            raise ValueError(
                "num_classes is not known: give it, or train with `spectral`, which takes it from the data"
            )
        if not 0 <= label_smoothing < 1:
            raise ValueError(f"label_smoothing is {label_smoothing}: give a number from 0 to below 1")
        if class_weights is not None:
            limits = torch.finfo(torch.float32)
            wrong = [weight for weight in class_weights if not limits.tiny <= weight <= limits.max]
            if wrong or len(class_weights) != num_classes:
                raise ValueError(
                    f"class_weights has {f'the value {wrong[0]}' if wrong else f'{len(class_weights)} values'}: give "
                    f"one positive, finite weight for each of the {num_classes} classes"
                )
        super().__init__(**kwargs)
        self.num_classes = self.num_outputs = num_classes
        self.views_per_forward = views_per_forward
        self.average = average
        self.train_top1 = MulticlassAccuracy(num_classes, average="micro", validate_args=False)
        self.scores = VideoScores(num_classes, label_smoothing, class_weights)
        self.label_smoothing = label_smoothing
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("class_weights", weights, persistent=False)

    def load_views(self, path: str | Path) -> Tensor:
        """The views (V, ...) of one file, made as ``spec`` says. Raises VideoReadError if it cannot be read."""
        raise NotImplementedError

    # -- training ------------------------------------------------------------------------------------------------

    def cross_entropy(self, logits: Tensor, label: Tensor) -> Tensor:
        """Mean cross-entropy of logits (N, num_classes) and labels (N,), with label smoothing and class weights."""
        # logits may come from a network that was moved before this module, as for compression
        weight = None if self.class_weights is None else self.class_weights.to(logits.device)
        return F.cross_entropy(logits, label, weight, label_smoothing=self.label_smoothing)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """The loss of the batch."""
        logits = self(batch[self.kind])
        loss = self.cross_entropy(logits, batch["label"])
        self.log_loss(loss, batch, batch_idx)
        size = len(batch["label"])
        self.train_top1.update(logits.detach().float(), batch["label"])
        self.log("train_top1", self.train_top1, on_step=False, on_epoch=True, prog_bar=True, batch_size=size)
        return loss

    # -- evaluation ----------------------------------------------------------------------------------------------

    def forward_views(self, views: Tensor) -> Tensor:
        """Logits of many views, ``views_per_forward`` at a time: (V, ...) -> (V, num_classes) float32."""
        return torch.cat([self(part).float() for part in views.split(self.views_per_forward)])

    def evaluate_batch(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Add the videos of a batch to the scores.

        Returns:
            ``scores`` (videos, classes) and ``first`` (videos,), see :func:`common.evaluation.scores.combine_views`.
        """
        logits = self.forward_views(batch[self.kind])
        self.check_finite(logits, batch)
        scores, index, first = combine_views(logits, batch[f"{self.kind}_index"], self.average)
        repeated = batch["repeated"][first] if "repeated" in batch else None
        self.views_per_video = len(logits) // len(index)
        view_top1 = None
        if self.views_per_video > 1:
            right = (logits.argmax(dim=1) == batch["label"]).double()
            view_top1 = torch.stack([right[batch[f"{self.kind}_index"] == i].mean() for i in index])
        self.scores.update(scores, batch["label"][first], index, repeated, view_top1)
        return {"scores": scores, "first": first}

    def predict_step(self, batch: Mapping[str, Any], batch_idx: int) -> dict[str, Any]:
        """``path`` of each file of the batch, and ``output``: class probabilities (files, classes) over its views."""
        logits = self.forward_views(batch[self.kind])
        scores, _, first = combine_views(logits, batch[f"{self.kind}_index"], self.average)
        return {"path": [batch["path"][int(i)] for i in first], "output": scores.softmax(dim=1).cpu()}

    def result_facts(self) -> dict[str, Any]:
        """How views are averaged, and how many views equal others because their videos are too short."""
        repeated, views = self.result.repeated_views, self.result.videos * self.views_per_video
        if repeated:
            rank_zero_warn(f"{repeated} of {views} views equal others of their videos, which are too short for more.")
        return {"average": self.average, "repeated_views": repeated}

    def write_predictions(self, folder: Path) -> Path:
        path = folder / "predictions.csv"
        write_rows(path, self._predictions())
        classes = self.result.class_table(self.names)
        write_rows(folder / "classes.csv", classes)
        worst = sorted((row for row in classes if row["times"]), key=lambda row: -row["times"] / row["videos"])[:3]
        for row in worst:
            rank_zero_info(f"{row['class']} taken for {row['mistaken_for']}: {row['times']} of {row['videos']}")
        return path

    def _predictions(self) -> list[dict[str, Any]]:
        """A row for each file, see `prediction_table`."""
        paths = [self.paths.get(int(i), str(int(i))) for i in self.result.video_index]
        return prediction_table(self.result.probabilities, self.names, paths, self.result.label)

    def batch_figures(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """The first clips with their predictions."""
        first, names = outputs["first"][: self.PICTURED_CLIPS], self.names
        probability, prediction = outputs["scores"].softmax(dim=1).max(dim=1)
        captions = [
            f"{names[int(batch['label'][k])]}: predicted {names[int(prediction[i])]} ({probability[i]:.2f})"
            for i, k in enumerate(first)
        ]
        return {"clips": clip_figure(batch[self.kind][first], captions, self.PICTURED_FRAMES)}

    def result_figures(self) -> dict[str, Figure]:
        """The confusion matrix."""
        if self.result is None:
            return {}
        from common.reporting.plots import confusion_matrices

        names = self.names if self.num_classes <= self.NAMED_CLASSES else []
        return {"confusion matrix": confusion_matrices({"": self.result.confusion}, names)}

    def describe_result(self, report: Any, root: Path | None) -> None:
        from common.training.run_page import add_classes, add_mistakes

        add_classes(report, self.result.class_table(self.names), self.kind)
        add_mistakes(report, self._predictions(), root)
        super().describe_result(report, root)

    @torch.inference_mode()
    def predict_views(self, views: Tensor) -> Tensor:
        """Class probabilities of one file: its views (V, ...) -> (num_classes,) float32."""
        logits = self.forward_views(views.to(self.device))
        index = torch.zeros(len(logits), dtype=torch.int64, device=logits.device)
        return combine_views(logits, index, self.average)[0][0].softmax(dim=0)


class VideoClassificationModule(ClassificationModule):
    """The base for ``common.datamodules.VideoDataModule``; ``build_network``: (B, C, T, H, W) -> (B, num_classes)."""

    kind = "video"
    spec_class = ClipSpec
    predictor = VideoClassPredictor

    def load_views(self, path: str | Path) -> Tensor:
        return load_views(path, ClipSpec.from_dict(self.spec or {}))


class ImageClassificationModule(ClassificationModule):
    """The base for ``common.datamodules.ImageDataModule``; ``build_network``: (B, 3, H, W) -> (B, num_classes)."""

    kind = "image"
    spec_class = ImageSpec

    def load_views(self, path: str | Path) -> Tensor:
        return load_image(path, ImageSpec.from_dict(self.spec or {}))[None]
