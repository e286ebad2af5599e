# Every target works from a bare checkout: `make demo` and `make test` install what they need into
# .venv, once, and again only when pyproject.toml or constraints.txt change.

PYTHON ?= python3
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
SPECS := pyproject.toml constraints.txt

.PHONY: help demo test coverage lint format clean

help:  ## Show this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*##/\t/'

demo: .venv/.demo  ## Train on digits, draw them, show how good they are (a few minutes)
	$(BIN)/legodiff demo

test: .venv/.test  ## Run the tests in parallel
	$(BIN)/python -m pytest -n auto --dist worksteal

coverage: .venv/.test  ## Run the tests and show which lines they leave out
	$(BIN)/python -m pytest -n auto --dist worksteal --cov --cov-report=term

lint: .venv/.dev  ## Lint, formatting and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: .venv/.dev  ## Put the code into its format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:  ## Remove the environment and the caches (runs/ stays)
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage* dist

.venv/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "legodiff needs Python 3.11 or newer; run: make PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv .venv || { rm -rf .venv; \
		echo "python -m venv failed; on Debian and Ubuntu: apt install python3-venv"; exit 1; }

.venv/.demo: .venv/bin/python $(SPECS)
	$(PIP) --editable '.[demo]'
	@touch $@

.venv/.test: .venv/bin/python $(SPECS)
	$(PIP) --editable '.[test]'
	@touch $@

.venv/.dev: .venv/bin/python $(SPECS)
	$(PIP) --editable '.[dev]'
	@touch $@
