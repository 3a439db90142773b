"""The command of every paper: its tables beside what this machine computes and measures.

    python -m papers.<paper>.reproduce                       the main job: count every network, train and test the demo
                                                             networks on embedded data, write the report
    python -m papers.<paper>.reproduce --list                every table row and figure, its status and its command
    python -m papers.<paper>.reproduce table2 --complexity   parameters and multiply-adds of some rows
    python -m papers.<paper>.reproduce ROW --data DIR        train and test a row's recipe on the real data

What is finished is not done again (see :mod:`common.reporting.demo`). An interrupted run leaves nothing half-written
and goes on at the network that was not finished.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from common.evaluation.complexity import Complexity
from common.reporting import plots, tables
from common.reporting.demo import (
    ROOT,
    DemoRuns,
    ReproduceError,
    Trained,
    by_entry,
    curve_points,
    demo_tables,
    make_demo_data,
    score_name,
    source_hash,
    train_all,
    train_row,
)
from common.reporting.ledger import DASH, Ledger, LedgerError, RowNetwork, load
from common.reporting.report import Report, png
from common.reporting.results import Result, ResultError, append, read, written_whole
from common.reporting.tables import Head, Shown

#: makes a figure of the paper; the argument is what the main job found so far, or None where it did not run
FigureFunction = Callable[["Job | None"], Figure]

EXPLANATION = (
    "The columns called **paper** repeat what the paper prints; **ours** was counted or measured by the programs of "
    "this repository; Δ is ours against the paper's; a dash means that there is no number. Multiply-adds follow the "
    "paper's convention (convolutions and matrix products); the **full count** adds normalisation, activations, "
    "pooling, element-wise arithmetic and transforms. "
    "Status: C computed here, D shown by the demo, R complete recipe for the real data, L quoted from the literature."
)


# Complexity


class Counter:
    """Counts networks once; the counts are kept in a file until a source changes."""

    def __init__(self, ledger: Ledger, cache: Path | None = None) -> None:
        self.ledger, self.cache = ledger, cache
        self.key = source_hash(ROOT / "common", ledger.folder, but=ROOT / "common" / "reporting") + torch.__version__
        self.known: dict[str, dict[str, Any]] = {}
        with contextlib.suppress(OSError, ValueError, TypeError, KeyError):
            stored = json.loads(cache.read_text(encoding="utf-8")) if cache else {}
            self.known = stored["counts"] if stored["key"] == self.key else {}

    def name(self, spec: RowNetwork) -> str:
        network = self.ledger.network(spec)
        about = [network.function, network.arguments, network.classes]
        return json.dumps([*about, spec.input, spec.complex_weight, spec.counter])

    def count(self, spec: RowNetwork) -> Complexity:
        if spec.baseline:  # the base of many rows is counted once
            return self.count(replace(spec, baseline=None)).over(
                self.count(replace(spec, network=spec.baseline, baseline=None))
            )
        name = self.name(spec)
        if name not in self.known:
            self.known[name] = self.ledger.complexity(spec).to_dict() | {"by_module": {}}
        return Complexity(**self.known[name])

    def save(self) -> None:
        if self.cache:
            with written_whole(self.cache) as file:
                json.dump({"key": self.key, "counts": self.known}, file)


def count_rows(
    ledger: Ledger, ids: Sequence[str], progress: Progress, cache: Path | None = None
) -> dict[str, dict[str, Complexity]]:
    """Row id -> label -> complexity, for the rows among `ids` that have networks."""
    rows = [row for _, row in ledger.rows() if row.id in ids and row.networks]
    counter = Counter(ledger, cache)
    task = progress.add_task("Counting networks", total=sum(len(row.networks) for row in rows))
    counts: dict[str, dict[str, Complexity]] = {}
    try:
        for row in rows:
            counts[row.id] = {}
            for label, spec in row.networks.items():
                counts[row.id][label] = counter.count(spec)
                progress.advance(task)
    finally:
        counter.save()
    return counts


def complexity_records(ledger: Ledger, counts: Mapping[str, Mapping[str, Complexity]]) -> list[dict[str, Any]]:
    """One record a row: the numbers of its first network beside the paper's, and those of all its networks."""
    records = []
    for table, row in ledger.rows():
        if row.id not in counts:
            continue
        paper = {m: c.value(row.paper[c.key]) for m in ("params", "macs") if (c := table.column(m))}
        label, first = next(iter(counts[row.id].items()))
        records.append(
            {
                "row": row.id,
                "name": row.name,
                "params": first.params,
                "paper_params": _whole(paper.get("params")),
                "macs_paper_convention": first.macs_paper,
                "macs_full": first.macs_full,
                "paper_macs": _whole(paper.get("macs")),
                "network": label,
                "networks": {
                    label: {
                        "function": ledger.network(row.networks[label]).function,
                        "arguments": ledger.network(row.networks[label]).arguments,
                        "input": row.networks[label].input,
                        "params": c.params,
                        "fixed_values": c.fixed_values,
                        "macs_paper_convention": c.macs_paper,
                        "macs_full": c.macs_full,
                    }
                    for label, c in counts[row.id].items()
                },
            }
        )
    return records


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def paper_points(ledger: Ledger, table_id: str, measure: str = "top1") -> list[plots.Point]:
    """The paper's accuracies and multiply-adds of a table, by network name."""
    table = next(t for t in ledger.tables if t.id == table_id)
    cost, accuracy, params = table.column("macs"), table.column(measure), table.column("params")
    frames = next((c for c in table.columns if c.key == "frames"), None)
    points = []
    for row in table.rows:
        x = cost.value(row.paper[cost.key]) if cost else None
        y = accuracy.value(row.paper[accuracy.key]) if accuracy else None
        if x is not None and y is not None:
            label = row.paper[frames.key] if frames else ""
            points.append(plots.Point(row.name, x, y, label, params.value(row.paper[params.key]) if params else None))
    return points


@dataclass
class Job:
    """What the main job found, for the report."""

    ledger: Ledger
    counts: dict[str, dict[str, Complexity]] = field(default_factory=dict)
    demos: list[DemoRuns] = field(default_factory=list)
    results: list[Result] = field(default_factory=list)
    figures: dict[str, bytes] = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)

    def data(self, demo: str = "demo") -> Path | None:
        """The folder of a demo's data; None if it was not made."""
        return next((d.data for d in self.demos if d.demo.id == demo and d.data.is_dir()), None)

    def trained(self) -> list[Trained]:
        """Every demo training."""
        return [run for runs in self.demos for run in runs.all]


def status_table(ledger: Ledger) -> Shown:
    """How many rows and figures have which status."""
    statuses = ["computed", "demo", "recipe", "literature", "diagram"]
    heads = [Head("Table or figure"), Head("entries", "", "text"), *(Head(s) for s in statuses)]
    groups: list[tuple[str, list[Any]]] = [(f"{t.number}. {t.title}", t.rows) for t in ledger.tables]
    groups.append(("Figures", ledger.figures))
    cells = []
    for name, entries in groups:
        numbers = [sum(s in e.statuses for e in entries) for s in statuses]
        cells.append([name, str(len(entries)), *(str(n) if n else DASH for n in numbers)])
    return Shown("Every row and figure of the paper", heads, cells, ["An entry can have several statuses."], "status")


def write_report(job: Job, folder: Path, facts: Mapping[str, str], command: str, epochs: int | None = None) -> Path:
    """The page, the Markdown and the pictures; returns the path of the page."""
    ledger = job.ledger
    report = Report(ledger.title, f"{ledger.authors}. The paper's numbers beside what this machine found.", facts)
    if job.failures:
        report.section("Failures")
        for failure in job.failures:
            report.text(failure)
    for runs in job.demos:
        if runs.all:
            _report_demo(report, ledger, runs, epochs)
    report.section("Tables of the paper")
    report.text(EXPLANATION)
    for table in ledger.tables:
        report.table(tables.paper_table(ledger, table, job.counts, job.results))
    for table in ledger.tables:
        if len(points := paper_points(ledger, table.id)) > 3:
            own = [row.name for row in table.rows if "recipe" in row.statuses]
            title = f"{table.number}: the paper's accuracy against the paper's FLOPs"
            report.picture(
                plots.accuracy_against_cost(points, title, highlight=own),
                f"{table.id}-cost",
                f"All values as printed in {table.number}; labels are frames, areas are parameters.",
            )
    report.section("Figures of the paper")
    for figure in ledger.figures:
        if figure.id in job.figures:
            report.picture(
                job.figures[figure.id], figure.id, f"{figure.number}. {figure.title}. Code: {figure.location}."
            )
    for figure in ledger.figures:
        if figure.id not in job.figures:
            report.text(f"**{figure.number}. {figure.title}.** {figure.location}")
    report.section("Coverage")
    report.table(status_table(ledger))
    report.section("Do it again")
    report.text("The whole report, a list of all rows with their commands, and one row on the real data:")
    report.code(f"{command}\n{command} --list\n{command} ROW --data DIR")
    return report.write(folder)


def _report_demo(report: Report, ledger: Ledger, runs: DemoRuns, epochs: int | None) -> None:
    """Tables, curves, cost and confusion of one demo."""
    demo = runs.demo
    report.section("Demo, measured here" if len(ledger.demos) == 1 else f"Demo, measured here: {demo.title}")
    report.text(demo.text)
    if epochs is not None:
        report.text(f"**Trained for {epochs} epochs instead of the recipe's, to try things out.**")
    for shown_table in demo_tables(ledger, runs):
        report.table(shown_table)
    for curve in demo.curves:
        if lines := curve_points(curve, demo, runs.curves):
            name = "top-1 accuracy (%)" if demo.score == "top1" else f"{score_name(demo)} (%)"
            report.picture(
                plots.mean_curves(lines, curve.title, curve.x, name),
                curve.id.replace("/", "-"),
                f"{curve.title}. Mean and standard deviation of {demo.seeds} seeds.",
            )
    if not runs.rows:
        return
    groups = by_entry(runs.rows)
    first = [group[0] for group in groups.values()]
    several, seed = len(runs.rows) > len(first), first[0].result.facts["seed"]
    # Of many networks the trainings that go on from another are in the table and the cost plot alone.
    shown_in_full = (
        first if len(first) <= len(plots.COLOURS) else [r for r in first if demo.row(r.entry).starts_from is None]
    )
    curves = {run.name: run.curve("train_loss") for run in shown_in_full}
    if any(len(points) > 1 for points in curves.values()):
        shown = {name: points for name, points in curves.items() if points}
        report.picture(
            plots.learning_curves(shown, "Training loss on the demo", "loss"),
            f"{demo.id}-curves",
            "Mean training loss of every epoch on the demo data" + (f", seed {seed}." if several else "."),
        )
    points = [
        plots.Point(
            # `Method, 2x` is a point of the series `Method`, where there are many.
            group[0].name.partition(", ")[0] if len(groups) > len(plots.COLOURS) else group[0].name,
            group[0].complexity().macs_paper,
            float(np.mean([r.result.metrics[demo.score] for r in group])),
            group[0].name.partition(", ")[2] if len(groups) > len(plots.COLOURS) else "",
            group[0].complexity().params,
        )
        for group in groups.values()
        if all(demo.score in r.result.metrics for r in group)
    ]
    if points:
        name = "top-1 accuracy (%)" if demo.score == "top1" else f"{score_name(demo)} (%)"
        report.picture(
            plots.accuracy_against_cost(points, f"Demo: {score_name(demo)} against cost", name),
            f"{demo.id}-cost",
            f"Measured here, on the demo data: {score_name(demo)} against multiply-adds; areas are parameters.",
        )
    if names := first[0].class_names():
        report.picture(
            plots.confusion_matrices({run.name: run.confusion() for run in shown_in_full}, names),
            f"{demo.id}-confusion",
            "Measured here: what the networks take the test data for "
            f"({first[0].result.videos}{f', seed {seed}' if several else ''}).",
        )


def run_facts(job: Job, seconds: float) -> dict[str, str]:
    """When, where and with what the report was made."""
    from common.training.cli import git_state, package_versions

    state, versions = git_state(), package_versions()
    commit = f"{state['commit'][:12]}{' with changes' if state['dirty'] else ''}" if state["commit"] else DASH
    facts = {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "Commit": commit,
        "Machine": f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
        + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ", no GPU"),
        "Versions": ", ".join(f"{name} {number}" for name, number in versions.items() if name != "gpu"),
        "Duration": f"{seconds / 60:.1f} min",
    }
    if runs := job.trained():
        trained = [run for run in runs if not run.reused]
        videos = sum(run.result.facts["videos"] or 0 for run in runs)
        expected = sum(run.result.facts["videos_expected"] or 0 for run in runs)
        facts["Demo"] = f"{len(runs)} trainings, {len(trained)} of them in this run"
        facts["Tested on"] = f"{videos} of {expected} test files ({len(runs)} trainings)"
        facts["Seed"] = ", ".join(sorted({str(run.result.facts["seed"]) for run in runs}))
    return facts


# The command


def main(folder: Path, figures: Mapping[str, FigureFunction], argv: Sequence[str] | None = None) -> int:
    """Run the command for the paper in `folder`.

    Args:
        folder: the paper's folder with `ledger.yaml` and `recipes/`.
        figures: the functions that the ledger's figures name.
        argv: command line arguments.

    Returns:
        Exit code: 0, 1 if a row failed, 2 for wrong arguments, 130 if interrupted.
    """
    module = f"papers.{folder.name}.reproduce"
    args = _parser(module, folder.name).parse_args(argv)
    errors = Console(file=sys.stderr, highlight=False, soft_wrap=True)
    warnings.filterwarnings("ignore", message=".*torch.jit.*deprecated.*")
    try:
        ledger = load(folder / "ledger.yaml")
        ids = ledger.select(args.rows)
        data = _data(args.data)
        if args.list:
            print(
                json.dumps(list_records(ledger, ids, module), indent=2) if args.json else _listing(ledger, ids, module)
            )
            return 0
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        console = Console(file=sys.stderr)
        with Progress(*columns, console=console, redirect_stdout=False, redirect_stderr=False) as progress:
            if args.complexity:
                counts = count_rows(ledger, ids, progress, args.out / "complexity.json")
                finish: Callable[[], int] = lambda: _print_complexity(ledger, counts, args.json)  # noqa: E731
            else:
                job = _work(ledger, ids, figures, args, data, progress)
                finish = lambda: _finish(job, ids, args, module)  # noqa: E731
        return finish()
    except KeyboardInterrupt:
        errors.print("Interrupted. What was finished is kept; the same command goes on from there.")
        return 130
    except (LedgerError, ReproduceError, ResultError) as error:
        errors.print(f"error: {escape(str(error))}")
        return 2


def _parser(module: str, paper: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m {module}",
        description="The paper's tables beside what this machine computes and measures. "
        "Without arguments: count every network, train and test the demo networks on embedded data, write a report.",
    )
    parser.add_argument(
        "rows", nargs="*", metavar="ROW", help="rows, tables or figures, e.g. table2, table2/t-stft-16f"
    )
    parser.add_argument("--list", action="store_true", help="print every entry with its status and command")
    parser.add_argument("--complexity", action="store_true", help="only count parameters and multiply-adds")
    parser.add_argument("--json", action="store_true", help="with --list or --complexity: print JSON and nothing else")
    parser.add_argument("--demo", action="store_true", help="also train the demo networks of the named rows")
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
    parser.add_argument(
        "--epochs", type=int, help="train so many epochs instead of the recipe's; for trying things out"
    )
    parser.add_argument(
        "--jobs",
        type=int,
        default=1 if torch.cuda.is_available() else min(8, os.cpu_count() or 1),
        help="demo networks to train at once, each in a process of its own (default here: %(default)s)",
    )
    parser.add_argument(
        "--readme",
        action="store_true",
        help="also write the tables into the paper's README and the demo into results.csv",
    )
    return parser


def _data(given: Sequence[str]) -> dict[str, Path]:
    """Data set -> folder; "" for a folder without a data set."""
    folders = {}
    for text in given:
        dataset, _, folder = text.rpartition("=")
        if not Path(folder).is_dir():
            raise ReproduceError(f"--data {text}: there is no folder {folder}")
        folders[dataset] = Path(folder)
    return folders


def list_records(ledger: Ledger, ids: Sequence[str], module: str) -> list[dict[str, Any]]:
    """Every chosen entry with its status and the commands that compute, train or show it."""
    records: list[dict[str, Any]] = []

    def add(entry: Any, commands: list[str], remark: str | None = None) -> None:
        if entry.id in ids:
            statuses = getattr(entry, "statuses", ["demo"])
            name = getattr(entry, "name", None) or entry.title
            records.append({"id": entry.id, "name": name, "statuses": statuses, "commands": commands, "remark": remark})

    shown_by = {row.table_row: row.id for demo in ledger.demos for row in demo.rows}
    for _, row in ledger.rows():
        commands = [f"python -m {module} {row.id} --complexity"] if row.networks else []
        commands += [f"python -m {module} {shown_by[row.id]}"] if row.id in shown_by else []
        for recipe in row.recipes.values():
            commands += [f"spectral fit {shlex.join(_relative(word) for word in c)}" for c in ledger.trainings(recipe)]
        commands = list(dict.fromkeys(commands))
        add(row, commands, None if commands else "quoted; nothing to run")
    for figure in ledger.figures:
        add(figure, [f"python -m {module} {figure.id}"] if figure.function else [], figure.location)
    for demo in ledger.demos:
        for own in demo.rows:
            add(own, [f"python -m {module} {own.id}"])
        for curve in demo.curves:
            add(curve, [f"python -m {module} {curve.id}"])
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
        print(json.dumps(complexity_records(ledger, counts), indent=2))
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


def _work(
    ledger: Ledger,
    ids: Sequence[str],
    figures: Mapping[str, FigureFunction],
    args: argparse.Namespace,
    data: Mapping[str, Path],
    progress: Progress,
) -> Job:
    """Count, train, test and draw what was chosen; a failure is noted and the rest goes on."""
    job = Job(ledger)
    job.counts = count_rows(ledger, ids, progress, args.out / "complexity.json")
    for demo in ledger.demos:
        runs = DemoRuns(demo, args.out.parent / "demo" / demo.data_folder)
        job.demos.append(runs)
        wanted = [row for row in demo.rows if row.id in ids or (args.demo and row.table_row in ids)]
        curves = [curve for curve in demo.curves if curve.id in ids]
        if not wanted and not curves:
            continue
        task = progress.add_task("Making the demo data", total=1)
        make_demo_data(demo.data, runs.data)
        progress.advance(task)
        plan = [(runs.rows, row) for row in wanted]
        plan += [
            (runs.curves, curve.row(row, value))
            for curve in curves
            for row in demo.rows_of(curve)
            for value in curve.values
        ]
        seeds = range(args.seed, args.seed + demo.seeds)
        task = progress.add_task("Training the demo networks", total=len(plan) * len(seeds))
        work = [(entry, seed) for _, entry in plan for seed in seeds]
        lists = [finished for finished, _ in plan for _ in seeds]
        found: dict[int, Trained] = {}
        where = (runs.data, args.out, args.epochs, progress)
        for position, result in train_all(ledger, demo, work, *where, min(args.jobs, len(work))):
            entry, seed = work[position]
            with _noting_failure(job, f"{entry.id}, seed {seed}" if len(seeds) > 1 else entry.id):
                if isinstance(result, BaseException):
                    raise result
                found[position] = result
            progress.advance(task)
        for position in sorted(found):
            lists[position].append(found[position])
    for _, row in ledger.rows() if data else ():
        if row.id in ids and row.recipes:
            for dataset in row.recipes:
                root = data.get(dataset, data.get("") if len(row.recipes) == 1 or not args.rows else None)
                if root is None:
                    continue
                with _noting_failure(job, f"{row.id} on {dataset}"):
                    real = train_row(ledger, row, dataset, root, args.out, args.seed, args.epochs, progress)
                    append(ledger.folder / "results.csv", [run.result for run in real])
    for figure in ledger.figures:
        if figure.id in ids and figure.function:
            with _noting_failure(job, figure.id):
                try:
                    function = figures[figure.function]
                except KeyError:
                    raise LedgerError(f"{ledger.path}:{figure.line}: no figure function {figure.function}") from None
                job.figures[figure.id] = png(function(job))
    job.results = read(ledger.folder / "results.csv")
    return job


@contextlib.contextmanager
def _noting_failure(job: Job, what: str) -> Iterator[None]:
    try:
        yield
    except LedgerError:
        raise
    except Exception as error:
        if os.environ.get("SPECTRAL_DEBUG"):
            raise
        job.failures.append(f"{what}: {type(error).__name__}: {error}")


def _finish(job: Job, ids: Sequence[str], args: argparse.Namespace, module: str) -> int:
    """Print what was found; write the report of a whole run, the figures of a part."""
    console = _wide_console()
    ledger = job.ledger
    for table in ledger.tables:
        if rows := [row for row in table.rows if row.id in ids]:
            console.print(tables.to_terminal(tables.paper_table(ledger, table, job.counts, job.results, rows)))
    for runs in job.demos:
        for shown in demo_tables(ledger, runs):
            console.print(tables.to_terminal(shown))
    if trained := job.trained():
        append(args.out / "results.csv", [run.result for run in trained])
    if args.rows:
        for record in list_records(ledger, ids, module):
            recipes = [c for c in record["commands"] if c.startswith("spectral")]
            if recipes and not args.data:
                console.print(f"{record['id']} on the real data (or: python -m {module} {record['id']} --data DIR):")
                console.print("\n".join(f"  {c}" for c in recipes), soft_wrap=True)
        for figure, content in job.figures.items():
            path = args.out / "figures" / f"{figure}.png"
            with written_whole(path, "wb") as file:
                file.write(content)
            console.print(f"Written: {path}", soft_wrap=True)
    else:
        facts = run_facts(job, time.monotonic() - _STARTED)
        page = write_report(job, args.out / "report", facts, f"python -m {module}", args.epochs)
        console.print(f"Report: {page.resolve()}", soft_wrap=True)
    if args.readme:
        write_readme(job)
    for failure in job.failures:
        Console(stderr=True, highlight=False).print(f"failed: {escape(failure)}", soft_wrap=True)
    return 1 if job.failures else 0


_STARTED = time.monotonic()
_BEGIN, _END = "<!-- tables: begin", "<!-- tables: end -->"


def write_readme(job: Job) -> None:
    """Put the tables between the markers of the paper's README, and the demo's results into `results.csv`.

    Raises ReproduceError if the README has no markers.
    """
    path = job.ledger.folder / "README.md"
    text = path.read_text(encoding="utf-8")
    before, begin, rest = text.partition(_BEGIN)
    marker, _, rest = rest.partition("\n")
    _, end, after = rest.partition(_END)
    if not begin or not end:
        raise ReproduceError(f"{path}: no lines '{_BEGIN} ... -->' and '{_END}'")
    shown = [tables.paper_table(job.ledger, table, job.counts, job.results) for table in job.ledger.tables]
    parts = [EXPLANATION, *(tables.to_markdown(table) for table in shown)]
    if trained := job.trained():
        parts[:0] = [tables.to_markdown(table) for runs in job.demos for table in demo_tables(job.ledger, runs)]
        append(job.ledger.folder / "results.csv", [run.result for run in trained])
    with written_whole(path) as file:
        file.write(before + begin + marker + "\n\n" + "\n\n".join(parts) + "\n\n" + end + after)
