# README.md writes out plainly what the main targets run. `make help` lists all.
PYTHON ?= python3
VENV ?= .venv
NOTEBOOK := Facial Emotion Recognition.ipynb
EXTRAS := faces,export,explain,kaggle,dev
DATA_DEV ?= ../shared/data

ifeq ($(OS),Windows_NT)
BIN := $(VENV)/Scripts
else
BIN := $(VENV)/bin
endif
PY := $(BIN)/python
STAMP := $(VENV)/.installed

.PHONY: help setup run test test-fast test-slow format check notebooks kaggle data data-dev smoke clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "make %-10s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

setup: $(STAMP)  ## create the virtual environment and install everything (skipped when done)

# The lock is for Python 3.11. Other versions take the newest packages that pyproject.toml allows.
# --no-compile: Python compiles what it imports anyway, pip would compile everything first (a minute).
$(STAMP): requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit("Python %d.%d found, 3.11 or newer needed; say which with make PYTHON=python3.11" % sys.version_info[:2] if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv $(VENV)
	if $(PY) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))'; then \
	  $(PY) -m pip install -q --no-compile -r requirements.lock && $(PY) -m pip install -q --no-deps -e . ; \
	else \
	  $(PY) -m pip install -q --no-compile -e ".[$(EXTRAS)]" ; \
	fi
	$(PY) -c 'import pathlib; pathlib.Path("$(STAMP)").touch()'

run: setup  ## the whole workflow on drawn faces; results in runs/demo
	mkdir -p build
	$(BIN)/papermill "$(NOTEBOOK)" build/demo.ipynb -f params/demo.yaml
	$(PY) -c 'from fer_helpers.records import attach_notebook; print("Done. Open", attach_notebook("build/demo.ipynb", "runs/demo"), "in a browser; numbers, figures and checkpoints lie beside it.")'

# Both executions of the demo begin without a run folder: the second one's is build/build/runs. The
# committed notebook is repeated as a copy, or it would move the run of `make run` aside.
test: check test-fast  ## style, tests, the notebook with every parameter file, the demo repeated by nbval, every notebook
	$(PY) -m pytest -n 2 -m e2e tests
	mkdir -p build
	rm -rf build/runs build/build
	$(BIN)/papermill "$(NOTEBOOK)" build/demo.ipynb -f params/demo.yaml -p OUTPUT_DIR build/runs --no-progress-bar
	$(PY) -m pytest --nbval build/demo.ipynb
	cp "$(NOTEBOOK)" build/
	$(PY) -m pytest -n 2 --dist loadscope --nbval-lax "build/$(NOTEBOOK)" notebooks

test-fast: setup  ## unit and contract tests only
	$(PY) -m pytest -n 2 -m "not slow and not e2e" tests

test-slow: setup  ## the long tests: killed twenty times, the staged Kaggle notebook
	$(PY) -m pytest -n 2 -m slow tests

format: setup  ## let ruff rewrite what it can
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

check: setup  ## style only
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .

notebooks: setup  ## rebuild and run every notebook from its script
	$(PY) notebooks/build.py

kaggle: setup  ## stage build/kaggle for `kaggle kernels push -p build/kaggle`
	$(PY) -m fer_helpers.kaggle

data: setup  ## download both datasets into data/, checked before they get their name
	$(PY) -m fer_helpers.download data

data-dev:  ## unpack ../shared/data, where that exists, into data/
	$(PYTHON) -m zipfile -e $(DATA_DEV)/fer2013-dev.zip data/fer2013
	$(PYTHON) -m zipfile -e $(DATA_DEV)/affectnet8-dev.zip data/affectnet

smoke: setup  ## the notebook on few drawn faces, one epoch a phase
	mkdir -p build
	$(BIN)/papermill "$(NOTEBOOK)" build/smoke.ipynb -f params/demo.yaml -p RUN_NAME smoke -p MAX_IMAGES 160 -p AFFECTNET_EPOCHS 1 -p FER_EPOCHS 1

clean:  ## remove what can be made again; data, runs and the environment stay
	rm -rf build .pytest_cache .ruff_cache *.egg-info
	find . -name __pycache__ -not -path "./$(VENV)/*" -prune -exec rm -rf {} +
