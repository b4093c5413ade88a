# Everything sets itself up: `make demo`, `make test`. Needs Python 3.11 or newer, make and a C toolchain.
SHELL := /bin/bash
PYTHON ?= python3
CORES ?= $(shell getconf _NPROCESSORS_ONLN)
UV_VERSION := 0.13.8
BIN := .venv/bin
SNAKEMAKE := $(BIN)/python -m snakemake
export PYTHONNOUSERSITE := 1

.PHONY: help demo test check bench generate format lock clean

help:  ## say what there is
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

.uv/bin/uv:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	  || { echo "error: $(PYTHON) is older than 3.11: set PYTHON=/path/to/a/newer/python3" >&2; exit 1; }
	$(PYTHON) -m venv .uv
	.uv/bin/python -m pip install --quiet --disable-pip-version-check uv==$(UV_VERSION)

.venv/.synced: envs/requirements.lock | .uv/bin/uv
	.uv/bin/uv venv --quiet --clear --python $(PYTHON) .venv
	.uv/bin/uv pip sync --quiet --compile-bytecode --python $(BIN)/python --require-hashes envs/requirements.lock
	@touch $@

demo: .venv/.synced  ## a synthetic cohort of slides and CT series, from files to predictions
	rm -rf demo
	$(BIN)/python -m pipeline demo-cohort demo
	$(SNAKEMAKE) -d demo --cores $(CORES)
	@cd demo && PYTHONPATH=.. ../$(BIN)/python -m pipeline summary

test: .venv/.synced  ## all tests
	$(BIN)/python -m pytest -n 2 --dist loadfile

check: .venv/.synced  ## formatting, types, workflow lint, generated files
	$(BIN)/ruff format --check pipeline tests benchmarks docs
	$(BIN)/ruff check pipeline tests benchmarks docs
	$(BIN)/mypy
	$(BIN)/snakefmt --check Snakefile workflow
	$(SNAKEMAKE) --lint
	$(BIN)/python docs/generate.py --check

bench: .venv/.synced  ## all benchmarks; rewrites docs/benchmarks.md
	$(BIN)/python benchmarks/collect.py

generate: .venv/.synced  ## write the files that are made from others
	$(BIN)/python docs/generate.py

format: .venv/.synced  ## put code into its one form
	$(BIN)/ruff format pipeline tests benchmarks docs
	$(BIN)/ruff check --fix pipeline tests benchmarks docs
	$(BIN)/snakefmt Snakefile workflow

lock: .uv/bin/uv  ## resolve the dependencies of pyproject.toml anew
	.uv/bin/uv pip compile pyproject.toml --group workflow --group dev --universal --generate-hashes \
	  --python-version 3.11 --no-emit-index-url --custom-compile-command "make lock" --quiet -o envs/requirements.lock
	$(MAKE) generate

clean:  ## remove environments and the demo
	rm -rf .venv .uv demo
