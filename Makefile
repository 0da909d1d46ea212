# `make run` and `make test` are all that a clean clone needs. They want Python 3.11 or newer and make, and bring the
# rest once: on Debian, as root, python3-venv by apt, and the programs of Prometheus out of its package; everything else
# by pip, into .venv. `make run` does without Prometheus where it cannot be had.

SHELL := /bin/bash
MAKEFLAGS += --no-print-directory
.SHELLFLAGS := -euo pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help run test check bench clean

VENV := .venv
BIN := $(VENV)/bin
# The last of the two programs to be put in place. `prometheus` is beside it.
PROMETHEUS := $(BIN)/promtool
EXAMPLE := data/fixtures/aws/acme/prorata.yaml
# Two clusters without a bill, and what a Prometheus answered when it was asked about them.
MEASURED := data/fixtures/cost_models

# The first Python that is new enough. Looked for only when the environment is made (hence `=`).
PYTHON = $(shell for name in python3.11 python3; do \
    if $$name -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
    command -v $$name; break; fi; done)

# $(call step,name,command): names the step; shows what the command said only if it failed, and stops there.
define step
@printf '%-24s' '$(1)'; log=$$(mktemp); trap 'rm -f "$$log"' EXIT; \
    if ( $(2) ) >"$$log" 2>&1; then echo ok; else echo failed; cat "$$log"; exit 1; fi
endef

help:
	@echo 'make run     allocate the examples in data/fixtures, results in ./prorata-data*'
	@echo 'make test    check, then all tests'
	@echo 'make check   format, lint, types, layers'
	@echo 'make bench   measure; takes minutes'
	@echo 'make clean   remove the results of make run and all caches'

# The second example asks servers on this machine, which the program starts and stops. What Prometheus is missing for, it
# says itself, and does without. What the third one asks a Prometheus was recorded.
run: $(VENV)/run.stamp
	@$(BIN)/prorata run -c $(EXAMPLE)
	@$(MAKE) $(PROMETHEUS) >/dev/null 2>&1 || true
	@$(BIN)/python -m tests.doubles.demo
	@echo; echo '$$ prorata run -c $(MEASURED)/prorata.yaml --today 2025-10-11'
	@$(BIN)/python -m tests.doubles.recorded $(MEASURED)/answers.jsonl 19473 \
	    $(BIN)/prorata run -c $(MEASURED)/prorata.yaml --today 2025-10-11

test: check $(PROMETHEUS)
	@echo 'tests'
	@$(BIN)/python -m pytest -q -n 2 --dist worksteal

check: $(VENV)/dev.stamp
	$(call step,format,$(BIN)/ruff format --check .)
	$(call step,lint,$(BIN)/ruff check .)
	$(call step,types,$(BIN)/mypy)
	$(call step,layers,$(BIN)/lint-imports --no-logo)

bench: $(VENV)/dev.stamp $(PROMETHEUS)
	@$(BIN)/python -m bench

clean:
	rm -rf prorata-data prorata-data-confluent prorata-data-cost-models dist .benchmarks .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache
	find cli.py engine bench tests -name __pycache__ -prune -exec rm -rf {} +

# pip is the last thing that `python -m venv` puts in place, so its presence says that the environment is whole.
$(BIN)/pip:
	@if [ -z '$(PYTHON)' ]; then echo 'prorata needs Python 3.11 or newer, and found none in PATH' >&2; exit 1; fi
	@if ! '$(PYTHON)' -c 'import ensurepip' 2>/dev/null && [ "$$(id -u)" != 0 ]; then \
	    echo 'python3-venv is missing; as root: apt-get install python3-venv' >&2; exit 1; fi
	$(call step,python3-venv, \
	    '$(PYTHON)' -c 'import ensurepip' || { apt-get update -q && \
	    DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends python3-venv; })
	$(call step,environment,'$(PYTHON)' -m venv --clear $(VENV))

# Only the two programs are taken: to install the package would start a server that listens to the whole network.
$(PROMETHEUS): | $(BIN)/pip
	$(call step,prometheus, \
	    if command -v prometheus && command -v promtool; then \
	        ln -sf "$$(command -v prometheus)" "$$(command -v promtool)" $(BIN)/; \
	    else \
	        folder=$$(mktemp -d) && trap 'rm -rf "$$folder"' EXIT && \
	        cd "$$folder" && \
	        { apt-get download -q prometheus || { apt-get update -q && apt-get download -q prometheus; }; } && \
	        cd - && \
	        dpkg-deb -x "$$folder"/prometheus_*.deb "$$folder" && \
	        mv "$$folder/usr/bin/prometheus" "$$folder/usr/bin/promtool" $(BIN)/; \
	    fi || { echo 'tests need prometheus and promtool in PATH; on Debian: apt-get install prometheus'; exit 1; })

$(VENV)/run.stamp: pyproject.toml | $(BIN)/pip
	$(call step,dependencies,$(BIN)/python -m pip install --disable-pip-version-check -e .)
	@touch $@

$(VENV)/dev.stamp: pyproject.toml | $(BIN)/pip
	$(call step,development tools,$(BIN)/python -m pip install --disable-pip-version-check -e '.[dev]')
	@touch $(VENV)/run.stamp $@
