"""Options of `spectral predict`, `export` and `compare`, known without importing torch or Lightning."""

from __future__ import annotations

from pathlib import Path

from common.command_line import CommandParser
from common.comparison import RULE

PACKAGES = Path(__file__).resolve().parents[2]  # folder of `papers` and `common`, installed or not
ALLOW_HELP = "package whose modules a checkpoint may name besides those of this project; it is imported"
ALLOW_CLASS_HELP = "module or package in the current folder that a recipe may name; one typed as a class needs none"
EXPORT_SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "safetensors": ".safetensors"}


def find_packaged(path: str) -> str:
    """The path of a recipe or study: as typed, or, if nothing is there, that file of the installed packages.

    So `papers/stft3d/recipes/demo.yaml` is found from any folder.
    """
    packaged = PACKAGES / path
    inside = Path(path).parts[:1] in (("papers",), ("common",)) and ".." not in Path(path).parts
    return str(packaged) if inside and not Path(path).exists() and packaged.is_file() else path


def predict_parser(description: str = "With --checkpoint, --help shows the options of its task too.") -> CommandParser:
    """Options of ``spectral predict`` for every task."""
    parser = CommandParser(prog="spectral predict", description=f"Predict from a checkpoint alone. {description}")
    parser.add_argument(
        "paths",
        nargs="+",
        metavar="PATH",
        help="file, folder of files, .txt list; also frame folders; - reads paths from standard input, one a line; "
        "with --windows also one stream: a URL (http, https, rtsp, udp, ...), camera (/dev/video0) or named pipe",
    )
    parser.add_argument("--checkpoint", required=True, help="checkpoint or ONNX file, or a run's folder (best.ckpt)")
    parser.add_argument("--device", help="cpu, cuda, cuda:1, mps (default: cuda if there is one, otherwise cpu)")
    parser.add_argument("--rows", type=int, default=10, help="rows of the printed table at most (default %(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--allow", metavar="PACKAGE", action="append", help=ALLOW_HELP)
    return parser


def export_parser() -> CommandParser:
    """Options of ``spectral export``."""
    parser = CommandParser(
        prog="spectral export",
        description="Write the network of a checkpoint for other programs. The file is compared with the network "
        "before it is left in place. `spectral predict` takes ONNX files too.",
    )
    parser.add_argument("checkpoint", type=Path, help="checkpoint file, or the folder of a run (its best.ckpt)")
    parser.add_argument("--format", choices=list(EXPORT_SUFFIXES), default="onnx", help="default: %(default)s")
    parser.add_argument(
        "--out", type=Path, help="file to write (default: next to the checkpoint, with another extension)"
    )
    parser.add_argument("--half", action="store_true", help="half precision")
    parser.add_argument(
        "--input",
        type=Path,
        help="file to compare on (default: the first of the recipe's manifest, else random numbers); not for persons",
    )
    parser.add_argument("--force", action="store_true", help="overwrite an existing file")
    parser.add_argument("--allow", metavar="PACKAGE", action="append", default=[], help=ALLOW_HELP)
    return parser


def compare_parser() -> CommandParser:
    """Options of ``spectral compare``."""
    parser = CommandParser(
        prog="spectral compare",
        description="Compare methods on the same data, seeds and budget, with a learning rate chosen for each by the "
        "same rule. A row is written as each training ends; the same command continues an interrupted study.",
        epilog=RULE,
    )
    parser.add_argument(
        "study", type=lambda path: Path(find_packaged(path)), help="YAML file; papers/*/claims.yaml are examples"
    )
    parser.add_argument(
        "--out", type=Path, help="folder of trainings and report (default: runs/compare/<folder>_<study>)"
    )
    parser.add_argument("--rows", type=Path, help="CSV file of the rows (default: rows.csv in --out)")
    parser.add_argument("--size", choices=["quick", "full"], default="quick", help="full takes the study's part `full`")
    parser.add_argument("--jobs", type=int, help="trainings at once (default: 1 with a GPU, otherwise one a core)")
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="say what would run and, by a few training steps of every method, how long; makes generated data",
    )
    parser.add_argument("--show", action="store_true", help="show what is there; train nothing")
    parser.add_argument("--readme", action="store_true", help="write the tables into README.md next to the study")
    parser.add_argument("--allow", metavar="PACKAGE", action="append", help=ALLOW_CLASS_HELP)
    return parser
