"""The ledger of a paper: every table row and figure, the paper's numbers as printed, and what we do about each.

`papers/<paper>/ledger.yaml` has these keys (lists keep the paper's order):

- `paper`, `title`, `authors`, and `labels`: what the labels of the rows' networks mean;
- `networks`: name -> `{function: dotted path, arguments, classes}`, `classes` being arguments that are classes;
- `passed_on`: command-line options of a row that the training whose weights it starts from takes too, such as
  `--model.depth`. That training is the recipe whose run folder the row's recipe names (`pretrained: runs/<recipe>`);
- `tables`: `{id, title, note, columns, shared, rows}`.
  A column is `{key, name, measure, scale, dataset}`: `measure` names what it holds (`params`, `macs`, or a key of
  `result.json` such as `top1`), `scale` is the worth of one printed unit (0.01 for per cent; the suffixes K, M and G
  of a printed number count too), `dataset` the dataset whose results stand there.
  `shared` states what the rows have in common: `{statuses, input, networks, recipes}`.
  A row that quotes another group is a list: its id and name, and the printed numbers in the order of the columns.
  Every other row is `{id, name, values, statuses, input, arguments, networks, overrides, recipes, note}`, of which all
  but the first three add to or replace what is shared. `values` are the printed numbers; `networks` maps labels to the
  name of a network or to `{network, arguments, input, counter, baseline}`, the first being the one that
  the row is compared by: `baseline` names a network whose counts are subtracted, for tables of what a block adds, and
  `counter` is the dotted path of a function that counts as the paper does, called like `complexity.count` (default);
  `arguments` are of all networks of the row, `input` is the shape of their input. `recipes` maps datasets to
  `{file, overrides, runs}`, or lists some of the shared ones; `runs` lists the overrides of runs whose results are
  averaged; `overrides` are those of all recipes of the row;
- `figures`: `{id, title, statuses, function, location}`, `function` being one of the paper's `figures.py`;
- `demos`: `{id, title, text, data, folder, recipe, score, columns, rows}`: `data` are the arguments of
  `python -m data.demo`, `folder` the name of the folder that they are written to (their first word by default). `score`
  is the key of `result.json` that is plotted against cost (`top1` by default), `columns` are what the table shows of
  `result.json` (as the columns of a paper's table; all metrics by default). A row is `{id, name, table_row, overrides,
  starts_from}`: the id begins with that
  of the demo, `table_row` is the row that it stands for, and `starts_from` a row of the same demo that is trained
  before, whose run folder replaces `{starts_from}` in the overrides.

Statuses: `computed`, `recipe`, `literature`, and for figures `demo` and `diagram`. A table row that a demo row stands
for has the status `demo` by that.
"""

from __future__ import annotations

import dataclasses
import importlib
import re
import typing
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from common.command_line import did_you_mean
from common.reporting import strict_yaml

if TYPE_CHECKING:  # what only lists needs no torch
    from torch import nn

    from common.evaluation.complexity import Complexity

#: status -> its mark in the tables
STATUSES = {"computed": "C", "demo": "D", "recipe": "R", "literature": "L", "diagram": "G"}
DASH = "\N{EN DASH}"


class LedgerError(ValueError):
    """The ledger is wrong; the message begins with file and line."""


@dataclass
class Column:
    """A column of a table; `measure` is None for text."""

    key: str
    name: str
    measure: str | None = None
    scale: float = 1.0
    dataset: str | None = None

    def value(self, printed: str | None) -> float | None:
        """The number of a printed cell in base units (values, multiply-adds, fractions); None for a dash or text."""
        if self.measure is None or printed is None:
            return None
        found = re.fullmatch(r"\s*(-?[\d,]*\.?\d+)\s*([KMG]?)\s*", printed.split("×")[0])
        if found is None:
            return None
        return float(found[1].replace(",", "")) * {"": 1.0, "K": 1e3, "M": 1e6, "G": 1e9}[found[2]] * self.scale

    def print(self, value: float | None, like: str | None = None) -> str:
        """`value` (base units) in the unit of the printed cell `like`, with as many digits, at least two decimals for
        counts and accuracies; a dash for None."""
        if value is None:
            return DASH
        found = re.match(r"\s*-?[\d,]*(?:\.(\d+))?([KMG]?)", (like or "").split("×")[0])
        suffix = found[2] if found and found[2] else ""
        if not suffix and self.scale == 1 and self.measure in ("params", "macs"):
            suffix = {"params": "M", "macs": "G"}[self.measure]
        decimals = max(2, len(found[1]) if found and found[1] else 0)
        return f"{value / self.scale / {'': 1.0, 'K': 1e3, 'M': 1e6, 'G': 1e9}[suffix]:.{decimals}f}{suffix}"


@dataclass
class Network:
    """A function that builds a network."""

    function: str
    arguments: dict[str, Any] = field(default_factory=dict)
    classes: dict[str, str] = field(default_factory=dict)

    def build(self) -> nn.Module:
        """Call the function. Raises LedgerError if there is none of that name."""
        return _find(self.function)(**self.arguments, **{k: _find(path) for k, path in self.classes.items()})


def _find(dotted: str) -> Any:
    module, _, name = dotted.rpartition(".")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise LedgerError(f"{dotted}: {error}") from error


@dataclass
class RowNetwork:
    """A network of a row with the shape of its input."""

    network: str
    input: list[int]
    arguments: dict[str, Any] = field(default_factory=dict)
    counter: str | None = None
    baseline: str | None = None

    def parts(self) -> list[RowNetwork]:
        """The network itself, and the one that it is compared with, if any."""
        own = dataclasses.replace(self, baseline=None)
        return [own] if self.baseline is None else [own, dataclasses.replace(own, network=self.baseline)]


@dataclass
class Recipe:
    """A recipe file of the paper's folder with command-line overrides."""

    file: str
    overrides: list[str] = field(default_factory=list)
    runs: list[list[str]] = field(default_factory=list)

    def run_name(self, run: Sequence[str] = ()) -> str:
        """Name of the run folder: the recipe's own, with what the overrides change."""
        options, changes = [*self.overrides, *run], []
        for option, value in zip(options[::2], options[1::2], strict=True):
            if option != "--model.imagenet":  # follows from the depth
                short = re.sub(r"[^A-Za-z0-9.+]+", "-", Path(value).name.removesuffix(".csv")).strip("-")
                changes.append(f"{option.rpartition('.')[2]}-{short}")
        return "_".join([Path(self.file).stem, *changes])

    def arguments(self, folder: Path, run: Sequence[str] = ()) -> list[str]:
        """Arguments behind `spectral fit`."""
        config = ["--config", str(folder / "recipes" / self.file), *self.overrides, *run]
        return config if len(config) == 2 else [*config, "--name", self.run_name(run)]


@dataclass
class Row:
    """A row of a table."""

    id: str
    name: str
    statuses: list[str]
    paper: dict[str, str]
    networks: dict[str, RowNetwork] = field(default_factory=dict)
    recipes: dict[str, Recipe] = field(default_factory=dict)
    note: str | None = None
    line: int = 0


@dataclass
class Table:
    """A table of the paper."""

    id: str
    title: str
    columns: list[Column]
    rows: list[Row]
    note: str | None = None
    line: int = 0

    @property
    def number(self) -> str:
        """`Table 2` for `table2`, `Section 1` for `section1`."""
        return re.sub(r"^(table|section)(?=\d)", lambda found: f"{found[1].capitalize()} ", self.id)

    def column(self, measure: str) -> Column | None:
        """The first column that holds `measure`."""
        return next((c for c in self.columns if c.measure == measure), None)


@dataclass
class Figure:
    """A figure of the paper."""

    id: str
    title: str
    statuses: list[str]
    location: str
    function: str | None = None
    line: int = 0

    @property
    def number(self) -> str:
        """`Figure 2` for `figure2`."""
        return re.sub(r"^figure(?=\d)", "Figure ", self.id)


@dataclass
class DemoRow:
    """A network trained on the generated data."""

    id: str
    name: str
    table_row: str
    overrides: list[str] = field(default_factory=list)
    starts_from: str | None = None
    line: int = 0


@dataclass
class Demo:
    """What is trained and tested here, now."""

    id: str
    title: str
    text: str
    data: list[str]
    recipe: str
    rows: list[DemoRow]
    folder: str | None = None
    score: str = "top1"
    columns: list[Column] = field(default_factory=list)
    line: int = 0

    @property
    def data_folder(self) -> str:
        """Name of the folder of the data."""
        return self.folder or self.data[0]

    def row(self, row_id: str) -> DemoRow:
        """The row of that id."""
        return next(row for row in self.rows if row.id == row_id)


@dataclass
class Ledger:
    """A paper's ledger; see the module's text. `path` is the file."""

    paper: str
    title: str
    authors: str
    networks: dict[str, Network]
    tables: list[Table]
    figures: list[Figure]
    demos: list[Demo] = field(default_factory=list)
    labels: dict[str, str] = field(default_factory=dict)
    passed_on: list[str] = field(default_factory=list)
    path: Path = Path()

    @property
    def folder(self) -> Path:
        """The paper's folder."""
        return self.path.parent

    def rows(self) -> Iterator[tuple[Table, Row]]:
        """All table rows."""
        return ((table, row) for table in self.tables for row in table.rows)

    def select(self, names: list[str]) -> list[str]:
        """Ids of all entries that are named, or lie below a named table or demo; every entry if nothing is named.

        Raises LedgerError for a name that selects nothing, with the nearest one that does.
        """
        ids = [row.id for _, row in self.rows()] + [figure.id for figure in self.figures]
        ids += [row.id for demo in self.demos for row in demo.rows]
        chosen: dict[str, None] = {}
        for name in names or ids:
            found = [i for i in ids if i == name or i.startswith(f"{name}/")]
            if not found:
                known = sorted({*ids, *(i.partition("/")[0] for i in ids)})
                hint = did_you_mean(name, known, " See --list.")
                raise LedgerError(f"{self.path}: no row, table or figure {name!r}.{hint}")
            chosen |= dict.fromkeys(found)
        return [i for i in ids if i in chosen]

    def training(self, recipe: Recipe, run: Sequence[str] = ()) -> list[str]:
        """Arguments behind `spectral fit` for a run of a recipe."""
        arguments = recipe.arguments(self.folder, run)
        start = self.start(recipe, run)
        if start is not None and start[1].overrides:  # without, the recipe names the run folder
            arguments += [start[0], f"runs/{start[1].run_name()}"]
        return arguments

    def start(self, recipe: Recipe, run: Sequence[str] = ()) -> tuple[str, Recipe] | None:
        """The option of a recipe that names another recipe's run folder, and that recipe with what is passed on."""
        model = _read_model(self.folder / "recipes" / recipe.file)
        places = {
            "--model.pretrained": model.get("pretrained"),
            "--model.compression.start": (model.get("compression") or {}).get("start"),
        }
        for option, value in places.items():
            if str(value).startswith("runs/"):
                given = [*recipe.overrides, *run]
                pairs = [pair for pair in zip(given[::2], given[1::2], strict=True) if pair[0] in self.passed_on]
                file = f"{str(value).removeprefix('runs/')}.yaml"
                return option, Recipe(file, [word for pair in pairs for word in pair])
        return None

    def trainings(self, recipe: Recipe) -> Iterator[list[str]]:
        """`training` of every run, each after that of the run whose weights it starts from."""
        for run in recipe.runs or [[]]:
            if (start := self.start(recipe, run)) is not None:
                yield self.training(start[1])
            yield self.training(recipe, run)

    def network(self, spec: RowNetwork) -> Network:
        """The network of a row with its own arguments."""
        base = self.networks[spec.network]
        return Network(base.function, base.arguments | spec.arguments, base.classes)

    def complexity(self, spec: RowNetwork, count: Callable[[RowNetwork], Complexity] | None = None) -> Complexity:
        """The counts of a row's network, over those of its baseline if it has one; `count` knows those of each."""
        own, *base = map(count or self.count, spec.parts())
        return own.over(*base) if base else own

    def count(self, spec: RowNetwork) -> Complexity:
        """Count a network; nothing is computed, so any size takes about a second."""
        import torch

        counter = _find(spec.counter or "common.evaluation.complexity.count")
        with torch.device("meta"):
            network = self.network(spec).build()
        found: Complexity = counter(network, spec.input)
        return found


@cache
def _read_model(recipe: Path) -> dict[str, Any]:
    """Arguments of the model in a recipe."""
    arguments: dict[str, Any] = yaml.safe_load(recipe.read_text(encoding="utf-8"))["model"].get("init_args") or {}
    return arguments


def package_root(folder: Path) -> Path:
    """The folder that a paper's package is imported from: the first one above it that is no package itself."""
    root = folder.resolve().parent
    while (root / "__init__.py").is_file():
        root = root.parent
    return root if root != folder.resolve().parent else root.parent


# Reading


def load(path: str | Path) -> Ledger:
    """Read and check a ledger.

    Raises:
        LedgerError: naming file, line and id, for a missing or unknown key, a value of the wrong kind (numbers of the
            paper must be quoted text), an id given twice, a reference to nothing, or a status without what it needs.
    """
    path = Path(path)
    try:
        content = strict_yaml.read(path)
        for table in content.get("tables", []) if isinstance(content, dict) else []:
            _write_out(table, str(path))
        ledger: Ledger = strict_yaml.build(Ledger, content, str(path))
    except OSError as error:
        raise LedgerError(f"{path}: {error.strerror}. Every paper folder has a ledger.yaml.") from error
    except strict_yaml.EntryError as error:
        raise LedgerError(str(error)) from error
    except (AttributeError, KeyError, TypeError, IndexError) as error:
        raise LedgerError(f"{path}: a table has columns, shared values or rows of another form: {error!r}") from error
    ledger.path = path
    _check(ledger)
    shown_by_demo = {row.table_row for demo in ledger.demos for row in demo.rows}
    for _, row in ledger.rows():
        if row.id in shown_by_demo:
            row.statuses.insert(row.statuses.index("computed") + 1 if "computed" in row.statuses else 0, "demo")
    return ledger


def _write_out(table: Any, path: str) -> None:
    """Give every row of a table what the rows share, in place, and its numbers by column."""
    if not isinstance(table, dict) or not isinstance(table.get("rows"), list):
        return  # reported when the table is built
    shared = table.pop("shared", {})
    where = f"{path}:{getattr(shared, 'line', 1)}"
    if unknown := set(shared) - {"statuses", "input", "networks", "recipes"}:
        raise LedgerError(f"{where}: unknown key {unknown.pop()!r} in shared of {table.get('id')}")
    keys = [column["key"] for column in table.get("columns", [])]
    rows = []
    for row in table["rows"]:
        line = row.line
        if isinstance(row, list):
            row = strict_yaml.Mapping(id=row[0], name=row[1], values=row[2:], statuses=["literature"])
        else:
            row = strict_yaml.Mapping(row)
            row.setdefault("statuses", shared.get("statuses", ["literature"]))
            _with_shared(row, shared)
        row.line = line
        values = row.pop("values", [])
        if len(values) != len(keys):
            raise LedgerError(f"{path}:{line}: {row['id']} has {len(values)} values; the columns are {', '.join(keys)}")
        row["paper"] = dict(zip(keys, values, strict=True))
        row["id"] = f"{table.get('id')}/{row['id']}"
        rows.append(row)
    table["rows"] = rows


def _with_shared(row: dict[str, Any], shared: dict[str, Any]) -> None:
    """Put the shared networks and recipes of a table into a row."""
    shape, arguments = row.pop("input", shared.get("input")), row.pop("arguments", {})
    overrides = row.pop("overrides", [])
    networks = row.pop("networks", shared.get("networks", {}) if "computed" in row["statuses"] else {})
    for label, spec in networks.items():
        spec = {"network": spec} if isinstance(spec, str) else spec
        template = shared.get("networks", {}).get(label, {})
        template = {"network": template} if isinstance(template, str) else template
        merged = {"input": shape, **template, **spec}
        merged["arguments"] = {**template.get("arguments", {}), **arguments, **spec.get("arguments", {})}
        row.setdefault("networks", {})[label] = {k: v for k, v in merged.items() if v is not None}
    recipes = row.pop("recipes", shared.get("recipes", {}) if "recipe" in row["statuses"] else {})
    recipes = {dataset: {} for dataset in recipes} if isinstance(recipes, list) else recipes
    for dataset, spec in recipes.items():
        template = shared.get("recipes", {}).get(dataset, {})
        row.setdefault("recipes", {})[dataset] = {"overrides": overrides, **template, **spec}


def _check(ledger: Ledger) -> None:
    seen: dict[str, int] = {}

    def fail(entry: Any, message: str) -> typing.NoReturn:
        raise LedgerError(f"{ledger.path}:{entry.line}: {entry.id}: {message}")

    entries: list[Any] = [*ledger.tables, *(row for _, row in ledger.rows()), *ledger.figures, *ledger.demos]
    entries += [row for demo in ledger.demos for row in demo.rows]
    for entry in entries:
        if entry.id in seen:
            fail(entry, f"the id is taken by line {seen[entry.id]}")
        seen[entry.id] = entry.line
        for status in getattr(entry, "statuses", []):
            if status not in STATUSES:
                fail(entry, f"unknown status {status!r}; there are {', '.join(STATUSES)}")
    for table, row in ledger.rows():
        if not row.statuses:
            fail(row, "no status")
        if "demo" in row.statuses:
            fail(row, "leave the status demo out; it follows from the rows of the demos")
        for status, given in (("computed", row.networks), ("recipe", row.recipes)):
            if (status in row.statuses) != bool(given):
                fail(row, f"status {status} and what it needs (networks, or recipes) must go together")
        for name in (name for spec in row.networks.values() for name in (spec.network, spec.baseline or spec.network)):
            if name not in ledger.networks:
                fail(row, f"no network {name!r}.{did_you_mean(name, ledger.networks)}")
        datasets = {c.dataset for c in table.columns if c.dataset}
        for dataset, recipe in row.recipes.items():
            if dataset not in datasets:
                fail(row, f"no column shows {dataset}; there are {', '.join(sorted(datasets)) or 'none'}")
            _check_recipe(ledger, row, recipe, fail)
    for figure in ledger.figures:
        if "computed" in figure.statuses and figure.function is None:
            fail(figure, "status computed needs a function")
    for demo in ledger.demos:
        _check_demo(ledger, demo, fail)


def _check_recipe(ledger: Ledger, row: Row, recipe: Recipe, fail: Callable[[Any, str], typing.NoReturn]) -> None:
    folder = ledger.folder / "recipes"
    if not (folder / recipe.file).is_file():
        fail(row, f"no recipe {recipe.file} in {folder}")
    for options in ([*recipe.overrides, *run] for run in recipe.runs or [[]]):
        if len(options) % 2:
            fail(row, f"an option has no value in {' '.join(options)}; options and values take turns")
        try:
            start = ledger.start(recipe, options[len(recipe.overrides) :])
        except (yaml.YAMLError, KeyError, AttributeError, TypeError) as error:
            fail(row, f"recipe {recipe.file} has no usable model: {error}")
        if start is not None and not (folder / start[1].file).is_file():
            fail(row, f"{recipe.file} starts from the run of a recipe, but there is no recipe {start[1].file}")


def _check_demo(ledger: Ledger, demo: Demo, fail: Callable[[Any, str], typing.NoReturn]) -> None:
    known = {row.id for _, row in ledger.rows()} | {figure.id for figure in ledger.figures}
    before: list[str] = []
    for row in demo.rows:
        if not row.id.startswith(f"{demo.id}/"):
            fail(row, f"the id must begin with {demo.id}/")
        if row.table_row not in known:
            fail(row, f"there is no row {row.table_row}")
        if row.starts_from is not None and row.starts_from not in before:
            fail(row, f"there is no demo row {row.starts_from} before this one")
        if (row.starts_from is not None) != any("{starts_from}" in word for word in row.overrides):
            fail(row, "`starts_from` and {starts_from} in the overrides must go together")
        before.append(row.id)
    if not (ledger.folder / "recipes" / demo.recipe).is_file():
        fail(demo, f"no recipe {demo.recipe} in {ledger.folder / 'recipes'}")
