# make demo   sets everything up and runs the main job on real images
# make test   sets everything up and runs every check
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint bench clean

setup: $(STAMP)

$(STAMP): pyproject.toml
	@$(PYTHON) -c 'import sys, venv, ensurepip; sys.exit(not (3, 10) <= sys.version_info[:2] <= (3, 13))' \
	  || { echo "edgestitch needs Python 3.10 to 3.13 with venv (Debian, Ubuntu: apt-get install python3-venv); found $$($(PYTHON) --version); choose another with make PYTHON=..."; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
	@touch $(STAMP)

demo: setup
	$(BIN)/edgestitch demo --out demo

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

test: lint
	$(BIN)/python -m pytest

bench: setup
	$(BIN)/python bench/cpu_backends.py
	$(BIN)/python bench/resident.py
	$(BIN)/python bench/profiler.py

clean:
	rm -rf $(VENV) build dist demo
