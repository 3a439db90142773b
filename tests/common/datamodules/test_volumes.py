"""BraTS folders: what is read, what is refused, and in which order patches come."""

from __future__ import annotations

import gzip
import shutil
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.datamodules.brats import (
    NAMES_2023,
    REGIONS,
    VolumeReadError,
    check_case,
    find_case,
    find_case_folders,
    label_to_regions,
    load_volume,
    read_images,
    read_label,
    regions_to_label,
    save_label,
    voxel_spacing,
)
from common.datamodules.errors import DatasetError
from common.datamodules.volumes import VolumeDataModule, VolumeSpec
from tests.volumes import AFFINE, draw, write, write_brats, write_case


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_brats(tmp_path / "brats")


def module(root: Path, **options: object) -> VolumeDataModule:
    return VolumeDataModule(str(root), **{"patch_size": (8, 8, 8), "num_workers": 0, **options})  # type: ignore[arg-type]


def test_a_case_is_read_as_slices_rows_columns(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "case", seed=3)
    images, label = draw(3, (14, 16, 12))
    case = find_case(folder)
    assert check_case(case) == (14, 16, 12)
    assert np.array_equal(read_images(case).numpy(), images.transpose(0, 3, 2, 1).astype(np.float32))
    assert case.label is not None
    assert np.array_equal(read_label(case.label).numpy(), label.transpose(2, 1, 0))
    volume = load_volume(case)
    for raw, channel in zip(read_images(case), volume, strict=True):
        assert (channel[raw == 0] == 0).all()
        assert abs(float(channel[raw != 0].mean())) < 1e-5
        assert float(channel[raw != 0].std(correction=0)) == pytest.approx(1, abs=1e-4)
    assert type(volume) is torch.Tensor


def test_uncompressed_files_and_missing_labels(tmp_path: Path) -> None:
    folder = write_case(tmp_path, "case")
    packed = folder / "case_t2.nii.gz"
    (folder / "case_t2.nii").write_bytes(gzip.decompress(packed.read_bytes()))
    packed.unlink()
    (folder / "case_seg.nii.gz").unlink()
    case = find_case(folder)
    assert case.label is None
    assert [path.name for path in case.images][-1] == "case_t2.nii"
    assert load_volume(case).shape == (4, 12, 16, 14)


def test_regions_and_labels() -> None:
    label = torch.tensor([0, 1, 2, 4], dtype=torch.uint8).view(1, 1, 1, 4)
    regions = label_to_regions(label)
    assert list(REGIONS) == ["ET", "WT", "TC"]
    assert regions.shape == (1, 3, 1, 1, 4)
    assert regions[0, :, 0, 0].int().tolist() == [[0, 0, 0, 1], [0, 1, 1, 1], [0, 1, 0, 1]]
    assert torch.equal(regions_to_label(regions), label)


def test_saved_labels_lie_where_the_scan_lies(tmp_path: Path) -> None:
    case = find_case(write_case(tmp_path, "case", seed=1))
    assert case.label is not None
    label = read_label(case.label)
    save_label(label, case.images[0], tmp_path / "out.nii.gz")
    written = nib.load(tmp_path / "out.nii.gz")
    assert np.array_equal(written.affine, AFFINE)
    assert np.array_equal(np.asarray(written.dataobj), np.asarray(nib.load(case.label).dataobj))
    assert written.get_data_dtype() == np.uint8
    assert voxel_spacing(case.images[0]) == pytest.approx((1, 1, 1))
    with pytest.raises(FileExistsError, match=r"out\.nii\.gz exists"):
        save_label(label, case.images[0], tmp_path / "out.nii.gz")


def test_splits_are_of_the_published_sizes_and_do_not_depend_on_the_run(root: Path) -> None:
    data = module(root, val_fraction=0.4)
    data.setup("fit")
    assert (len(data.train_dataset), len(data.val_dataset)) == (3, 2)
    again = module(root, val_fraction=0.4, seed=7)
    again.setup("fit")
    names = [[item.name for item in m.val_dataset.items] for m in (data, again)]
    assert names[0] == names[1]
    assert data.manifest_hash == again.manifest_hash
    assert module(root, val_fraction=0.2).manifest_hash != data.manifest_hash
    assert round(0.2 * 285) == 57  # Section 5.6
    assert data.output_names == ["ET", "WT", "TC"]
    assert data.spec.input_shape == (1, 4, 8, 8, 8)


def test_patches_follow_from_seed_epoch_and_case(root: Path) -> None:
    data = module(root, batch_size=2, tumour_patches=0.5)
    data.setup("fit")
    epochs = []
    for epoch in (0, 1, 0):
        loader = data.train_dataloader()
        loader.batch_sampler.set_epoch(epoch)
        epochs.append(list(loader))
    volumes = [torch.cat([batch["volume"] for batch in batches]) for batches in epochs]
    assert torch.equal(volumes[0], volumes[2])
    assert not torch.equal(volumes[0], volumes[1])
    assert volumes[0].shape == (4, 4, 8, 8, 8)
    batch = epochs[0][0]
    assert batch["label"].shape == (2, 8, 8, 8)
    assert batch["label"].dtype == torch.uint8
    assert type(batch["volume"]) is torch.Tensor


def test_a_patch_is_a_piece_of_its_volume_with_its_labels(root: Path) -> None:
    data = module(root, flip=0.0, intensity=0.0)
    data.setup("fit")
    whole, patch = data.train_dataset[1], data.train_dataset[(0, 1)]
    windows = whole["volume"].unfold(1, 8, 1).unfold(2, 8, 1).unfold(3, 8, 1)
    places = (windows == patch["volume"][:, None, None, None]).flatten(4).all(-1).all(0).nonzero()
    assert len(places) == 1
    d, h, w = places[0].tolist()
    assert torch.equal(whole["label"][d : d + 8, h : h + 8, w : w + 8], patch["label"])


def test_small_volumes_are_padded_and_flips_take_the_labels_along(root: Path) -> None:
    data = module(root, patch_size=(16, 20, 8), flip=1.0, intensity=0.0)
    data.setup("fit")
    patch = data.train_dataset[(0, 0)]
    assert patch["volume"].shape == (4, 16, 20, 8)
    tumour = patch["volume"][0][patch["label"] == 4].mean()
    assert tumour > patch["volume"][0][patch["label"] == 0].mean() + 1  # the images show the labels


def test_evaluation_gives_whole_volumes_in_order(root: Path) -> None:
    data = module(root)
    data.setup("test")
    batches = list(data.test_dataloader())
    assert [int(batch["volume_index"]) for batch in batches] == list(range(len(batches)))
    assert batches[0]["volume"].shape == (1, 4, 12, 16, 14)
    assert batches[0]["path"][0].startswith("Brats18_")


def test_a_list_of_splits(root: Path, tmp_path: Path) -> None:
    names = sorted(folder.name for folder in find_case_folders([root]))
    splits = tmp_path / "splits.csv"
    lines = [f"{name},{split}" for name, split in zip(names, ["train", "train", "val", "test", "test"], strict=True)]
    splits.write_text("\n".join(["case,split", *lines]) + "\n")
    data = module(root, splits=str(splits))
    data.setup(None)
    assert [len(d) for d in (data.train_dataset, data.val_dataset, data.test_dataset)] == [2, 1, 2]
    for wrong, message in {
        "\n".join(["case,split", *lines[:-1]]): f"1 cases of .* are not in it, the first is {names[-1]}",
        "\n".join(["case,split", *lines, "other,val"]): "1 cases are not in .*, the first is other",
        "\n".join(["case,split", *lines, lines[0]]): f":7: the case {names[0]} is listed twice",
        "\n".join(["case,split", f"{names[0]},dev"]): ":2: the split is 'dev'",
        "name,part\na,b": "missing columns: case, split",
    }.items():
        splits.write_text(wrong + "\n")
        with pytest.raises(DatasetError, match=message):
            module(root, splits=str(splits)).setup("fit")
    with pytest.raises(DatasetError, match=r"none\.csv cannot be read: No such file"):
        module(root, splits=str(tmp_path / "none.csv")).setup("fit")


def test_broken_missing_and_misaligned_files_are_named(root: Path) -> None:
    folder = find_case_folders([root])[0]
    name = folder.name
    t1, seg = folder / f"{name}_t1.nii.gz", folder / f"{name}_seg.nii.gz"
    images, label = draw(0, (14, 16, 12))
    good = t1.read_bytes()

    def refused(match: str) -> None:
        with pytest.raises(VolumeReadError, match=match):
            module(root).setup("fit")
        t1.write_bytes(good)

    t1.unlink()
    refused(f"it lacks {name}_t1.nii.gz")
    t1.write_bytes(b"no image")
    refused(rf"{name}_t1\.nii\.gz: not a readable NIfTI")
    write(t1, images[0][:, :, :-1])
    refused(rf"{name}_t1\.nii\.gz: its shape is \(14, 16, 11\)")
    moved = AFFINE.copy()
    moved[0, 3] = 5
    write(t1, images[0], moved)
    refused(rf"{name}_t1\.nii\.gz: its affine differs from that of")
    write(t1, images[0][..., None])
    refused("not aligned")
    seg.unlink()
    refused(f"it lacks {name}_seg.nii.gz")
    write(seg, label + np.uint8(1))
    with pytest.raises(VolumeReadError, match=rf"{name}_seg\.nii\.gz: it holds the label 3"):
        read_label(seg)
    nan = images[0].astype(np.float32)
    nan[0, 0, 0] = np.nan
    write(t1, nan)
    with pytest.raises(VolumeReadError, match=rf"{name}_t1\.nii\.gz: it holds values that are NaN"):
        load_volume(find_case(folder))
    t1.write_bytes(good[: len(good) // 2])  # the header is whole, the voxels are not
    with pytest.raises(VolumeReadError, match=rf"{name}_t1\.nii\.gz: not a readable NIfTI"):
        load_volume(find_case(folder))


def test_a_header_that_claims_too_many_voxels_is_refused_before_they_are_read(root: Path) -> None:
    folder = find_case_folders([root])[0]
    header = nib.Nifti1Header()
    header.set_data_shape((20000, 20000, 20))
    path = folder / f"{folder.name}_seg.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(VolumeReadError, match=r"_seg.nii.gz: its header claims 20000 x 20000 x 20 voxels; at most"):
        module(root).setup("fit")
    with pytest.raises(VolumeReadError, match="its header claims"):
        read_label(path)


@pytest.mark.parametrize("kind", [nib.Nifti1Header, nib.Nifti2Header])
@pytest.mark.parametrize("order", ["<", ">"])
def test_extensions_that_would_fill_the_memory_are_refused(tmp_path: Path, kind: type, order: str) -> None:
    folder = write_case(tmp_path, "case")
    header = kind(endianness=order)
    header["vox_offset"] = 2**31
    path = folder / "case_seg.nii.gz"
    path.write_bytes(gzip.compress(header.binaryblock + bytes(4)))
    with pytest.raises(VolumeReadError, match=r"case_seg\.nii\.gz: its header claims 2\.14748e\+09 bytes before"):
        read_label(path)


@pytest.mark.parametrize("dtype", [[("R", "u1"), ("G", "u1"), ("B", "u1")], np.complex64])
@pytest.mark.parametrize("name", ["seg", "t1"])
def test_voxels_that_are_no_real_numbers_are_refused(tmp_path: Path, dtype: object, name: str) -> None:
    folder = write_case(tmp_path, "case")
    write(folder / f"case_{name}.nii.gz", np.zeros((14, 16, 12), np.dtype(dtype)))
    case = find_case(folder)
    assert case.label is not None
    with pytest.raises(VolumeReadError, match=rf"case_{name}\.nii\.gz: its voxels are of the type"):
        read_label(case.label) if name == "seg" else read_images(case)


def test_a_case_that_is_there_twice(root: Path) -> None:
    folder = next(folder for folder in find_case_folders([root]) if folder.parent.name == "HGG")
    shutil.copytree(folder, root / "LGG" / folder.name)
    with pytest.raises(DatasetError, match=f"the case {folder.name} exists twice"):
        module(root).setup("fit")


def test_wrong_values_are_named(root: Path, tmp_path: Path) -> None:
    for options, match in (
        ({"patch_size": (8, 8)}, "patch_size is"),
        ({"overlap": 1.0}, r"overlap is 1\.0"),
        ({"flip": 2.0}, "flip is 2"),
        ({"val_fraction": 1.0}, "val_fraction is 1"),
        ({"modalities": ("t1", "t1")}, "modalities is"),
        ({"batch_size": 0}, "batch_size is 0"),
        ({"num_workers": -1}, "num_workers is -1"),
    ):
        with pytest.raises(ValueError, match=match):
            module(root, **options)
    with pytest.raises(DatasetError, match="has no val cases"):
        module(root, val_fraction=0.0).setup("validate")
    with pytest.raises(DatasetError, match=r"none does not exist.*python -m data.demo brain"):
        module(tmp_path / "none").setup("fit")
    with pytest.raises(FileNotFoundError, match="no such folder"):
        find_case_folders([tmp_path / "none"])
    with pytest.raises(ValueError, match="unknown keys in VolumeSpec: size"):
        VolumeSpec.from_dict({"size": 3})


def test_folders_of_2023_give_the_same_cases(tmp_path: Path) -> None:
    old = write_case(tmp_path / "2018", "BraTS-GLI-00005-000", seed=3)
    new = tmp_path / "2023" / old.name
    new.mkdir(parents=True)
    for modality, name in NAMES_2023.items():
        target = new / f"{old.name}-{name}.nii.gz"
        shutil.copy(old / f"{old.name}_{modality}.nii.gz", target)
    seg, reference = new / f"{old.name}-seg.nii.gz", read_label(old / f"{old.name}_seg.nii.gz")
    assert (reference == 4).any()
    assert not (read_label(seg) == 4).any()  # 4 is a resection cavity there
    save_label(reference, new / f"{old.name}-t1c.nii.gz", seg, overwrite=True)
    assert set(np.unique(np.asarray(nib.load(seg).dataobj))) == {0, 1, 2, 3}
    (folder,) = find_case_folders([tmp_path / "2023"])
    case = find_case(folder, labelled=True)
    assert case.label == seg
    assert torch.equal(read_label(seg), reference)
    assert torch.equal(load_volume(case), load_volume(find_case(old)))
    seg.unlink()
    with pytest.raises(VolumeReadError, match=r"it lacks BraTS-GLI-00005-000-seg\.nii\.gz"):
        find_case(folder, labelled=True)
