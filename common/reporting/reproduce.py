"""The command of every paper: its tables next to what this machine computes and measures.

    python -m papers.<paper>.reproduce                       the main job: count every network, train and test the demo
                                                             networks on generated data, write the report
    python -m papers.<paper>.reproduce --list                every table row and figure, its status and its command
    python -m papers.<paper>.reproduce table2 --complexity   parameters and multiply-adds of some rows
    python -m papers.<paper>.reproduce ROW --data DIR        train and test a row's recipe on the real data

What is finished is not done again (see :mod:`common.reporting.runs`). An interrupted run leaves nothing half-written
and resumes at the network that was not finished.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from common.reporting.ledger import Ledger, LedgerError, load, package_root
from common.reporting.listing import list_records, listing
from common.reporting.results import ReproduceError, ResultError


def main(folder: Path, figures: str, argv: Sequence[str] | None = None) -> int:
    """Run the command for the paper in `folder`.

    Args:
        folder: the paper's folder with `ledger.yaml` and `recipes/`.
        figures: dotted name of the module with the functions that the ledger's figures name.
        argv: command line arguments.

    Returns:
        Exit code: 0, 1 if a row failed, 2 for wrong arguments, 130 if interrupted.
    """
    module = ".".join([*folder.resolve().relative_to(package_root(folder)).parts, "reproduce"])
    args = _parser(module, folder.name).parse_args(argv)
    errors = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    try:
        ledger = load(folder / "ledger.yaml")
        ids = ledger.select(args.rows)
        data = _data(args.data, ledger, ids)
        if args.list:
            records = list_records(ledger, ids, module)
            print(json.dumps(records, indent=2) if args.json else listing(ledger, records), flush=True)
            return 0
        from common.reporting import main_job  # with PyTorch and Matplotlib, which a list does without

        return main_job.run(ledger, ids, figures, args, data, module)
    except BrokenPipeError:  # `--list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        errors.print("Interrupted. What was finished is kept; the same command resumes from there.")
        return 130
    except (LedgerError, ReproduceError, ResultError) as error:
        errors.print(f"error: {escape(str(error))}")
        return 2


def _parser(module: str, paper: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description="The paper's tables next to what this machine computes and measures. "
        "Without arguments: count every network, train and test the demo networks on generated data, write a report.",
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="rows, tables or figures, e.g. table2, table2/t-stft-16f"
    )
    parser.add_argument("--list", action="store_true", help="print every entry with its status and command")
    parser.add_argument("--complexity", action="store_true", help="only count parameters and multiply-adds")
    parser.add_argument("--json", action="store_true", help="with --list or --complexity: print only JSON")
    parser.add_argument("--tables", action="store_true", help="print the paper's tables too, which the report holds")
    parser.add_argument(
        "--data",
        action="append",
        default=[],
        metavar="[DATASET=]DIR",
        help="train and test the recipes of the named rows on the data below DIR (videos with their manifest.csv)",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("runs") / paper, help="results and report (default: %(default)s)"
    )
    parser.add_argument(
        "--seed", type=int, default=0, help="seed of the trainings, the first of several (default: %(default)s)"
    )
    parser.add_argument("--epochs", type=int, help="number of epochs in place of the recipe's, to try things out")
    parser.add_argument(
        "--jobs",
        type=int,
        help="networks to count or train at once, each in a process of its own (default: with a GPU one, without as "
        "many as there are cores, at most 8)",
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="also write the tables into the paper's README and the demo into results.csv",
    )
    return parser


def _data(given: Sequence[str], ledger: Ledger, ids: Sequence[str]) -> dict[str, Path]:
    """Data set -> folder. Raises ReproduceError for one that is not there or that no chosen recipe is trained on."""
    known = sorted({dataset for _, row in ledger.rows() if row.id in ids for dataset in row.recipes})
    folders = {}
    for text in given:
        dataset, equals, folder = text.partition("=")
        if not equals or (dataset not in known and Path(text).is_dir()):
            if len(known) != 1:
                raise ReproduceError(f"--data {text}: say DATASET={text}; the chosen rows have {_listed(known)}")
            dataset, folder = known[0], text
        if dataset not in known:
            raise ReproduceError(f"--data {text}: no chosen row has {dataset}; they have {_listed(known)}")
        if not Path(folder).is_dir():
            raise ReproduceError(f"--data {text}: there is no folder {folder}")
        folders[dataset] = Path(folder)
    return folders


def _listed(datasets: Sequence[str]) -> str:
    return ", ".join(datasets) or "no data set"
