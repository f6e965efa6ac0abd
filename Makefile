# Each target works straight after `git clone`: the first one that needs the environment builds it.

PYTHON ?= python3
# Installed first and by itself, because which build of torch is right (CPU, CUDA, ROCm) depends on the machine.
TORCH ?= torch==2.13.0
VENV ?= .venv
DIST ?= dist
# Processes that share the tests.
WORKERS ?= 2
# Its hooks import OpenCV and yapf as soon as one of them is imported; of OpenCV the build without windows will do.
MMENGINE ?= mmengine==0.10.7
MMENGINE_NEEDS := addict opencv-python-headless pyyaml termcolor yapf
# Further arguments for demo, test, drills and bench: make test ARGS="-k layers"
ARGS ?=

BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
# Inside of the other one, so that it is ignored and removed with it.
MMENGINE_VENV := $(VENV)/mmengine
MMENGINE_STAMP := $(MMENGINE_VENV)/.installed
export PIP_DISABLE_PIP_VERSION_CHECK = 1

.PHONY: help install demo test test-slow test-mmengine drills check format bench build clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-13s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

install: $(STAMP)  ## create the environment; does nothing while pyproject.toml stays as it is

$(STAMP): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -q "$(TORCH)"
	$(BIN)/python -m pip install -q -e ".[dev]"
	@touch $@

demo: $(STAMP)  ## train a small classifier on handwritten digits
	$(BIN)/python examples/digits.py $(ARGS)

test: $(STAMP)  ## run the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow" $(ARGS)

test-slow: $(STAMP)  ## run the tests that start processes, and every case of those that `make test` samples
	$(BIN)/python -m pytest -n $(WORKERS) -m slow $(ARGS)

test-mmengine: $(MMENGINE_STAMP)  ## run hooks of MMEngine on our runner, in an environment with MMEngine
	$(MMENGINE_VENV)/bin/python -m pytest tests/mmengine $(ARGS)

$(MMENGINE_STAMP): pyproject.toml
	$(PYTHON) -m venv $(MMENGINE_VENV)
	$(MMENGINE_VENV)/bin/python -m pip install -q "$(TORCH)"
	$(MMENGINE_VENV)/bin/python -m pip install -q --no-deps "$(MMENGINE)"
	$(MMENGINE_VENV)/bin/python -m pip install -q $(MMENGINE_NEEDS) pytest pytest-timeout -e .
	@touch $@

drills: $(STAMP)  ## break checkpoints, event loops and handlers on purpose, for at most two minutes; ARGS=--long for all of it
	$(BIN)/python -m tests.drills $(ARGS)

check: $(STAMP)  ## lint, formatting and types
	$(BIN)/python -m ruff check
	$(BIN)/python -m ruff format --check
	$(BIN)/python -m mypy

format: $(STAMP)  ## repair what lint and formatting can repair
	$(BIN)/python -m ruff check --fix
	$(BIN)/python -m ruff format

bench: $(STAMP)  ## measure what the bus, the hub and the hooks cost
	$(BIN)/python -m tests.benchmarks $(ARGS)

build: $(STAMP)  ## build the wheel
	$(BIN)/python -m build --wheel --outdir "$(DIST)"

clean:  ## remove the environment, builds and caches; training runs stay
	rm -rf .venv dist build .mypy_cache .ruff_cache .pytest_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
