"""The main job of a paper: count, train, test and draw what was chosen, then print it and write the report."""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
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
from common.reporting.ledger import Ledger, LedgerError
from common.reporting.listing import list_records
from common.reporting.page import EXPLANATION, png, run_facts, write_report
from common.reporting.results import append, read, replace_section
from common.reporting.runs import (
    DemoJob,
    DemoRuns,
    Job,
    Trained,
    frequency_uses,
    make_demo_data,
    train_all,
    train_row,
)
from common.reporting.tables import demo_table


def run(
    ledger: Ledger, ids: Sequence[str], figures: str, args: argparse.Namespace, data: Mapping[str, Path], module: str
) -> int:
    """Count, train, test and draw what `args` asks for, and print and write what came out.

    Args:
        ledger: the paper's.
        ids: the chosen rows and figures.
        figures: dotted name of the module with the functions that the ledger's figures name.
        args: the parsed command line of `reproduce`.
        data: folder of the real data, by dataset.
        module: dotted name of the command.

    Returns:
        Exit code: 0, or 1 if a row failed.
    """
    began = time.monotonic()
    if args.jobs is None:
        args.jobs = 1 if torch.cuda.is_available() else min(8, os.cpu_count() or 1)
    if args.complexity:
        with _progress() as progress:
            counts = _count(ledger, ids, args, progress)
        return _print_complexity(ledger, counts, args.json)
    functions = _figure_functions(ledger, ids, figures)
    with _progress() as progress:
        job = _work(ledger, ids, functions, args, data, progress)
    return _finish(job, ids, args, module, began)


def _figure_functions(ledger: Ledger, ids: Sequence[str], module: str) -> dict[str, Callable[[Job], Figure]]:
    """The function of every chosen figure, by the figure's id. Raises LedgerError for one that `module` lacks."""
    functions = {}
    for figure in ledger.figures:
        if figure.id in ids and figure.function:
            function = getattr(importlib.import_module(module), figure.function, None)
            if function is None:
                raise LedgerError(f"{ledger.path}:{figure.line}: {module} has no function {figure.function}")
            functions[figure.id] = function
    return functions


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
    figures: Mapping[str, Callable[[Job], Figure]],
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
    _draw_figures(job, figures, progress)
    job.results = read(ledger.folder / "results.csv")
    return job


def _draw_figures(job: Job, figures: Mapping[str, Callable[[Job], Figure]], progress: Progress) -> None:
    if not figures:
        return
    task = progress.add_task("Drawing figures", total=len(figures))
    for name, function in figures.items():
        with _noting_failure(job, name):
            job.figures[name] = png(function(job))
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
