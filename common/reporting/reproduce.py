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
import contextlib
import json
import os
import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from common.command_line import debugging
from common.evaluation.complexity import Complexity
from common.output_files import written_whole
from common.reporting import tables
from common.reporting.counting import complexity_records, count_rows
from common.reporting.ledger import Ledger, LedgerError, load, package_root
from common.reporting.page import EXPLANATION, png, run_facts, write_report
from common.reporting.results import ResultError, append, read, replace_section
from common.reporting.runs import (
    DemoJob,
    DemoRuns,
    Job,
    ReproduceError,
    Trained,
    frequency_uses,
    make_demo_data,
    train_all,
    train_row,
)
from common.reporting.tables import demo_table

#: makes a figure of the paper; the argument is the state of the main job, or None if it did not run
FigureFunction = Callable[[Job | None], Figure]


def main(folder: Path, figures: Mapping[str, FigureFunction], argv: Sequence[str] | None = None) -> int:
    """Run the command for the paper in `folder`.

    Args:
        folder: the paper's folder with `ledger.yaml` and `recipes/`.
        figures: the functions that the ledger's figures name.
        argv: command line arguments.

    Returns:
        Exit code: 0, 1 if a row failed, 2 for wrong arguments, 130 if interrupted.
    """
    module = ".".join([*folder.resolve().relative_to(package_root(folder)).parts, "reproduce"])
    args = _parser(module, folder.name).parse_args(argv)
    errors = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    began = time.monotonic()
    try:
        ledger = load(folder / "ledger.yaml")
        ids = ledger.select(args.rows)
        data = _data(args.data, ledger, ids)
        if args.list:
            print(
                json.dumps(list_records(ledger, ids, module), indent=2) if args.json else _listing(ledger, ids, module),
                flush=True,
            )
            return 0
        with _progress() as progress:
            if args.complexity:
                counts = _count(ledger, ids, args, progress)
                finish: Callable[[], int] = lambda: _print_complexity(ledger, counts, args.json)  # noqa: E731
            else:
                job = _work(ledger, ids, figures, args, data, progress)
                finish = lambda: _finish(job, ids, args, module, began)  # noqa: E731
        return finish()
    except BrokenPipeError:  # `--list | head`: the reader has what it wanted
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        errors.print("Interrupted. What was finished is kept; the same command resumes from there.")
        return 130
    except (LedgerError, ReproduceError, ResultError) as error:
        errors.print(f"error: {escape(str(error))}")
        return 2


class _ProgressLines(Progress):
    """Progress without a terminal: a line when a stage begins and when it ends, and one a minute in between."""

    def __init__(self, seconds: float = 60) -> None:
        super().__init__(disable=True)
        self._stopped = threading.Event()
        self._seconds = seconds

    def start(self) -> None:
        threading.Thread(target=self._repeat, daemon=True).start()

    def stop(self) -> None:
        self._stopped.set()

    def add_task(self, description: str, *args: Any, **kwargs: Any) -> TaskID:
        task = super().add_task(description, *args, **kwargs)
        print(f"{description} ...", file=sys.stderr, flush=True)
        return task

    def update(self, task_id: TaskID, *args: Any, **kwargs: Any) -> None:
        was_finished = self._tasks[task_id].finished
        super().update(task_id, *args, **kwargs)
        task = self._tasks[task_id]
        if task.finished and not was_finished:
            print(f"{task.description}: done in {task.elapsed or 0:.0f} s", file=sys.stderr, flush=True)

    def _repeat(self) -> None:
        while not self._stopped.wait(self._seconds):
            for task in self.tasks:
                if not task.finished:
                    done = f"{task.completed:.0f} of {task.total:.0f}" if task.total else "working"
                    print(f"{task.description}: {done}, {task.elapsed or 0:.0f} s", file=sys.stderr, flush=True)


def _progress() -> Progress:
    console = Console(file=sys.stderr)
    if not console.is_terminal:
        return _ProgressLines()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False)


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
        default=1 if torch.cuda.is_available() else min(8, os.cpu_count() or 1),
        help="networks to count or train at once, each in a process of its own (default here: %(default)s)",
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


def list_records(ledger: Ledger, ids: Sequence[str], module: str) -> list[dict[str, Any]]:
    """Every chosen entry with its status and the commands that compute, train or show it."""
    records: list[dict[str, Any]] = []

    def add(entry: Any, commands: list[str], remark: str | None = None) -> None:
        if entry.id in ids:
            statuses = getattr(entry, "statuses", ["demo"])
            name = getattr(entry, "name", None) or entry.title
            records.append({"id": entry.id, "name": name, "statuses": statuses, "commands": commands, "remark": remark})

    demo_rows = [row for demo in ledger.demos for row in demo.rows]
    for _, row in ledger.rows():
        commands = [f"python -m {module} {row.id} --complexity"] if row.networks else []
        commands += [f"python -m {module} {own.id}" for own in demo_rows if own.table_row == row.id]
        for recipe in row.recipes.values():
            commands += [f"spectral fit {shlex.join(_relative(word) for word in c)}" for c in ledger.trainings(recipe)]
        commands = list(dict.fromkeys(commands))
        add(row, commands, None if commands else "quoted; nothing to run")
    for figure in ledger.figures:
        add(figure, [f"python -m {module} {figure.id}"] if figure.function else [], figure.location)
    for own in demo_rows:
        add(own, [f"python -m {module} {own.id}"])
    return records


def _relative(word: str) -> str:
    """An absolute path below the current folder as a relative one; any other word as it is."""
    path = Path(word)
    return str(path.relative_to(Path.cwd())) if path.is_absolute() and path.is_relative_to(Path.cwd()) else word


def _listing(ledger: Ledger, ids: Sequence[str], module: str) -> str:
    lines = []
    group = None
    titles = {t.id: f"{t.number}. {t.title}" for t in ledger.tables}
    titles |= {demo.id: f"Demo. {demo.title}" for demo in ledger.demos}
    for record in list_records(ledger, ids, module):
        prefix = record["id"].partition("/")[0]
        title = titles.get(prefix, "Figures")
        if title != group:
            lines += ["", title] if group else [title]
            group = title
        lines.append(f"  {record['id']:32} {', '.join(record['statuses']):32} {record['name']}")
        lines += [f"      {command}" for command in record["commands"]]
        lines += [f"      {record['remark']}"] if record["remark"] else []
    return "\n".join(lines)


def _print_complexity(ledger: Ledger, counts: Mapping[str, Mapping[str, Complexity]], as_json: bool) -> int:
    if as_json:
        print(json.dumps(complexity_records(ledger, counts), indent=2), flush=True)
        return 0
    console = _wide_console()
    for table in ledger.tables:
        if rows := [row for row in table.rows if row.id in counts]:
            console.print(tables.to_terminal(tables.paper_table(ledger, table, counts, rows=rows)))
    if not counts:
        console.print("None of these rows has a network to count.")
    return 0


def _wide_console() -> Console:
    return Console() if sys.stdout.isatty() else Console(width=200)


def _count(
    ledger: Ledger, ids: Sequence[str], args: argparse.Namespace, progress: Progress
) -> dict[str, dict[str, Complexity]]:
    task = progress.add_task("Counting networks", total=None)

    def counted(done: int, total: int) -> None:
        progress.update(task, completed=done, total=total)

    counts = count_rows(ledger, ids, args.out / "complexity.json", counted, args.jobs)
    progress.update(task, completed=1, total=1)  # also where all were known
    return counts


def _work(
    ledger: Ledger,
    ids: Sequence[str],
    figures: Mapping[str, FigureFunction],
    args: argparse.Namespace,
    data: Mapping[str, Path],
    progress: Progress,
) -> Job:
    """Count, train, test and draw what was chosen; a failure is noted and the rest continues."""
    job = Job(ledger)
    job.counts = _count(ledger, ids, args, progress)
    job.demos = [DemoRuns(demo, args.out.parent / "demo" / demo.data_folder) for demo in ledger.demos]
    _train_demos(job, ids, args, progress)
    if not args.rows:
        task = progress.add_task("Removing parts of the spectra", total=len(job.demos))
        for runs in job.demos:
            with _noting_failure(job, f"{runs.demo.id}, frequencies"):
                runs.frequencies = frequency_uses(runs)
            progress.update(task, advance=1)
    if data:
        _train_recipes(job, ids, args, data, progress)
    _draw_figures(job, ids, figures, progress)
    job.results = read(ledger.folder / "results.csv")
    return job


def _draw_figures(job: Job, ids: Sequence[str], figures: Mapping[str, FigureFunction], progress: Progress) -> None:
    chosen = [figure for figure in job.ledger.figures if figure.id in ids and figure.function]
    if not chosen:
        return
    task = progress.add_task("Drawing figures", total=len(chosen))
    for figure in chosen:
        with _noting_failure(job, figure.id):
            function = figures.get(str(figure.function))
            if function is None:
                raise LedgerError(f"{job.ledger.path}:{figure.line}: no figure function {figure.function}")
            job.figures[figure.id] = png(function(job))
        progress.update(task, advance=1)


def _train_demos(job: Job, ids: Sequence[str], args: argparse.Namespace, progress: Progress) -> None:
    """Train and test the chosen rows of all demos."""
    jobs = [
        DemoJob(job.ledger, runs.demo, row, runs.data, args.out, args.seed, args.epochs)
        for runs in job.demos
        for row in runs.demo.rows
        if row.id in ids
    ]
    if not jobs:
        return
    demos = {own.data: own.demo for own in jobs}
    task = progress.add_task("Making the demo data", total=len(demos))
    with ThreadPoolExecutor(args.jobs) as pool:  # each waits for a process that draws
        for _ in pool.map(make_demo_data, [demo.data for demo in demos.values()], demos):
            progress.update(task, advance=1)
    task = progress.add_task("Training the demo networks", total=len(jobs))
    results: dict[int, Trained] = {}
    for position, result in train_all(jobs, progress, min(args.jobs, len(jobs))):
        with _noting_failure(job, jobs[position].row.id):
            if isinstance(result, BaseException):
                raise result
            results[position] = result
        progress.update(task, advance=1)
    for runs in job.demos:
        runs.rows = [results[position] for position in sorted(results) if jobs[position].demo is runs.demo]


def _train_recipes(
    job: Job, ids: Sequence[str], args: argparse.Namespace, data: Mapping[str, Path], progress: Progress
) -> None:
    """Train and test the recipes of the chosen rows on the data that is there."""
    for _, row in job.ledger.rows():
        for dataset in row.recipes if row.id in ids else ():
            if dataset in data:
                root = data[dataset]
                with _noting_failure(job, f"{row.id} on {dataset}"):
                    real = train_row(job.ledger, row, dataset, root, args.out, args.seed, args.epochs, progress)
                    append(job.ledger.folder / "results.csv", [run.result for run in real])


@contextlib.contextmanager
def _noting_failure(job: Job, what: str) -> Iterator[None]:
    try:
        yield
    except LedgerError:
        raise
    except Exception as error:
        if debugging():
            raise
        job.failures.append(f"{what}: {type(error).__name__}: {error}")


def _finish(job: Job, ids: Sequence[str], args: argparse.Namespace, module: str, began: float) -> int:
    """Print the results; write the report of a whole run, or the figures of a partial one."""
    console = _wide_console()
    ledger = job.ledger
    if args.rows or args.tables:
        for table in ledger.tables:
            if rows := [row for row in table.rows if row.id in ids]:
                console.print(tables.to_terminal(tables.paper_table(ledger, table, job.counts, job.results, rows)))
    else:
        console.print(tables.to_terminal(tables.summary_table(ledger, job.counts)))
    for runs in job.demos:
        if runs.rows:
            console.print(tables.to_terminal(demo_table(runs.demo, runs.rows)))
    claims = [] if args.rows else _claims(ledger.folder)
    for shown in claims[:1]:
        console.print(tables.to_terminal(shown))
    if trained := job.trained():
        append(args.out / "results.csv", [run.result for run in trained])
    if args.rows:
        for record in list_records(ledger, ids, module):
            recipes = [c for c in record["commands"] if c.startswith("spectral")]
            if recipes and not args.data:
                console.print(
                    f"{record['id']} on the real data (or: python -m {module} {record['id']} --data [DATASET=]DIR):"
                )
                console.print("\n".join(f"  {c}" for c in recipes), soft_wrap=True)
        for figure, content in job.figures.items():
            path = args.out / "figures" / f"{figure}.png"
            with written_whole(path, "wb") as file:
                file.write(content)
            console.print(f"Written: {path}", soft_wrap=True)
    else:
        facts = run_facts(job, time.monotonic() - began)
        page = write_report(job, args.out / "report", facts, f"python -m {module}", args.epochs, claims)
        console.print(f"All tables: --tables. Report: {page.resolve()}", soft_wrap=True)
    if args.readme:
        write_readme(job)
    for failure in job.failures:
        Console(stderr=True, highlight=False).print(f"failed: {escape(failure)}", soft_wrap=True)
    return 1 if job.failures else 0


def _claims(folder: Path) -> list[tables.RenderedTable]:
    """The paper's claims as they were decided, and the scores behind them; nothing without `claims.csv`."""
    from common.comparison.command import finished_studies  # it imports this package
    from common.comparison.report import all_tables

    study = finished_studies(folder.parent).get(folder.name)
    return [] if study is None else all_tables(study)


def write_readme(job: Job) -> None:
    """Put the tables between the markers of the paper's README, and the demo's results into `results.csv`.

    Raises ResultError if the README has no markers.
    """
    shown = [tables.paper_table(job.ledger, table, job.counts, job.results) for table in job.ledger.tables]
    parts = [EXPLANATION, *(tables.to_markdown(table) for table in shown)]
    if trained := job.trained():
        parts[:0] = [tables.to_markdown(demo_table(runs.demo, runs.rows)) for runs in job.demos if runs.rows]
    replace_section(job.ledger.folder / "README.md", "tables", "\n\n".join(parts))
    if trained:
        append(job.ledger.folder / "results.csv", [run.result for run in trained])
