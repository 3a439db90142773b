"""The arrows between packages, and the shape every paper folder has."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PAPERS = sorted(path.parent.name for path in (ROOT / "papers").glob("*/__init__.py"))
SOURCES = sorted(path for top in ("common", "papers", "data") for path in (ROOT / top).rglob("*.py"))
PAPER_FILES = (
    "README.md",
    "layers.py",
    "networks.py",
    "lightning_module.py",
    "ledger.yaml",
    "figures.py",
    "reproduce.py",
    "recipes/demo.yaml",
)


def imported(path: Path) -> set[str]:
    """Full dotted names that a file imports, anywhere in it."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: relative import"
            names.add(str(node.module))
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_arrows(path: Path) -> None:
    package, *inner = path.relative_to(ROOT).with_suffix("").parts
    allowed = {"common": {"common"}, "data": {"data", "common"}, "papers": {"papers", "common"}}[package]
    for name in imported(path):
        top, *rest = name.split(".")
        if top in ("common", "papers", "data", "tests"):
            assert top in allowed, f"{package} must not import {name}"
        if package == "papers" and top == "papers" and (rest or len(inner) > 1):  # files above the papers list them
            assert rest[:1] == inner[:1], f"one paper must not import another: {name}"
        if (package, inner[:1]) == ("common", ["spectral"]) and top not in ("common", "torch", "triton"):
            assert top in sys.stdlib_module_names, f"common.spectral must import only torch and triton, not {name}"
        if (package, inner[:1]) == ("common", ["spectral"]) and top == "common":
            assert rest[:1] == ["spectral"], f"common.spectral must stand alone, not import {name}"
        if inner[-1:] in (["networks"], ["layers"]) or inner[:1] == ["backbones"]:
            assert "lightning" not in top, f"networks and layers are free of Lightning, not so with {name}"


@pytest.mark.parametrize("paper", PAPERS)
def test_paper_folders_have_the_same_files(paper: str) -> None:
    missing = [name for name in PAPER_FILES if not (ROOT / "papers" / paper / name).is_file()]
    assert not missing


def test_only_the_fixed_names_stand_at_the_top() -> None:
    packages = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert packages == {"common", "data", "papers", "tests"}


def test_reporting_flows_one_way() -> None:
    """Ledger, counting, runs, tables and plots, page, command: each imports only what stands before it."""
    order = ["strict_yaml", "results", "ledger", "listing", "workers", "counting", "runs", "plots", "tables", "page"]
    order += ["main_job", "reproduce"]
    folder = ROOT / "common" / "reporting"
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == set(order)
    for position, name in enumerate(order):
        for imported in re.findall(r"common\.reporting(?:\.| import )(\w+)", (folder / f"{name}.py").read_text()):
            assert imported in order[:position] or imported == name, f"{name} imports {imported}"


def test_public_classes_have_names_of_their_own() -> None:
    homes: dict[str, list[str]] = {}
    for path in SOURCES:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(str(path.relative_to(ROOT)))
    assert {name: files for name, files in homes.items() if len(files) > 1} == {}


def test_functions_are_short() -> None:
    """At most 60 lines of code, the docstring left out."""
    long = {}
    for path in SOURCES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                text = node.body[0] if ast.get_docstring(node) is not None else None
                lines = node.end_lineno - node.lineno + 1  # type: ignore[operator]
                lines -= text.end_lineno - text.lineno + 1 if text else 0  # type: ignore[operator]
                if lines > 60:
                    long[f"{path.relative_to(ROOT)}: {node.name}"] = lines
    assert long == {}


def test_networks_need_torch_alone() -> None:
    """And torchvision where layers of it are built in. Importing more would take as long again, or twice."""
    others = ["lightning", "torchmetrics", "pytorchvideo", "fvcore", "matplotlib", "pandas", "rich", "yaml", "av"]
    code = f"import sys; sys.modules.update(dict.fromkeys({[*others, 'torchvision']}))\n"
    code += "".join(f"import papers.{paper}.networks\n" for paper in PAPERS if paper != "stft2d")
    code += "del sys.modules['torchvision']; import papers.stft2d.networks"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("paper", PAPERS)
def test_a_list_needs_no_torch(paper: str) -> None:
    """Nor Matplotlib: importing them takes several seconds."""
    code = "import atexit, runpy, sys; sys.argv[1:] = ['--list']; "
    code += "atexit.register(lambda: print({'torch', 'torchvision', 'matplotlib', 'lightning'} & set(sys.modules))); "
    code += f"runpy.run_module('papers.{paper}.reproduce', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "spectral fit" in done.stdout
    assert done.stdout.splitlines()[-1] == "set()"


def test_without_the_environment_the_error_says_how_to_get_it() -> None:
    """`-S`: without the installed packages."""
    for module in ("data.demo", "data.check", "common.training.cli", "papers.stft3d.reproduce"):
        done = subprocess.run([sys.executable, "-S", "-m", module], cwd=ROOT, capture_output=True, text=True)
        assert "make setup, then source .venv/bin/activate" in done.stderr.splitlines()[-1], done.stderr
