"""The ledgers hold every table and figure of the papers, and print what the papers print."""

from __future__ import annotations

import pytest

from common.reporting.ledger import Ledger
from tests.papers.test_every_paper import ROOT, ledger_of


def load(paper: str) -> Ledger:
    return ledger_of(ROOT / "papers" / paper)


@pytest.mark.parametrize(
    ("paper", "rows", "figures"),
    [
        ("stft3d", [7, 21, 13, 4, 27, 18, 19, 14, 14], [f"figure{i}" for i in range(1, 9)]),
        ("stft2d", [3, 11], [f"figure{i}" for i in range(1, 4)]),
        ("dtf", [5, 4, 5, 6, 30, 28], [f"figure{i}" for i in range(1, 8)]),
        ("srl", [6, 22, 12, 6, 6, 12, 8, 4, 7, 7], ["table1-measured", *(f"figure{i}" for i in range(1, 6))]),
        ("fdc3d", [2, 1 + 8, 6, 9, 2], [*(f"figure{i}" for i in range(1, 5)), "ladder"]),
    ],
)
def test_every_row_and_figure_is_there(paper: str, rows: list[int], figures: list[str]) -> None:
    assert [len(table.rows) for table in load(paper).tables] == rows
    assert [figure.id for figure in load(paper).figures] == figures
    assert all(row.statuses for _, row in load(paper).rows())


@pytest.mark.parametrize(
    ("paper", "row", "numbers"),
    [
        ("stft3d", "table1/something-v2", "174 1,68,913 24,777 27,157"),
        ("stft3d", "table2/i3d-64f", "64 12.90M 107.89G 45.8 76.5"),
        ("stft3d", "table2/relpv-32f", "32 4.78M - 40.69 71.20"),
        ("stft3d", "table2/fact-dw-32f", "32 6.28M 20.79G 44.62 74.37"),
        ("stft3d", "table2/t-stft-16f", "16 6.27M 10.30G 46.74 76.15"),
        ("stft3d", "table2/i2d-64f", "64 6.79M - 34.4 69.0"),
        ("stft3d", "table3/ir-csn-152", "29.6M 74.0G 48.22 -"),
        ("stft3d", "table3/3d-shufflenetv1-2.0x", "3.94M 0.78G 33.91 62.52"),
        ("stft3d", "table4/selu", "SELU 32.83 61.83"),
        (
            "stft3d",
            "table5/t-stft-64f-kinetics",
            "BN-Inception RGB Kinetics 6.27M 64 41.21G×1×1 52.42 81.8 64.66 90.84",
        ),
        ("stft3d", "table5/stm-16f", "ResNet-50 RGB ImageNet 26M 16 67G×3×10 50.7 80.4 64.2 89.8"),
        ("stft3d", "table6/bertasius-pose-flow", "Pose+Flow PoseTrack - 18.8"),
        ("stft3d", "table6/t-stft", "RGB Kinetics 64 44.3"),
        ("stft3d", "table7/3d-resnext-101", "× 16 94.89"),
        ("stft3d", "table7/t-stft-kinetics", "Kinetics 16 96.94"),
        ("stft3d", "table8/t-stft", "BN-Inception × 61.1 85.2"),
        ("stft3d", "table9/t-stft", "Kinetics 94.7 71.5"),
        ("dtf", "table1a/2d-resnet", "23 72.0 90.3"),
        ("dtf", "table1a/dtf-1d-plus", "28 74.2 91.6"),
        ("dtf", "table1a/dtf-f", "23 75.0 92.2"),
        ("dtf", "table1b/baseline", "- - 23 74.9 92.3"),
        ("dtf", "table1b/correlation", "- ✓ 24 75.2 92.5"),
        ("dtf", "table1c/res3-5", "- ✓ ✓ ✓ 25 77.1 93.1"),
        ("dtf", "table1d/temporal-difference", "36 76.6 92.8"),
        ("dtf", "table2/dtf-net-r50-64f", "R50 111×30 80.9 94.6"),
        ("dtf", "table2/dtf-net-r101-32f", "R101 76×30 80.1 94.3"),
        ("dtf", "table2/corrnet-r101", "R101 224×30 79.2 -"),
        ("dtf", "table2/vivit", "ViT-L 3,992×12 81.3 94.7"),
        ("dtf", "table2/dtf-transformer", "Swin-B 266×12 83.5 95.9"),
        ("dtf", "table3/cpnet", "R34 N/A - - 57.7 84.0"),
        ("dtf", "table3/dtf-net-r50-32f", "R50 51×3 55.1 83.0 66.2 90.3"),
        ("dtf", "table3/dtf-net-r101-64f", "R101 152×3 57.1 84.1 68.9 92.6"),
        ("dtf", "table3/dtf-transformer", "Swin-B 266×3 57.9 85.7 70.1 93.2"),
        ("srl", "table1/srl-fft", "O(CHWlog(HW))"),
        ("srl", "table2/cpn-ohkm-384x288", "ResNet-50 384x288 - - 71.6 - - - - -"),
        ("srl", "table2/simplebaseline-r101-512x384", "ResNet-101 512x384 49.52 52.99 74.2 89.7 80.7 70.2 81.8 79.5"),
        ("srl", "table2/srl-fft-r152-384x288", "ResNet-152 384x288 35.67 68.74 74.6 89.7 81.7 70.8 81.9 80.1"),
        ("srl", "table3/rcca-384x288", "384x288 2.76 0.92 72.8"),
        ("srl", "table3/srl-fft-256x192", "256x192 0.09 0.10 70.9"),
        ("srl", "table4/baseline-star", "66.3 87.1 71.4 61.3 74.6 72.0"),
        ("srl", "table4/srl-fft-4", "73.7 89.4 80.3 69.7 81.2 78.9"),
        ("srl", "table5/d1-d2-d3", "73.3 89.5 80.0 69.4 80.6 78.6"),
        ("srl", "table6/srl-lo-r50-384x288", "ResNet-50 384x288 72.8"),
        ("srl", "table8/nl", "64.48 85.48 321.50 1.23"),
        ("srl", "table8/srl-lo", "65.02 85.60 86.89 0.21"),
        ("srl", "table9/2-blocks", "64.79 85.71"),
        ("srl", "table9/time", "63.80 85.08"),
        ("srl", "table10/srl-fft-star", "8 72.7 90.9"),
        ("fdc3d", "section1/resnet-50-3d", "354MB 22G"),
        ("fdc3d", "section1/resnet-50-2d", "103MB 4G"),
        ("fdc3d", "table1/baseline", "1× 72.50 -"),
        ("fdc3d", "table1/tp-2x", "2× - 5.72"),
        ("fdc3d", "table1/tp-4x", "4× - 14.24"),
        ("fdc3d", "table1/fp-4x", "4× - 6.92"),
        ("fdc3d", "table1/rp-2x", "2× - 0.41"),
        ("fdc3d", "table1/fdc3d-2x", "2× - 0.10"),
        ("fdc3d", "table1/fdc3d-4x", "4× - 2.16"),
        ("fdc3d", "table2/channels-2x", "2× 0.81"),
        ("fdc3d", "table2/dct-4x", "4× 2.96"),
        ("fdc3d", "table3/resnet-34", "1× 81.1 -"),
        ("fdc3d", "table3/resnet-50-4x", "4× - 1.63"),
        ("fdc3d", "table3/resnet-101-2x", "2× - 0.02"),
        ("fdc3d", "table4/unet", "1× 0.7974 0.7971 0.6908"),
        ("fdc3d", "table4/fc3d-unet", "2× 0.7832 0.7831 0.6816"),
    ],
)
def test_numbers_are_as_printed(paper: str, row: str, numbers: str) -> None:
    found = {r.id: r for _, r in load(paper).rows()}[row]
    assert " ".join(found.paper.values()) == numbers
