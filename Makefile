# make quickstart: all mechanisms on the embedded corpus, in minutes, on any machine
# make test:       the test suite
# make test-gpu:   the tests that need CUDA, 4 at a time, each worker on one GPU
# make lint:       formatting, lint, types, import contract
# make docs:       the documentation site, build/site/index.html; a broken link fails
PYTHON ?= python3
BIN := .venv/bin

.PHONY: setup quickstart test test-gpu lint docs clean

setup: .venv/installed

# torch first and alone: with it in place nothing else asks for another build of it
.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "attnlab needs Python 3.11 or newer: make PYTHON=python3.12 setup")'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt torch
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e .
	touch $@

# and what tests, lint and documentation need
.venv/installed: .venv/core
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev,docs]'
	touch $@

quickstart: .venv/core
	$(BIN)/attnlab run quickstart

# byte code is written even where the environment says not to: else each of the many processes that
# the tests start compiles the package again
test: setup
	PYTHONDONTWRITEBYTECODE= $(BIN)/python -m pytest -n auto --dist worksteal -q

test-gpu: setup
	$(BIN)/python -m pytest -m gpu -n 4 --dist loadfile -q

lint: setup
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/basedpyright
	$(BIN)/lint-imports

docs: setup
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet
	@echo "open build/site/index.html"

clean:
	rm -rf .venv build dist
