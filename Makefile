# Set-up and everyday commands. The first call creates a virtual environment in .venv and installs the versions pinned
# in constraints.txt; later calls reuse it.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/cartpole_novel.yaml
BIN := $(VENV)/bin
COMPILED := $(wildcard agents/*.c agents/memory/*.[ch])

.PHONY: help train test test-slow lint format clean

help:
	@echo "make train      train and evaluate an agent that remembers (CONFIG=$(CONFIG))"
	@echo "make test       the tests, a few minutes"
	@echo "make test-slow  the tests that learn real tasks, much longer"
	@echo "make lint       ruff and mypy --strict"
	@echo "make format     reformat the code"
	@echo "make clean      remove the virtual environment and caches; runs/ is kept"

train: $(VENV)/.installed
	$(BIN)/python train.py --config $(CONFIG)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(COMPILED) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt $(COMPILED) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
