# Every target makes its own environment: a machine needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Test processes; each compiles with Numba into the shared on-disk cache.
JOBS   ?= auto

.PHONY: test lint pytest oracle exhaustive bench clean help

help:           ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(VENV)/.test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.oracle: $(VENV)/.test pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test,oracle]'
	touch $@

test: lint pytest   ## lint, types and the test suite: the one command

lint: $(VENV)/.test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

pytest: $(VENV)/.test
	$(PYTEST) -n $(JOBS) -m "not exhaustive and not oracle"

oracle: $(VENV)/.oracle ## compare with outside implementations (installs torch, transformers, mmasim, ...)
	$(PYTEST) -m oracle

exhaustive: $(VENV)/.test ## every float32 input, against ml_dtypes; minutes
	$(PYTEST) -m exhaustive -s

bench: $(VENV)/.test ## time the codecs and rewrite the report
	$(BIN)/python -m pip install --quiet --editable '.[test,bench]'
	$(BIN)/python reports/formats_speed.py --write

clean:          ## remove the environment and caches
	rm -rf $(VENV) .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
