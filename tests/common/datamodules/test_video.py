"""The data module: batches, exact resuming, sharing out over processes, unreadable and missing files."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint, OnExceptionCheckpoint

from common.datamodules import VideoDataModule, loading
from common.datamodules.errors import DatasetError, VideoReadError
from common.datamodules.loading import EvalBatchSampler, TrainBatchSampler
from common.datamodules.manifest import Entry, Manifest
from common.datamodules.video import mirrored_labels
from common.datamodules.video_clips import ClipSpec, load_views
from tests import media

SMALL = {"num_frames": 4, "crop_size": 16, "num_workers": 0, "batch_size": 3}


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """11 training, 5 validation and 3 unlabelled test videos of several kinds, with a manifest."""
    root = tmp_path_factory.mktemp("videos")
    entries = []
    for index in range(19):
        split = "train" if index < 11 else "val" if index < 16 else "test"
        name = f"{split}/v{index}" + ("", ".avi", ".mp4", ".webm")[index % 4]
        options = {"num_frames": 3 + 2 * index, "width": 40 + 2 * index, "height": 32}
        if index % 4 == 0:
            media.write_frames(root / name, **options)
        else:
            media.write_video(root / name, codec=("", "mpeg4", "libx264", "libvpx-vp9")[index % 4], **options)
        label = None if split == "test" else index % 3
        entries.append(Entry(name, label, "" if label is None else "abc"[label], None, None, None, split))
    Manifest(root, tuple(entries), ("a", "b", "c"), root / "manifest.csv", len(entries)).write(root / "manifest.csv")
    return root


def module(data: Path, **options) -> VideoDataModule:
    return VideoDataModule(str(data), str(data / "manifest.csv"), **{**SMALL, **options})


class Recorder(L.LightningModule):
    """Keeps what it is given."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(3, 3)
        self.train_seen, self.val_seen, self.test_seen = [], [], []
        self.fail_at = fail_at

    def training_step(self, batch, _):
        if self.fail_at == len(self.train_seen):
            raise RuntimeError("interrupted")
        self.train_seen.append((batch["video_index"].tolist(), batch["video"].sum().item()))
        return self.layer(batch["video"].mean((2, 3, 4))).square().mean()

    def validation_step(self, batch, _):
        self.val_seen += batch["path"]

    def test_step(self, batch, batch_idx):
        self.test_seen.append(batch)

    def predict_step(self, batch, _):
        return batch["path"]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def trainer(folder: Path, **options) -> L.Trainer:
    callbacks = [ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1, monitor=None)]
    defaults = {
        "accelerator": "cpu",
        "logger": False,
        "callbacks": callbacks,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "num_sanity_val_steps": 0,
        "default_root_dir": folder,
    }
    return L.Trainer(**{**defaults, **options})


def test_train_batch(data):
    dm = module(data)
    dm.setup("fit")
    batches = list(dm.train_dataloader())
    assert [len(batch["label"]) for batch in batches] == [3, 3, 3, 2]
    assert sorted(torch.cat([batch["video_index"] for batch in batches]).tolist()) == list(range(11))
    for batch in batches:
        assert set(batch) == {"video", "label", "video_index"}
        assert batch["video"].shape[1:] == (3, 4, 16, 16)
        assert batch["video"].dtype == torch.float32
        assert batch["label"].dtype == batch["video_index"].dtype == torch.int64
        assert torch.equal(batch["label"], batch["video_index"] % 3)
    assert len(list(module_loader(dm, drop_last=True))) == 3


def module_loader(dm: VideoDataModule, **changes):
    for name, value in changes.items():
        setattr(dm, name, value)
    return dm.train_dataloader()


def test_samples_do_not_depend_on_workers_or_batch_size(data):
    def samples(**options):
        dm = module(data, **options)
        dm.setup("fit")
        loader = dm.train_dataloader()
        loader.batch_sampler.set_epoch(2)
        return {
            int(index): video
            for batch in loader
            for index, video in zip(batch["video_index"], batch["video"], strict=True)
        }

    first = samples()
    for options in ({"num_workers": 2}, {"batch_size": 5}, {"cache_decoded": True}):
        second = samples(**options)
        assert all(torch.equal(first[index], second[index]) for index in range(11)), options
    other = samples(seed=1)
    assert any(not torch.equal(first[index], other[index]) for index in range(11))


def test_facts_after_setup(data):
    dm = module(data, num_clips=2, num_crops=3)
    dm.setup("fit")
    dm.setup("test")
    assert dm.class_names == ["a", "b", "c"]
    assert dm.facts() == {"num_classes": 3, "num_frames": 4, "input_size": 16}
    assert dm.manifest_hash == Manifest.read(data / "manifest.csv", data).hash
    assert dm.spec == ClipSpec(num_frames=4, crop_size=16, num_clips=2, num_crops=3)
    assert (len(dm.train_dataset), len(dm.val_dataset), len(dm.test_dataset)) == (11, 5, 5)


def test_all_views_of_a_video_are_in_one_batch(data):
    dm = module(data, num_clips=2, num_crops=3, eval_batch_size=2)
    dm.setup("test")
    batches = list(dm.test_dataloader())
    assert [len(batch["label"]) for batch in batches] == [12, 12, 6]
    for number, batch in enumerate(batches):
        assert batch["video"].shape == (len(batch["label"]), 3, 4, 16, 16)
        videos = [2 * number, 2 * number + 1][: len(batch["label"]) // 6]
        assert batch["video_index"].tolist() == [video for video in videos for _ in range(6)]
        for position in range(0, len(batch["path"]), 6):
            path = batch["path"][position]
            assert batch["path"][position : position + 6] == [path] * 6
            assert torch.equal(batch["video"][position : position + 6], load_views(data / path, dm.spec))


def test_views_that_repeat_because_a_video_is_short_are_counted(data):
    """The videos have 25, 27, ..., 33 frames; four frames with a stride of 9 take 28."""
    dm = module(data, num_clips=5, num_crops=3, sampling="dense", frame_stride=9, eval_batch_size=5)
    dm.setup("test")
    batch = next(iter(dm.test_dataloader()))
    repeated = batch["repeated"].view(5, 15)
    assert (repeated == repeated[:, :1]).all()
    assert repeated[:, 0].tolist() == [12, 12, 9, 3, 0]
    for index, views in enumerate(batch["video"].view(5, 5, -1)):
        assert 3 * (5 - len(views.unique(dim=0))) == repeated[index, 0]


def test_validation_has_one_central_view(data):
    dm = module(data, num_clips=2, num_crops=3)
    dm.setup("validate")
    batch = next(iter(dm.val_dataloader()))
    assert batch["video_index"].tolist() == [0, 1, 2]
    assert batch["video"].shape[0] == 3


def test_predict(data, tmp_path):
    dm = module(data)
    paths = [path for batch in trainer(tmp_path).predict(Recorder(), datamodule=dm) for path in batch]
    assert paths == ["test/v16", "test/v17.avi", "test/v18.mp4"]
    dm = VideoDataModule(".", predict_paths=[str(data / "val")], **SMALL)
    paths = [path for batch in trainer(tmp_path).predict(Recorder(), datamodule=dm) for path in batch]
    assert [Path(path).name for path in paths] == ["v11.webm", "v12", "v13.avi", "v14.mp4", "v15.webm"]


def test_unlabelled_videos_cannot_be_scored(data):
    dm = module(data, test_split="test")
    with pytest.raises(DatasetError, match=r"manifest\.csv:18: 3 videos of split test lack a label"):
        dm.setup("test")


# -- resuming ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def uninterrupted(data, tmp_path_factory):
    """Three epochs of four batches, a checkpoint after every step."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    model = Recorder()
    trainer(folder, max_epochs=3).fit(model, datamodule=module(data))
    return folder, model.train_seen


@pytest.mark.parametrize(("step", "workers"), [(1, 0), (2, 2), (4, 0), (6, 0), (6, 2), (8, 0), (11, 0)])
def test_resumed_run_sees_the_same_batches(data, tmp_path, uninterrupted, step, workers):
    folder, expected = uninterrupted
    assert len(expected) == 12
    model = Recorder()
    dm = module(data, num_workers=workers)
    trainer(tmp_path, max_epochs=3).fit(model, datamodule=dm, ckpt_path=folder / f"step={step}.ckpt", weights_only=True)
    assert model.train_seen == expected[step:]


def test_epochs_differ(uninterrupted):
    _, seen = uninterrupted
    orders = [[index for batch, _ in seen[start : start + 4] for index in batch] for start in (0, 4, 8)]
    assert all(sorted(order) == list(range(11)) for order in orders)
    assert len({tuple(order) for order in orders}) == 3


def test_resume_after_a_step_that_failed(data, tmp_path, uninterrupted):
    model = Recorder(fail_at=6)
    with pytest.raises(RuntimeError, match="interrupted"):
        trainer(tmp_path, max_epochs=3, callbacks=[OnExceptionCheckpoint(tmp_path)]).fit(
            model, datamodule=module(data, num_workers=2)
        )
    resumed = Recorder()
    trainer(tmp_path / "b", max_epochs=3).fit(
        resumed, datamodule=module(data), ckpt_path=tmp_path / "on_exception.ckpt", weights_only=True
    )
    assert model.train_seen + resumed.train_seen == uninterrupted[1]


@pytest.mark.parametrize("step", [2, 3, 5, 6])
def test_resume_with_limited_batches(data, tmp_path, step):
    whole = Recorder()
    trainer(tmp_path, max_epochs=3, limit_train_batches=3).fit(whole, datamodule=module(data))
    resumed = Recorder()
    trainer(tmp_path / "b", max_epochs=3, limit_train_batches=3).fit(
        resumed, datamodule=module(data), ckpt_path=tmp_path / f"step={step}.ckpt", weights_only=True
    )
    assert resumed.train_seen == whole.train_seen[step:]


def test_resume_from_the_checkpoint_after_validation(data, tmp_path, uninterrupted):
    callbacks = [ModelCheckpoint(tmp_path, filename="{epoch}", save_top_k=-1, monitor=None, every_n_epochs=1)]
    model = Recorder()
    trainer(tmp_path, max_epochs=1, callbacks=callbacks).fit(model, datamodule=module(data))
    assert len(model.val_seen) == 5
    resumed = Recorder()
    trainer(tmp_path / "b", max_epochs=3).fit(
        resumed, datamodule=module(data), ckpt_path=tmp_path / "epoch=0.ckpt", weights_only=True
    )
    assert model.train_seen + resumed.train_seen == uninterrupted[1]


def test_fit_twice_goes_on(data, tmp_path, uninterrupted):
    model, dm = Recorder(), module(data)
    run = trainer(tmp_path, max_epochs=1)
    run.fit(model, datamodule=dm)
    run.fit_loop.max_epochs = 3
    run.fit(model, datamodule=dm)
    assert model.train_seen == uninterrupted[1]


def test_resume_with_other_data_warns(data):
    dm = module(data)
    dm.setup("fit")
    state = dm.train_dataloader().state_dict()
    other = module(data, batch_size=4, seed=3)
    other.setup("fit")
    with pytest.warns(UserWarning, match=r"batch_size 3 -> 4, seed 0 -> 3"):
        other.train_dataloader().load_state_dict(state)


# -- several processes ------------------------------------------------------------------------------------------------


def on_ranks(monkeypatch, world: int, make):
    """What ``make()`` gives on every rank of a simulated group."""
    results = []
    for rank in range(world):
        monkeypatch.setattr(loading, "rank_and_world", lambda rank=rank: (rank, world))
        results.append(make())
    return results


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("videos", "batch"), [(1, 1), (5, 2), (11, 3), (12, 4), (13, 32)])
def test_evaluation_shares(monkeypatch, world, videos, batch):
    alone = list(EvalBatchSampler(videos, batch))
    shares = on_ranks(monkeypatch, world, lambda: list(EvalBatchSampler(videos, batch)))
    lengths = on_ranks(monkeypatch, world, lambda: len(EvalBatchSampler(videos, batch)))
    assert {len(share) for share in shares} == set(lengths)  # no process waits for another
    assert len(set(lengths)) == 1
    assert {tuple(part) for share in shares for part in share} == {tuple(part) for part in alone}  # the same batches
    assert sorted(index for part in alone for index in part) == list(range(videos))  # every video exactly once


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize(("videos", "batch"), [(1, 1), (5, 2), (11, 3), (12, 2), (13, 32)])
@pytest.mark.parametrize("drop_last", [False, True])
def test_training_shares(monkeypatch, world, videos, batch, drop_last):
    def make():
        sampler = TrainBatchSampler(videos, batch, seed=7, drop_last=drop_last)
        sampler.set_epoch(3)
        batches = list(sampler)
        assert len(batches) == len(sampler)
        return batches

    shares = on_ranks(monkeypatch, world, make)
    assert len({len(share) for share in shares}) == 1
    for parts in zip(*shares, strict=True):
        assert len({len(part) for part in parts}) == 1  # equal work in every step
    keys = [key for share in shares for part in share for key in part]
    assert {epoch for epoch, _ in keys} <= {3}
    counts = Counter(index for _, index in keys)
    if drop_last:
        assert set(counts.values()) <= {1}
        assert len(keys) == videos // (batch * world) * batch * world
    else:
        assert set(counts) == set(range(videos))
        assert len(keys) - videos < world
    # Step k of all processes together is the k-th piece of the permutation of a single process.
    monkeypatch.setattr(loading, "rank_and_world", lambda: (0, 1))
    single = TrainBatchSampler(videos, batch * world, seed=7, drop_last=drop_last)
    single.set_epoch(3)
    for number, part in enumerate(single):
        together = [key for share in shares for key in share[number]]
        assert together[: len(part)] == part


def test_lightnings_own_sharing_must_be_off(data):
    dm = module(data)
    dm.setup("fit")
    dm.trainer = SimpleNamespace(
        world_size=2, current_epoch=0, _accelerator_connector=SimpleNamespace(use_distributed_sampler=True)
    )
    with pytest.raises(ValueError, match="use_distributed_sampler=False"):
        dm.train_dataloader()


# -- unreadable and missing videos ------------------------------------------------------------------------------------


@pytest.fixture
def damaged(data, tmp_path) -> Path:
    """The data with one broken training and one broken validation video."""
    for path in data.rglob("*"):
        target = tmp_path / path.relative_to(data)
        target.mkdir(exist_ok=True) if path.is_dir() else target.write_bytes(path.read_bytes())
    (tmp_path / "train" / "v2.mp4").write_text("no video")
    (tmp_path / "val" / "v14.mp4").write_bytes(b"")
    return tmp_path


@pytest.mark.parametrize("workers", [0, 1])
def test_unreadable_training_video_is_named(damaged, workers):
    dm = module(damaged, num_workers=workers)
    dm.setup("fit")
    with pytest.raises(VideoReadError, match=r"train/v2\.mp4.*not a readable video.*video 2.*manifest\.csv:4"):
        list(dm.train_dataloader())


@pytest.mark.parametrize("workers", [0, 2])
def test_unreadable_training_video_is_replaced_and_counted(damaged, workers):
    dm = module(damaged, num_workers=workers, on_read_error="replace")
    dm.setup("fit")
    loader = dm.train_dataloader()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        first = torch.cat([batch["video_index"] for batch in loader])
        again = torch.cat([batch["video_index"] for batch in dm.train_dataloader()])
    assert len(first) == 11
    assert 2 not in first
    assert torch.equal(first, again)  # the replacement follows from the seed
    assert dm.read_errors == 2
    if workers == 0:
        assert any("v2.mp4" in str(warning.message) and "in its place" in str(warning.message) for warning in caught)


def test_replacing_gives_up_when_nothing_can_be_read(tmp_path):
    for index in range(3):
        (tmp_path / "train" / "a").mkdir(parents=True, exist_ok=True)
        (tmp_path / "train" / "a" / f"{index}.mp4").write_text("no video")
    dm = VideoDataModule(str(tmp_path), on_read_error="replace", **SMALL)
    dm.setup("fit")
    with (
        pytest.warns(UserWarning, match="in its place"),
        pytest.raises(VideoReadError, match="10 videos in succession"),
    ):
        list(dm.train_dataloader())


def test_unreadable_validation_video_is_named(damaged):
    dm = module(damaged)
    dm.setup("validate")
    with pytest.raises(VideoReadError, match=r"val/v14\.mp4.*0 bytes.*video 3.*set data\.on_read_error to replace"):
        list(dm.val_dataloader())


@pytest.mark.parametrize("size", [1, 2, 5])
def test_unreadable_validation_video_is_left_out_of_its_batch_and_named_there(damaged, size):
    dm = module(damaged, on_read_error="replace", eval_batch_size=size)
    dm.setup("validate")
    batches = list(dm.val_dataloader())
    assert [i for batch in batches for i in batch["video_index"].tolist()] == [0, 1, 2, 4]
    assert [batch["video"].shape for batch in batches if "video" in batch][-1][1:] == (3, 4, 16, 16)
    [(index, message)] = [item for batch in batches for item in batch.get("unreadable", {}).items()]
    assert index == 3
    assert "val/v14.mp4" in message


def test_prediction_raises_whatever_the_policy(damaged):
    dm = module(damaged, on_read_error="replace", predict_paths=[str(damaged / "val" / "v14.mp4")])
    dm.setup("predict")
    with pytest.raises(VideoReadError, match=r"val/v14\.mp4"):
        list(dm.predict_dataloader())


def test_missing_files(damaged):
    (damaged / "train" / "v2.mp4").unlink()
    dm = module(damaged)
    with pytest.raises(DatasetError, match=r"(?s)10 of 11 videos.*train/v2\.mp4.*on_missing") as caught:
        dm.setup("fit")
    assert str(damaged) in str(caught.value)
    dm = module(damaged, on_missing="drop")
    with pytest.warns(UserWarning, match="10 of 11 videos"):
        dm.setup("fit")
    assert (len(dm.train_dataset), dm.train_dataset.videos_expected) == (10, 11)


def test_folders_without_manifest(data, tmp_path):
    for split, name in (("train", "run"), ("train", "walk"), ("val", "walk")):
        media.write_video(tmp_path / split / name / "a.mp4", num_frames=5)
    dm = VideoDataModule(str(tmp_path), **SMALL)
    model = Recorder()
    trainer(tmp_path / "logs", max_epochs=1).fit(model, datamodule=dm)
    assert dm.class_names == ["run", "walk"]
    assert model.val_seen == ["val/walk/a.mp4"]


def test_no_validation_split(tmp_path):
    media.write_video(tmp_path / "train" / "run" / "a.mp4", num_frames=5)
    dm = VideoDataModule(str(tmp_path), **SMALL)
    model = Recorder()
    trainer(tmp_path / "logs", max_epochs=1).fit(model, datamodule=dm)
    assert len(model.train_seen) == 1
    with pytest.raises(DatasetError, match="no videos in split 'val'"):
        dm.setup("validate")


def test_class_without_training_videos_is_warned_of(data, tmp_path):
    names = ["a", "b", "c", "d"]
    dm = module(data, class_names=names)
    with pytest.warns(UserWarning, match="1 classes have no training videos: d"):
        dm.setup("fit")
    assert dm.facts()["num_classes"] == 4


@pytest.mark.parametrize(
    "options",
    [
        {"batch_size": 0},
        {"scales": ()},
        {"scales": (1.5,)},
        {"resize_range": (100, 340)},  # below the crop of 112
        {"resize_range": (340, 256)},
        {"train_crop_size": 0},
        {"seed": -1},
        {"crop_places": "edges"},
        {"horizontal_flip": "swap"},
        {"on_read_error": "skip"},
        {"on_missing": "skip"},
        {"num_crops": 2},
        {"sampling": "every"},
    ],
)
def test_wrong_options_are_named(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        VideoDataModule(".", **options)


def test_training_can_have_a_crop_and_a_resizing_of_its_own(data):
    dm = module(data, resize_range=[20, 30], train_crop_size=12, resize=20, crop_places="corners")
    dm.setup("fit")
    batch = next(iter(dm.train_dataloader()))
    assert batch["video"].shape == (3, 3, 4, 12, 12)
    assert next(iter(dm.val_dataloader()))["video"].shape[-2:] == (16, 16)
    other = module(data, scales=[12 / 30, 12 / 20], train_crop_size=12)
    other.setup("fit")
    assert not torch.equal(next(iter(other.train_dataloader()))["video"], batch["video"])


def test_drop_last_without_a_full_step(data):
    dm = module(data, batch_size=32, drop_last=True)
    dm.setup("fit")
    with pytest.raises(ValueError, match=r"11 training videos, batch_size 32"):
        dm.train_dataloader()


def test_loaders_need_setup(data):
    for name in ("train", "test", "predict"):
        with pytest.raises(RuntimeError, match="setup"):
            getattr(module(data), f"{name}_dataloader")()


def test_mirrored_clips_take_the_class_of_the_other_side(tmp_path):
    for name in ("swipe_left", "swipe_right"):
        for number in range(6):
            media.write_video(tmp_path / name / f"{number}.mp4", codec="libx264", num_frames=4, width=32, height=32)
    common = {**SMALL, "batch_size": 100, "scales": (1.0,), "crop_size": 32}
    batches = []
    for flip in (False, True, "swap_left_right"):
        dm = VideoDataModule(str(tmp_path), horizontal_flip=flip, **common)
        dm.setup("fit")
        batches.append(next(iter(dm.train_dataloader())))
    still, plain, swapped = batches
    assert torch.equal(plain["video"], swapped["video"])
    own = torch.tensor([item.label for item in dm.train_dataset.items])[swapped["video_index"]]
    mirrored = swapped["label"] != own
    assert mirrored.any()
    assert not mirrored.all()
    assert torch.equal(plain["label"], own)
    assert torch.equal(still["video"][mirrored], swapped["video"][mirrored].flip(-1))
    assert torch.equal(still["video"][~mirrored], swapped["video"][~mirrored])


def test_classes_of_the_other_side():
    names = ["Pulling from left to right", "Waving", "Pulling from right to left", "Turning Clockwise"]
    with pytest.raises(DatasetError, match="no counterpart: Turning Clockwise"):
        mirrored_labels(names)
    assert mirrored_labels([*names, "Turning Counterclockwise"]) == [2, 1, 0, 4, 3]
    assert mirrored_labels(["move_left", "leftover", "move_right"]) == [2, 1, 0]
    with pytest.raises(DatasetError, match="no class name says left or right"):
        mirrored_labels(["Waving", "Bright light"])
