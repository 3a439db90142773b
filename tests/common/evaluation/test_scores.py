import math

import pytest
import torch

from common.evaluation.scores import VideoResult, VideoScores, combine_views, prediction_table


def random_videos(videos: int, classes: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(videos)
    scores = torch.randn(videos, classes, generator=generator)
    return scores, torch.randint(classes, (videos,), generator=generator), torch.randperm(videos, generator=generator)


def test_the_numbers_follow_their_definitions():
    scores, label, index = random_videos(50, 7)
    metric = VideoScores(7)
    metric.update(scores, label, index)
    result = metric.compute()
    order = scores.argsort(dim=1, descending=True)
    assert result.top1 == sum(int(order[i, 0] == label[i]) for i in range(50)) / 50
    assert result.top5 == sum(int(label[i] in order[i, :5]) for i in range(50)) / 50
    per_class = [(order[label == k, 0] == k).double().mean().item() for k in label.unique()]
    assert result.mean_class == pytest.approx(sum(per_class) / len(per_class), abs=1e-15)
    losses = [-math.log(scores[i].double().softmax(0)[label[i]].item()) for i in range(50)]
    assert result.loss == pytest.approx(sum(losses) / 50, abs=1e-12)
    assert result.confusion.sum() == 50
    assert all(result.confusion[i, j] == ((label == i) & (order[:, 0] == j)).sum() for i in range(7) for j in range(7))


@pytest.mark.parametrize("classes", [1, 2, 4, 5, 6])
def test_top5_takes_what_there_is(classes):
    metric = VideoScores(classes)
    metric.update(*random_videos(9, classes))
    result = metric.compute()
    assert result.top5 == 1.0 if classes <= 5 else result.top5 < 1.0
    assert result.probabilities.shape == (9, classes)


def test_repeated_videos_and_any_split_give_the_same_digits():
    scores, label, index = random_videos(23, 5)
    whole = VideoScores(5)
    whole.update(scores, label, index)
    parts = VideoScores(5)
    for start in (16, 0, 8, 16, 0):
        parts.update(scores[start : start + 8], label[start : start + 8], index[start : start + 8])
    a, b = whole.compute(), parts.compute()
    assert a.videos == b.videos == 23
    assert a.metrics() == b.metrics()
    assert torch.equal(a.probabilities, b.probabilities)
    assert torch.equal(b.video_index, torch.arange(23))


def test_repeated_views_are_summed_over_the_videos():
    metric = VideoScores(2)
    for index in ([0, 1], [2, 0]):
        videos = torch.tensor(index)
        metric.update(torch.zeros(2, 2), torch.zeros(2), videos, repeated=3 * videos + 1)
    assert metric.compute().repeated_views == 1 + 4 + 7


def test_accuracy_of_single_views():
    metric = VideoScores(2)
    for index in ([0, 1], [2, 0]):  # a repeated video counts once
        videos = torch.tensor(index)
        metric.update(torch.zeros(2, 2), torch.zeros(2), videos, view_top1=(videos + 1) / 4)
    assert metric.compute().metrics()["view_top1"] == pytest.approx((1 + 2 + 3) / 4 / 3)
    assert "view_top1" not in metric_of_one_view().metrics()


def metric_of_one_view() -> VideoResult:
    metric = VideoScores(3)
    metric.update(torch.zeros(1, 3), torch.tensor([1]), torch.tensor([4]))
    return metric.compute()


def test_one_video_keeps_its_dimension():
    metric = VideoScores(3)
    metric.update(torch.tensor([[0.0, 2.0, 1.0]]), torch.tensor([1]), torch.tensor([4]))
    result = metric.compute()
    assert (result.top1, result.videos, result.label.shape) == (1.0, 1, (1,))


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_outside_of_the_classes_is_an_error(label):
    with pytest.raises(ValueError, match=rf"video 8 has label {label}, but the labels of 3 classes are 0 to 2"):
        VideoScores(3).update(torch.zeros(2, 3), torch.tensor([0, label]), torch.tensor([7, 8]))


def test_wrong_use_is_an_error():
    metric = VideoScores(3)
    with pytest.raises(ValueError, match="no video was scored"):
        metric.compute()
    with pytest.raises(ValueError, match=r"scores \(videos, 3\)"):
        metric.update(torch.zeros(2, 4), torch.zeros(2), torch.zeros(2))
    metric.update(torch.zeros(2, 3), torch.tensor([0, 1]), torch.tensor([5, 5]))
    with pytest.raises(ValueError, match="video index 5 came with two labels"):
        metric.compute()


def test_views_are_averaged_as_probabilities_or_as_logits():
    logits = torch.tensor([[4.0, 0.0], [0.0, 1.0], [0.0, 2.0], [3.0, 0.0]])
    index = torch.tensor([9, 2, 9, 2])
    scores, order, first = combine_views(logits, index, "probabilities")
    assert order.tolist() == [2, 9]
    assert first.tolist() == [1, 0]
    expected = torch.stack([logits[[1, 3]].softmax(1).mean(0), logits[[0, 2]].softmax(1).mean(0)])
    torch.testing.assert_close(scores.softmax(1), expected)
    scores, _, _ = combine_views(logits, index, "logits")
    torch.testing.assert_close(scores, torch.stack([logits[[1, 3]].mean(0), logits[[0, 2]].mean(0)]))
    with pytest.raises(ValueError, match="'probabilities' or 'logits'"):
        combine_views(logits, index, "votes")


def test_a_probability_that_underflows_keeps_the_loss_finite():
    scores, index, _ = combine_views(torch.tensor([[500.0, 0.0], [500.0, 0.0]]), torch.tensor([0, 0]))
    metric = VideoScores(2)
    metric.update(scores, torch.tensor([1]), index)
    assert metric.compute().loss == pytest.approx(500.0)


def test_prediction_table_names_classes_and_files():
    rows = prediction_table(torch.tensor([[0.1, 0.7, 0.2]]), ["a", "b", "c"], ["x.mp4"], torch.tensor([2]), top=2)
    assert rows == [
        {"path": "x.mp4", "label": "c", "correct": 0, "top1": "b", "p1": 0.7, "top2": "c", "p2": 0.2},
    ]


def test_calibration_error_and_the_table_of_classes() -> None:
    probabilities = torch.tensor([[0.8, 0.2, 0.0], [0.8, 0.2, 0.0], [0.1, 0.9, 0.0], [0.3, 0.7, 0.0]])
    label = torch.tensor([0, 1, 1, 1])
    result = VideoResult(probabilities.clamp_min(1e-30).log(), label, torch.arange(4), torch.zeros(4))
    # bins of the highest probability: 0.8 (2 videos, half right), 0.9 and 0.7 (right)
    assert result.ece == pytest.approx((2 * 0.3 + 0.1 + 0.3) / 4, abs=1e-6)
    assert result.class_table(["a", "b", "c"]) == [
        {"class": "a", "videos": 1, "top1": 1.0, "mistaken_for": "", "times": 0},
        {"class": "b", "videos": 3, "top1": 0.666667, "mistaken_for": "a", "times": 1},
        {"class": "c", "videos": 0, "top1": "", "mistaken_for": "", "times": 0},
    ]
