"""Classification scores of videos and images, and tables of predictions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torchmetrics.functional.classification import multiclass_calibration_error

from common.evaluation.item_scores import ItemScores


def combine_views(logits: Tensor, video_index: Tensor, average: str = "probabilities") -> tuple[Tensor, Tensor, Tensor]:
    """Average the views of each video.

    Args:
        logits: (views, classes), any floating type; converted to float32.
        video_index: (views,) integer; views with the same number belong to the same video.
        average: ``"probabilities"``: mean of the softmax of the views; ``"logits"``: mean of the logits.

    Returns:
        ``scores`` (videos, classes) float32: the softmax of a row gives the video's class probabilities (for
        ``"probabilities"`` the row is the logarithm of the mean probability, which keeps the loss finite where a
        probability underflows); ``index`` (videos,) ascending; ``first`` (videos,) position of each video's first view.
    """
    logits = logits.float()
    index = torch.unique(video_index)
    scores, first = [], []
    for i in index:  # one small mean per video: an atomic scatter-add on a GPU is not deterministic
        views = torch.nonzero(video_index == i).flatten()
        if average == "probabilities":
            score = torch.logsumexp(F.log_softmax(logits[views], dim=1), dim=0) - torch.log(
                logits.new_tensor(len(views))
            )
        elif average == "logits":
            score = logits[views].mean(dim=0)
        else:
            raise ValueError(f"average is {average!r}; it is 'probabilities' or 'logits'")
        scores.append(score)
        first.append(views[0])
    return torch.stack(scores), index, torch.stack(first)


class VideoResult:
    """Scores of a set of videos.

    Args:
        scores: (videos, classes); the softmax of a row is the video's class probabilities.
        label: (videos,) int64 in ``[0, classes)``.
        video_index: (videos,) int64.
        repeated: (videos,) number of views that equal another one of the video, which is too short for all.
        view_top1: (videos,) fraction of the video's views that are classified correctly; None: each has one view.
        label_smoothing: of the loss, see :func:`torch.nn.functional.cross_entropy`.
        class_weights: of the loss, one for each class; None: all are equal.

    Attributes:
        top1, top5: fraction of the videos whose class has the highest score, or is among the ``min(5, classes)``
            highest, in [0, 1].
        view_top1: top-1 accuracy of single views, "clip accuracy" where a view is a clip, in [0, 1]; None: there is one
            view of each video.
        mean_class: top-1 accuracy of each class that occurs, averaged over these classes, in [0, 1].
        loss: mean cross-entropy in nats, with label smoothing and class weights.
        ece: expected calibration error: difference of the highest probability and top-1 accuracy, averaged over 15 bins
            of that probability by their videos, in [0, 1].
        videos: number of videos.
        repeated_views: sum of ``repeated``.
        probabilities: (videos, classes) float64.
        confusion: (classes, classes) int64, row: label, column: prediction.
    """

    def __init__(
        self,
        scores: Tensor,
        label: Tensor,
        video_index: Tensor,
        repeated: Tensor,
        view_top1: Tensor | None = None,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
    ) -> None:
        classes = scores.shape[1]
        log_probabilities = F.log_softmax(scores.double(), dim=1)
        top = scores.topk(min(5, classes), dim=1).indices
        hit = top == label[:, None]
        self.confusion = torch.zeros(classes, classes, dtype=torch.int64)
        self.confusion.index_put_((label, top[:, 0]), torch.ones_like(label), accumulate=True)
        support = self.confusion.sum(dim=1)
        recall = self.confusion.diagonal()[support > 0].double() / support[support > 0]
        self.top1 = hit[:, 0].double().mean().item()
        self.top5 = hit.any(dim=1).double().mean().item()
        self.view_top1 = None if view_top1 is None else view_top1.mean().item()
        self.mean_class = recall.mean().item()
        weight = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float64)
        self.loss = F.cross_entropy(scores.double(), label, weight, label_smoothing=label_smoothing).item()
        self.videos = len(label)
        self.repeated_views = int(repeated.sum())
        self.label = label
        self.video_index = video_index
        self.probabilities = log_probabilities.exp()
        self.ece = multiclass_calibration_error(self.probabilities, label, classes, validate_args=False).item()

    def metrics(self) -> dict[str, float]:
        """The numbers by name."""
        names = ("top1", "top5", *(() if self.view_top1 is None else ("view_top1",)), "mean_class", "ece", "loss")
        return {name: getattr(self, name) for name in names}

    def class_table(self, class_names: list[str]) -> list[dict[str, Any]]:
        """One row for each class: ``class``, ``videos``, ``top1`` (empty without videos), and the class that it is most
        often taken for, ``mistaken_for``, with ``times``."""
        rows = []
        for k, (name, counts) in enumerate(zip(class_names, self.confusion, strict=True)):
            videos, wrong = int(counts.sum()), counts.clone()
            wrong[k] = 0
            times, other = wrong.max(dim=0)
            row = {"class": name, "videos": videos, "top1": round(int(counts[k]) / videos, 6) if videos else ""}
            rows.append(row | {"mistaken_for": class_names[int(other)] if times else "", "times": int(times)})
        return rows


class VideoScores(ItemScores):
    """Collects one row of scores per video; :meth:`compute` returns a :class:`VideoResult`.

    Args:
        num_classes: number of classes; labels are in ``[0, num_classes)``.
        label_smoothing, class_weights: of the loss, see :class:`VideoResult`.
    """

    def __init__(
        self,
        num_classes: int,
        label_smoothing: float = 0.0,
        class_weights: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        numbers = torch.empty(0, dtype=torch.int64)
        rows = {"scores": torch.empty(0, num_classes), "label": numbers, "repeated": numbers}
        rows["view_top1"] = torch.empty(0, dtype=torch.float64)
        super().__init__(rows, kind="video", **kwargs)
        self.num_classes = num_classes
        self.label_smoothing, self.class_weights = label_smoothing, class_weights

    def update(  # type: ignore[override]
        self,
        scores: Tensor,
        label: Tensor,
        video_index: Tensor,
        repeated: Tensor | None = None,
        view_top1: Tensor | None = None,
    ) -> None:
        """Add videos.

        Args:
            scores: (videos, classes); the softmax of a row gives the video's class probabilities.
            label: (videos,) integer.
            video_index: (videos,) integer, unique in the dataset. A video added twice counts once.
            repeated: (videos,) integer, views that equal another one of the video; None: none.
            view_top1: (videos,) fraction of the video's views that are classified correctly; None: each has one view.

        Raises:
            ValueError: a shape is wrong, or a label lies outside the classes.
        """
        if scores.shape[1:] != (self.num_classes,) or not (len(scores) == len(label) == len(video_index)):
            raise ValueError(
                f"VideoScores takes scores (videos, {self.num_classes}), label (videos,) and video_index (videos,); "
                f"got {tuple(scores.shape)}, {tuple(label.shape)} and {tuple(video_index.shape)}"
            )
        wrong = (label < 0) | (label >= self.num_classes)
        if wrong.any():
            raise ValueError(
                f"video {video_index[wrong][0].item()} has label {label[wrong][0].item()}, "
                f"but the labels of {self.num_classes} classes are 0 to {self.num_classes - 1}; check the manifest"
            )
        repeated = torch.zeros_like(video_index) if repeated is None else repeated
        view_top1 = torch.full_like(video_index, torch.nan, dtype=torch.float64) if view_top1 is None else view_top1
        super().update(scores=scores, label=label, repeated=repeated, view_top1=view_top1, index=video_index)

    def compute(self) -> VideoResult:
        """The result over all videos of all processes. Raises ValueError if no video was added."""
        found = super().compute()
        view_top1 = None if found.view_top1.isnan().any() else found.view_top1
        loss = (self.label_smoothing, self.class_weights)
        return VideoResult(found.scores, found.label, found.index, found.repeated, view_top1, *loss)


def prediction_table(
    probabilities: Tensor, class_names: list[str], paths: list[str], label: Tensor | None = None, top: int = 5
) -> list[dict[str, Any]]:
    """One plain row per video, ready for a CSV file.

    Args:
        probabilities: (videos, classes).
        class_names: name of each class.
        paths: path of each video.
        label: (videos,) the true classes, or None.
        top: number of predicted classes per row, at most the number of classes.

    Returns:
        Dicts with ``path``, with ``label`` also ``label`` (its name) and ``correct`` (0 or 1), then ``top1``, ``p1``,
        ``top2``, ``p2``, ...: class names and probabilities, the most probable first.
    """
    values, classes = probabilities.topk(min(top, probabilities.shape[1]), dim=1)
    rows = []
    for i, path in enumerate(paths):
        row: dict[str, Any] = {"path": path}
        if label is not None:
            row["label"] = class_names[int(label[i])]
            row["correct"] = int(classes[i, 0] == label[i])
        for k in range(values.shape[1]):
            row[f"top{k + 1}"] = class_names[int(classes[i, k])]
            row[f"p{k + 1}"] = round(values[i, k].item(), 6)
        rows.append(row)
    return rows
