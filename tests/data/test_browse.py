"""The contact sheet shows what the network gets, names what is wrong, and takes no name for HTML."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from common.datamodules import VideoDataModule
from common.datamodules.manifest import Entry, Manifest
from data._thumbnails import Thumbnails, VideoTransforms
from data.browse import choose, main
from tests.media import read_index, truncate, write_frames, write_video

NASTY = "<script>alert(1)</script>"


class Page(HTMLParser):
    """The cards of a page by path, with class, split, problem and pictures, and the tags of the page."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.cards: list[dict] = []
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.place = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.append((tag, values))
        if tag == "article":
            self.cards.append({"marked": "data-problem" in values, "split": values["data-split"], "pictures": []})
        elif tag == "img":
            kind, _, data = (values["src"] or "").partition(",")
            assert kind == "data:image/jpeg;base64"
            self.cards[-1]["pictures"].append(Image.open(io.BytesIO(base64.b64decode(data))))
        self.place = {"h2": "name", "span": "", "p": values.get("class") or ""}.get(tag, "")

    def handle_data(self, data: str) -> None:
        self.text += data
        if self.cards and self.place and data.strip():
            self.cards[-1][self.place] = data.strip()

    def card(self, path: str) -> dict:
        return next(card for card in self.cards if card["path"] == path)


@pytest.fixture
def run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def call(source: Path, *options: str) -> tuple[int, str]:
        status = main([str(source), "--out", str(tmp_path / "page.html"), "--workers", "0", *options])
        captured = capsys.readouterr()
        return status, captured.out + captured.err

    return call


@pytest.fixture
def manifest(tmp_path: Path) -> Path:
    """Six videos: two good ones, a short one, one with a wrong count, one cut off and one missing."""
    root = tmp_path / "videos"
    for name in ("good", "val", "count", "cut"):
        write_video(root / f"{name}.mp4", num_frames=20, width=65, height=49, pix_fmt="yuv444p")
    write_video(root / "<i>short.mp4", num_frames=5)
    truncate(root / "cut.mp4", 0.6)
    rows = [
        f"good.mp4,0,{NASTY},20,25,,train",
        f"val.mp4,0,{NASTY},20,25,,val",
        "<i>short.mp4,1,b,,,,train",
        "count.mp4,1,b,21,25,,train",
        "cut.mp4,1,b,,,,val",
        "gone.mp4,,,,,,test",
    ]
    path = root / "manifest.csv"
    path.write_text("path,label,label_name,num_frames,fps,duration,split\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize("folder", [False, True])
def test_page_of_a_manifest(tmp_path: Path, manifest: Path, run: Callable, folder: bool) -> None:
    status, printed = run(manifest.parent if folder else manifest)
    assert status == 0, printed
    assert "6 of 6 videos, 0 left out; 4 shown with problems" in printed
    page = Page(tmp_path / "page.html")
    assert len(page.cards) == 6
    good = page.card("good.mp4")
    assert (good["name"], good["split"], good["marked"]) == (NASTY, "train", False)
    assert good["facts"] == "20 frames · 65 × 49 · 0.8 s · 25 fps"
    assert page.card("<i>short.mp4")["problem"] == "too short: 5 frames, a clip takes 16; frames are repeated"
    assert page.card("count.mp4")["problem"] == "has 20 frames, the manifest says 21"
    assert "truncated" in page.card("cut.mp4")["problem"] or "readable" in page.card("cut.mp4")["problem"]
    assert page.card("gone.mp4")["problem"] == "no such file."
    assert page.card("gone.mp4")["name"] == "no label"
    assert [card["path"] for card in page.cards if card["marked"]] == [
        "<i>short.mp4",
        "count.mp4",
        "cut.mp4",
        "gone.mp4",
    ]
    assert [len(card["pictures"]) for card in page.cards] == [2, 2, 2, 2, 0, 0]


def test_page_is_self_contained_and_names_are_text(tmp_path: Path, manifest: Path, run: Callable) -> None:
    assert run(manifest)[0] == 0
    page = Page(tmp_path / "page.html")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert not {"link", "iframe", "i", "a"} & {tag for tag, _ in page.tags}
    assert all(not key.startswith("on") for _, values in page.tags for key in values)
    assert all(values["src"].startswith("data:") for _, values in page.tags if "src" in values)
    assert "http" not in (tmp_path / "page.html").read_text().replace("http-equiv", "")
    assert {values["value"] for tag, values in page.tags if tag == "option" and "value" in values} >= {"-1", "0", "1"}


def test_thumbnails_are_small_and_show_the_frames(tmp_path: Path, run: Callable) -> None:
    root = tmp_path / "videos"
    write_video(root / "train/x/a.mp4", num_frames=40, width=400, height=240)
    assert run(root)[0] == 0
    stored, network = Page(tmp_path / "page.html").card("train/x/a.mp4")["pictures"]
    assert stored.size == (4 * 128 + 3 * 2, 77)
    assert network.size == (4 * 112 + 3 * 2, 2 * 112 + 2)
    tiles = [np.asarray(stored)[:, left : left + 128] for left in range(0, 520, 130)]
    assert [read_index(tile) for tile in tiles] == [5, 15, 25, 35]


def write_recipe(folder: Path, data: str) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(f"model: {{class_path: papers.stft3d.STFT3DModule}}\ndata: {data}\n")
    return path


VIDEO = "{class_path: common.datamodules.VideoDataModule, init_args: {%s}}"


@pytest.mark.parametrize("split", ["train", "val"])
def test_network_frames_are_those_of_the_data_module(tmp_path: Path, run: Callable, split: str) -> None:
    root = tmp_path / "videos"
    for name in ("train", "val"):
        write_video(root / name / "x/a.mp4", num_frames=40, width=160, height=120)
    options = "root: elsewhere, num_frames: 4, crop_size: 96, horizontal_flip: true, seed: 5, mean: [0.1, 0.2, 0.3]"
    recipe = write_recipe(tmp_path, VIDEO % options)
    status, printed = run(root, "--recipe", str(recipe), "--split", split)
    assert status == 0, printed
    (card,) = Page(tmp_path / "page.html").cards
    module = VideoDataModule(
        str(root), num_frames=4, crop_size=96, horizontal_flip=True, seed=5, mean=(0.1, 0.2, 0.3), num_workers=0
    )
    module.setup("fit")
    clip = module.train_dataset[0]["video"] if split == "train" else module.val_dataset[0]["video"][0]
    expected = np.concatenate([module.spec.denormalise(frame).permute(1, 2, 0).numpy() for frame in clip.unbind(1)], 1)
    shown = np.asarray(card["pictures"][1])
    tiles = np.concatenate([shown[:, left : left + 96] for left in range(0, 4 * 98, 98)], 1)
    assert tiles.shape == expected.shape
    assert np.abs(tiles.astype(float) - expected).mean() < 5  # JPEG


def test_class_folders_of_videos_and_of_frames(tmp_path: Path, run: Callable) -> None:
    root = tmp_path / "videos"
    write_video(root / "x/a.mp4", num_frames=20)
    write_frames(root / "x/frames", 20)
    assert run(root)[0] == 0
    page = Page(tmp_path / "page.html")
    assert {card["split"] for card in page.cards} == {"train", "val"}
    assert page.card("x/frames")["facts"] == "20 frames · 64 × 48 · frame rate unknown (taken as 30)"


def test_class_folders_of_images(tmp_path: Path, run: Callable) -> None:
    root = tmp_path / "images"
    for split in ("train", "val"):
        write_frames(root / split / NASTY.replace("/", ""), 2, width=40, height=40)
    (root / "train" / NASTY.replace("/", "") / "img_00003.jpg").write_bytes(b"spoilt")
    write_frames(root / "train/y", 1, width=30, height=20)
    status, printed = run(root)
    assert status == 0, printed
    assert "6 of 6 images" in printed
    page = Page(tmp_path / "page.html")
    good = page.card(f"train/{NASTY.replace('/', '')}/img_00001.jpg")
    assert good["facts"] == "40 × 40"
    assert [picture.size for picture in good["pictures"]] == [(120, 120), (4 * 120 + 3 * 2, 120)]
    assert "not a readable image" in page.card(f"train/{NASTY.replace('/', '')}/img_00003.jpg")["problem"]
    assert "set image_size" in page.card("train/y/img_00001.jpg")["problem"]
    recipe = write_recipe(
        tmp_path, "{class_path: common.datamodules.ImageDataModule, init_args: {image_size: 24, shift: 0.1}}"
    )
    assert run(root, "--recipe", str(recipe))[0] == 0
    page = Page(tmp_path / "page.html")
    assert "problem" not in page.card("train/y/img_00001.jpg")
    assert "resized to 24 pixels" in page.text
    status, printed = run(root, "--check")
    assert (status, "--check is for videos" in printed) == (1, True)


def entries(splits: dict[str, int], classes: int) -> Manifest:
    listed = [
        Entry(f"{split}/{label}/{number}", label, str(label), None, None, None, split)
        for split, count in splits.items()
        for label in range(classes)
        for number in range(count)
    ]
    names = tuple(map(str, range(classes)))
    return Manifest(Path(), tuple(listed), names, Path(), len(listed))


def test_sample() -> None:
    manifest = entries({"train": 9, "val": 2}, 3)
    chosen = choose(manifest, 4, 200)
    assert chosen == choose(manifest, 4, 200)
    assert [(e.label, e.split) for e in chosen] == [
        (label, split) for label in range(3) for split in ("train",) * 4 + ("val",) * 2
    ]
    assert {(e.label, e.split) for e in choose(manifest, 4, 6)} == {(e.label, e.split) for e in chosen}
    assert [e.split for e in choose(manifest, 4, 3)] == ["train"] * 3
    assert set(choose(manifest, 1, 200)) <= set(chosen)
    bad = manifest.entries[:5]
    assert set(bad) <= set(choose(manifest, 1, 11, bad))
    assert len(set(bad) & set(choose(manifest, 1, 4, bad))) >= 2


def test_limits_are_stated_and_problems_come_first(tmp_path: Path, run: Callable) -> None:
    root = tmp_path / "videos"
    for number in range(6):
        write_video(root / f"train/x/{number}.mp4", num_frames=16)
    truncate(root / "train/x/0.mp4", 0.5)
    truncate(root / "train/x/3.mp4", 0.5)
    truncate(root / "train/x/5.mp4", 0.5)
    status, printed = run(root, "--per-class", "2")
    assert status == 0
    assert "2 of 6 videos, 4 left out" in printed
    status, printed = run(root, "--max-items", "4", "--check")
    assert "4 of 6 videos, 2 left out; 2 shown with problems, 1 more left out" in printed
    assert sum(card["marked"] for card in Page(tmp_path / "page.html").cards) == 2
    assert run(root, "--per-class", "0")[0] == 1
    status, printed = run(root, "--split", "test")
    assert status == 1
    assert "has no videos in split 'test'" in printed


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (VIDEO % "num_frame: 4", "num_frame"),
        (VIDEO % "num_frames: many", "num_frames"),
        (VIDEO % "crop_size: 0", "crop_size is 0"),
        ("{class_path: common.datamodules.ImageDataModule}", "does not correspond to a subclass of VideoDataModule"),
        ("{class_path: os.system}", "does not correspond to a subclass"),
        ("[]", "is not a recipe"),
        ("{", "is not a recipe"),
    ],
)
def test_wrong_recipes(tmp_path: Path, run: Callable, data: str, message: str) -> None:
    write_video(tmp_path / "videos/train/x/a.mp4", num_frames=4)
    recipe = write_recipe(tmp_path, data)
    status, printed = run(tmp_path / "videos", "--recipe", str(recipe))
    assert status == 1
    assert printed.startswith(f"error: {recipe}")
    assert message in printed
    assert not (tmp_path / "page.html").exists()


def test_refusals(tmp_path: Path, run: Callable) -> None:
    root = tmp_path / "videos"
    assert "videos does not exist: give a manifest" in run(root)[1]
    write_video(root / "train/x/a.mp4", num_frames=4)
    assert "nothing.yaml cannot be read" in run(root, "--recipe", "nothing.yaml")[1]
    assert [run(root)[0] for _ in range(2)] == [0, 0]  # its own page is replaced
    (tmp_path / "page.html").write_text("mine")
    status, printed = run(root)
    assert (status, (tmp_path / "page.html").read_text()) == (1, "mine")
    assert "choose another --out" in printed


def test_interruption(tmp_path: Path, run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    write_video(tmp_path / "videos/train/x/a.mp4", num_frames=4)

    def interrupted(*_: object) -> Thumbnails:
        raise KeyboardInterrupt

    monkeypatch.setattr(VideoTransforms, "look", interrupted)
    assert run(tmp_path / "videos")[0] == 130
    assert not (tmp_path / "page.html").exists()
