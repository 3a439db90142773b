import os
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from common.datamodules import ImageDataModule
from common.datamodules.errors import DatasetError, ImageReadError
from common.datamodules.image_archives import read_cifar, read_fashion_mnist
from common.datamodules.image_dataset import (
    ImageAugmentation,
    ImageDataset,
    ImageSpec,
    colour_statistics,
    fit_image,
    load_image,
    read_image,
)
from common.datamodules.loading import TrainBatchSampler, sample_generator
from tests.images import (
    pack,
    pixels,
    write_cifar_binary,
    write_cifar_python,
    write_fashion_mnist,
    write_folders,
    write_idx,
)

pytestmark = pytest.mark.filterwarnings("ignore:.*images of (cifar|fashion)")


def folder(root: Path, **options) -> ImageDataModule:
    return ImageDataModule(str(root), **{"num_workers": 0, "batch_size": 4, **options})


# -- archives ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("classes", [10, 100])
@pytest.mark.parametrize("version", ["binary", "python 2", "python 3"])
@pytest.mark.parametrize("packed", [False, True])
def test_every_published_version_of_cifar_gives_the_same_images(tmp_path, classes, version, packed):
    images, labels = write_cifar_binary(tmp_path / "expected", classes)
    root = tmp_path / "data"
    if version == "binary":
        write_cifar_binary(root, classes)
    elif version == "python 2":
        write_cifar_python(root, classes)
    else:
        write_cifar_python(root, classes, dump=lambda value: pickle.dumps(value, protocol=2))
    if packed:
        [place] = root.iterdir()
        end = "binary" if version == "binary" else "python"
        pack(place, root / f"cifar-{classes}-{end}.tar.gz")
        place.rename(tmp_path / "elsewhere")
    archive = read_cifar(root, f"cifar{classes}")
    assert archive.class_names == tuple(f"class {k}" for k in range(classes))
    assert np.array_equal(archive.splits["train"][0], images)
    assert np.array_equal(archive.splits["train"][1], labels)
    assert np.array_equal(archive.splits["test"][0], pixels(10, 3, 32, 32, seed=5 if classes == 10 else 1))
    assert archive.hash == read_cifar(tmp_path / "expected", f"cifar{classes}").hash


class Attack:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_runs_no_code(tmp_path):
    write_cifar_python(tmp_path)
    victim = tmp_path / "cifar-10-batches-py" / "data_batch_3"
    victim.write_bytes(pickle.dumps({"data": Attack(tmp_path / "made"), "labels": []}))
    with pytest.raises(DatasetError, match=r"data_batch_3 cannot be read: it asks for posix.mkdir"):
        read_cifar(tmp_path, "cifar10")
    assert not (tmp_path / "made").exists()
    victim.write_bytes(b"\x80\x02}r\xff\xff\xff\x7f.")  # puts a dict at place 2**31 - 1 of the memo, a table
    with pytest.raises(DatasetError, match=r"data_batch_3 cannot be read: it numbers a value 2147483647"):
        read_cifar(tmp_path, "cifar10")


def test_errors_of_cifar_name_the_file(tmp_path):
    with pytest.raises(DatasetError, match=r"put cifar-10-binary.tar.gz there.*cs.toronto.edu"):
        read_cifar(tmp_path, "cifar10")
    write_cifar_binary(tmp_path)
    place = tmp_path / "cifar-10-batches-bin"
    batch = place / "data_batch_2.bin"
    content = batch.read_bytes()
    batch.write_bytes(content[:-1])
    with pytest.raises(DatasetError, match=r"data_batch_2.bin has 30729 bytes, not a multiple of 3073"):
        read_cifar(tmp_path, "cifar10")
    batch.write_bytes(b"\x0a" + content[1:])
    with pytest.raises(DatasetError, match=r"data_batch_2.bin has labels from 1 to 10, outside 0..9"):
        read_cifar(tmp_path, "cifar10")
    batch.unlink()
    with pytest.raises(DatasetError, match=r"cifar-10-batches-bin lacks data_batch_2.bin"):
        read_cifar(tmp_path, "cifar10")
    batch.write_bytes(content)
    pack(place, tmp_path / "x.tar.gz")
    place.rename(tmp_path / "elsewhere")
    (tmp_path / "cifar-10-binary.tar.gz").write_bytes((tmp_path / "x.tar.gz").read_bytes()[:5000])
    with pytest.raises(DatasetError, match=r"cifar-10-binary.tar.gz cannot be read"):
        read_cifar(tmp_path, "cifar10")


@pytest.mark.parametrize("place", ["", "raw", "FashionMNIST/raw"])
@pytest.mark.parametrize("compressed", [False, True])
def test_fashion_mnist(tmp_path, place, compressed):
    write_fashion_mnist(tmp_path / place, compressed)
    archive = read_fashion_mnist(tmp_path)
    images, labels = archive.splits["test"]
    assert np.array_equal(images[:, 0], pixels(20, 28, 28, seed=1))
    assert labels.tolist() == [k % 10 for k in range(20)]
    assert archive.class_names[9] == "Ankle boot"
    data = ImageDataModule(str(tmp_path), "fashion-mnist", num_workers=0)
    data.setup("test")
    batch = next(iter(data.test_dataloader()))
    assert batch["image"].shape == (20, 3, 28, 28)
    expected = (images[:, 0].float() / 255 - 0.2860) / 0.3530
    torch.testing.assert_close(batch["image"][:, 1], expected, rtol=1e-5, atol=1e-5)


def test_errors_of_fashion_mnist_name_the_file(tmp_path):
    with pytest.raises(DatasetError, match="no train-images-idx3-ubyte"):
        read_fashion_mnist(tmp_path)
    write_fashion_mnist(tmp_path)
    images = tmp_path / "t10k-images-idx3-ubyte"
    content = images.read_bytes()
    for wrong, message in (
        (content[:-1], "should hold 20x28x28 values, but holds 15679"),
        (content + b"0", "should hold 20x28x28 values, but holds more"),
        (b"\0\0\x0d\3" + content[4:], "is not an idx file"),
        (content[:4] + b"\x7f\xff\xff\xff" + content[8:], "says that it holds 2147483647x28x28 values; it is damaged"),
    ):
        images.write_bytes(wrong)
        with pytest.raises(DatasetError, match=f"t10k-images-idx3-ubyte {message}"):
            read_fashion_mnist(tmp_path)
    write_idx(images, pixels(19, 28, 28))
    with pytest.raises(DatasetError, match=r"has 19 images, .* 20 labels"):
        read_fashion_mnist(tmp_path)


# -- images -----------------------------------------------------------------------------------------------------------


def test_size_and_normalisation(tmp_path):
    spec = ImageSpec(8, 6, (0.1, 0.2, 0.3), (0.5, 0.6, 0.7))
    image = pixels(1, 8, 6, 3)[0]
    Image.fromarray(image).save(tmp_path / "a.png")
    expected = (torch.from_numpy(image) / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    torch.testing.assert_close(load_image(tmp_path / "a.png", spec), expected.permute(2, 0, 1))
    assert ImageSpec.from_dict(spec.to_dict()) == spec
    assert spec.input_shape == (1, 3, 8, 6)
    for height, width in ((20, 10), (10, 20), (3, 40), (8, 6)):
        assert fit_image(torch.zeros(3, height, width, dtype=torch.uint8), (8, 6)).shape == (3, 8, 6)
    with pytest.raises(ValueError, match="height is 0"):
        ImageSpec(0, 6, spec.mean, spec.std)
    with pytest.raises(ValueError, match="unknown keys in ImageSpec: depth"):
        ImageSpec.from_dict({**spec.to_dict(), "depth": 1})


def test_colour_statistics_are_those_of_numpy():
    images = torch.from_numpy(pixels(7, 3, 5, 4))
    mean, std = colour_statistics(images)
    values = images.numpy() / 255.0
    np.testing.assert_allclose(mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(std, values.std((0, 2, 3)), rtol=1e-12)
    assert colour_statistics(torch.full((2, 3, 4, 4), 51, dtype=torch.uint8)) == ((0.2,) * 3, (1.0,) * 3)


def test_augmentation():
    image = torch.from_numpy(pixels(1, 3, 16, 16)[0])
    plain = ImageAugmentation(False, 0.0, 0.0, 0)
    assert torch.equal(plain(image, sample_generator(0)), image)
    flips = [ImageAugmentation(True, 0.0, 0.0, 0)(image, sample_generator(k)) for k in range(40)]
    mirrored = sum(torch.equal(flip, image.flip(-1)) for flip in flips)
    assert mirrored + sum(torch.equal(flip, image) for flip in flips) == 40
    assert 10 < mirrored < 30
    moving = ImageAugmentation(True, 0.2, 30.0, 0)
    assert torch.equal(moving(image, sample_generator(1)), moving(image, sample_generator(1)))
    assert not torch.equal(moving(image, sample_generator(1)), moving(image, sample_generator(2)))
    # Borders repeat their nearest pixel: nothing new appears, whatever is drawn.
    flat = torch.full((3, 16, 16), 77, dtype=torch.uint8)
    for k in range(50):
        moved = ImageAugmentation(True, 0.3, 180.0, 0)(flat, sample_generator(k))
        assert moved.shape == (3, 16, 16)
        torch.testing.assert_close(moved, torch.full((3, 16, 16), 77.0))
    # The drawn shifts reach as far as asked, and no farther.
    ramp = (torch.arange(64) * 2).to(torch.uint8).expand(3, 64, 64)
    shifts = [
        float(ImageAugmentation(False, 0.1, 0.0, 0)(ramp, sample_generator(k))[0, 32, 32] - 64) / 2 for k in range(99)
    ]
    assert 6 < max(map(abs, shifts)) <= 6.4
    assert abs(float(np.mean(shifts))) < 1.5


def test_a_sample_depends_on_seed_epoch_and_index_alone(tmp_path):
    write_folders(tmp_path, train=6, test=1)

    def batches(num_workers: int, seed: int = 3) -> list[dict]:
        data = folder(tmp_path, horizontal_flip=True, shift=0.1, rotation=20, num_workers=num_workers, seed=seed)
        data.setup("fit")
        loader = data.train_dataloader()
        result = []
        for epoch in range(2):
            loader.batch_sampler.set_epoch(epoch)
            result += list(loader)
        return result

    first = batches(0)
    for other in (batches(2), batches(0)):
        assert all(torch.equal(a["image"], b["image"]) for a, b in zip(first, other, strict=True))
        assert all(torch.equal(a["image_index"], b["image_index"]) for a, b in zip(first, other, strict=True))
    assert not torch.equal(first[0]["image"], batches(0, seed=4)[0]["image"])
    assert sorted(torch.cat([b["image_index"] for b in first[:3]]).tolist()) == list(range(12))


# -- the data module --------------------------------------------------------------------------------------------------


def test_cifar_batches(tmp_path):
    images, _ = write_cifar_binary(tmp_path)
    data = ImageDataModule(str(tmp_path), "cifar10", batch_size=8, num_workers=0, val_per_class=1)
    with pytest.warns(UserWarning, match="50 of 50000 train images of cifar10"):
        data.setup()
    assert (len(data.train_dataset), len(data.val_dataset), len(data.test_dataset)) == (40, 10, 10)
    assert (data.facts(), data.spec.size) == ({"num_classes": 10}, (32, 32))
    [*_, last] = data.val_dataloader()
    assert last["image_index"].tolist() == [8, 9]
    assert last["path"] == ["train[48]", "train[49]"]  # the last image of each class
    expected = (torch.from_numpy(images[48]) / 255 - torch.tensor(data.spec.mean)[:, None, None]) / torch.tensor(
        data.spec.std
    )[:, None, None]
    torch.testing.assert_close(last["image"][0], expected)
    assert data.test_dataset.videos_expected == 10_000
    whole = ImageDataModule(str(tmp_path), "cifar10", num_workers=0)
    whole.setup("fit")
    assert len(whole.train_dataset) == 50
    assert whole.val_dataloader() == []
    with pytest.raises(DatasetError, match="hold some out with val_per_class"):
        whole.setup("validate")
    greedy = ImageDataModule(str(tmp_path), "cifar10", val_per_class=5)
    with pytest.raises(DatasetError, match="a class has only 5 training images"):
        greedy.setup("fit")


def test_fewer_images_per_class_are_nested_and_chosen_by_the_seed(tmp_path):
    write_cifar_binary(tmp_path, per_batch=30)

    def chosen(count: int | None, seed: int = 0) -> set[str]:
        data = ImageDataModule(str(tmp_path), "cifar10", train_per_class=count, seed=seed, num_workers=0)
        data.setup("fit")
        labels = [item.label for item in data.train_dataset.items]
        assert count is None or all(labels.count(k) == count for k in range(10))
        return {item.name for item in data.train_dataset.items}

    assert chosen(2) < chosen(5) < chosen(None)
    assert chosen(2) == chosen(2)
    assert chosen(2) != chosen(2, seed=1)
    with pytest.raises(DatasetError, match=r"train_per_class is 16; class 'class 0' has only 15 training images"):
        chosen(16)


@pytest.mark.parametrize("cache", [False, True])
def test_image_folders(tmp_path, cache):
    write_folders(tmp_path, train=5, val=2, test=3)
    data = folder(tmp_path, cache_decoded=cache)
    data.setup()
    assert (data.class_names, len(data.train_dataset), len(data.test_dataset)) == (["class0", "class1"], 10, 6)
    images = torch.stack([read_image(path) for path in sorted(tmp_path.glob("train/*/*.png"))])
    assert (data.spec.mean, data.spec.std) == colour_statistics(images)
    batches = list(data.test_dataloader())
    assert [path for batch in batches for path in batch["path"]] == [
        f"test/class{label}/{k}.png" for label in range(2) for k in range(3)
    ]
    assert torch.equal(batches[0]["image"][1], load_image(tmp_path / "test/class0/1.png", data.spec))
    data.predict_paths = [str(tmp_path / "val")]
    data.setup("predict")
    assert [int(n) for batch in data.predict_dataloader() for n in batch["label"]] == [-1] * 4


def test_a_folder_without_splits_holds_images_out(tmp_path):
    write_folders(tmp_path)
    data = folder(tmp_path)
    with pytest.warns(UserWarning, match="2 of 10 images are held out for validation"):
        data.setup("fit")
    assert (len(data.train_dataset), len(data.val_dataset)) == (8, 2)
    data.setup("test")
    assert len(data.test_dataset) == 2


@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_broken_image_is_named(tmp_path, num_workers):
    write_folders(tmp_path, train=3, val=1)
    broken = tmp_path / "val/class1/0.png"
    broken.write_bytes(broken.read_bytes()[:60])
    data = folder(tmp_path, num_workers=num_workers)
    data.setup("fit")
    with pytest.raises(ImageReadError, match=r"val/class1/0.png: not a readable image"):
        list(data.val_dataloader())


def test_images_of_another_size_are_named_or_resized(tmp_path):
    write_folders(tmp_path, train=3)
    Image.new("L", (7, 9)).save(tmp_path / "train/class1/9.png")
    with pytest.raises(ImageReadError, match=r"9.png: it has 9 x 7 pixels, the first image 12 x 12; set image_size"):
        folder(tmp_path).setup("fit")
    data = folder(tmp_path, image_size=10)
    data.setup("fit")
    assert {tuple(batch["image"].shape[1:]) for batch in data.train_dataloader()} == {(3, 10, 10)}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "cifar"}, "dataset is 'cifar', which is not a known image dataset. Did you mean cifar10"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size_by_epoch": {0: 4}}, "batch_size_by_epoch has 0: 4"),
        ({"shift": 1.0}, "shift is 1.0"),
        ({"rotation": -1.0}, "rotation is -1.0"),
        ({"image_size": 0}, "image_size is 0"),
        ({"train_per_class": 0}, "train_per_class is 0"),
        ({"val_per_class": 1}, "a folder has its own rule"),
        ({"mean": (0.0, 0.0, 0.0)}, "mean and std together"),
        ({"seed": -1}, "seed is -1"),
    ],
)
def test_wrong_options(options, message):
    with pytest.raises(ValueError, match=message):
        ImageDataModule(**{"dataset": None, "root": ".", **options})


def test_wrong_folders(tmp_path):
    with pytest.raises(DatasetError, match=r"python -m data.demo digits --out"):
        folder(tmp_path / "none").setup("fit")
    (tmp_path / "a").mkdir()
    with pytest.raises(DatasetError, match=r"class folders without images in .*: a. Known image extensions: .jpeg"):
        folder(tmp_path).setup("fit")


def test_the_seed_of_the_run_is_that_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert folder(tmp_path).seed == folder(tmp_path).augmentation.seed == 7


def test_the_batch_grows_with_the_epoch():
    sampler = TrainBatchSampler(20, 4, seed=0, batch_size_by_epoch={2: 8, 5: 20})
    sizes = []
    for epoch in range(6):
        sampler.set_epoch(epoch)
        sizes.append([len(batch) for batch in sampler])
        assert len(sampler) == len(sizes[-1])
    assert sizes == [[4] * 5, [4] * 5, [8, 8, 4], [8, 8, 4], [8, 8, 4], [20]]


def test_a_dataset_key_without_an_epoch_is_not_augmented(tmp_path):
    write_folders(tmp_path, train=2)
    data = folder(tmp_path, shift=0.3)
    data.setup("fit")
    dataset: ImageDataset = data.train_dataset
    assert torch.equal(dataset[1]["image"], load_image(tmp_path / "train/class0/1.png", data.spec))
    assert not torch.equal(dataset[(0, 1)]["image"], dataset[1]["image"])
