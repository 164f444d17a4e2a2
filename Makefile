# FlexInfer. Needs: make, and a Python of 3.11 to 3.14 with venv. All else is installed into .venv.
#   make up      everything on this machine                 make check   format, lint, types, imports
#   make test    the tests that any machine can run         make fmt     format
#   make test-all  these and the heavy ones                 make bench   the benchmarks
#   make clean   .venv and caches; never models
SHELL := /bin/sh
# The first that runs and is new enough (a shim may be there and not work). `make PYTHON=…` names one.
PYTHON ?= $(shell for p in python3 python3.14 python3.13 python3.12 python3.11 python; do \
  $$p -c 'import sys; sys.exit(not (3,11) <= sys.version_info[:2] <= (3,14))' >/dev/null 2>&1 && echo $$p && break; done)
BIN := .venv/bin
.PHONY: help up run-environment dev-environment test test-all check fmt bench lock clean

help:
	@sed -n 's/^#   /  /p' Makefile

up: run-environment
	@exec $(BIN)/flexinfer up

run-environment dev-environment:
	@if [ -z "$(PYTHON)" ]; then echo "error: no Python of 3.11 to 3.14 found; name one: make PYTHON=/path/to/python3" >&2; exit 1; fi
	@$(PYTHON) tools/install.py $(if $(filter dev-environment,$@),dev,run)

test: dev-environment
	@$(BIN)/python -m pytest -m "not heavy" --hypothesis-profile=steady

test-all: dev-environment
	@$(BIN)/python -m pytest

check: dev-environment
	@$(BIN)/ruff format --check .
	@$(BIN)/ruff check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports

fmt: dev-environment
	@$(BIN)/ruff format .
	@$(BIN)/ruff check --fix .

bench: dev-environment
	@for file in bench/[a-z]*.py; do echo "== $$file"; $(BIN)/python $$file || exit 1; done

# Pins with hashes for every supported Python. Needs uv; run it only to move a pin.
lock:
	@sh requirements/lock.sh

clean:
	rm -rf .venv .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache dist build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
