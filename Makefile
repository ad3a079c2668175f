# make demo   environment, the main job, one HTML report
# make test   environment, the test suite
# make check  ruff and mypy
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

# A torch that is already installed beside $(PYTHON) and in the supported range is used as it is; otherwise the pinned one.
SYSTEM_TORCH := $(shell $(PYTHON) -c "import torch; v = torch.__version__.split('.'); print('yes' if (int(v[0]), int(v[1])) >= (2, 6) else '')" 2>/dev/null)
ifeq ($(SYSTEM_TORCH),yes)
VENV_FLAGS := --system-site-packages
CONSTRAINTS := $(VENV)/constraints.txt
else
VENV_FLAGS :=
CONSTRAINTS := constraints.txt
endif

.PHONY: demo test test-slow check clean
.DELETE_ON_ERROR:

demo: $(VENV)/.ready-engine
	$(BIN)/pagedbench demo

test: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal $(PYTEST_ARGS)

test-slow: $(VENV)/.ready-dev
	$(BIN)/python -m pytest -n 2 --dist worksteal --slow $(PYTEST_ARGS)

check: $(VENV)/.ready-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(BIN)/python:
	$(PYTHON) -m venv $(VENV_FLAGS) $(VENV)

$(VENV)/constraints.txt: constraints.txt | $(BIN)/python
	grep -v '^torch==' constraints.txt > $@

# The demo needs no kernels: a torch that brings CUDA also brings a triton of its own, which the pin for the tests forbids.
$(VENV)/constraints-engine.txt: $(CONSTRAINTS) | $(BIN)/python
	grep -v '^triton==' $< > $@

$(VENV)/.ready-engine: pyproject.toml $(VENV)/constraints-engine.txt | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(VENV)/constraints-engine.txt -e '.[engine,report]'
	touch $@

$(VENV)/.ready-dev: pyproject.toml $(CONSTRAINTS) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c $(CONSTRAINTS) -e '.[dev]'
	touch $@ $(VENV)/.ready-engine

clean:
	rm -rf $(VENV) build *.egg-info .pytest_cache .mypy_cache .ruff_cache
