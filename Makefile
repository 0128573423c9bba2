# Everything runs in .venv, which is built on first use. `make` alone lists the targets.

PYTHON ?= python3
PYTHON_MINIMUM := 3.11
# Empty (`make CONSTRAINTS= test`) installs the newest releases that pyproject.toml allows.
CONSTRAINTS ?= -c constraints.txt
# More arguments for JupyterLab, for example `make lab LAB_ARGS="--no-browser --port=9000"`.
LAB_ARGS ?=

# Tests and notebooks run in this many processes of one thread and about a gigabyte each.
WORKERS ?= 2

BIN := .venv/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(CONSTRAINTS)
# Written last, so that an install that broke off does not count.
INSTALLED := .venv/.installed
# Threads that wait for one another must not spin: on shared cores that takes ten times as long.
export OMP_WAIT_POLICY := PASSIVE
# Threads of several processes on the same cores would wait for one another.
IN_PARALLEL := OMP_NUM_THREADS=1 $(BIN)/pytest --numprocesses $(WORKERS)
# Does nothing where the model is in the user's cache.
FETCH := $(BIN)/python -m patchlib.models.smollm2
# What opens a page waits for the model here, where the wait and a failure can be told.
FETCH_OR_MINI := test -n "$$PATCHLIB_MODEL" || $(FETCH) \
  || { echo "Opening mini instead." >&2; export PATCHLIB_MODEL=mini; }
START := notebooks/00_start_here.ipynb

.DEFAULT_GOAL := help
.PHONY: help lab dashboard test test-slow run test-browser sweeps verify score bench bench-scale \
  notebooks student solutions site lint clean

help:  ## List the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-14s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

# The root is the repository and not notebooks/, so that JupyterLab sees jupytext.toml.
# Jupyter refuses to start as root unless told to.
lab: $(INSTALLED)  ## Install what is missing and open the notebooks in JupyterLab
	@$(FETCH_OR_MINI); \
	$(BIN)/jupyter lab --ip=127.0.0.1 --ServerApp.root_dir="$(CURDIR)" \
	  --LabApp.default_url=/lab/tree/$(START) \
	  $$(test "$$(id -u)" -ne 0 || echo --allow-root) $(LAB_ARGS)

dashboard: $(INSTALLED)  ## Open the widget as a page of its own
	@$(FETCH_OR_MINI); \
	$(BIN)/voila notebooks/dashboard/explore.py \
	  --VoilaConfiguration.extension_language_mapping=.py=python

# A claim whose mark is not the recorded one fails, here and on mini.
test: lint  ## Lint, then run the tests, the doctests and the notebooks on SmolLM2
	$(FETCH)
	$(IN_PARALLEL) --dist worksteal tests -m "not browser and not slow"
	PATCHLIB_MODEL=mini $(IN_PARALLEL) --dist worksteal --doctest-modules patchlib
	PYTHONPATH=tests PATCHLIB_MODEL=smollm2 PATCHLIB_CLAIMS=strict $(IN_PARALLEL) --dist loadscope \
	  -p one_kernel --nbval notebooks --nbval-current-env \
	  --nbval-sanitize-with tests/nbval_sanitize.cfg

# The texts go first: executing makes each .ipynb newer than its text, and the newer half wins.
run: notebooks  ## Execute all notebooks, on SmolLM2 or the model that PATCHLIB_MODEL names
	$(BIN)/python -m patchlib

test-slow: $(INSTALLED)  ## Run what takes long: other families of models, exercises, the notebooks on mini
	$(FETCH)
	$(IN_PARALLEL) --dist worksteal tests -m "slow and not browser"

test-browser: $(INSTALLED)  ## Run the tests in Chromium (needs chromium and chromedriver)
	PATCHLIB_MODEL=mini $(BIN)/pytest tests -m browser

sweeps: $(INSTALLED)  ## Compute the stored sweeps of SmolLM2 that are missing (some hours; can be stopped)
	$(FETCH)
	$(BIN)/python -m patchlib.paper.sweeps

verify: $(INSTALLED)  ## Compute all stored sweeps again and compare (some hours)
	$(FETCH)
	$(BIN)/python -m patchlib.paper.sweeps --verify

score: $(INSTALLED)  ## Score what is missing of every method on the known models (some minutes each)
	$(BIN)/python -m patchlib.paper.scoreboard

bench: $(INSTALLED)  ## Measure how fast patching is (some forty minutes)
	$(BIN)/python tests/bench.py

bench-scale: $(INSTALLED)  ## Measure how a sweep scales over workers (some minutes)
	OMP_NUM_THREADS=1 $(BIN)/python tests/bench_scale.py

notebooks: $(INSTALLED)  ## Bring each .ipynb in line with its .py text, keeping the outputs
	$(BIN)/jupytext --quiet --sync notebooks/*.py

student: notebooks  ## Write the notebooks for students, without outputs and guesses, to _build/student
	$(BIN)/python tests/handouts.py student

solutions: notebooks  ## Write the worked version, with every exercise answered, to _build/solutions
	$(BIN)/python tests/handouts.py solutions

# Nothing is executed: the stored outputs are shown. A broken link is an error.
site: $(INSTALLED)  ## Build the web site from the stored notebooks into _build/site
	rm -rf _build/site
	$(BIN)/python -m sphinx -q -E -W --keep-going -c site -d _build/doctrees . _build/site

lint: $(INSTALLED)  ## Check style, types and which folder imports which
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@report=$$($(BIN)/lint-imports --no-logo --no-cache) || { echo "$$report"; exit 1; }

clean:  ## Remove caches (keeps .venv and _build)
	rm -rf .pytest_cache .hypothesis .mypy_cache .ruff_cache
	find patchlib tests notebooks \( -name __pycache__ -o -name .ipynb_checkpoints \) \
	  -prune -exec rm -rf {} +

# PyTorch comes first and alone: it is by far the largest, and a slow download can then be
# repeated without the rest. A .venv without a working pip is left over from a broken start.
$(INSTALLED): pyproject.toml constraints.txt
	@found=$$($(PYTHON) -c 'import sys; print("%d.%d.%d" % sys.version_info[:3])' 2>/dev/null) \
	  || found="not found"; \
	if ! $(PYTHON) -c 'import sys; \
	sys.exit(sys.version_info < tuple(map(int, "$(PYTHON_MINIMUM)".split("."))))' 2>/dev/null; then \
	  echo "patchlib needs Python $(PYTHON_MINIMUM) or newer, but $(PYTHON) is $$found." \
	    "Name another one like this: make PYTHON=python3.12 lab" >&2; \
	  exit 1; \
	fi
	@rm -f $@
	@$(BIN)/python -m pip --version >/dev/null 2>&1 \
	  || { echo "Creating .venv"; $(PYTHON) -m venv --clear .venv; }
	@echo "Installing PyTorch (this takes a few minutes)"
	@$(PIP_INSTALL) torch
	@echo "Installing patchlib and the rest"
	@$(PIP_INSTALL) -e '.[dev]'
	@touch $@
