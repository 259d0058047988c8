PYTHON ?= python3.11
BIN := .venv/bin
# One test process a core, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: train test test-slow style quality

.venv/installed: pyproject.toml
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	touch $@

train: .venv/installed
	$(BIN)/hf-lpwd train

test: .venv/installed
	$(PYTEST) -m "not slow"

test-slow: .venv/installed
	$(PYTEST) -m slow

style: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_import_direction.py
