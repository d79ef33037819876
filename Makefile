# Set-up and everyday commands. The first call creates a virtual environment in .venv and installs the versions pinned
# in constraints.txt; later calls reuse it.

PYTHON ?= python3
VENV ?= .venv
CONFIG ?= configs/cartpole_novel.yaml
BIN := $(VENV)/bin
COMPILED := $(wildcard agents/kernels/*.[ch])

.PHONY: help train test test-slow test-native lint docs notebooks format clean

help:
	@echo "make train      train and evaluate an agent that remembers (CONFIG=$(CONFIG) ARGS=\"--name pole\")"
	@echo "make test       the tests, some seven minutes on two cores"
	@echo "make test-slow  the tests that learn real tasks, much longer"
	@echo "make test-native  the compiled code under AddressSanitizer and UndefinedBehaviorSanitizer, a minute"
	@echo "make lint       ruff and mypy --strict"
	@echo "make docs       the documentation site, into build/site; a dead link is an error"
	@echo "make notebooks  execute docs/notebooks, and keep what they print and draw"
	@echo "make format     reformat the code"
	@echo "make clean      remove the virtual environment and caches; runs/ is kept"

train: $(VENV)/.installed
	$(BIN)/python train.py --config $(CONFIG) $(ARGS)

test: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -n auto

test-slow: $(VENV)/.installed-dev
	$(BIN)/python -m pytest -m slow

# The compiled code in a scratch copy, built with sanitizers; leaks are left out, since Python keeps what it keeps.
NATIVE := build/native
SANITIZERS := -fsanitize=address,undefined -fno-sanitize-recover=all -g

NATIVE_TESTS := tests/agents/kernels/test_binding.py tests/agents/kernels/test_convolutions.py \
    tests/agents/kernels/test_tools.py tests/agents/memory/test_doors.py

test-native: $(VENV)/.installed-dev
	rm -rf $(NATIVE) && mkdir -p $(NATIVE)
	cp -r agents configs envs tests pyproject.toml README.md LICENSE train.py evaluate.py $(NATIVE)
	find $(NATIVE) -name '*.so' -delete
	cd $(NATIVE) && CFLAGS="$(SANITIZERS)" LDFLAGS="$(SANITIZERS)" $(abspath $(BIN))/python -c \
	    "from setuptools import setup; setup()" -q build_ext --inplace
	cd $(NATIVE) && for kernels in avx2 default; do \
	    LD_PRELOAD="$$(gcc -print-file-name=libasan.so) $$(gcc -print-file-name=libstdc++.so)" \
	    ASAN_OPTIONS=detect_leaks=0 ATEN_CPU_CAPABILITY=$$kernels OMP_NUM_THREADS=1 \
	    sh -c '$(abspath $(BIN))/python -c "from agents.kernels import convolutions, heads, recurrent, scan; \
	    assert all(each.available for each in (convolutions, heads, recurrent, scan))" \
	    && $(abspath $(BIN))/python -m pytest -p no:cacheprovider $(NATIVE_TESTS)' || exit 1; done

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Not --quiet: strict counts the warnings that are shown, and a dead link is one.
docs: $(VENV)/.installed-dev
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=. $(BIN)/python -m mkdocs build --strict
	@echo "look at it: $(BIN)/python -m http.server -d build/site"

notebooks: $(VENV)/.installed-dev
	$(BIN)/jupyter execute --inplace docs/notebooks/*.ipynb

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

$(VENV)/bin/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: pyproject.toml setup.py constraints.txt $(COMPILED) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[plots]"
	touch $@

$(VENV)/.installed-dev: pyproject.toml setup.py constraints.txt $(COMPILED) | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[dev]"
	touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache build *.egg-info
