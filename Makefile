# Everything a new checkout needs: Python 3.11 or newer, and make.
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
# A process per core, four at most, each with whole test files, in the order in which they are collected.
PARALLEL := --numprocesses auto --maxprocesses 4 --dist loadfile --no-loadscope-reorder

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$python && break; done)

.DEFAULT_GOAL := help
.PHONY: help search test test-full gpu bench study format check docs clean

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo '  ARGS="..." goes to the command, e.g. make search ARGS="strategy=random seed=1"'

search: $(VENV)/.installed  ## install if needed, run the default search (minutes, no download but packages)
	@$(BIN)/hwnas search $(ARGS)

test: $(VENV)/.installed-dev  ## install if needed, run the tests
	@$(BIN)/python -m pytest $(PARALLEL) $(ARGS)

test-full: $(VENV)/.installed-dev  ## the tests and the slow ones
	@$(BIN)/python -m pytest $(PARALLEL) -m "not gpu" $(ARGS)

# Packages that are there, or wheels in the folder GPU_WHEELS, are enough: nothing is asked of the network then.
GPU_WHEELS ?=
PIP_INSTALL = $(BIN)/python -m pip install --quiet --requirement build/gpu-requirements.txt
gpu: | $(BIN)/python  ## tests and rates on a GPU, in build/gpu.json; without one tiny on the processor; GPU_WHEELS=<folder>
	@mkdir -p build
	@$(BIN)/python -c 'import tomllib; p = tomllib.load(open("pyproject.toml", "rb"))["project"]["dependencies"]; \
		print(*p, "pytest>=8", "pytest-benchmark>=5", sep="\n")' > build/gpu-requirements.txt
	@$(PIP_INSTALL) --no-index $(if $(GPU_WHEELS),--find-links "$(GPU_WHEELS)",2>/dev/null || $(PIP_INSTALL))
	@PYTHONPATH="$(CURDIR)" $(BIN)/python -m pytest tests/gpu -m gpu -s $(ARGS)

bench: $(VENV)/.installed-dev  ## measure the speed figures that docs/measurements.md quotes
	@OMP_NUM_THREADS=$$($(BIN)/python -c 'import os; print(os.cpu_count())') \
		$(BIN)/python -m pytest tests/benchmarks -m "slow or not slow" --benchmark-enable --benchmark-columns=median,iqr,rounds -s $(ARGS)

study: $(VENV)/.installed-dev  ## measure the strategies against the exact truth of benchmark tables (most of two hours)
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/studies -m slow -s $(ARGS)

format: $(VENV)/.installed-dev  ## format the code and mend what can be mended
	@$(BIN)/ruff format . && $(BIN)/ruff check --fix .

check: $(VENV)/.installed-dev  ## ruff and mypy
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

docs: $(VENV)/.installed-dev  ## make the documentation site in build/site; what leads nowhere is an error
	@# The variable leaves out the theme's note on its successor.
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

clean:  ## remove what was built and installed; results in multirun/ stay
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .benchmarks
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(BIN)/python:
	@if [ -z "$(PYTHON)" ]; then echo "hwnas needs Python 3.11 or newer on PATH, or make PYTHON=<python>"; exit 1; fi
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: pyproject.toml | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $(VENV)/.installed $@
