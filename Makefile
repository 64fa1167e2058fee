# Everything runs in .venv, which is made on first use and installed again only when pyproject.toml or constraints.txt
# changes. Another interpreter: make PYTHON=python3.12 test

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
MAKEFLAGS += --no-print-directory
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# One process per core with one thread each is faster than many threads in one, and as fast where cores are shared.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/pytest -n logical
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable

# Real networks and images, for what is marked `real`; those tests are skipped where the folder is absent.
export ROUNDWISE_DATA ?= $(abspath ../shared)

# Stamps: a file stands for "this environment has what that extra needs".
CREATED := $(VENV)/.created
DEMO := $(VENV)/.installed-demo
DEV := $(VENV)/.installed-dev
ZOO := $(VENV)/.installed-zoo

.PHONY: help install demo test slow loops zoo zoopage fuzz coverage wheel lint format types imports docs check accuracy bench clean

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /\1\t/' | expand -t 12

install: $(DEV)  ## install everything into .venv, and do no more

demo: $(DEMO)  ## train a small network, quantize it, compare, export, run: about a minute, and no downloads but packages
	@$(BIN)/roundwise demo

test: $(DEV)  ## the tests, without those that take minutes
	@$(PYTEST) -m "not slow and not zoo and not loops"

loops: $(DEV)  ## the tests of training in Lightning, transformers and accelerate; installs these
	@$(INSTALL) ".[loops]"
	@$(PYTEST) -m loops

slow: $(DEV)  ## the tests that take minutes
	@$(PYTEST) -m slow

zoo: $(ZOO)  ## some sixty networks of other packages, each through every step: capture to ONNX Runtime; ten minutes
	@rm -rf build/zoo
	@ROUNDWISE_ZOO=$(abspath build/zoo) $(PYTEST) -m zoo tests/zoo

zoopage: zoo  ## the same, and then write docs/networks.md from the outcomes
	@$(BIN)/python tests/zoo/table.py build/zoo

fuzz: $(DEV)  ## try 100,000 hostile .rw files, which takes hours; fewer as in ARGS="--files 1000"
	@$(BIN)/python tests/fuzz/run.py $(ARGS)

coverage: $(DEV)  ## all tests, and which branches of src they run: the total, and the files below 90 %
	@$(BIN)/coverage erase
	@-$(PYTEST) -m "not zoo" --cov --cov-report=  # `make test` and `make slow` judge; here only branches are counted
	@$(BIN)/coverage report --sort=cover | awk 'NR <= 2 || /^TOTAL/ || $$NF + 0 < 90'

wheel: $(CREATED)  ## build the wheel, and test it in empty environments, the core alone and with each extra
	@$(BIN)/python tests/wheel/environments.py $(ARGS)

lint: $(DEV)  ## style, and the layers of ARCHITECTURE.md
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(MAKE) imports

imports: $(DEV)
	@$(BIN)/lint-imports --no-cache

format: $(DEV)  ## put the code into its format, and mend what can be mended by machine
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: $(DEV)  ## mypy, strict
	@$(BIN)/mypy

docs: $(DEV)  ## the pages of docs/ as HTML in docs/_build/html, warnings being errors
	@$(BIN)/sphinx-build -W --keep-going --quiet --builder html docs docs/_build/html

check: lint types docs test slow zoo wheel  ## what a change has to pass: lint, types, docs, test, slow, zoo and wheel

accuracy: $(DEV)  ## accuracies of real networks, as in the README; options as in ARGS="--help"
	@$(BIN)/python benchmarks/accuracy.py $(ARGS)

bench: $(DEV)  ## Roundwise and its peers side by side; hours without ARGS="--quick"; other options as in ARGS="--help"
	@$(BIN)/python benchmarks/side_by_side.py $(ARGS)

clean:  ## remove the environment and everything that tools and runs have written
	rm -rf $(VENV) build dist docs/_build roundwise-demo .benchmarks .coverage .coverage.* .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find src tests benchmarks docs examples -name __pycache__ -type d -prune -exec rm -rf {} +

$(CREATED):
	@command -v $(PYTHON) >/dev/null || { echo "make: '$(PYTHON)' was not found; Roundwise needs Python 3.11 or newer." >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "make: '$(PYTHON)' is not Python 3.11 or newer (it says: $$($(PYTHON) --version 2>&1 | head -n 1)). Name another one, as in: make PYTHON=python3.12 test" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "make: '$(PYTHON) -m venv' failed; on Debian and Ubuntu, install the package python3-venv." >&2; exit 1; }
	@touch $@

$(DEMO): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing Roundwise and the demo's packages into $(VENV) (the first time only; a few minutes) …"
	@$(INSTALL) ".[demo]"
	@touch $@

$(DEV): $(CREATED) pyproject.toml constraints.txt
	@echo "Installing Roundwise and what its development needs into $(VENV) (the first time only; a few minutes) …"
	@$(INSTALL) ".[dev]"
	@touch $@ $(DEMO)

$(ZOO): $(DEV)
	@echo "Installing the packages that the zoo takes networks from into $(VENV) (the first time only) …"
	@$(INSTALL) ".[zoo]"
	@touch $@
