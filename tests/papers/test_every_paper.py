"""What every paper's folder is held to, found by listing: networks, recipes, commands, figures, claims, documents.

`pytest tests/papers/test_every_paper.py --papers PATH` holds a folder outside of this repository to the same, or every
paper's folder below PATH. Its parent must be a package folder that can be imported, for example `mine/papers2/mypaper`
with `class_path: papers2.mypaper.MyModule`.
"""

from __future__ import annotations

import argparse
import ast
import importlib
import inspect
import itertools
import json
import re
import runpy
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import jsonargparse
import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from common.comparison import report
from common.comparison.command import finished_studies, study_of_operators
from common.comparison.rows import StudyProgress, read_rows
from common.comparison.study import load as read_study
from common.reporting.ledger import Ledger, LedgerError, Network, Recipe, RowNetwork, load, package_root
from common.reporting.listing import list_records
from common.reporting.page import png
from common.reporting.results import ReproduceError
from common.reporting.tables import to_markdown
from common.training import cli, lightning_cli
from common.training.arguments import predict_parser
from common.training.classification import ImageClassificationModule
from common.training.pose_estimation import PoseEstimationModule
from common.training.volume_segmentation import VolumeSegmentationModule
from tests import robustness
from tests.common.training.tiny import CutAt, assert_equal_states, cut_and_resume, state
from tests.datasets import read_recipe, write_dataset
from tests.networks import kinds_of, networks_of, resized, small

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [
    ROOT / name
    for name in ("README.md", "CONTRIBUTING.md", "data/README.md", "data/datasets.md", "common/training/README.md")
]
#: put before a block of a document whose commands need data or files that the reader has; it is parsed, not run
PARSED_ONLY = "<!-- parsed only -->"


def folders(config: pytest.Config) -> list[Path]:
    """The papers' folders that are tested."""
    place = config.getoption("--papers")
    if place is None:
        return sorted(path.parent for path in (ROOT / "papers").glob("*/ledger.yaml"))
    place = place.resolve()
    found = (
        [place] if (place / "ledger.yaml").is_file() else sorted(path.parent for path in place.glob("*/ledger.yaml"))
    )
    if not found:
        raise pytest.UsageError(f"--papers {place}: no ledger.yaml there, nor in a folder below it")
    for folder in found:
        root = str(package_root(folder))
        if root not in sys.path:
            sys.path.insert(0, root)
    return found


def package(folder: Path) -> str:
    """Dotted name of a paper's folder."""
    return ".".join(folder.relative_to(package_root(folder)).parts)


@cache
def ledger_of(folder: Path) -> Ledger:
    return load(folder / "ledger.yaml")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    cases: list[Any] = []
    for folder in folders(metafunc.config):
        name = folder.name
        if "folder" in metafunc.fixturenames:
            cases.append(pytest.param(folder, id=name))
            continue
        try:
            ledger_of(folder)
        except LedgerError:  # `test_the_ledger_loads` fails
            continue
        if "recipe" in metafunc.fixturenames:
            cases += [pytest.param(p, id=f"{name}-{p.stem}") for p in sorted((folder / "recipes").glob("*.yaml"))]
        elif "spec" in metafunc.fixturenames:
            networks = networks_of(ledger_of(folder))
            cases += [pytest.param((folder, spec), id=f"{name}-{where}") for where, spec in networks]
        elif "kind" in metafunc.fixturenames:
            networks = kinds_of(ledger_of(folder))
            cases += [pytest.param((folder, spec), id=f"{name}-{where}") for where, spec in networks]
        elif "figure" in metafunc.fixturenames:
            figures = [figure for figure in ledger_of(folder).figures if figure.function]
            cases += [pytest.param((folder, figure), id=f"{name}-{figure.id}") for figure in figures]
    for names in ("recipe", "spec", "kind", "figure", "folder"):
        if names in metafunc.fixturenames:
            metafunc.parametrize(names, cases)
    if "document" in metafunc.fixturenames:
        given = metafunc.config.getoption("--papers")
        documents = [folder / "README.md" for folder in folders(metafunc.config)] + ([] if given else DOCUMENTS)
        metafunc.parametrize("document", documents, ids=lambda p: f"{p.parent.name}-{p.name}")


def test_the_ledger_loads(folder: Path) -> None:
    ledger_of(folder)


def test_demos_that_share_a_folder_share_its_data(pytestconfig: pytest.Config) -> None:
    data: dict[str, tuple[str, list[str]]] = {}
    for folder in folders(pytestconfig):
        for demo in ledger_of(folder).demos:
            where = f"{folder.name}, demo {demo.id}"
            other, arguments = data.setdefault(demo.data_folder, (where, demo.data))
            assert arguments == demo.data, f"{where} and {other} both write runs/demo/{demo.data_folder}"


# Networks


@pytest.mark.parametrize("narrow", [True, pytest.param(False, marks=pytest.mark.slow)], ids=["narrow", "whole"])
def test_every_network_takes_odd_sizes_and_trains_every_parameter(spec: tuple[Path, RowNetwork], narrow: bool) -> None:
    folder, own = spec
    network = ledger_of(folder).network(own)
    with torch.device("meta"):
        assert any(True for _ in network.build().parameters())
    built, x = small(network, own.input, narrow)
    output = built(x)
    assert output.isfinite().all()
    output.square().mean().backward()
    for name, parameter in built.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
            assert parameter.grad.any(), f"the gradient of {name} is zero"


def _batches(shape: robustness.Shape) -> list[robustness.Shape]:
    return [(size, *shape[1:]) for size in (3, 5)]


def compiles(build: robustness.Build, shape: robustness.Shape) -> None:
    robustness.compiles(build, shape, _batches(shape))


def exports(build: robustness.Build, shape: robustness.Shape) -> None:
    robustness.exports(build, shape, _batches(shape), dynamic=(0,))


def traces(build: robustness.Build, shape: robustness.Shape) -> None:
    robustness.traces(build, shape, _batches(shape))


#: in deep networks the rounding of half precision adds up, and a step of differences crosses kinks
NETWORK_CHECKS = [
    *(
        check
        for check in robustness.QUICK
        if check not in (robustness.keeps_precisions, robustness.has_second_derivatives_or_refuses)
    ),
    compiles,
    exports,
    traces,
]


@pytest.mark.slow
@pytest.mark.parametrize("check", NETWORK_CHECKS, ids=lambda check: check.__name__)
def test_every_kind_of_network_survives(
    kind: tuple[Path, RowNetwork], check: Callable[[robustness.Build, robustness.Shape], None]
) -> None:
    folder, own = kind
    network, shape = resized(ledger_of(folder).network(own), own.input, narrow=True)
    check(network.build, shape)


@pytest.mark.slow
def test_every_kind_of_network_exports_to_onnx(kind: tuple[Path, RowNetwork], tmp_path: Path) -> None:
    folder, own = kind
    network, shape = resized(ledger_of(folder).network(own), own.input, narrow=True)
    robustness.exports_to_onnx(network.build, shape, tmp_path, _batches(shape), dynamic=(0,))


@pytest.mark.slow
def test_every_kind_of_network_trains_on_two_processes(folder: Path, tmp_path: Path) -> None:
    ledger = ledger_of(folder)
    kinds = [(where, *resized(ledger.network(own), own.input, narrow=True)) for where, own in kinds_of(ledger)]
    robustness.train_on_two_processes([(where, network.build, shape) for where, network, shape in kinds], tmp_path)


def test_a_row_counts_the_network_that_its_recipe_trains(folder: Path) -> None:
    ledger = ledger_of(folder)
    sizes: dict[str, int] = {}

    def parameters(network: Network) -> int:
        return _size(sizes, [network.function, network.arguments, network.classes], network.build)

    for _, row in ledger.rows():
        if not row.networks:
            continue
        counted = set()
        for spec in row.networks.values():
            network = ledger.network(spec)
            arguments = {k: v for k, v in network.arguments.items() if k not in ("rate", "method", "keep_temporal")}
            counted.add(parameters(Network(network.function, arguments, network.classes)))
            classes = network.arguments.get("num_classes", default_classes(network))
        for dataset, recipe in row.recipes.items():
            model, data, _ = read_recipe(folder / "recipes" / recipe.file, recipe.overrides)
            module_class, arguments = module_of(folder, recipe, model, data, classes)
            trained = _size(sizes, [str(module_class), arguments], lambda: module_class(**arguments).network)  # noqa: B023
            assert trained in counted, (
                f"{row.id}: {recipe.file} with {shlex.join(recipe.overrides)} trains another network on {dataset} than "
                "the row counts"
            )


def _size(sizes: dict[str, int], about: Any, build: Callable[[], nn.Module]) -> int:
    """Parameters of a network, which is built only where `sizes` does not know it."""
    key = json.dumps(about, default=str)
    if key not in sizes:
        with torch.device("meta"):
            sizes[key] = sum(p.numel() for p in build().parameters())
    return sizes[key]


def module_of(
    folder: Path, recipe: Recipe, model: dict[str, Any], data: dict[str, Any], classes: Any
) -> tuple[type, dict[str, Any]]:
    """The module that a recipe trains, before its network is compressed, and its arguments."""
    path = yaml.safe_load((folder / "recipes" / recipe.file).read_text())["model"]["class_path"]
    module = importlib.import_module(path.rpartition(".")[0])
    module_class = getattr(module, path.rpartition(".")[2])
    size = (data["height"], data["width"]) if "height" in data else data.get("crop_size")
    facts = {"num_classes": classes, "num_frames": data.get("num_frames"), "input_size": size, "num_joints": 17}
    facts |= {"num_regions": 3, "in_channels": 4}  # as the 17 joints of COCO, what the paper's data has: BraTS
    known = inspect.signature(module_class.__init__).parameters
    given = {name: value for name, value in facts.items() if name in known and value is not None}
    return module_class, {**model, **given, **({"compression": None} if "compression" in known else {})}


def default_classes(network: Network) -> int | None:
    """The number of classes of a network that is not told one."""
    home, _, name = network.function.rpartition(".")
    parameter = inspect.signature(getattr(importlib.import_module(home), name)).parameters.get("num_classes")
    return None if parameter is None or parameter.default is parameter.empty else parameter.default


# Recipes and commands


class _ParseOnly(lightning_cli.SpectralCLI):
    """Stops when the arguments are parsed."""

    def before_instantiate_classes(self) -> None:
        raise _ParsedError


class _ParsedError(BaseException):
    pass


@cache
def parser() -> Any:
    """The strict parser of `spectral fit|validate|test`, made once."""
    recipe = next((ROOT / "papers").glob("*/recipes/demo.yaml"))
    kept: list[Any] = []

    class Keep(_ParseOnly):
        def before_instantiate_classes(self) -> None:
            kept.append(self.parser)
            raise _ParsedError

    with pytest.raises(_ParsedError):
        Keep(["fit", "--config", str(recipe)])
    return kept[0]


def parse_spectral(words: list[str]) -> None:
    """Parse the arguments behind `spectral`; a wrong key or value is an error."""
    if words[0] in ("compare", "export", "runs"):
        _stop_when_parsed(lambda: cli.main(words))
        return
    if words[0] != "predict":
        parser().parse_args(words)
        return
    errors = []
    for task in (ImageClassificationModule, PoseEstimationModule, VolumeSegmentationModule):
        options = predict_parser()
        task.predictor.add_arguments(options)
        _, unknown = options.parse_known_args(words[1:])
        errors.append(unknown)
    assert [] in errors, f"spectral predict takes no {min(errors, key=len)}"


def parse_module(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run `python -m MODULE ...` up to the point where its arguments are parsed."""
    with monkeypatch.context() as patch:
        patch.setattr(sys, "argv", words)
        _stop_when_parsed(lambda: runpy.run_module(words[0], run_name="__main__", alter_sys=False))


def _stop_when_parsed(run: Callable[[], Any]) -> None:
    def stopping(original: Any) -> Any:
        def stop(*args: Any, **kwargs: Any) -> Any:
            original(*args, **kwargs)
            raise _ParsedError

        return stop

    with pytest.MonkeyPatch.context() as patch:
        for parser_class in (argparse.ArgumentParser, jsonargparse.ArgumentParser):
            patch.setattr(parser_class, "parse_args", stopping(parser_class.parse_args))
        with pytest.raises(_ParsedError):
            run()


def parse_command(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Check a command of a document or of `--list` with the parser that it would meet."""
    words = shlex.split(command, comments=True)
    if words[0] == "make":
        goals = {word for word in words[1:] if "=" not in word}
        targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
        assert goals <= targets, f"the Makefile has no {goals - targets}"
    elif words[0] == "spectral":
        parse_spectral(words[1:])
    elif words[0].startswith("python") and words[1] == "-m":
        parse_module(words[2:], monkeypatch)
    else:
        assert words[0].startswith((".venv/bin/", "git", "pip", "cd", "torchrun")), f"unknown command {command}"


def tiny_training(recipe: Path, folder: Path) -> list[str]:
    """Arguments of `spectral fit` that train a recipe on a tiny copy of its dataset, narrow where the network has a
    width.
    """
    config = parser().parse_args(["fit", "--config", str(recipe)]).fit
    model, data = config.model.init_args, config.data.init_args
    words = ["--config", str(recipe), *write_dataset(data.dataset, folder)]
    words += ["--data.num_workers", "0", "--data.batch_size", "2", "--trainer.enable_progress_bar", "false"]
    words += ["--trainer.accelerator", "cpu", "--trainer.devices", "1"]
    place = "--model.network." if "network" in model and "width" in model.network else "--model."
    known = model.network if "network" in model and "width" in model.network else model
    if "width" in known and "demo" not in recipe.stem:
        words += [f"{place}width", "0.25"]
    if "size" in (model.get("network") or {}):  # of a Swin
        words += ["--model.network.size", "t"]
    for name in ("pretrained", "imagenet"):
        if model.get(name):
            words += [f"--model.{name}", "null"]
    if "crop_size" in data and "demo" not in recipe.stem:
        words += ["--data.crop_size", "64", "--data.num_frames", "8", "--data.num_clips", "1", "--data.num_crops", "1"]
        words += ["--data.resize", "64"] if data.get("resize") else []
        words += ["--data.train_crop_size", "64"] if data.get("train_crop_size") else []
        words += ["--data.resize_range", "[64, 72]"] if data.get("resize_range") else []
        words += ["--data.frame_stride", "1"]
    if "height" in data and "demo" not in recipe.stem:
        words += ["--data.height", "64", "--data.width", "64"]
    if "learning_rate" in model:  # a full step from random weights on maps of one position can overflow
        words += ["--model.learning_rate", "0.0001"]
    if "patch_size" in data:
        words += ["--data.patch_size", "[8, 16, 16]"]
    return words


def starts_from_another(recipe: Path) -> bool:
    """Whether a recipe compresses the network of another training."""
    model, _, _ = read_recipe(recipe)
    return bool((model.get("compression") or {}).get("start"))


def test_every_recipe_parses_and_runs(
    recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`spectral fit` and `spectral test` for one step."""
    monkeypatch.chdir(tmp_path)
    words = ["fit", *tiny_training(recipe, tmp_path / "copy"), "--trainer.fast_dev_run", "1"]
    words += ["--model.compression", "null"] if starts_from_another(recipe) else []
    assert cli.main(words) == 0, capsys.readouterr().err
    assert cli.main(["test", *words[1:]]) == 0, capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_every_recipe_resumes_to_the_last_bit(recipe: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is cut at random places and resumed ends as one that is not."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(list(recipe.stem.encode()))
    words = [*tiny_training(recipe, tmp_path / "copy"), "--trainer.max_epochs", "3"]
    words += ["--trainer.limit_train_batches", "3", "--trainer.limit_val_batches", "1"]
    if starts_from_another(recipe):
        dense = cli.run(["fit", *words, "--name", "dense", "--model.compression", "null"])
        words += ["--model.compression.start", str(dense.run_dir), "--model.compression.steps", "2"]
    _, data, _ = read_recipe(recipe)
    if data.get("batch_size_by_epoch"):
        words += ["--data.batch_size_by_epoch", '{"1": 3}']
    words += ["--trainer.accumulate_grad_batches", str(rng.choice([1, 2]))]
    words += ["--checkpoint_every_n_steps", "1"] if rng.random() < 0.5 else []
    whole = cli.run(["fit", *words, "--name", "whole"])
    assert whole.run_dir is not None
    steps = int(state(whole.run_dir)["step"])
    cuts = [CutAt(epoch=0), *(CutAt(step=step) for step in sorted(rng.integers(1, steps, 2).tolist()))]
    assert_equal_states(whole.run_dir, cut_and_resume("cut", cuts, *words))


def _settings(command: Sequence[str]) -> set[tuple[str, ...]]:
    """The options of a command with their values, but for numbers, and the classes that they are options of.

    Commands with no new one parse like those before.
    """
    words = [re.sub(r"(?<=split)\d|(?<=runs/)\S+|(?<![^=\[,])[\d.]+", "", word) for word in command]
    recipe = yaml.safe_load((ROOT / words[words.index("--config") + 1]).read_text())
    classes = (recipe["model"]["class_path"], recipe["data"]["class_path"])
    options = (pair for pair in itertools.pairwise(words) if pair[0].startswith("--"))
    return {(*classes, *pair) for pair in options if pair[0] not in ("--config", "--name")}


def test_every_printed_command_parses_and_its_weights_are_written_by_another(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ledger = ledger_of(folder)
    records = list_records(ledger, ledger.select([]), f"{package(folder)}.reproduce")
    commands = list(dict.fromkeys(command for record in records for command in record["commands"]))
    writers: dict[str, str] = {}
    parsed: set[tuple[str, ...]] = set()
    for command in commands:
        if not command.startswith("spectral fit"):
            continue
        if not (settings := _settings(shlex.split(command))) <= parsed:
            parse_command(command, monkeypatch)
            parsed |= settings
        words = shlex.split(command)
        name = words[words.index("--name") + 1] if "--name" in words else Path(words[words.index("--config") + 1]).stem
        assert writers.setdefault(name, command) == command, f"both write to runs/{name}:\n{command}\n{writers[name]}"
    modules = [command for command in commands if command.startswith("python -m")]
    for options in {tuple(shlex.split(command)[4:]) for command in modules}:
        command = next(c for c in modules if tuple(shlex.split(c)[4:]) == options)
        parse_command(command, monkeypatch)
    for command in writers.values():
        words = shlex.split(command)
        recipe = Path(words[words.index("--config") + 1])
        model, _, _ = read_recipe(ROOT / recipe if not recipe.is_absolute() else recipe)
        options = {word: value for word, value in itertools.pairwise(words) if word.startswith("--")}
        for option, value in (
            ("--model.pretrained", model.get("pretrained")),
            ("--model.compression.start", (model.get("compression") or {}).get("start")),
        ):
            path = options.get(option, value)
            if path is not None:
                assert str(path).startswith("runs/"), f"{command}: {option} is {path}"
                assert str(path).removeprefix("runs/") in writers, (
                    f"{command}\nstarts from {path}, which no command writes"
                )


def test_claims_parse_and_the_readme_shows_their_rows(folder: Path) -> None:
    """Every method of `claims.yaml`, and every data; a README that shows no table, or another, is an error."""
    path = folder / "claims.yaml"
    if not path.is_file():
        assert not (folder / "claims.csv").exists()
        return
    study = read_study(path)
    for sized in [study, read_study(path, "full")] if study.full else [study]:
        parsed: set[tuple[str, ...]] = set()
        pairs = [(data, method) for data in sized.data for method in sized.methods_on(data)]
        for data, method in pairs:
            words = ["fit", *sized.arguments(data, method, sized.rates_on(data, method)[0])]
            if not (settings := _settings(words)) <= parsed:
                parser().parse_args(words)
                parsed |= settings
    if (folder / "claims.csv").is_file():
        progress = StudyProgress(study, read_rows(folder / "claims.csv"))
        assert progress.rows, "claims.csv has no row of the study as it is now"
        for table in report.all_tables(progress):
            assert to_markdown(table) in (folder / "README.md").read_text(), (
                f"{table.title}: run spectral compare {path} --rows {path.with_suffix('.csv')} --show --readme"
            )


def test_the_readme_shows_the_verdicts_on_all_claims() -> None:
    readme = (ROOT / "README.md").read_text()
    findings = {name: report.findings(progress) for name, progress in finished_studies(ROOT / "papers").items()}
    assert to_markdown(report.overview(findings)) in readme
    assert to_markdown(report.methods_table(study_of_operators())) in readme
    with Image.open(ROOT / "papers/claims.png") as picture:
        shown = picture.text["Description"]
    assert shown == report.as_text(report.differences(findings))


def test_every_figure_draws(figure: tuple[Path, Any]) -> None:
    folder, entry = figure
    module = importlib.import_module(f"{package(folder)}.figures")
    function = getattr(module, entry.function, None)
    assert function is not None, f"{folder}/ledger.yaml:{entry.line}: figures.py has no function {entry.function}"
    try:
        drawn = function(None)
    except ReproduceError:  # of a trained network
        assert "demo" in entry.statuses
    else:
        assert png(drawn).startswith(b"\x89PNG")


# Documents


def blocks(document: Path) -> Iterator[tuple[str, str, bool]]:
    """Language, content, and whether the block is only parsed, of every Python and shell block of a document."""
    for found in re.finditer(
        r"(<!--[^\n]*-->\n+)?^ *```(python|bash|sh)\n(.*?)^ *```", document.read_text(), re.S | re.M
    ):
        yield found[2], inspect.cleandoc(found[3]), (found[1] or "").strip() == PARSED_ONLY


def test_documents_run(document: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Python blocks run one after the other in one namespace; every command meets its real parser."""
    namespace: dict[str, Any] = {}
    for language, content, parsed_only in blocks(document):
        if language == "python":
            ast.parse(content)
            if not parsed_only:
                with monkeypatch.context() as patch:
                    patch.chdir(tmp_path)
                    exec(compile(content, str(document), "exec"), namespace)
            continue
        for line in content.replace("\\\n", " ").splitlines():
            if line.strip() and not line.strip().startswith("#"):
                try:
                    parse_command(line.strip(), monkeypatch)
                except (Exception, SystemExit) as error:
                    pytest.fail(f"{document}: {line.strip()}\n{error}")
