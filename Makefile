# Agent Forge workbook. `make run` and `make test` need python3 (3.11 or later) and the package registry, nothing else.
SHELL  := /bin/bash
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/python -m pip --disable-pip-version-check
LISTS  := pyproject.toml constraints.txt
#: nbval injects no parameters: notebook 11 trains its default specialist here, `forge run` the two others that 12 needs.
NBVAL  := $(BIN)/python -m pytest -p no:cacheprovider --override-ini=addopts= --nbval-lax --nbval-current-env \
          --nbval-cell-timeout=600

.PHONY: run test bench lab clean

run: $(VENV)/.installed            ## the whole workbook at $FORGE_PROFILE (default laptop), then the reports
	$(BIN)/forge run

test: $(VENV)/.installed-test      ## lint, floor plan, unit and pipeline tests, every notebook at smoke
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest tests/test_floorplan.py
	$(BIN)/python -m pytest --ignore=tests/test_floorplan.py
	runs=$$(mktemp -d) && trap 'rm -rf "$$runs"' EXIT && \
	export FORGE_RUNS="$$runs" FORGE_PROFILE=smoke FORGE_DATASETS= HF_HUB_OFFLINE=1 WANDB_MODE=offline OMP_NUM_THREADS=1 && \
	$(NBVAL) notebooks/0*.ipynb notebooks/10*.ipynb notebooks/11*.ipynb && \
	for name in memory speed; do \
	  $(BIN)/forge run --only 11_cognate_train-$$name --reports "$$runs/reports" || exit 1; done && \
	$(NBVAL) notebooks/12*.ipynb notebooks/2*.ipynb notebooks/3*.ipynb notebooks/4*.ipynb notebooks/9*.ipynb

bench: $(VENV)/.installed-test     ## speed, convergence and grokking ratios; minutes to hours, see bench/
	$(BIN)/python -m bench

lab: $(VENV)/.installed            ## open the notebooks; the control API is at /forge/api/docs
	$(BIN)/jupyter lab --ServerApp.root_dir=notebooks --ServerApp.jpserver_extensions="{'forgelib.server': True}"

clean:                             ## forget the environment; runs and reports stay
	rm -rf $(VENV) forgelib.egg-info

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "Agent Forge needs Python 3.11 or later; '$(PYTHON)' is $$($(PYTHON) -V 2>&1)." >&2; \
	  echo "Install a newer one and name it:  make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); \
	  echo "Could not make $(VENV): on Debian and Ubuntu, install the package python3-venv first." >&2; exit 1; }

$(VENV)/.installed: $(LISTS) | $(VENV)/bin/python
	$(PIP) install --quiet -c constraints.txt -e .
	@touch $@

$(VENV)/.installed-test: $(LISTS) | $(VENV)/bin/python
	$(PIP) install --quiet -c constraints.txt -e '.[test]'
	@touch $@ $(VENV)/.installed
