# The commands of the project. `make run` and `make test` do all of their own set-up, in .venv, in a fresh clone.

PYTHON ?= $(shell command -v python3.11 || echo python3)
VENV ?= .venv
BIN := $(VENV)/bin
PROFILE ?= cpu-tiny
ARGS ?=
SPREAD := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

export PREFECT_HOME ?= $(CURDIR)/.prefect
export OMP_WAIT_POLICY ?= passive
export PIP_DISABLE_PIP_VERSION_CHECK := 1
SHELL := bash

.PHONY: help run test test-long test-gpu fault golden check format seeds browser clean
.DELETE_ON_ERROR:

help:  ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

run: $(VENV)/.installed  ## the whole line (PROFILE=cpu-tiny; ARGS="seed=1" for changes); what is there already is Cached
	@$(BIN)/prefline run --profile $(PROFILE) $(ARGS)

test: $(VENV)/.installed-dev browser  ## every test that needs neither a GPU, a real model nor more than a few minutes
	@$(BIN)/python -m pytest -rsfE -m "not long and not gpu and not smol" $(SPREAD) $(ARGS)

test-long: $(VENV)/.installed-dev browser  ## the long ones, and those on the small real model (PREFLINE_SMOLLM2=DIR)
	@$(BIN)/python -m pytest -rs -m "(long or smol) and not gpu" $(SPREAD) $(ARGS)

fault: $(VENV)/.installed-dev  ## 200 random kills over all steps, each continued and compared (docs/faults.md), and the other faults; about an hour
	@$(BIN)/python benchmarks/faults.py
	@$(BIN)/python -m pytest -rsfE -m "fault and not gpu" $(SPREAD) $(ARGS)

golden: $(VENV)/.installed-dev  ## write tests/golden.json anew, after a VERSION was raised
	@PREFLINE_GOLDEN=write $(BIN)/python -m pytest -q tests/test_golden.py

test-gpu: $(VENV)/.installed-dev  ## the ones that need a GPU
	@$(BIN)/python -m pytest -rs -m gpu $(ARGS)

check: $(VENV)/.installed-dev  ## style, format, types, and the direction of imports
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

format: $(VENV)/.installed-dev  ## put the code into its format, and mend what ruff can mend
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

seeds: $(VENV)/.installed  ## cpu-tiny with the seeds 0, 1 and 2; writes docs/seeds.md
	@$(BIN)/python benchmarks/seeds.py

clean:  ## remove the environment and the caches; data/artifacts and data/registry stay
	rm -rf $(VENV) .prefect .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache build *.egg-info
	find flows steps tests benchmarks -name __pycache__ -type d -prune -exec rm -rf {} +

# Set-up. A stamp is older than pyproject.toml or constraints.txt when something has to be installed again.
# Of pip's output only the large downloads and errors are shown; all of it is in pip.log.
define install
	@echo "installing $(1) into $(VENV); the first time takes some minutes (log: $(VENV)/pip.log)"
	@set -o pipefail; $(BIN)/pip install --constraint constraints.txt --editable '$(1)' 2>&1 | tee $(VENV)/pip.log \
	  | awk '/(Downloading|Using cached) .*[0-9] MB\)|ERROR|error:/ {print; fflush()}'
endef

$(VENV)/.installed: pyproject.toml constraints.txt | $(BIN)/pip
	$(call install,.)
	@touch $@

$(VENV)/.installed-dev: pyproject.toml constraints.txt | $(BIN)/pip
	$(call install,.[dev])
	@touch $(VENV)/.installed $@

$(BIN)/pip:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "Python is missing: got no command '$(PYTHON)', because prefline needs Python 3.11; install it, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' || { \
	  echo "Python is the wrong one: got $$($(PYTHON) --version 2>&1) ($(PYTHON)), because the pinned versions are for 3.11; install Python 3.11, or run make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@$(PYTHON) -m venv --clear $(VENV)

# Chromium and a Chinese font for the browser tests, PostgreSQL for the store of bad cases: installed where we may, otherwise those tests skip and say so.
browser:
	@if { command -v chromium || command -v chromium-browser || command -v google-chrome; } >/dev/null \
	     && fc-list :lang=zh 2>/dev/null | grep -q . && ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1; then exit 0; fi; \
	 if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
	   echo "installing chromium, fonts-noto-cjk and postgresql for the tests"; export DEBIAN_FRONTEND=noninteractive; \
	   { apt-get -qq update && apt-get -qq install -y --no-install-recommends chromium fontconfig fonts-noto-cjk postgresql; } </dev/null >/dev/null \
	     || echo "they could not be installed: their tests skip"; \
	 else echo "chromium, a Chinese font or PostgreSQL is missing: their tests skip; install chromium, fonts-noto-cjk and postgresql"; fi
