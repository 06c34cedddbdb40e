# make demo on a bare machine: a virtual environment, the install, then a flow map that learns to draw digits.
PYTHON ?= python3
VENV ?= .venv
TORCH ?= torch==2.13.0
JOBS ?= auto

BIN := $(VENV)/bin
READY := $(VENV)/.ready
# One thread a process: tests run side by side, one to a core.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --maxprocesses=8

.DEFAULT_GOAL := help
.PHONY: help install demo test test-all lint format docs faults names bench clean

help:
	@echo "make demo      install, train a flow map on real digits, show one-step samples (minutes)"
	@echo "make install   a virtual environment in $(VENV) with everything for development"
	@echo "make test      tests and doctests that fit into CI"
	@echo "make test-all  the long training runs as well"
	@echo "make lint      ruff and mypy"
	@echo "make docs      rewrite the generated tables; make names: the snapshot of public names"
	@echo "make faults    bring about every bad situation and rewrite docs/faults.md (ten minutes)"
	@echo "make bench     time of a training step of every method; time of the import"

# The stamp makes a second call quick. torch comes first and only if the environment has none, so
# that a build chosen by hand (CPU, CUDA) stays: make TORCH=... chooses another.
$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version.split()[0]; sys.exit(0 if sys.version_info >= (3, 11) \
	    else "saltus: expected Python 3.11 or newer, got " + v + "; try make PYTHON=python3.12")'
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -c 'import torch' 2>/dev/null || $(BIN)/python -m pip install --disable-pip-version-check '$(TORCH)'
	$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]'
	@touch $@

install: $(READY)

demo: $(READY)
	$(BIN)/saltus demo

test: $(READY)
	$(PYTEST) -m "not all"

test-all: $(READY)
	$(PYTEST)

lint: $(READY)
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/mypy

format: $(READY)
	$(BIN)/ruff format src tests benchmarks docs

docs: $(READY)
	$(BIN)/python docs/generate.py

faults: $(READY)
	OMP_NUM_THREADS=1 $(BIN)/python docs/faults.py

names: $(READY)
	$(BIN)/python tests/ratchets.py --write-names

bench: $(READY)
	$(BIN)/python benchmarks/step_time.py
	$(BIN)/python benchmarks/import_time.py

clean:
	rm -rf build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests benchmarks docs -name __pycache__ -type d -prune -exec rm -rf {} +
