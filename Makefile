# facezoo: everything needs only Python 3.11-3.13, make and a package index.
#   make demo      set up what is missing, run the demo (writes demo_out/)
#   make picture   run the demo, make its sheet docs/demo.jpg, the README's first picture
#   make test      set up what is missing, run the tests (without: slow, gpu, network)
#   make test-all  the slow tests too
#   make lint      ruff (rules and format) and mypy
#   make wheel     dist/*.whl
#   make clean     remove what make made
# Variables: PYTHON=python3.12 (makes the environment), VENV=.venv, ARGS="-k keys" (for pytest),
#   DEMO_ARGS (for facezoo demo).

PYTHON ?= python3
VENV ?= .venv
ARGS ?=
DEMO_OUT ?= demo_out
DEMO_ARGS ?=

BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip
# Stamps live in the environment, so that removing it removes them: a second run installs nothing.
CREATED := $(VENV)/.facezoo-created
# Only an environment that make itself made is removed by `make clean`.
MADE := $(VENV)/.facezoo-made-by-make
INSTALLED := $(VENV)/.facezoo-installed
INSTALLED_DEV := $(VENV)/.facezoo-installed-dev
INPUTS := pyproject.toml $(wildcard constraints/*.txt)

.DELETE_ON_ERROR:
.PHONY: help install dev demo picture test test-all lint format wheel clean

help:
	@sed -n 's/^#   //p' Makefile

$(CREATED):
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' || \
	  { echo "facezoo needs Python 3.11, 3.12 or 3.13: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	test -x $(BIN)/python || { $(PYTHON) -m venv $(VENV) && touch $(MADE); }
	@touch $@

# A torch that is already there is kept (it may be the right one for a GPU); otherwise the constraints choose it.
constraints = $$($(BIN)/python -c 'import importlib.util as u; print("" if u.find_spec("torch") else "-c constraints/cpu.txt")')
# Tests need torchvision too: a pair that works together is kept. The plain install's torch alone, or a torchvision of
# another torch, which fails when it is imported, gives way to the pair that the constraints name.
pair = $$($(BIN)/python -c 'import torch, torchvision' 2>/dev/null || echo '-c constraints/dev.txt')

$(INSTALLED): $(CREATED) $(INPUTS)
	@echo "installing facezoo into $(VENV) (once; some minutes)"
	$(PIP) install -qq --disable-pip-version-check $(constraints) --editable .
	@touch $@

$(INSTALLED_DEV): $(CREATED) $(INPUTS)
	@echo "installing facezoo and what its tests need into $(VENV) (once; some minutes)"
	$(PIP) install -qq --disable-pip-version-check $(pair) --editable '.[dev]'
	@touch $(INSTALLED) $@

install: $(INSTALLED)

dev: $(INSTALLED_DEV)

demo: $(INSTALLED)
	$(BIN)/facezoo demo --output $(DEMO_OUT) $(DEMO_ARGS)

picture: demo
	$(BIN)/python -c 'from PIL import Image; Image.open("$(DEMO_OUT)/facezoo-demo.png").save("docs/demo.jpg", quality=90)'

test: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m 'not slow and not gpu and not network' $(ARGS)

test-all: $(INSTALLED_DEV)
	$(BIN)/python -m pytest -m 'not gpu and not network' $(ARGS)

lint: $(INSTALLED_DEV)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

format: $(INSTALLED_DEV)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

wheel: $(INSTALLED_DEV)
	$(PIP) wheel -qq --no-deps --no-build-isolation --wheel-dir dist .
	@ls -l dist/*.whl

clean:
	rm -rf build dist demo_out .pytest_cache .mypy_cache .ruff_cache
	find facezoo scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +
	@if [ -e $(MADE) ]; then echo "rm -rf $(VENV)"; rm -rf '$(VENV)'; fi
