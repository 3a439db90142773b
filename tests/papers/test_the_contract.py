"""The contract finds a sixth paper by itself, accepts it as it is, and names each fault that is planted into it."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.papers.scratch_paper import change, write_paper
from tests.papers.test_every_paper import folders

ROOT = Path(__file__).resolve().parents[2]
JESTER = "recipes/mix_c2d-r18_8f_jester.yaml"
DIVING = "recipes/mix_c2d-r18_8f_diving48_from-jester.yaml"
LEDGER = "test_the_ledger_loads"
NETWORKS = "test_every_network_takes_odd_sizes_and_trains_every_parameter"
COUNTS = "test_a_row_counts_the_network_that_its_recipe_trains"
RECIPES = "test_every_recipe_parses_and_runs"
COMMANDS = "test_every_printed_command_parses_and_its_weights_are_written_by_another"
FIGURES = "test_every_figure_draws"
DOCUMENTS = "test_documents_run"

# fmt: off
#: folder -> (file, text, text in its place, the tests that must fail, what they must say)
FAULTS = {
    "recipe_key": (JESTER, "crop_size: 112", "crop_sise: 112", {RECIPES, COMMANDS}, "crop_sise"),
    "recipe_model_key": (JESTER, "model:\n", "model:\n  init_arg: {}\n", {RECIPES, COMMANDS}, "init_arg"),
    "override_key": ("ledger.yaml", "--model.network.stage", "--model.network.stge", {COMMANDS, COUNTS}, "stge"),
    "override_value": (
        "ledger.yaml",
        '[--model.network.stage, "4"]',
        '[--model.network.stage, "5"]',
        {COUNTS},
        "mix-res4",
    ),
    "override_without_value": (
        "ledger.yaml",
        '--model.network.stage, "4"',
        "--model.network.stage",
        {LEDGER},
        "an option has no value",
    ),
    "other_network": ("ledger.yaml", "arguments: {stage: 4}", "arguments: {depth: 50}", {COUNTS}, "mix-res4"),
    "other_weights": (
        DIVING,
        "runs/mix_c2d-r18_8f_jester",
        "runs/mix_c2d-r18_8f_jestr",
        {LEDGER}, "there is no recipe mix_c2d-r18_8f_jestr.yaml",
    ),
    "readme_argument": ("README.md", "width=0.125", "widht=0.125", {DOCUMENTS}, "there is no option 'widht'"),
    "readme_key": ("README.md", "max_epochs", "max_epoch", {DOCUMENTS}, "max_epoch"),
    "readme_command": ("README.md", "spectral fit", "spectral train", {DOCUMENTS}, "spectral train"),
    "no_gradient": (
        "layers.py",
        "self.weight * (x - x.roll(1, 2))",
        "0 * self.weight",
        {NETWORKS},
        "gradient of .* is zero",
    ),
    "not_finite": ("layers.py", "x.roll(1, 2))", "x.roll(1, 2)) / 0", {NETWORKS, RECIPES}, ""),
    "figure": ("figures.py", "figure = Figure()", "figure = Figur()", {FIGURES}, "Figur"),
    "figure_name": ("ledger.yaml", "function: figure1", "function: figure2", {FIGURES}, "figure2"),
    "dataset": (JESTER, "dataset: jester", "dataset: jestr", {RECIPES, COMMANDS, COUNTS}, "jestr"),
}
# fmt: on


def run_contract(papers: Path, *options: str) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-m", "pytest", "tests/papers/test_every_paper.py", "--papers", str(papers), "-q"]
    words += ["-p", "no:cacheprovider", "-p", "no:xdist", "-o", "addopts=", *options]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, env=os.environ | {"COLUMNS": "400"})


@pytest.mark.slow
def test_the_contract_accepts_a_complete_paper_and_names_every_fault(tmp_path: Path) -> None:
    parent = tmp_path / "mine" / "mypapers"
    write_paper(parent, "faultless")
    for name, (file, old, new, _, _) in FAULTS.items():
        change(write_paper(parent, name) / file, old, new)
    done = run_contract(parent, "-rf", "--tb=short")
    failed = set(re.findall(r"^FAILED \S+::(\w+)\[(\S+?)[\]\s]", done.stdout, re.M))
    failed = {(test, re.split(r"[-/]", case)[0]) for test, case in failed}
    assert failed, done.stdout[-4000:] + done.stderr[-2000:]
    for name, (_, _, _, tests, message) in FAULTS.items():
        found = {test for test, case in failed if case == name}
        assert tests <= found, f"{name}: {found}\n{done.stdout[-3000:]}"
        assert re.search(message, done.stdout), f"{name}: {message!r} is in no message"
    assert not {test for test, case in failed if case == "faultless"}, done.stdout[-6000:]


@pytest.mark.slow
def test_a_nested_folder_outside_of_the_repository(tmp_path: Path) -> None:
    """The package of the paper may lie deep in others; one folder is named instead of their parent."""
    (tmp_path / "lab").mkdir()
    (tmp_path / "lab" / "__init__.py").touch()
    place = write_paper(tmp_path / "lab" / "video", "deep")
    for path in place.rglob("*.*"):
        if path.is_file():
            path.write_text(path.read_text().replace("video.deep", "lab.video.deep"))
    done = run_contract(place, "-k", "document or figure or counts or printed")
    assert done.returncode == 0, done.stdout[-4000:]


def test_a_folder_without_a_paper_is_refused(tmp_path: Path) -> None:
    config = SimpleNamespace(getoption=lambda name: tmp_path)
    with pytest.raises(pytest.UsageError, match=r"no ledger\.yaml there"):
        folders(config)  # type: ignore[arg-type]
