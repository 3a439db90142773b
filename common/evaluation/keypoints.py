"""From heatmaps to keypoints, and their score by object keypoint similarity (OKS), as in SimpleBaseline.

OKS and its averages are computed by pycocotools; this module adds decoding, rescoring and the removal of duplicates.
"""

import contextlib
import copy
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval, Params
from torch import Tensor

#: the ten numbers of COCOeval for keypoints, in its order
METRICS = ("ap", "ap50", "ap75", "ap_medium", "ap_large", "ar", "ar50", "ar75", "ar_medium", "ar_large")
CONFIDENT = 0.2  # keypoints below do not count towards a person's score
SAME_PERSON = 0.9  # OKS above which two detections are one person


def mirror_heatmaps(heatmaps: Tensor, order: Sequence[int], shift: bool = True) -> Tensor:
    """Turn heatmaps (N, J, H, W) of mirrored crops into heatmaps of the crops themselves.

    Args:
        heatmaps: of the mirrored crops.
        order: for every keypoint the one that takes its place in the mirror image.
        shift: move the result one pixel to the right (the first column stays): pixel x of a crop, mirrored to
            width - 1 - x, does not lie at the mirrored pixel of a heatmap of a quarter of its size.
    """
    mirrored = heatmaps[:, list(order)].flip(3)
    return torch.cat([mirrored[..., :1], mirrored[..., :-1]], dim=3) if shift else mirrored


def decode_heatmaps(heatmaps: Tensor, quarter_offset: bool = True) -> Tensor:
    """Position and height of the maximum of each heatmap: (N, J, H, W) -> (N, J, 3) float32: x, y, height.

    With ``quarter_offset`` a position inside the heatmap moves by a quarter of a pixel along each axis, towards the
    larger of its two neighbours. Where no value is above 0 the position is (0, 0).
    """
    heatmaps = heatmaps.float()
    height, width = heatmaps.shape[-2:]
    top, position = heatmaps.flatten(2).max(dim=2)
    x, y = position % width, position // width
    points = torch.stack([x, y], dim=-1).float() * (top > 0)[..., None]
    if quarter_offset and min(height, width) >= 3:
        padded = torch.nn.functional.pad(heatmaps, (1, 1, 1, 1)).flatten(2)

        def value(dx: int, dy: int) -> Tensor:
            return padded.gather(2, ((y + dy + 1) * (width + 2) + x + dx + 1)[..., None]).squeeze(-1)

        slope = torch.stack([value(1, 0) - value(-1, 0), value(0, 1) - value(0, -1)], dim=-1)
        inside = (x > 1) & (x < width - 1) & (y > 1) & (y < height - 1) & (top > 0)
        points += 0.25 * slope.sign() * inside[..., None]
    return torch.cat([points, top[..., None]], dim=-1)


def to_image(points: Tensor, centre: Tensor, size: Tensor, heatmap_size: tuple[int, int]) -> Tensor:
    """Map decoded points (N, J, 3) from heatmap to image coordinates, float64; the third value is unchanged.

    Args:
        points: x, y and height in the heatmaps.
        centre, size: (N, 2) of the boxes in the image, x before y.
        heatmap_size: height and width of the heatmaps.
    """
    points = points.double()
    middle = points.new_tensor([heatmap_size[1] / 2, heatmap_size[0] / 2])
    factor = size.double()[:, None, :1] / heatmap_size[1]
    xy = (points[..., :2] - middle) * factor + centre.double()[:, None]
    return torch.cat([xy, points[..., 2:]], dim=-1)


@dataclass(frozen=True)
class KeypointResult:
    """Result of an evaluation.

    Attributes:
        videos: number of persons evaluated.
        detections: the persons left after the removal of duplicates, in COCO's results format.
        scores: see :func:`evaluate_oks`.
        loss: mean heatmap loss; None if the boxes are detections.
        losses: image file, name and heatmap loss of every person of whom it is known.
    """

    videos: int
    detections: list[dict[str, Any]]
    scores: dict[str, float]
    loss: float | None
    losses: list[tuple[str, str, float]]

    def metrics(self) -> dict[str, float]:
        """The scores, and the loss if it is known."""
        return {**self.scores, **({} if self.loss is None else {"loss": self.loss})}


def oks_between(points: NDArray, area: float, others: NDArray, areas: NDArray, sigmas: NDArray) -> NDArray:
    """OKS of one prediction (J, 2) with others (M, J, 2), at the mean of their areas: (M,)."""
    squared = ((others - points) ** 2).sum(axis=-1)
    scale = (area + areas)[:, None] / 2 + np.spacing(1)
    return np.exp(-squared / (2 * sigmas) ** 2 / scale / 2).mean(axis=-1)


def keep_best(points: NDArray, scores: NDArray, areas: NDArray, sigmas: NDArray) -> list[int]:
    """Indices of the predictions in an image that are different persons, best first (OKS non-maximum suppression).

    Args:
        points: (N, J, 2).
        scores, areas: (N,).
        sigmas: (J,) of OKS.
    """
    remaining, kept = np.argsort(-scores, kind="stable"), []
    while len(remaining):
        first, remaining = remaining[0], remaining[1:]
        kept.append(int(first))
        overlap = oks_between(points[first], areas[first], points[remaining], areas[remaining], sigmas)
        remaining = remaining[overlap <= SAME_PERSON]
    return kept


def default_sigmas(joints: int) -> NDArray:
    """The OKS constants of COCO's 17 keypoints.

    Raises:
        ValueError: there are not 17 keypoints.
    """
    sigmas = Params(iouType="keypoints").kpt_oks_sigmas
    if len(sigmas) != joints:
        raise ValueError(f"OKS has constants for COCO's {len(sigmas)} keypoints, not for {joints}: set oks_sigmas.")
    return sigmas


def to_detections(
    keypoints: NDArray,
    image_ids: Sequence[int],
    box_scores: NDArray,
    areas: NDArray,
    sigmas: NDArray,
    category_id: int = 1,
) -> list[dict[str, Any]]:
    """Predicted persons in COCO's results format, rescored and without duplicates.

    A person's score is that of its box times the mean height of its keypoints above 0.2.

    Args:
        keypoints: (N, J, 3) x, y, height, in pixels of the images.
        image_ids: of the N persons.
        box_scores: (N,) of the detector; 1 for ground truth.
        areas: (N,) of the padded boxes.
        sigmas: (J,) of OKS.
        category_id: of the persons, in the annotations.
    """
    sure = keypoints[..., 2] > CONFIDENT
    heights = (keypoints[..., 2] * sure).sum(axis=1) / np.maximum(sure.sum(axis=1), 1)
    scores = heights * box_scores
    groups: dict[int, list[int]] = {}
    for position, image in enumerate(image_ids):
        groups.setdefault(int(image), []).append(position)
    detections = []
    for image, positions in groups.items():
        members = np.array(positions)
        for kept in keep_best(keypoints[members, :, :2], scores[members], areas[members], sigmas):
            person = members[kept]
            detections.append(
                {
                    "image_id": image,
                    "category_id": category_id,
                    "keypoints": [round(float(value), 3) for value in keypoints[person].flatten()],
                    "score": float(scores[person]),
                }
            )
    return detections


def evaluate_oks(
    annotations: Mapping[str, Any], detections: Sequence[Mapping[str, Any]], sigmas: NDArray
) -> dict[str, float]:
    """Score detections against annotations, both in COCO's formats, by pycocotools.

    Returns:
        Those of `METRICS` that are defined, as fractions: a size that no annotated person has gives no number. Empty
        if nobody is annotated.
    """
    if not annotations["annotations"] or not detections:
        return {}
    with contextlib.redirect_stdout(io.StringIO()):  # it prints
        truth = COCO()
        truth.dataset = {**annotations, "annotations": [dict(entry) for entry in annotations["annotations"]]}
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(copy.deepcopy(list(detections))), "keypoints")
        evaluation.params.kpt_oks_sigmas = np.asarray(sigmas)
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    values = {name: float(value) for name, value in zip(METRICS, evaluation.stats, strict=True)}
    return {name: value for name, value in values.items() if value >= 0 and math.isfinite(value)}
