# Each target does all of its own set-up. Needs Linux, Python >= 3.11 and make.
SHELL := /bin/bash
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# uv reads neither pip's find-links nor the certificates of the system, and is told.
UV = UV_SYSTEM_CERTS=true UV_FIND_LINKS="$${PIP_FIND_LINKS:-}" $(BIN)/uv
UV_INDEXES := --index-strategy unsafe-best-match
INSTALLED := $(VENV)/.installed

.DEFAULT_GOAL := help
.PHONY: help install demo report up down test benchmark lint format lock

help: ## show this list
	@grep -hE '^[a-z]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## /  make \1\t/' | expand -t 16

install: $(INSTALLED) ## create .venv from requirements.lock

demo: $(INSTALLED) ## run the study `tiny` through Airflow and print its results (STUDY=name for another)
	@$(BIN)/python -m infra.local demo --study $(or $(STUDY),tiny)

report: $(INSTALLED) ## write docs/informed.md from the last runs of `tiny_informed` (STUDIES="name name" for others)
	@$(BIN)/python -m infra.demo.compare $(or $(STUDIES),tiny_informed) --out docs/informed.md

up: $(INSTALLED) ## run SeaweedFS, MLflow and Airflow until Ctrl-C
	@$(BIN)/python -m infra.local up

down: $(INSTALLED) ## stop what `make up` started in another terminal
	@$(BIN)/python -m infra.local down

test: $(INSTALLED) lint ## run the linter and the tests
	$(BIN)/python -m pytest -n 2

benchmark: $(INSTALLED) ## time merges of a synthetic 0.5B family against the raw reading and writing (SIZE=1.1B for more)
	@$(BIN)/python tests/benchmarks/merge_speed.py --size $(or $(SIZE),0.5B)

lint: $(INSTALLED) ## check the code's style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED) ## bring the code into style
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(BIN)/uv ## resolve pyproject.toml anew into requirements.lock
	$(UV) pip compile $(UV_INDEXES) --quiet --upgrade --group dev --no-header \
		--python-version 3.11 --output-file requirements.lock pyproject.toml
	@# A CPU build found on this machine must not be demanded of others.
	sed -i -E 's/^(torch==[^+ ]+)\+cpu/\1/' requirements.lock

$(INSTALLED): requirements.lock pyproject.toml $(BIN)/uv
	@# Not `sync`: torch from PyPI needs CUDA libraries, which other builds of the same version do not name.
	$(UV) pip install $(UV_INDEXES) --quiet --python $(BIN)/python --requirement requirements.lock
	$(UV) pip install --quiet --python $(BIN)/python --no-deps --editable .
	@touch $@

$(BIN)/uv:
	@command -v $(PYTHON) >/dev/null || { echo \
		"error: $(PYTHON) was not found; Python >= 3.11 is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo \
		"error: $(PYTHON) is $$($(PYTHON) --version 2>&1 || true); Python >= 3.11 is needed: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo \
		"error: $(PYTHON) cannot make virtual environments; install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet uv
