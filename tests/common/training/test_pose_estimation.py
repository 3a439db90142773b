import json
import os
import re
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlparse

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn

from common.datamodules import KeypointDataModule
from common.datamodules.coco import annotated_persons, read_annotations
from common.datamodules.pose_geometry import KeypointSpec
from common.evaluation.figures import draw_persons
from common.evaluation.keypoints import decode_heatmaps, default_sigmas, evaluate_oks
from common.training.checkpoints import CheckpointError
from common.training.cli import main, run
from common.training.pose_estimation import PoseEstimationModule, read_boxes
from common.training.task import load_module
from data.demo.figures import generate_figures
from tests.coco import two_persons
from tests.common.training.test_distributed import spectral


class TinyPoseModule(PoseEstimationModule):
    """Three convolutions."""

    def __init__(self, num_joints: int = 17, lr: float = 0.01, **kwargs: Any) -> None:
        super().__init__(num_joints, **kwargs)

    def build_network(self) -> nn.Module:
        first = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU()]
        return nn.Sequential(*first, nn.Conv2d(8, self.hparams["num_joints"], 1))

    def configure_optimizers(self) -> Any:
        return torch.optim.Adam(self.parameters(), lr=self.hparams["lr"])


@pytest.fixture(scope="session")
def figures(tmp_path_factory) -> Path:
    return generate_figures(tmp_path_factory.mktemp("data") / "figures", train=4, val=2, test=3)


@pytest.fixture
def recipe(tmp_path, monkeypatch, figures):
    """Writes a recipe for the tiny network; the working directory is a fresh folder."""
    monkeypatch.chdir(tmp_path)

    def write(data: dict | None = None, **trainer: Any) -> str:
        files = {f"{s}_annotations": f"annotations/person_keypoints_{s}.json" for s in ("train", "val", "test")}
        images = {f"{s}_images": s for s in ("train", "val", "test")}
        options = {**files, **images, "root": str(figures), "height": 64, "width": 48, "sigma": 1, "batch_size": 4}
        content = {
            "model": {"class_path": f"{__name__}.TinyPoseModule", "init_args": {}},
            "data": {
                "class_path": "common.datamodules.KeypointDataModule",
                "init_args": {**options, "num_workers": 0, **(data or {})},
            },
            "trainer": {"max_epochs": 1, "accelerator": "cpu", "devices": 1, "enable_progress_bar": False, **trainer},
        }
        Path("tiny.yaml").write_text(yaml.safe_dump(content))
        return "tiny.yaml"

    return write


@pytest.fixture
def as_ours(monkeypatch):
    """The class of this file as a checkpoint of the project would name it."""
    monkeypatch.setattr(TinyPoseModule, "__module__", "common.training.pose_estimation")
    monkeypatch.setattr("common.training.pose_estimation.TinyPoseModule", TinyPoseModule, raising=False)


def test_fit_test_and_predict(recipe, figures, capsys, as_ours, tmp_path):
    path = recipe(log_every_n_steps=1)
    assert main(["fit", "--config", path]) == 0
    stored = torch.load("runs/tiny/version_0/best.ckpt", weights_only=True)["spectral"]
    assert stored["output_names"][0] == "nose"
    assert stored["spec"]["height"] == 64
    log = EventAccumulator("runs/tiny/version_0", size_guidance={"images": 0}).Reload()
    assert {"train_loss", "val_loss", "val_ap", "clips_per_s"} <= set(log.Tags()["scalars"])
    assert "poses" in log.Tags()["images"]

    capsys.readouterr()
    tested = run(["test", "--config", path, "--ckpt_path", "best", "--page", "true"])
    page = (tested.run_dir / "page" / "index.html").read_text()
    links = re.findall(r'href="(file:[^"]+)"', page.partition("Persons with the highest loss</h2>")[2])
    assert links
    assert all(Path(unquote(urlparse(link).path)).is_file() for link in links)
    result = json.loads((tested.run_dir / "result.json").read_text())
    assert {"ap", "ap50", "ap75", "ar", "loss"} <= result.keys()
    persons = annotated_persons(read_annotations(figures / "annotations/person_keypoints_test.json"), figures / "test")
    assert (result["kind"], result["videos"], result["videos_expected"]) == ("person", len(persons), len(persons))
    assert (result["boxes"], result["flip_test"]) == ("ground truth", True)
    assert f"{len(persons)} of {len(persons)} persons" in capsys.readouterr().out
    detections = json.loads(Path(result["predictions"]).read_text())
    truth = json.loads((figures / "annotations/person_keypoints_test.json").read_text())
    scores = evaluate_oks(truth, detections, default_sigmas(17))
    assert {name: result[name] for name in scores} == scores

    # a picture with its boxes: the keypoints of the test
    picture = figures / "test" / Path(persons[0].path).name
    boxes = {picture.name: [p.box.tolist() for p in persons if p.path == persons[0].path]}
    Path("boxes.json").write_text(json.dumps(boxes))
    Path("broken.png").write_bytes(picture.read_bytes()[:200])
    arguments = [
        "predict",
        "--checkpoint",
        "runs/tiny",
        str(picture),
        "broken.png",
        "gone.png",
        "--boxes",
        "boxes.json",
    ]
    assert main([*arguments, "--out", "drawn"]) == 1
    printed = capsys.readouterr().out
    assert "not a readable" in printed
    assert "gone.png" in printed
    found = json.loads(Path("drawn/keypoints.json").read_text())
    assert found["keypoint_names"][0] == "nose"
    assert [p["bbox"] for p in found["persons"]] == boxes[picture.name]
    theirs = {tuple(d["keypoints"]) for d in detections}
    ours = np.array([p["keypoints"] for p in found["persons"]])
    assert min(np.abs(ours[0] - np.array(other)).max() for other in theirs) < 0.01
    assert Image.open(f"drawn/{picture.stem}.png").size == tuple(4 * n for n in Image.open(picture).size)

    assert main([*arguments, "--out", "drawn"]) == 1
    assert "is not empty; give another name, or --force" in capsys.readouterr().err
    whole = ["predict", "--checkpoint", "runs/tiny", str(figures / "test"), "--out", "whole", "--threshold", "-1"]
    assert main(whole) == 0
    found = json.loads(Path("whole/keypoints.json").read_text())["persons"]
    assert len(found) == 3
    assert found[0]["bbox"][:2] == [0, 0]
    assert main([*whole, "--force", "--box", "10,20,50,60", "--box", "30,20,50,60.5"]) == 0
    found = json.loads(Path("whole/keypoints.json").read_text())["persons"]
    assert [p["bbox"] for p in found[:2]] == [[10, 20, 50, 60], [30, 20, 50, 60.5]]
    assert main([*whole, "--box", "10,20"]) == 2
    assert "'10,20' is no box x,y,width,height" in capsys.readouterr().err


def test_detected_boxes(recipe, figures):
    persons = annotated_persons(read_annotations(figures / "annotations/person_keypoints_test.json"), figures / "test")
    entries = [{"image_id": p.image_id, "category_id": 1, "bbox": p.box.tolist(), "score": 0.5} for p in persons]
    Path("found.json").write_text(json.dumps(entries[:4] + entries[:1]))  # one of them twice
    path = recipe({"detections": str(Path("found.json").resolve())})
    with pytest.warns(UserWarning, match="untrained weights"):
        cli = run(["test", "--config", path])
    result = cli.result
    assert result["videos"] == 5
    assert len(json.loads((cli.run_dir / "predictions.json").read_text())) == 4
    assert result["boxes"].endswith("found.json")
    assert "loss" not in result
    assert "ap" in result


def test_a_file_without_annotations_gives_predictions_only(recipe, tmp_path, figures):
    root = tmp_path / "dev"
    source = json.loads((figures / "annotations/person_keypoints_test.json").read_text())
    category = {k: source["categories"][0][k] for k in ("supercategory", "id", "name")}
    root.mkdir()
    (root / "image_info.json").write_text(json.dumps({"images": source["images"], "categories": [category]}))
    (root / "found.json").write_text(
        json.dumps([{"image_id": 1, "category_id": 1, "bbox": [0, 0, 80, 90], "score": 0.5}])
    )
    own = {"test_annotations": str(root / "image_info.json"), "test_images": str(figures / "test")}
    path = recipe({**own, "detections": str(root / "found.json")})
    with pytest.warns(UserWarning, match="untrained weights"):
        cli = run(["test", "--config", path])
    assert cli.result["videos"] == 1
    assert "ap" not in cli.result
    assert len(json.loads((cli.run_dir / "predictions.json").read_text())) == 1


def test_errors_of_the_user(recipe, capsys, figures, as_ours):
    for arguments, message in (
        (
            ["--model.num_joints", "5"],
            "num_joints is 17 in the data and 5 in the network; leave",
        ),
        (["--model.lr", "1e30", "--trainer.max_epochs", "9"], "the training loss is "),
        (["--data.root", "nowhere"], "generate demo data with `python -m data.demo figures --out nowhere`"),
        (["--data.detections", "none.json", "--data.train_images", "none"], "images are not below"),
    ):
        assert main(["fit", "--config", recipe(num_sanity_val_steps=0), *arguments]) == 1
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_a_loss_that_is_not_finite_names_the_annotations(recipe, capsys):
    assert main(["fit", "--config", recipe({"std": [1e-38] * 3, "mean": [0.0] * 3}, num_sanity_val_steps=0)]) == 1
    assert "persons: 00000000000" in capsys.readouterr().err


def module(**options: Any) -> TinyPoseModule:
    torch.manual_seed(0)
    own = TinyPoseModule(**options).eval()
    own.spec = KeypointSpec(64, 48, left_right=((1, 2), (3, 4))).to_dict()
    return own


def test_the_loss_by_hand():
    predicted, target = torch.rand(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    weight = torch.tensor([[1.0, 0, 1], [0, 0, 1]])
    losses = PoseEstimationModule.losses(predicted, target, weight)
    # the mean over joints of half the mean squared error of a joint's maps
    joints = [0.5 * ((predicted[:, j] - target[:, j]) * weight[:, j, None, None]).square().mean() for j in range(3)]
    torch.testing.assert_close(losses.mean(), sum(joints) / 3)


def test_the_flip_test_of_a_symmetric_network_changes_nothing():
    class Symmetric(nn.Module):
        """Pooled brightness, the same for all joints."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return nn.functional.avg_pool2d(x.mean(1, keepdim=True), 4).expand(-1, 17, -1, -1)

    crops = torch.rand(2, 3, 64, 48)
    own = module(flip_shift=False)
    own.network = Symmetric()
    torch.testing.assert_close(own.predict_heatmaps(crops), own.network(crops))


def test_the_flip_test_by_hand():
    own, crops = module(), torch.rand(2, 3, 64, 48)
    with torch.inference_mode():
        found = own.predict_heatmaps(crops)
        plain, mirrored = own(crops), own(torch.from_numpy(crops.numpy()[..., ::-1].copy())).numpy()
    for joint, other in ((0, 0), (1, 2), (2, 1), (4, 3), (16, 16)):
        back = mirrored[:, other, :, ::-1].copy()
        back[..., 1:] = back[..., :-1].copy()
        np.testing.assert_allclose(found[:, joint], (plain[:, joint].numpy() + back) / 2, rtol=1e-5, atol=1e-6)
    assert torch.equal(module(flip_test=False).predict_heatmaps(crops), own(crops))


def test_a_perfect_network_scores_one(tmp_path):
    """Heatmaps as the data draws them: what remains is the rounding to a pixel, which a large crop makes small."""
    two_persons(tmp_path)
    data = KeypointDataModule(str(tmp_path), num_workers=0)
    data.setup("validate")
    own = module(flip_test=False)
    batch = next(iter(data.val_dataloader()))
    points = own.locate(batch["heatmap"], batch["centre"], batch["size"]).numpy()
    detections = [
        {"image_id": p.image_id, "category_id": 1, "keypoints": k.flatten().tolist(), "score": 1.0}
        for p, k in zip(data.val_dataset.items, points, strict=True)
    ]
    assert evaluate_oks(data.val_dataset.annotations.content, detections, default_sigmas(17))["ap50"] == 1
    known = data.val_dataset.items[0].keypoints[:, 2] > 0
    assert np.abs(points[0, known, :2] - data.val_dataset.items[0].keypoints[known, :2]).max() < 1.3
    assert decode_heatmaps(batch["heatmap"])[0, ~known].abs().max() == 0


def test_other_joints_need_constants(tmp_path):
    with pytest.raises(ValueError, match="oks_sigmas must be 5 numbers above 0"):
        TinyPoseModule(5, oks_sigmas=[0.1] * 4)
    assert TinyPoseModule(5, oks_sigmas=[0.1] * 5).oks_sigmas is not None


def test_boxes_from_files(tmp_path):
    path = two_persons(tmp_path)
    boxes = read_boxes(path)
    assert boxes["000000000785.jpg"] == [[35, 10, 30, 125], [100, 20, 60, 90]]
    assert len(boxes["000000000872.jpg"]) == 1  # not the crowd
    (tmp_path / "wrong.json").write_text('{"a.jpg": [[1, 2, 3]]}')
    with pytest.raises(ValueError, match=r"wrong.json: no file of boxes"):
        read_boxes(tmp_path / "wrong.json")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    with pytest.raises(ValueError, match=r"deep.json: not valid JSON"):
        read_boxes(tmp_path / "deep.json")


def test_drawings():
    picture = Image.new("RGB", (100, 100))
    person = np.array([[[20.0, 20.0, 1.0], [20.0, 80.0, 1.0], [80.0, 80.0, 0.1]]])
    drawn = np.array(draw_persons(picture, person, [(0, 1), (1, 2)], ["left_a", "left_b", "right_c"]))
    assert drawn.shape == (400, 400, 3)
    assert drawn[200, 82].tolist() == [0, 200, 120]  # the left side is green
    assert drawn[:, 200:].max() == 0  # what is not sure is not drawn
    assert np.array(draw_persons(picture, np.empty((0, 3, 3)), [], ["a"] * 3)).max() == 0
    assert draw_persons(Image.new("RGB", (600, 400)), person, [], ["a"] * 3).size == (600, 400)


def test_a_checkpoint_of_another_task_is_told_apart(recipe, tmp_path):
    run(["fit", "--config", recipe()])
    with pytest.raises(CheckpointError, match="lies outside of papers, common"):
        load_module("runs/tiny/version_0/last.ckpt")
    loaded = load_module("runs/tiny/version_0/last.ckpt", ("tests",))
    assert isinstance(loaded, TinyPoseModule)
    assert loaded.keypoint_spec.left_right[0] == (1, 2)


@pytest.mark.slow
def test_scores_are_the_same_on_any_number_of_processes(recipe):
    path = recipe({"eval_batch_size": 2})
    trained = run(["fit", "--config", path]).run_dir / "last.ckpt"
    torch.set_num_threads(1)
    results, predictions = [], []
    for processes in (1, 3):
        several = ["--trainer.devices", str(processes), *(["--trainer.strategy", "ddp"] if processes > 1 else [])]
        spectral("test", "--config", path, "--ckpt_path", str(trained), "--name", f"test{processes}", *several)
        assert os.listdir(f"runs/test{processes}") == ["version_0"]
        results.append(json.loads(Path(f"runs/test{processes}/version_0/result.json").read_text()))
        predictions.append(Path(f"runs/test{processes}/version_0/predictions.json").read_text())
    keys = ("ap", "ap50", "ar", "loss", "videos", "videos_expected")
    assert [results[1][key] for key in keys] == [results[0][key] for key in keys]
    assert predictions[0] == predictions[1]
