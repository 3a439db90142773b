import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pycocotools.coco import COCO

from common.datamodules.keypoints import KeypointDataModule
from data.demo.__main__ import main
from data.demo._folder import DemoError
from data.demo.figures import NAMES, draw_person, draw_scene, generate_figures, render_person


@pytest.fixture(scope="module")
def figures(tmp_path_factory) -> Path:
    return generate_figures(tmp_path_factory.mktemp("figures") / "out", train=20, val=2, test=2)


def truth(folder: Path, split: str = "train") -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(folder / f"annotations/person_keypoints_{split}.json"))


def test_the_files_are_those_of_coco(figures):
    coco = truth(figures)
    assert len(coco.imgs) == 20
    flags = set()
    for image in coco.imgs.values():
        with Image.open(figures / "train" / image["file_name"]) as picture:
            assert picture.size == (image["width"], image["height"])
            assert picture.format == "JPEG"
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        rows, columns = np.nonzero(mask)
        x, y, width, height = annotation["bbox"]
        assert annotation["area"] == mask.sum()
        assert (x, y) == (columns.min(), rows.min())
        assert (x + width, y + height) == (columns.max() + 1, rows.max() + 1)
        keypoints = np.array(annotation["keypoints"]).reshape(17, 3)
        assert annotation["num_keypoints"] == (keypoints[:, 2] > 0).sum()
        assert not keypoints[keypoints[:, 2] == 0].any()
        assert (keypoints[:, 2].max() > 0) == (not annotation["iscrowd"])
        flags |= set(keypoints[:, 2])
    assert flags == {0, 1, 2}
    crowds = [a for a in coco.anns.values() if a["iscrowd"]]
    assert 0 < len(crowds) < len(coco.anns) / 4
    per_picture = [len(coco.getAnnIds(imgIds=[k])) for k in coco.imgs]
    assert max(per_picture) >= 3


def test_the_data_module_takes_them(figures):
    data = KeypointDataModule(str(figures), dataset="figures")
    data.setup("fit")
    assert data.output_names == list(NAMES)
    assert len(data.train_dataset) >= 20
    assert data.val_dataset[0]["weight"].sum() > 4


def test_visible_joints_lie_on_the_figure(figures):
    coco = truth(figures)
    outside = total = 0
    for annotation in coco.anns.values():
        mask = coco.annToMask(annotation)
        for x, y, flag in np.array(annotation["keypoints"]).reshape(17, 3):
            if flag == 2:
                total += 1
                outside += not mask[round(y), round(x)]
    assert outside <= 0.01 * total  # at a border, by half a pixel


def test_the_head_alone_tells_left_from_right():
    for seed in range(20):
        person = draw_person(np.random.default_rng(seed), np.array([60.0, 80.0]), 100.0)
        x = {name: place[0] for name, place in person.joints.items()}
        assert (x["left_shoulder"] > x["right_shoulder"]) == person.faces_viewer
    # the same figure from behind: below the head the same pixels, with the names of the joints swapped
    other = type(person)(
        person.joints,
        person.height,
        not person.faces_viewer,
        *(getattr(person, name) for name in ("shirt", "trousers", "skin", "hair")),
    )
    ours, theirs = (np.asarray(render_person(p, (120, 140))) for p in (person, other))
    neck = int(person.joints["neck"][1])
    np.testing.assert_array_equal(ours[neck:], theirs[neck:])
    assert (ours[:neck] != theirs[:neck]).any()


def test_an_image_depends_on_seed_split_and_number_alone(tmp_path, figures):
    small = generate_figures(tmp_path / "small", train=3, val=1, test=1)
    for number in range(3):
        name = f"train/{number:012d}.jpg"
        assert (small / name).read_bytes() == (figures / name).read_bytes()
    ours, theirs = (json.loads((p / "annotations/person_keypoints_train.json").read_text()) for p in (small, figures))
    assert ours["annotations"] == theirs["annotations"][: len(ours["annotations"])]
    one, two = draw_scene(0, "train", 0), draw_scene(1, "train", 0)
    assert one[0].size != two[0].size or np.any(np.asarray(one[0]) != np.asarray(two[0]))


def test_the_command(tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["figures", "--out", str(out), "--train", "1", "--val", "1", "--test", "1"]) == 0
    assert Path(capsys.readouterr().out.strip()) == out
    assert main(["figures", "--out", str(out), "--train", "2", "--val", "1", "--test", "1"]) == 2
    assert "made with other parameters (train is 1, requested 2)" in capsys.readouterr().err
    with pytest.raises(DemoError, match="val is 0; it must be at least 1"):
        generate_figures(tmp_path / "other", val=0)
