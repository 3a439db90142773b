# make reproduce [PAPER=stft3d]   set up, then the paper's tables beside what this machine computes and measures
# make report                    claims, counts and tables of all papers on one page, runs/report/index.html
# make test | test-all            set up, then the tests; with the slow ones too
# make lint | bench | notebooks   checks of style and types | speed and memory ratios | run the notebooks
# make claims [PAPER=stft3d]      train the paper's claims again: all methods, learning rates and seeds
# make soak                       hundreds of bad inputs of every kind, which may be refused but nothing else
# make gpu                        every network on a CUDA GPU against the CPU, and its speed there

PAPER ?= stft3d
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready

.PHONY: help setup reproduce report claims test test-all soak lint bench gpu notebooks clean
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:

help:
	@sed -n 's/^# \(make .*\)/\1/p' Makefile

setup: $(READY)

# Installed once; again only when the dependencies in pyproject.toml change.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or newer is needed; $(PYTHON) is older. Name another: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import venv, ensurepip' || \
		{ echo "The venv module of $(PYTHON) is missing. On Debian and Ubuntu: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $@

reproduce: $(READY)
	$(BIN)/python -m papers.$(PAPER).reproduce

report: $(READY)
	$(BIN)/python -m common.comparison.papers_page

claims: $(READY)
	$(BIN)/spectral compare papers/$(PAPER)/claims.yaml --out runs/claims/$(PAPER)

# One thread a worker: two workers share the machine without fighting over its cores.
test: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -m "not slow" --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

test-all: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist worksteal $(PYTEST_ARGS)

soak: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.soak $(SOAK_ARGS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: $(READY)
	$(BIN)/pip install --quiet --disable-pip-version-check --editable '.[bench]'
	$(BIN)/python -m tests.benchmarks

gpu: $(READY)
	$(BIN)/python -m tests.gpu

notebooks: $(READY)
	$(BIN)/python -m pytest tests/test_notebooks.py

# Caches only: runs/ holds results, which are the user's to delete.
clean:
	rm -rf .pytest_cache .ruff_cache .mypy_cache
