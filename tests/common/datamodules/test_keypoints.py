import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.datamodules import KeypointDataModule
from common.datamodules.coco import annotated_persons, detected_persons, read_annotations
from common.datamodules.errors import DatasetError, ImageReadError
from common.datamodules.keypoints import PoseAugmentation
from common.datamodules.pose_geometry import KeypointSpec, PersonCrop, draw_heatmaps
from tests.coco import BODY, two_persons

SPEC = KeypointSpec(256, 192)
PLAIN = KeypointSpec(64, 48, mean=(0, 0, 0), std=(1, 1, 1))


@pytest.fixture
def coco(tmp_path: Path) -> Path:
    two_persons(tmp_path)
    return tmp_path


def edit(root: Path, change, split: str = "val") -> None:
    path = root / f"annotations/person_keypoints_{split}2017.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


# -- geometry -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("box", "size"),
    [([10, 20, 30, 100], (93.75, 125.0)), ([10, 20, 120, 80], (150.0, 200.0)), ([0, 0, 75, 100], (93.75, 125.0))],
)
def test_a_box_is_widened_to_the_ratio_of_the_crop_and_padded(box, size):
    crop = PersonCrop.around(box, SPEC)
    np.testing.assert_allclose(crop.centre, [box[0] + box[2] / 2, box[1] + box[3] / 2])
    np.testing.assert_allclose(crop.size, size)
    np.testing.assert_allclose(PersonCrop.around(box, SPEC, scale=1.5).size, 1.5 * np.array(size))


def test_the_crop_by_hand():
    # box 93.75 x 125 about (25, 70), so 2.048 pixels of the crop for one of the image
    box = [10, 20, 30, 100]
    plain = PersonCrop.around(box, SPEC)
    np.testing.assert_allclose(plain.to_crop(np.array([[25.0, 70.0], [26.0, 68.0]])), [[96, 128], [98.048, 123.904]])
    quarter = PersonCrop.around(box, SPEC, rotation=90)
    np.testing.assert_allclose(quarter.to_crop(np.array([[26.0, 70.0], [25.0, 71.0]])), [[96, 130.048], [93.952, 128]])
    mirror = PersonCrop.around(box, SPEC, mirror=True)
    np.testing.assert_allclose(mirror.to_crop(np.array([[26.0, 71.0]])), [[93.952, 130.048]])


def test_a_whole_number_of_pixels_is_cropped_exactly():
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (80, 70, 3), dtype=np.uint8)
    image, centre, size = Image.fromarray(pixels), np.array([34.0, 40.0]), np.array([48.0, 64.0])
    # as many pixels as the crop has, so the crop's (24, 32) is the image's (34, 40)
    crop = (255 * PersonCrop(centre, size, PLAIN).cut(image)).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(crop, pixels[8:72, 10:58])
    crop = (255 * PersonCrop(centre, size, PLAIN, mirror=True).cut(image)).round().byte().permute(1, 2, 0).numpy()
    np.testing.assert_array_equal(crop, pixels[8:72, 11:59][:, ::-1])


def test_a_bright_spot_stays_at_its_keypoint():
    pixels = np.zeros((150, 200, 3), np.uint8)
    y, x = np.mgrid[:150, :200]
    pixels[:] = (255 * np.exp(-((x - 120.3) ** 2 + (y - 60.7) ** 2) / 18))[..., None]
    spec = KeypointSpec(256, 192, (0, 0, 0), (1, 1, 1))
    for rotation, mirror in ((0, False), (25, False), (-40, True), (180, True)):
        region = PersonCrop(np.array([100.0, 75.0]), np.array([90.0, 120.0]), spec, rotation, mirror)
        crop = region.cut(Image.fromarray(pixels))[0].double()
        expected = region.to_crop(np.array([120.3, 60.7]))
        grid = torch.stack(torch.meshgrid(torch.arange(192.0), torch.arange(256.0), indexing="xy")).double()
        found = (grid * crop).sum((1, 2)) / crop.sum()
        np.testing.assert_allclose(found.numpy(), expected, atol=0.1)


def test_heatmaps_by_hand():
    points = np.array([[40.0, 60.0], [41.9, 62.0], [-12.0, 20.0], [-40.0, 20.0], [10.0, 10.0]])
    maps, weights = draw_heatmaps(points, np.array([True, True, True, True, False]), SPEC, sigma=2)
    assert maps.shape == (5, 64, 48)
    assert weights.tolist() == [1, 1, 1, 0, 0]
    assert maps[0, 15, 10] == 1
    assert maps[0, 17, 11] == pytest.approx(np.exp(-5 / 8))
    assert maps[0, 15, 16] > 0
    assert maps[0, 15, 17] == 0  # cut off at three sigma
    assert maps[1].argmax() == 16 * 48 + 10  # 41.9 / 4 is next to 10, 62 / 4 = 15.5 goes up
    assert maps[2, 5, 0] == pytest.approx(np.exp(-9 / 8))
    assert maps[3:].abs().sum() == 0


# -- files --------------------------------------------------------------------------------------------------------


def test_the_official_format(coco):
    annotations = read_annotations(coco / "annotations/person_keypoints_val2017.json")
    assert annotations.keypoint_names[:2] == ("nose", "left_eye")
    assert annotations.skeleton[0] == (15, 13)
    assert annotations.left_right == ((1, 2), (3, 4), (5, 6), (7, 8), (9, 10), (11, 12), (13, 14), (15, 16))
    persons = annotated_persons(annotations, coco / "val2017")
    assert [person.name for person in persons] == ["000000000785.jpg#900100000001", "000000000785.jpg#425226"]
    np.testing.assert_array_equal(persons[0].box, [35, 10, 29, 124])  # the last pixel of a box is within it
    np.testing.assert_array_equal(persons[0].keypoints[11], [57, 80, 1])
    assert SPEC.mirrored(2) == [0, 1]
    assert KeypointSpec(64, 48, left_right=annotations.left_right).mirrored(17)[:5] == [0, 2, 1, 4, 3]


def test_files_are_read_by_pycocotools_alike(coco, capsys):
    from pycocotools.coco import COCO

    theirs = COCO(str(coco / "annotations/person_keypoints_val2017.json"))
    ours = read_annotations(coco / "annotations/person_keypoints_val2017.json").content
    assert {a["id"] for a in ours["annotations"]} == set(theirs.getAnnIds())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda c: c["annotations"][0]["keypoints"].pop(),
            r"annotation 900100000001 lacks keypoints of 3 x 17 numb.*50",
        ),
        (lambda c: c["annotations"][1].update(bbox=[1, 2, None, 4]), r"annotation 425226 lacks a bbox of four numbers"),
        (lambda c: c["annotations"][1].update(image_id=4), r"425226 is of image 4, which the file does not list"),
        (lambda c: c["annotations"][1].pop("area"), r"annotation 425226 lacks a number area"),
        (lambda c: c["annotations"][1]["keypoints"].__setitem__(5, 3), r"425226 has a visibility other than"),
        (lambda c: c["annotations"][2].pop("id"), r"entry 2 of annotations lacks an integer id"),
        (lambda c: c["images"][1].pop("file_name"), r"image 872 lacks file_name"),
        (lambda c: c["categories"][0].update(name="cat"), r"no category 'person'"),
        (lambda c: c["categories"][0].update(skeleton=[[1, 18]]), r"\[1, 18\] in the skeleton is not a pair"),
        (
            lambda c: c["categories"][0]["keypoints"].__setitem__(2, "r_eye"),
            r"'left_eye' has no counterpart 'right_eye'",
        ),
        (lambda c: c.pop("images"), r"not an annotation file of COCO"),
        (lambda c: c["annotations"].clear(), r"no person with a box and keypoints in the val images"),
    ],
)
def test_wrong_annotations_are_named(coco, change, message):
    edit(coco, change)
    with pytest.raises(DatasetError, match=message) as error:
        KeypointDataModule(str(coco)).setup("validate")
    assert "person_keypoints_val2017.json" in str(error.value)


def test_missing_and_damaged_files_are_named(coco):
    path = coco / "annotations/person_keypoints_val2017.json"
    whole = path.read_text()
    path.write_text(whole[:-40])
    with pytest.raises(DatasetError, match=r"val2017.json:\d+: not valid JSON, or an incomplete file"):
        KeypointDataModule(str(coco)).setup("validate")
    path.unlink()
    with pytest.raises(DatasetError, match=r"val2017.json cannot be read: No such file"):
        KeypointDataModule(str(coco)).setup("validate")
    with pytest.raises(DatasetError, match=r"data root .*nowhere does not exist"):
        KeypointDataModule(str(coco / "nowhere")).setup("fit")
    path.write_text(whole)
    image = coco / "train2017/000000000785.jpg"
    data = KeypointDataModule(str(coco))
    data.setup("validate")
    (coco / "val2017/000000000785.jpg").write_bytes(image.read_bytes()[:500])
    with pytest.raises(
        ImageReadError, match=r"785.jpg: not a readable image.*person 1, annotation 425226 of .*val2017.json"
    ):
        data.val_dataset[1]
    image.unlink()
    with pytest.raises(
        DatasetError, match=r"1 images are not below .*train2017:\n.*785.jpg \(annotation 900100000001 of"
    ):
        KeypointDataModule(str(coco)).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"height": 250}, "height is 250; it must be a positive multiple of 4"),
        ({"scale": 1.0}, "scale is 1.0"),
        ({"rotation": 200}, "rotation is 200"),
        ({"sigma": 0}, "sigma is 0"),
        ({"test_images": "x"}, "give test_annotations and test_images together"),
        ({"std": (1, 0, 1)}, "std is"),
    ],
)
def test_values_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        KeypointDataModule("x", **options)


# -- detections ---------------------------------------------------------------------------------------------------


def test_boxes_of_a_detection_file(coco):
    entries = [
        {"image_id": 785, "category_id": 1, "bbox": [30.5, 10.0, 40.0, 125.0], "score": 0.9},
        {"image_id": 785, "category_id": 18, "bbox": [30.5, 10.0, 40.0, 125.0], "score": 0.9},  # a dog
        {"image_id": 872, "category_id": 1, "bbox": [100.0, 50.0, 50.0, 50.0], "score": 0.05},
        {"image_id": 872, "category_id": 1, "bbox": [-10.0, 5.0, 5.0, 5.0], "score": 0.5},
        {"image_id": 999, "category_id": 1, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5},
    ]
    (coco / "boxes.json").write_text(json.dumps(entries))
    annotations = read_annotations(coco / "annotations/person_keypoints_val2017.json")
    with pytest.warns(UserWarning, match=r"boxes.json: 1 detections are in images that .* does not list"):
        persons = detected_persons(coco / "boxes.json", annotations, coco / "val2017")
    assert [(p.image_id, p.score, p.keypoints) for p in persons] == [
        (785, 0.9, None),
        (872, 0.05, None),
        (872, 0.5, None),
    ]
    np.testing.assert_allclose(persons[1].box, [100, 50, 19, 19])
    data = KeypointDataModule(str(coco), detections="boxes.json", detection_threshold=0.1)
    with pytest.warns(UserWarning, match="1 detections"):
        data.setup("test")
    assert len(data.test_dataset) == 2
    assert "heatmap" not in data.test_dataset[0]
    before = data.manifest_hash
    assert before != KeypointDataModule(str(coco)).manifest_hash
    data.setup("validate")  # has its own boxes
    assert "heatmap" in data.val_dataset[0]
    entries[2].pop("score")
    (coco / "boxes.json").write_text(json.dumps(entries))
    with pytest.raises(DatasetError, match=r"boxes.json: entry 2 lacks image_id, category_id, bbox"):
        detected_persons(coco / "boxes.json", annotations, coco / "val2017")
    (coco / "boxes.json").write_text("{}")
    with pytest.raises(DatasetError, match="it is not a list"):
        detected_persons(coco / "boxes.json", annotations, coco / "val2017")


# -- samples ------------------------------------------------------------------------------------------------------


def test_a_batch(coco):
    data = KeypointDataModule(str(coco), height=64, width=48, sigma=1, batch_size=2, num_workers=0)
    data.setup("fit")
    batch = next(iter(data.val_dataloader()))
    assert batch["image"].shape == (2, 3, 64, 48)
    assert batch["heatmap"].shape == (2, 17, 16, 12)
    assert batch["weight"].sum(1).tolist() == [len(BODY), 2]
    assert batch["person_index"].tolist() == [0, 1]
    assert batch["path"][0] == "000000000785.jpg#900100000001"
    torch.testing.assert_close(batch["centre"][0], torch.tensor([49.5, 72.0]))
    torch.testing.assert_close(batch["size"][0], torch.tensor([116.25, 155.0]))
    assert data.spec.input_shape == (1, 3, 64, 48)
    assert KeypointSpec.from_dict(data.spec.to_dict()) == data.spec
    assert len(data.output_names) == 17


def test_default_sigmas_grow_with_the_crop():
    assert [KeypointDataModule("x", height=h, width=h * 3 // 4).sigma for h in (256, 384, 512)] == [2, 3, 4]


def test_a_mirrored_person_has_left_and_right_swapped(coco):
    data = KeypointDataModule(str(coco), height=256, width=192, scale=0, rotation=0, seed=3, batch_size=2)
    data.setup("fit")
    plain = data.val_dataset[0]  # the same annotations
    seen = set()
    for epoch in range(8):
        sample = data.train_dataset[epoch, 0]
        mirrored = not torch.equal(sample["image"], plain["image"])
        seen.add(mirrored)
        order = data.spec.mirrored(17) if mirrored else range(17)
        assert torch.equal(sample["weight"], plain["weight"][list(order)])
        for joint in sample["weight"].nonzero().flatten().tolist():
            y, x = divmod(int(sample["heatmap"][joint].argmax()), 48)
            v, u = divmod(int(plain["heatmap"][order[joint]].argmax()), 48)
            assert (y, x) == (v, 48 - u) if mirrored else (v, u)
        if mirrored:  # of 2 x 96, so the mirrored crop is the crop mirrored but for its first column
            torch.testing.assert_close(sample["image"][..., 1:], plain["image"].flip(2)[..., :-1], rtol=0, atol=0.05)
    assert seen == {False, True}


def test_samples_follow_from_seed_epoch_and_person(coco):
    one, two, other = (KeypointDataModule(str(coco), height=64, width=48, seed=seed) for seed in (5, 5, 6))
    for data in (one, two, other):
        data.setup("fit")
    key = (3, 1)
    assert torch.equal(one.train_dataset[key]["image"], two.train_dataset[key]["image"])
    assert not torch.equal(one.train_dataset[key]["image"], other.train_dataset[key]["image"])
    assert not torch.equal(one.train_dataset[key]["image"], one.train_dataset[4, 1]["image"])


def test_augmentation_stays_in_its_range():
    draw = PoseAugmentation(0.3, 40, True, 0).draw
    drawn = [draw(torch.Generator().manual_seed(k)) for k in range(500)]
    factors, angles, mirrors = zip(*drawn, strict=True)
    assert 0.7 <= min(factors) < 0.72
    assert 1.28 < max(factors) <= 1.3
    assert -40 <= min(angles) < -38
    assert 38 < max(angles) <= 40
    assert 0.4 < sum(mirrors) / 500 < 0.6
