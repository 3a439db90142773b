"""The base of every pose estimation module: heatmap loss, flip test, scores by OKS, drawn skeletons."""

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from common.datamodules.image_dataset import open_image
from common.datamodules.keypoints import PersonDataset
from common.datamodules.manifest import read_json
from common.datamodules.pose_geometry import KeypointSpec, PersonCrop
from common.evaluation.figures import draw_persons
from common.evaluation.item_scores import ItemScores
from common.evaluation.keypoints import (
    CONFIDENT,
    KeypointResult,
    decode_heatmaps,
    default_sigmas,
    evaluate_oks,
    mirror_heatmaps,
    to_detections,
    to_image,
)
from common.training.predict import Predictor
from common.training.task import TaskModule


class PosePredictor(Predictor):
    """Draws the skeletons of the persons in every image, and writes ``keypoints.json``."""

    columns = ("image", "persons", "mean height", "drawing")

    def __init__(self, module: "PoseEstimationModule", options: argparse.Namespace) -> None:
        super().__init__(module, options)
        if options.boxes and options.box:
            raise ValueError("give --boxes or --box, not both")
        self.boxes = read_boxes(options.boxes) if options.boxes else None
        self.check_folder("--out", options.out)
        self.drawings: dict[Path, Path] = {}  # by image; images of one name in several folders get numbers
        self.persons: list[dict[str, Any]] = []

    @classmethod
    def add_arguments(cls, parser: argparse.ArgumentParser) -> None:
        parser.add_argument(
            "--boxes",
            type=Path,
            help="JSON file of the persons' boxes: {file name: [[x, y, width, height]]}, or COCO's annotations",
        )
        parser.add_argument(
            "--box",
            action="append",
            type=_box,
            metavar="X,Y,WIDTH,HEIGHT",
            help="box of a person in every image; may be repeated. Without boxes the whole image is one person",
        )
        parser.add_argument(
            "--out", type=Path, default=Path("poses"), help="folder for the drawings and keypoints.json (poses)"
        )
        parser.add_argument(
            "--threshold", type=float, default=CONFIDENT, help="draw keypoints above this height (default %(default)s)"
        )

    def load(self, path: Path) -> Image.Image:
        return open_image(path)

    def predict(self, path: Path, content: Image.Image) -> Sequence[str]:
        if self.boxes is None:
            boxes = self.options.box or [[0.0, 0.0, float(content.width), float(content.height)]]
        else:
            boxes = self.boxes.get(path.name, [])
        persons = self.module.predict_persons(content, boxes)
        self.check_finite(path, persons)
        drawing, names = self._drawing(path), self.module.output_names
        skeleton = self.module.keypoint_spec.skeleton
        draw_persons(content, persons, skeleton, names, self.options.threshold).save(drawing)
        for box, keypoints in zip(boxes, persons, strict=True):
            values = [round(float(value), 3) for value in keypoints.flatten()]
            score = float(keypoints[:, 2].mean())
            self.persons.append({"file_name": str(path), "bbox": list(box), "keypoints": values, "score": score})
        return str(len(persons)), f"{persons[..., 2].mean():.3f}" if len(persons) else "", str(drawing)

    def finish(self) -> list[str]:
        path = self.options.out / "keypoints.json"
        content = {"keypoint_names": self.module.output_names, "persons": self.persons}
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        return [f"Written: {path}"]

    def _drawing(self, path: Path) -> Path:
        if path not in self.drawings:
            names = (f"{path.stem}{'' if n == 1 else f'-{n}'}.png" for n in itertools.count(1))
            drawings = (self.options.out / name for name in names)
            self.drawings[path] = next(file for file in drawings if file not in self.drawings.values())
        return self.drawings[path]


class PoseEstimationModule(TaskModule):
    """Trains and tests a network of heatmaps on the batches of ``common.datamodules.keypoints.KeypointDataModule``.

    ``build_network`` makes a network: crops (B, 3, H, W) -> heatmaps (B, num_joints, H / 4, W / 4).

    Args:
        num_joints: number of keypoints, the channels of the network's output; taken from the data by ``spectral``.
        flip_test: average the heatmaps of a crop with those of its mirror image.
        flip_shift: move the heatmaps of the mirror image by the pixel that they are off.
        quarter_offset: move a keypoint a quarter of a pixel towards the second highest value.
        oks_sigmas: constants of OKS, one per keypoint; None: those of COCO's 17 keypoints.
        kwargs: ``pretrained``, ``imagenet`` and ``compile`` of :class:`~common.training.task.TaskModule`.
    """

    kind = "person"
    spec_class = KeypointSpec
    output = "joint"
    names_source = "the keypoints of the category in the annotation file"
    score = "ap"
    predictor = PosePredictor
    result: KeypointResult

    PICTURED = 4

    def __init__(
        self,
        num_joints: int | None = None,
        *,
        flip_test: bool = True,
        flip_shift: bool = True,
        quarter_offset: bool = True,
        oks_sigmas: Sequence[float] | None = None,
        **kwargs: Any,
    ) -> None:
        if num_joints is None:
            raise ValueError("num_joints is not known: give it, or use `spectral`, which takes it from the data")
        super().__init__(**kwargs)
        self.num_joints = self.num_outputs = num_joints
        self.flip_test, self.flip_shift, self.quarter_offset = flip_test, flip_shift, quarter_offset
        if oks_sigmas is not None and (len(oks_sigmas) != num_joints or min(oks_sigmas) <= 0):
            raise ValueError(f"oks_sigmas must be {num_joints} numbers above 0, one per keypoint; got {oks_sigmas}")
        self.oks_sigmas = None if oks_sigmas is None else np.array(oks_sigmas, dtype=np.float64)
        # in the image; the loss is NaN where it is not known
        self.scores = ItemScores({"keypoints": torch.empty(0, num_joints, 3), "loss": torch.empty(0)}, "person")

    def setup(self, stage: str) -> None:
        super().setup(stage)
        if self.oks_sigmas is None:
            self.oks_sigmas = default_sigmas(self.num_joints)

    @property
    def keypoint_spec(self) -> KeypointSpec:
        """How a box becomes the network's input. Raises ValueError before the data or a checkpoint gave it."""
        if self.spec is None:
            raise ValueError("the module has seen no data: it does not know the size of its input")
        return KeypointSpec.from_dict(self.spec)

    # -- training ------------------------------------------------------------------------------------------------

    @staticmethod
    def losses(heatmaps: Tensor, targets: Tensor, weights: Tensor) -> Tensor:
        """Half the mean squared difference of each person's heatmaps, those of unknown keypoints counting as equal.

        Args:
            heatmaps, targets: (B, J, H, W).
            weights: (B, J) in 0..1.

        Returns:
            (B,) float32.

        Raises:
            ValueError: the heatmaps are of another size than the targets.
        """
        if heatmaps.shape != targets.shape:
            ours, theirs = (f"{h.shape[2]} x {h.shape[3]}" for h in (heatmaps, targets))
            raise ValueError(
                f"the network's heatmaps have {ours} pixels, those of the data {theirs}; take a crop whose height and "
                "width are multiples of the network's total stride (32 of a ResNet)"
            )
        difference = weights[..., None, None] * (heatmaps.float() - targets)
        return 0.5 * difference.square().flatten(1).mean(dim=1)

    def training_step(self, batch: Mapping[str, Any], batch_idx: int) -> Tensor:
        """Mean loss of the batch."""
        loss = self.losses(self(batch["image"]), batch["heatmap"], batch["weight"]).mean()
        self.log_loss(loss, batch, batch_idx)
        return loss

    # -- evaluation ----------------------------------------------------------------------------------------------

    def predict_heatmaps(self, crops: Tensor) -> Tensor:
        """Heatmaps of crops, with the flip test if there is one: (B, 3, H, W) -> (B, J, H / 4, W / 4) float32."""
        heatmaps = self(crops).float()
        if not self.flip_test:
            return heatmaps
        mirrored = self(crops.flip(3)).float()
        order = self.keypoint_spec.mirrored(self.num_joints)
        return (heatmaps + mirror_heatmaps(mirrored, order, self.flip_shift)) / 2

    def locate(self, heatmaps: Tensor, centre: Tensor, size: Tensor) -> Tensor:
        """Keypoints in the image: heatmaps (B, J, h, w), boxes (B, 2) -> (B, J, 3) float64: x, y, height."""
        points = decode_heatmaps(heatmaps, self.quarter_offset)
        return to_image(points, centre, size, (heatmaps.shape[2], heatmaps.shape[3]))

    def evaluate_batch(self, batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """Add the persons of a batch to the scores; returns their ``heatmaps`` (B, J, h, w)."""
        heatmaps = self.predict_heatmaps(batch["image"])
        self.check_finite(heatmaps, batch)
        keypoints = self.locate(heatmaps.cpu(), batch["centre"].cpu(), batch["size"].cpu()).float().to(heatmaps.device)
        loss = heatmaps.new_full((len(heatmaps),), torch.nan)
        if "heatmap" in batch:
            loss = self.losses(heatmaps, batch["heatmap"], batch["weight"])
        self.scores.update(keypoints=keypoints, loss=loss, index=batch["person_index"])
        return {"heatmaps": heatmaps}

    def predict_batch(self, batch: Mapping[str, Any]) -> Tensor:
        return self.predict_heatmaps(batch["image"])

    def compute_result(self) -> KeypointResult:
        found = super().compute_result()
        data: Any = self.trainer.datamodule  # type: ignore[attr-defined]
        dataset: PersonDataset = data.test_dataset if self.trainer.testing else data.val_dataset
        self._boxes = "ground truth" if dataset.items[0].keypoints is not None else str(data.detections)
        assert dataset.annotations is not None
        assert self.oks_sigmas is not None
        persons = [dataset.items[i] for i in found.index.tolist()]
        areas = np.array([PersonCrop.around(person.box, dataset.spec).size.prod() for person in persons])
        detections = to_detections(
            found.keypoints.numpy(),
            [person.image_id for person in persons],
            np.array([person.score for person in persons]),
            areas,
            self.oks_sigmas,
            dataset.annotations.category_id,
        )
        scores = evaluate_oks(dataset.annotations.content, detections, self.oks_sigmas)
        known = found.loss.isfinite()
        mean = found.loss[known].double().mean().item() if known.any() else None
        losses = [(p.path, p.name, x) for p, x in zip(persons, found.loss.tolist(), strict=True) if x == x]
        return KeypointResult(len(persons), detections, scores, mean, losses)

    def result_facts(self) -> dict[str, Any]:
        """Whether there was a flip test, and where the boxes are from."""
        return {"flip_test": self.flip_test, "boxes": self._boxes}

    def write_predictions(self, folder: Path) -> Path:
        """``predictions.json`` in COCO's results format, as its evaluation server takes it."""
        path = folder / "predictions.json"
        with path.open("x", encoding="utf-8") as file:
            json.dump(self.result.detections, file)
        return path

    def describe_result(self, report: Any, root: Path | None) -> None:
        from common.training.run_page import add_files

        if highest := sorted(self.result.losses, key=lambda entry: -entry[2])[: self.LISTED]:
            report.section("Persons with the highest loss")
            add_files(report, [(path, f"{name} ({loss:.4f})") for path, name, loss in highest], Path())
        super().describe_result(report, root)

    def batch_figures(self, batch: Mapping[str, Any], outputs: Mapping[str, Tensor]) -> dict[str, Figure]:
        """The first crops with their predicted skeletons."""
        spec, count = self.keypoint_spec, min(self.PICTURED, len(batch["image"]))
        figure = Figure(figsize=(2.2 * count, 3.2), layout="constrained")
        points = decode_heatmaps(outputs["heatmaps"][:count].cpu(), self.quarter_offset)
        points[..., :2] *= spec.height / outputs["heatmaps"].shape[2]
        axes = figure.subplots(1, count, squeeze=False)[0]
        for ax, crop, person in zip(axes, batch["image"][:count].float().cpu(), points, strict=True):
            image = Image.fromarray(spec.denormalise(crop).permute(1, 2, 0).numpy())
            ax.imshow(draw_persons(image, person[None].numpy(), spec.skeleton, self.names))
            ax.axis("off")
        return {"poses": figure}

    @torch.inference_mode()
    def predict_persons(self, image: Image.Image, boxes: Sequence[Sequence[float]]) -> NDArray[np.float64]:
        """Keypoints of persons in an image.

        Args:
            image: RGB.
            boxes: x and y of the corner, width and height of each person, in pixels.

        Returns:
            (persons, J, 3): x, y in pixels, height of the heatmap's maximum.
        """
        crops = [PersonCrop.around(box, self.keypoint_spec) for box in boxes]
        if not crops:
            return np.empty((0, self.num_joints, 3))
        heatmaps = self.predict_heatmaps(torch.stack([crop.cut(image) for crop in crops]).to(self.device)).cpu()
        centre, size = (torch.tensor(np.stack(v)) for v in ([c.centre for c in crops], [c.size for c in crops]))
        return self.locate(heatmaps, centre, size).numpy()


def _box(text: str) -> list[float]:
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != 4 or not np.isfinite(values).all() or min(values[2:]) <= 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no box x,y,width,height in pixels")
    return values


def read_boxes(path: str | Path) -> dict[str, list[list[float]]]:
    """Boxes by file name, from ``{file name: [[x, y, width, height], ...]}`` or an annotation file of COCO.

    Raises:
        ValueError: the file is neither.
    """
    content = read_json(Path(path))
    try:
        if "annotations" in content:
            names = {image["id"]: image["file_name"] for image in content["images"]}
            entries = [(names[a["image_id"]], a["bbox"]) for a in content["annotations"] if not a.get("iscrowd")]
        else:
            entries = [(name, box) for name, boxes in content.items() for box in boxes]
        found: dict[str, list[list[float]]] = {}
        for name, (x, y, width, height) in entries:
            found.setdefault(Path(name).name, []).append([float(x), float(y), float(width), float(height)])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path}: no file of boxes ({error!r}); it holds {{file name: [[x, y, width, height]]}}, or is an "
            "annotation file of COCO"
        ) from error
    return found
