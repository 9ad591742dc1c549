# make demo   sets everything up and runs the main job on real images
# make test   sets everything up and runs every check
# make bench  measures on this machine what bench/README.md defines, in some ten minutes
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed

.PHONY: setup demo test lint bench docs clean

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

# One page in bench/results; stopped and called again it goes on. A benchmark that fails is said there.
bench: setup
	mkdir -p build/bench
	-$(BIN)/python -m pytest bench --quiet --benchmark-only --benchmark-columns=median,iqr,rounds \
	  --benchmark-json=build/bench/suites.json
	$(BIN)/python bench/side_by_side.py
	$(BIN)/python bench/summary.py --suites build/bench/suites.json
	rm -rf build/bench/records build/bench/suites.json

docs: setup
	$(BIN)/python -m sphinx -W --keep-going -q docs build/docs
	@echo "build/docs/index.html"

clean:
	rm -rf $(VENV) build dist demo
