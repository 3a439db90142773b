"""The generated brain volumes: official folders, repeatable, tumours where they should be."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
import torch

from common.datamodules.brats import find_case, find_case_folders, read_images, read_label
from common.datamodules.volumes import VolumeDataModule
from data.demo.__main__ import main
from data.demo._folder import DemoError
from data.demo.brain import draw_case, generate_brain

SIZE = (20, 24, 18)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return generate_brain(tmp_path_factory.mktemp("brain") / "brain", cases=6, size=SIZE)


def test_folders_and_files_are_those_of_brats(folder: Path) -> None:
    cases = find_case_folders([folder])
    assert [case.parent.name for case in cases] == ["HGG"] * 4 + ["LGG"] * 2
    for case in cases:
        names = {f"{case.name}_{part}.nii.gz" for part in ("flair", "t1", "t1ce", "t2", "seg")}
        assert {path.name for path in case.iterdir()} == names
        for name in names:
            image = nib.load(case / name)
            assert image.shape == SIZE
            assert (np.diag(image.affine)[:2] < 0).all()
    data = VolumeDataModule(str(folder), (16, 16, 16), num_workers=0)
    data.setup("fit")
    assert len(data.train_dataset) == 5


def test_tumours_lie_inside_of_brains_and_are_bright_where_they_should_be(folder: Path) -> None:
    for path in find_case_folders([folder]):
        case = find_case(path, labelled=True)
        images = read_images(case)
        assert case.label is not None
        label = read_label(case.label)
        brain = (images != 0).any(0)
        assert 0.3 < brain.float().mean() < 0.8
        assert brain[label > 0].all()
        assert (label > 0).sum() > 20
        healthy = brain & (label == 0)
        flair, _, t1ce, _ = images
        assert flair[label == 2].mean() > 1.2 * flair[healthy].mean()
        if path.parent.name == "HGG":
            assert {1, 2, 4} <= set(label.unique().tolist())
            assert t1ce[label == 4].mean() > 1.2 * t1ce[healthy].mean()


def test_the_same_arguments_give_the_same_volumes(folder: Path) -> None:
    images, label, affine = draw_case(0, 3, SIZE)
    path = find_case_folders([folder / "HGG"])[2]
    case = find_case(path)
    assert path.name == "Demo18_003_1"
    assert torch.equal(read_images(case), torch.from_numpy(images.transpose(0, 3, 2, 1).astype(np.float32)))
    assert np.allclose(nib.load(case.images[0]).affine, affine, atol=1e-4)
    assert not np.array_equal(draw_case(1, 3, SIZE)[1], label)
    # Another number of cases does not change a case, so a larger data set starts with a smaller one.


def test_the_command(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    size = ["--size", *map(str, SIZE)]
    assert main(["brain", "--out", str(folder), "--cases", "6", *size]) == 0  # reused
    assert capsys.readouterr().out.strip() == str(folder)
    assert main(["brain", "--out", str(folder), "--cases", "5", *size]) == 2
    assert "cases is 6, requested 5" in capsys.readouterr().err
    with pytest.raises(DemoError, match="size is 8; it must be at least 16"):
        generate_brain(tmp_path / "b", size=(8, 20, 20))
    assert not (tmp_path / "b").exists()
