import json

import numpy as np
import pytest
import torch
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from common.datamodules.pose_geometry import KeypointSpec, PersonCrop, draw_heatmaps
from common.evaluation.item_scores import ItemScores
from common.evaluation.keypoints import (
    METRICS,
    decode_heatmaps,
    default_sigmas,
    evaluate_oks,
    keep_best,
    mirror_heatmaps,
    oks_between,
    to_detections,
    to_image,
)
from tests.coco import BODY, CATEGORY, annotation

SPEC = KeypointSpec(256, 192)
SIGMAS = default_sigmas(17)


# -- decoding -----------------------------------------------------------------------------------------------------


def test_peaks_are_found_exactly():
    generator = torch.Generator().manual_seed(0)
    heatmaps = torch.rand(3, 5, 16, 12, generator=generator)
    y, x = torch.randint(2, 14, (3, 5), generator=generator), torch.randint(2, 10, (3, 5), generator=generator)
    for n in range(3):
        for j in range(5):
            heatmaps[n, j, y[n, j], x[n, j]] = 2
    found = decode_heatmaps(heatmaps, quarter_offset=False)
    assert torch.equal(found, torch.stack([x.float(), y.float(), torch.full_like(x, 2).float()], dim=-1))


def test_the_quarter_offset_by_hand():
    heatmaps = torch.zeros(1, 4, 6, 6)
    heatmaps[0, 0, 3, 2], heatmaps[0, 0, 3, 3], heatmaps[0, 0, 2, 2] = 1, 0.5, 0.1  # to the right, and up
    heatmaps[0, 1, 3, 3] = 1  # equal neighbours: stays
    heatmaps[0, 2, 3, 1], heatmaps[0, 2, 3, 2] = 1, 0.5  # next to the border: stays, as in SimpleBaseline
    found = decode_heatmaps(heatmaps)
    assert found[0].tolist() == [[2.25, 2.75, 1], [3, 3, 1], [1, 3, 1], [0, 0, 0]]


def test_a_gaussian_is_found_within_a_quarter_of_a_pixel():
    # exact Gaussians, not rounded to a pixel
    grid = torch.arange(20.0)
    for shift in np.linspace(-0.45, 0.45, 7):
        row = torch.exp(-((grid - 9 - float(shift)) ** 2) / 8)
        found = decode_heatmaps((row[:, None] * row)[None, None])[0, 0, :2]
        assert (found - 9 - float(shift)).abs().max() <= 0.25


def test_decoding_undoes_drawing():
    rng = np.random.default_rng(0)
    crop = PersonCrop.around([100, 50, 80, 200], SPEC)
    truth = np.column_stack([rng.uniform(90, 190, 17), rng.uniform(60, 240, 17)])
    heatmaps, weights = draw_heatmaps(crop.to_crop(truth), np.ones(17, bool), SPEC, sigma=2)
    assert weights.all()
    found = decode_heatmaps(heatmaps[None], quarter_offset=False)
    places = to_image(found, torch.tensor(crop.centre)[None], torch.tensor(crop.size)[None], SPEC.heatmap_size)
    # the Gaussian's middle is the next pixel, half a pixel of the heatmap off at most
    assert np.abs(places[0, :, :2].numpy() - truth).max() <= 0.5 * crop.size[0] / 48 + 1e-4


def test_mirrored_heatmaps():
    order = [0, 2, 1]
    heatmaps = torch.rand(2, 3, 8, 6)
    twice = mirror_heatmaps(mirror_heatmaps(heatmaps, order, shift=False), order, shift=False)
    assert torch.equal(twice, heatmaps)
    shifted = mirror_heatmaps(heatmaps, order)
    assert torch.equal(shifted[:, 1, :, 3], heatmaps[:, 2, :, 3])
    assert torch.equal(shifted[..., 0], mirror_heatmaps(heatmaps, order, shift=False)[..., 0])


@pytest.mark.parametrize("x", [80.0, 84.0, 121.0])
def test_the_shift_brings_the_mirror_image_to_within_a_pixel(x):
    # a keypoint at x of the crop lies at 191 - x of its mirror image
    heatmap, _ = draw_heatmaps(np.array([[x, 100.0]]), np.array([True]), SPEC, sigma=2)
    mirrored, _ = draw_heatmaps(np.array([[191.0 - x, 100.0]]), np.array([True]), SPEC, sigma=2)
    places = [int(m[0, 0].max(0).values.argmax()) for m in (mirror_heatmaps(mirrored[None], [0]), heatmap[None])]
    assert abs(places[0] - places[1]) <= (0 if x % 4 == 0 else 1)


# -- OKS ----------------------------------------------------------------------------------------------------------


def scene(seed: int = 0, persons: int = 12) -> tuple[dict, list[dict]]:
    """Annotated persons, some hidden, some crowds, and detections near them."""
    rng = np.random.default_rng(seed)
    annotations, detections = [], []
    for number in range(1, persons + 1):
        box = [*rng.uniform(0, 100, 2).tolist(), *rng.uniform(20, 200, 2).tolist()]
        xy = box[:2] + rng.uniform(0, 1, (17, 2)) * box[2:]
        joints = {
            n: (*p, int(v)) for n, p, v in zip(CATEGORY["keypoints"], xy.tolist(), rng.integers(0, 3, 17), strict=True)
        }
        crowd = number % 5 == 0
        entry = annotation(number, 1 + number % 3, box, {} if crowd else joints, iscrowd=int(crowd))
        annotations.append(entry)
        noise = rng.normal(0, rng.uniform(1, 20), (17, 2))
        keypoints = np.column_stack([xy + noise, np.ones(17)]).flatten().tolist()
        found = {"image_id": entry["image_id"], "category_id": 1, "keypoints": keypoints, "score": rng.uniform()}
        detections += [found] if rng.random() < 0.9 else []
    images = [{"id": k, "file_name": f"{k}.jpg", "width": 400, "height": 400} for k in (1, 2, 3)]
    return {"images": images, "annotations": annotations, "categories": [CATEGORY]}, detections


def test_scores_are_those_of_pycocotools_on_files(tmp_path, capsys):
    truth, detections = scene()
    ours = evaluate_oks(truth, detections, SIGMAS)
    assert capsys.readouterr().out == ""
    assert 0.05 < ours["ap"] < 0.95
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    (tmp_path / "found.json").write_text(json.dumps(detections))
    annotations = COCO(str(tmp_path / "truth.json"))
    evaluation = COCOeval(annotations, annotations.loadRes(str(tmp_path / "found.json")), "keypoints")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert list(ours.values()) == [value for value in evaluation.stats.tolist() if value >= 0]
    assert list(ours) == [name for name, value in zip(METRICS, evaluation.stats, strict=True) if value >= 0]


def test_perfect_detections_score_one_and_sizes_that_are_not_there_nothing():
    person = annotation(1, 1, [10, 10, 50, 60], BODY)
    truth = {"images": [{"id": 1}], "annotations": [person], "categories": [CATEGORY]}
    found = {"image_id": 1, "category_id": 1, "keypoints": person["keypoints"], "score": 1.0}
    scores = evaluate_oks(truth, [found], SIGMAS)
    assert set(scores) == {"ap", "ap50", "ap75", "ap_medium", "ar", "ar50", "ar75", "ar_medium"}  # 50 x 60 is medium
    assert list(scores.values()) == pytest.approx([1.0] * 8)
    assert evaluate_oks({**truth, "annotations": []}, [found], SIGMAS) == {}
    assert found.keys() == {"image_id", "category_id", "keypoints", "score"}  # not what pycocotools adds


def test_oks_between_predictions_is_that_of_pycocotools():
    rng = np.random.default_rng(0)
    points = rng.uniform(0, 100, (2, 17, 2))
    joints = {n: (*p, 2) for n, p in zip(CATEGORY["keypoints"], points[0].tolist(), strict=True)}
    person = annotation(1, 1, [0, 0, 100, 80], joints)
    truth = COCO()
    truth.dataset = {"images": [{"id": 1}], "annotations": [person], "categories": [CATEGORY]}
    truth.createIndex()
    keypoints = np.column_stack([points[1], np.ones(17)]).flatten().tolist()
    found = truth.loadRes([{"image_id": 1, "category_id": 1, "keypoints": keypoints, "score": 1.0}])
    evaluation = COCOeval(truth, found, "keypoints")
    evaluation._prepare()
    theirs = evaluation.computeOks(1, 1).item()
    assert oks_between(points[0], 8000, points[1:], np.array([8000]), SIGMAS).item() == pytest.approx(theirs, rel=1e-9)


def test_duplicate_detections_are_dropped():
    rng = np.random.default_rng(0)
    first, other = rng.uniform(0, 100, (2, 17, 2))
    points = np.stack([first, first + 0.5, other, other + 40])
    areas = np.full(4, 5000.0)
    assert keep_best(points, np.array([0.5, 0.9, 0.7, 0.1]), areas, SIGMAS) == [1, 2, 3]


def test_rescoring_by_hand():
    keypoints = np.zeros((3, 17, 3))
    keypoints[0, :4, 2] = [0.9, 0.5, 0.2, 0.1]  # those above 0.2: mean 0.7
    keypoints[1, :, 2] = 0.1  # none
    keypoints[2, :, 2] = 0.6
    keypoints[1, :, :2] = 500
    detections = to_detections(keypoints, [7, 7, 8], np.array([0.5, 1.0, 1.0]), np.full(3, 100.0), SIGMAS)
    assert [(d["image_id"], d["score"]) for d in detections] == [(7, 0.35), (7, 0.0), (8, pytest.approx(0.6))]
    assert all(len(d["keypoints"]) == 51 and d["category_id"] == 1 for d in detections)
    json.dumps(detections)


def test_other_keypoints_need_constants():
    with pytest.raises(ValueError, match="constants for COCO's 17 keypoints, not for 5: set oks_sigmas"):
        default_sigmas(5)


# -- collecting ---------------------------------------------------------------------------------------------------


def test_each_person_counts_once_in_any_order():
    keypoints = torch.rand(5, 17, 3)
    scores = ItemScores({"keypoints": torch.empty(0, 17, 3), "loss": torch.empty(0)}, "person")
    for part in ([3, 4], [0, 1, 2], [4, 0]):  # as a process repeats a batch
        index = torch.tensor(part)
        scores.update(keypoints=keypoints[part], loss=index.float(), index=index)
    found = scores.compute()
    assert found.index.tolist() == [0, 1, 2, 3, 4] == found.loss.tolist()
    assert torch.equal(found.keypoints, keypoints)
    scores.reset()
    with pytest.raises(ValueError, match="no person was scored"):
        scores.compute()
