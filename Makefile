# Every target sets itself up: a virtual environment with metaopt and its tools, made once.
#   make test
#   make test PYTHON=python3.12 VENV=.venv312

PYTHON ?= python3
VENV ?= .venv
WORKERS ?= 2

BIN = $(VENV)/bin
INSTALLED = $(VENV)/.installed
TOO_OLD = metaopt needs Python 3.11 or newer and '$(PYTHON)' is none: try make $(MAKECMDGOALS) PYTHON=python3.12

.PHONY: help install demo test slow lint format types docs clean

help:
	@echo "make demo    train a learned optimizer for a minute or so, into runs/quick"
	@echo "make test    the fast tests"
	@echo "make slow    the slow tests, and the code of the documentation"
	@echo "make lint    ruff: style and format"
	@echo "make types   pyright"
	@echo "make format  put the style right where ruff can"
	@echo "make docs    rewrite docs/api.md"
	@echo "make clean   remove $(VENV) and all caches (not runs/)"

install: $(INSTALLED)

$(INSTALLED): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	  || { echo "$(TOO_OLD)" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install -qq --disable-pip-version-check -e '.[dev]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/metaopt train --preset quick --out runs/quick

test: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS)

slow: $(INSTALLED)
	$(BIN)/python -m pytest -n $(WORKERS) -m slow

lint: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(INSTALLED)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

types: $(INSTALLED)
	$(BIN)/pyright --pythonpath $(BIN)/python

docs: $(INSTALLED)
	$(BIN)/python docs/make_api.py

clean:
	rm -rf $(VENV) build dist .pytest_cache .ruff_cache .hypothesis
	find . -path './.venv*' -prune -o -name __pycache__ -type d -print0 | xargs -0 rm -rf
