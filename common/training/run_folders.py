"""Run folders, ``<root>/<name>/version_<n>``: how they are made, found again, explained and listed."""

from __future__ import annotations

import argparse
import fnmatch
import json
import re
import shlex
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from common.command_line import CommandParser, UsageError
from common.output_files import write_json

FILES = {
    "config.yaml": "the recipe with every option as it ran",
    "run.json": "when, with which commit, versions, seed and data, and the best validation score",
    "last.ckpt": "the state after the last epoch; a training resumes from it",
    "last-previous.ckpt": "the one before, in case last.ckpt is damaged",
    "best.ckpt": "the weights with the best validation score",
    "events.out.tfevents.*": "losses and scores for TensorBoard: tensorboard --logdir .",
    "result.json": "scores of a test, with what it was made by",
    "predictions.*": "what the network answered for every test file",
    "classes.csv": "accuracy of every class, and what it is most often taken for",
    "page/index.html": "with --page true: the curves of a training, or scores, classes and mistakes of a test",
}

SCORES = ("top1", "ap", "dice", "loss", "videos")  # of a test, in the list of runs


def new_run_dir(runs: Path) -> Path:
    """Make ``runs/version_<n>`` with the first free n; on ranks other than 0, name a folder without making it."""
    from lightning.pytorch.utilities.rank_zero import rank_zero_only  # `spectral runs` needs no Lightning

    matches = (re.fullmatch(r"version_(\d+)", path.name, re.ASCII) for path in runs.glob("version_*"))
    taken = [int(match[1]) for match in matches if match]
    n = max(taken, default=-1) + 1
    while getattr(rank_zero_only, "rank", 0) == 0:
        try:
            (runs / f"version_{n}").mkdir(parents=True)
        except FileExistsError:  # another run was faster
            n += 1
        else:
            break
    return runs / f"version_{n}"


def run_name(config: str | Path) -> str:
    """Name of the runs of a recipe: that of its file; of a ``config.yaml`` in a run folder, the name of that run."""
    path = Path(config).resolve()
    in_run = path.name == "config.yaml" and path.parent.name.startswith("version_")
    return path.parent.parent.name if in_run else path.stem


def with_recipe_beside(args: Sequence[str]) -> list[str]:
    """Arguments of ``fit``, ``validate`` or ``test``; those that name a checkpoint in a run folder, but neither recipe
    nor model, get the recipe of that run."""
    options = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for names in (("-c", "--config"), ("--model",), ("--ckpt_path",)):
        options.add_argument(*names)
    try:
        known = options.parse_known_args(args[1:])[0]
    except (SystemExit, argparse.ArgumentError):
        return list(args)
    checkpoint = Path(known.ckpt_path or "")
    folder = checkpoint.parent if checkpoint.is_file() else checkpoint
    config = folder / "config.yaml"
    if known.config or known.model or not known.ckpt_path or not config.is_file():
        return list(args)
    return [args[0], "--config", str(config), *args[1:]]


def explain(folder: Path, args: Sequence[str], package: str) -> None:
    """Write ``README.txt`` into the folder of a training: the command, what each file is, and how to continue.

    ``package`` is that of a module outside of this project, which the commands must allow; empty otherwise.
    """
    name, width = folder.parent.name, max(map(len, FILES))
    config, last, run, root = (
        shlex.quote(str(path)) for path in (folder / "config.yaml", folder / "last.ckpt", folder, folder.parent.parent)
    )
    allow = f" --allow {package}" if package else ""
    lines = [shlex.join(["spectral", *args]), ""]
    lines += [f"{file:{width}}  {text}" for file, text in FILES.items()]
    lines += [
        "",
        f"Resume:   spectral fit --config {config} --ckpt_path last{allow}",
        f"Test:     spectral test --config {config} --ckpt_path {last}{allow}",
        f"Predict:  spectral predict --checkpoint {run}{allow} FILE ...    (best.ckpt; {last} if there is none)",
        f"List:     spectral runs {root} --name {shlex.quote(name)}",
    ]
    (folder / "README.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def add_scores(folder: Path, checkpoints: Iterable[Any]) -> None:
    """Add the best validation scores that the checkpoint callbacks of a training have seen to its ``run.json``."""
    found = {c.monitor: float(c.best_model_score) for c in checkpoints if c.monitor and c.best_model_score is not None}
    if found:
        record = folder / "run.json"
        write_json(record, {**_read_dict(record), "best": found}, overwrite=True)


def list_runs(root: Path, name: str | None = None) -> list[dict[str, Any]]:
    """The runs below a folder, newest first: dicts of ``folder``, ``command``, ``created``, ``scores``, ``files``.

    ``name`` takes those of this name alone; it may have wildcards.
    """
    found = []
    for record in root.rglob("version_*/run.json"):
        folder = record.parent
        own = folder.parent.name
        if name is not None and own != name and not fnmatch.fnmatchcase(own, name):
            continue
        try:
            about = _read_dict(record)
            result = folder / "result.json"
            scores = _read_dict(result) if result.is_file() else {}
            best = dict(about.get("best") or {})
        except (OSError, ValueError, TypeError, RecursionError) as error:
            about, scores, best = {"command": f"damaged: {error}"}, {}, {}
        found.append(
            {
                "folder": folder,
                "command": str(about.get("command") or ""),
                "created": str(about.get("created") or ""),
                "scores": {**{key: scores[key] for key in SCORES if key in scores}, **best},
                "files": [file for file in ("last.ckpt", "best.ckpt") if (folder / file).is_file()],
            }
        )
    return sorted(found, key=lambda run: (run["created"], str(run["folder"])), reverse=True)


def _read_dict(path: Path) -> dict[str, Any]:
    content = json.loads(path.read_text(encoding="utf-8"))
    if not isinstance(content, dict):
        raise ValueError(f"{path.name} holds a {type(content).__name__}")
    return content


def average(runs: Sequence[dict[str, Any]]) -> str:
    """Mean and standard deviation of the scores over the newest test of every name, such as the three splits of UCF101.

    Raises:
        UsageError: fewer than two names have a test.
    """
    newest: dict[str, dict[str, Any]] = {}
    for run in runs:
        if run["command"] == "test" and run["scores"]:
            newest.setdefault(run["folder"].parent.name, run["scores"])
    if len(newest) < 2:
        raise UsageError(f"an average needs tests of two names or more, and there are {len(newest)}; see --name")
    means = []
    for key in next(iter(newest.values())):
        values = [value for scores in newest.values() if isinstance(value := scores.get(key), float)]
        if len(values) == len(newest):
            means.append(f"{key} {statistics.mean(values):.4f} (sd {statistics.stdev(values):.4f})")
    return f"mean of the newest tests of {', '.join(sorted(newest))}: {', '.join(means)}"


def main(argv: list[str]) -> int:
    """``spectral runs``: list the runs with their scores.

    Raises:
        FileNotFoundError: there is no such folder.
        UsageError: there is nothing to average.
    """
    parser = CommandParser(prog="spectral runs", description="List runs, newest first.")
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), help="default: %(default)s")
    parser.add_argument("--name", help="runs of this name alone; it may have wildcards: 'hmdb51_split*'")
    parser.add_argument("--average", action="store_true", help="add the mean of the newest test of every name")
    options = parser.parse_args(argv)
    if not options.folder.is_dir():
        raise FileNotFoundError(f"{options.folder} is no folder; runs are in `runs` of the folder they were started in")
    runs = list_runs(options.folder, options.name)
    table = Table(Column("run", no_wrap=True), "command", "created", Column("scores", no_wrap=True), "checkpoints")
    for run in runs:
        scores = "\n".join(f"{k} {v:.4f}" if isinstance(v, float) else f"{k} {v}" for k, v in run["scores"].items())
        cells = (str(run["folder"]), run["command"], run["created"][:16].replace("T", " "), scores)
        table.add_row(*map(Text, (*cells, ", ".join(run["files"]))))
    if runs:
        Console().print(table)
    else:
        print(f"There are no runs in {options.folder}.")
    if options.average:
        print(average(runs))
    return 0
