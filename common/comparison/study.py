"""A study: methods that are compared on data, by one rule, and the claims that the comparison decides.

A study is a YAML file:

    title: Fixed and trainable temporal kernels
    score: top1                       # the metric of `result.json` that is compared
    seeds: [0, 1, 2, 3, 4]
    rates: [0.01, 0.03, 0.1]          # learning rates that every method is tried with
    widen: 2                          # up to so many more, while the best one is the smallest or the largest
    epochs: 20                        # or `steps`
    data:
      motion: {demo: "motion --frames 8 --fps 6"}         # generated, or
      own: {options: "--data.root clips --data.manifest clips/manifest.csv"}
    methods:
      t-stft: {recipe: recipes/demo.yaml, options: "--model.method t-stft"}
      i2d: {recipe: recipes/demo.yaml, options: "--model.method i2d", bound: 0.5}
    claims:
      - id: order
        claim: Temporal kernels see the order of frames.
        comparisons: [{better: t-stft, than: [i2d], data: [motion], by: 0.02}]
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

from common.reporting import strict_yaml

#: what a comparison can be about besides the study's score: costs, of which less is better
COSTS = {"params": "parameters", "macs": "multiply-adds", "infer_ms": "inference time", "train_ms": "training time"}
TIMES = ("infer_ms", "train_ms")  # among them


class StudyError(ValueError):
    """A study is wrong; the message names file, line and key."""


@dataclass
class StudyData:
    """Data of a study.

    Attributes:
        title: for tables; the key by default.
        demo: arguments of `python -m data.demo`, without `--out`; the data is generated.
        options: of `spectral`, such as `--data.root DIR`.
        rates_of: other data of the study whose chosen learning rates are used here; None: they are chosen here.
        score: the metric that is compared on it, in place of the study's.
        seeds: in place of the study's.
        fitted: the share of the best training score that counts as trained on it, in place of the study's.
    """

    title: str = ""
    demo: str = ""
    options: str = ""
    rates_of: str | None = None
    score: str = ""
    seeds: list[int] = field(default_factory=list)
    fitted: float | None = None
    line: int = 0


@dataclass
class StudyMethod:
    """What is compared: a recipe with options.

    Attributes:
        recipe: path, relative to the study.
        title: for tables; the key by default.
        options: of `spectral`; `{start}` stands for the run folder of `starts_from`.
        starts_from: method whose training with the same seed this one continues.
        bound: the best score that the method can reach on training data, by data or for all: 0.5 for a network that
            cannot see what tells two classes apart.
        data: the data that it is compared on; all by default.
        rates, widen: in place of the study's.
        epochs, steps: budget in place of the study's, for a method that continues another.
    """

    recipe: str
    title: str = ""
    options: str = ""
    starts_from: str | None = None
    bound: Any = 1.0
    data: list[str] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    widen: int | None = None
    epochs: int | None = None
    steps: int | None = None
    line: int = 0

    def bound_on(self, data: str) -> float:
        """The best training score on some data."""
        return float(self.bound.get(data, 1.0) if isinstance(self.bound, Mapping) else self.bound)


@dataclass
class Comparison:
    """One method against others.

    Attributes:
        better: the method that should be better.
        than: the methods that it should be better than.
        data: on which data; all by default.
        by: smallest difference that counts. Of the score, as a difference: 0.02 is two points, and -0.02 asks for at
            most two points less. Of a cost, as a fraction: 0.1 asks for at most 90 % of the other's. Times within
            `SCATTER` of each other decide nothing.
        measure: `score`, or a cost: `params`, `macs`, `infer_ms`, `train_ms`.
    """

    better: str
    than: list[str]
    data: list[str] = field(default_factory=list)
    by: float = 0.0
    measure: str = "score"
    line: int = 0


@dataclass
class Claim:
    """A sentence of a paper and the comparisons that support it; `paper` is its own evidence."""

    id: str
    claim: str
    comparisons: list[Comparison]
    paper: str = ""
    line: int = 0


@dataclass
class Study:
    """A study; see the module's text for the keys.

    Attributes:
        widen: how many rates beyond `rates` a method is tried with: while the best rate is the smallest or the largest,
            one more, as far from it as its neighbour is. A single rate is not widened.
        fitted: share of the best training score that a method must reach to count as trained.
        options: of `spectral`, for all methods and data.
        text: what a reader should know of the protocol.
        full: keys that `--size full` replaces.
        path: the file.
    """

    title: str
    seeds: list[int]
    rates: list[float]
    data: dict[str, StudyData]
    methods: dict[str, StudyMethod]
    widen: int = 0
    epochs: int | None = None
    steps: int | None = None
    score: str = "top1"
    fitted: float = 0.9
    options: str = ""
    text: str = ""
    claims: list[Claim] = field(default_factory=list)
    full: dict[str, Any] = field(default_factory=dict)
    path: Path = Path()

    def methods_on(self, data: str) -> list[str]:
        """The methods that are compared on some data."""
        return [name for name, method in self.methods.items() if not method.data or data in method.data]

    def rates_on(self, data: str, method: str) -> list[float]:
        """Learning rates to choose from, before they are widened."""
        return self.methods[method].rates or self.rates

    def widen_on(self, method: str) -> int:
        """How many rates may be tried beyond these."""
        own = self.methods[method].widen
        return self.widen if own is None else own

    def seeds_on(self, data: str) -> list[int]:
        """Seeds on some data; the learning rate is chosen with the first."""
        return self.data[data].seeds or self.seeds

    def score_on(self, data: str) -> str:
        """The metric that is compared on some data."""
        return self.data[data].score or self.score

    def share_on(self, data: str) -> float:
        """The share of the best training score that a method must reach on some data to count as trained."""
        own = self.data[data].fitted
        return self.fitted if own is None else own

    def fitted_on(self, data: str, method: str) -> float:
        """The training score from which on a method counts as trained."""
        return self.share_on(data) * self.methods[method].bound_on(data)

    def demo_folder(self, data: str) -> str:
        """Name of the folder of generated data: every set of arguments has its own."""
        words = shlex.split(self.data[data].demo)
        return "_".join([words[0], *(word.removeprefix("--") for word in words[1:])])

    def arguments(self, data: str, method: str, rate: float, start: str = "") -> list[str]:
        """Options of `spectral` for one training, without the place of generated data."""
        own = self.methods[method]
        epochs, steps = (own.epochs, own.steps) if own.epochs or own.steps else (self.epochs, self.steps)
        words = ["--config", str((self.path.parent / own.recipe).resolve())]
        words += shlex.split(self.options) + shlex.split(self.data[data].options)
        words += [word.replace("{start}", start) for word in shlex.split(own.options)]
        words += ["--trainer.max_epochs", str(epochs)] if epochs else ["--trainer.max_epochs", "-1"]
        words += ["--trainer.max_steps", str(steps)] if steps else []
        return [*words, "--model.learning_rate", str(rate)]

    def key(self, data: str, method: str, rate: float) -> str:
        """Hash of all that the study and the recipe say of a training; rows with another key are of another one."""
        own = self.methods[method]
        arguments = self.arguments(data, method, rate)
        about: list[Any] = [arguments[2:], self.data[data].demo, self.score_on(data)]
        about.append((self.path.parent / own.recipe).read_text(encoding="utf-8"))
        if own.starts_from:
            about.append([self.key(data, own.starts_from, r) for r in self.rates_on(data, own.starts_from)])
            about += [self.widen_on(own.starts_from)] if self.widen_on(own.starts_from) else []
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()[:10]


def load(path: str | Path, size: str = "quick") -> Study:
    """Read and check a study.

    Args:
        path: the YAML file.
        size: `full` takes the keys below `full` in place of the others.

    Raises:
        StudyError: naming file and line.
    """
    path = Path(path)
    try:
        content = strict_yaml.read(path)
        study: Study = strict_yaml.build(Study, content, str(path))
        if size == "full":
            if not study.full:
                raise StudyError(f"{path}: the study has no part `full`")
            whole = strict_yaml.Mapping({k: v for k, v in content.items() if k != "full"} | content["full"])
            study = strict_yaml.build(Study, whole, str(path))
    except OSError as error:
        raise StudyError(f"{path}: {error.strerror}") from error
    except strict_yaml.EntryError as error:
        raise StudyError(str(error)) from error
    study.path = path
    entries: list[tuple[str, Any]] = [*study.data.items(), *study.methods.items()]
    for name, entry in entries:
        entry.title = entry.title or name
    _check(study)
    return study


def _check(study: Study) -> None:
    def fail(entry: Any, message: str) -> NoReturn:
        raise StudyError(f"{study.path}:{getattr(entry, 'line', 1)}: {message}")

    if not study.seeds or not study.rates:
        fail(study, "give at least one rate and one seed")
    with_seeds: list[Any] = [study, *study.data.values()]
    for entry in with_seeds:
        if len(set(entry.seeds)) != len(entry.seeds):
            fail(entry, "give each seed once")
        if entry.seeds and min(entry.seeds) < 0:
            fail(entry, f"a seed is {min(entry.seeds)}; it must not be negative")
    with_widen: list[Any] = [study, *study.methods.values()]
    for tried in with_widen:
        if tried.widen is not None and not 0 <= tried.widen <= 9:
            fail(tried, f"widen is {tried.widen}; give a number from 0 to 9")
    _check_words(study, "options", study.options, fail)
    for name, data in study.data.items():
        _check_name(data, name, fail)
        for key in ("demo", "options"):
            _check_words(data, key, getattr(data, key), fail)
        if not data.demo.strip() and not data.options.strip():
            fail(data, f"{name} needs demo, or options such as --data.root DIR")
        if data.rates_of is not None and (
            data.rates_of not in study.data or study.data[data.rates_of].rates_of is not None
        ):
            fail(data, f"{name}: there is no data {data.rates_of} whose rates are chosen")
    before: list[str] = []
    for name, method in study.methods.items():
        _check_name(method, name, fail)
        _check_words(method, "options", method.options, fail)
        for rate in method.rates or study.rates:
            if not (math.isfinite(rate) and rate > 0):
                fail(method if method.rates else study, f"a rate is {rate}; it must be positive")
        bounds = method.bound.values() if isinstance(method.bound, Mapping) else [method.bound]
        if not all(isinstance(bound, int | float) for bound in bounds):
            fail(method, f"{name}: bound is {method.bound}; give a number, or numbers by data")
        if not os.path.isfile(study.path.parent / method.recipe):  # also of names that no file can have
            fail(method, f"{name}: there is no recipe {study.path.parent / method.recipe}")
        if method.starts_from is not None and method.starts_from not in before:
            fail(method, f"{name}: there is no method {method.starts_from} before this one")
        if (method.starts_from is not None) != ("{start}" in method.options):
            fail(method, f"{name}: starts_from and {{start}} in the options go together")
        if method.epochs is None and method.steps is None and study.epochs is None and study.steps is None:
            fail(method, f"{name} has no budget: give epochs or steps")
        _known(study, method, method.data, study.data, fail)
        before.append(name)
    for claim in study.claims:
        for comparison in claim.comparisons:
            _known(study, comparison, comparison.data, study.data, fail)
            _known(study, comparison, [comparison.better, *comparison.than], study.methods, fail)
            if comparison.measure not in ("score", *COSTS):
                fail(comparison, f"unknown measure {comparison.measure!r}; there are score, {', '.join(COSTS)}")


def _check_name(entry: Any, name: str, fail: Any) -> None:
    """Names become parts of folders' names."""
    if not re.fullmatch(r"\w[\w.+-]*", name):
        fail(entry, f"{name!r} is no name: use letters, digits and . + - _")


def _check_words(entry: Any, key: str, text: str, fail: Any) -> None:
    """Options of a command that trains or makes data: none that prints something or says where it works."""
    try:
        words = shlex.split(text)
    except ValueError as error:
        fail(entry, f"{key}: {error}")
    for word in words:
        if word.partition("=")[0] in ("-h", "--help", "--print_config", "--out", "--trainer.default_root_dir"):
            fail(entry, f"{key}: {word} cannot be given in a study")


def _known(study: Study, entry: Any, names: list[str], known: Mapping[str, Any], fail: Any) -> None:
    for name in names:
        if name not in known:
            fail(entry, f"there is no {name!r}; there are {', '.join(known)}")


def pairs(study: Study, comparison: Comparison) -> Iterator[tuple[str, str, str]]:
    """(data, better, than) of a comparison, where both methods are compared on that data."""
    for data in comparison.data or study.data:
        for other in comparison.than:
            if {comparison.better, other} <= set(study.methods_on(data)):
                yield data, comparison.better, other
