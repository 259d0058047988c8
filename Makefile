PYTHON ?= python3.11
BIN := .venv/bin
# One test process a core, each with one thread.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n auto

.PHONY: train test test-slow test-deepspeed test-optimizers style quality

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

# Apart from the environment, because accelerate imports DeepSpeed into every run where it finds it.
.deepspeed: .venv/installed
	DS_BUILD_OPS=0 $(BIN)/python -m pip install --quiet --no-deps --no-build-isolation --target $@ \
		deepspeed hjson py-cpuinfo msgpack pydantic pydantic-core annotated-types typing-inspection einops

test-deepspeed: .deepspeed
	OMP_NUM_THREADS=1 DS_ACCELERATOR=cpu PYTHONPATH=.deepspeed $(BIN)/python -m torch.distributed.run \
		--standalone --nproc_per_node 2 tests/helpers/deepspeed_run.py

# Apart from the environment, because transformers imports them into every run where it finds them.
.optimizers: .venv/installed
	$(BIN)/python -m pip install --quiet --no-deps --target $@ bitsandbytes torchao

test-optimizers: .optimizers
	OMP_NUM_THREADS=1 PYTHONPATH=.optimizers $(BIN)/python -m pytest tests/core/test_measured_libraries.py

style: .venv/installed
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

quality: .venv/installed
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/python -m pytest --quiet tests/test_import_direction.py
