# `make train` and `make test` work on a machine with nothing but Python 3.11 or newer.
PYTHON ?= python3
VENV ?= .venv
BIN = $(VENV)/bin
# oneDNN's operations are compiled at first use; where there is no compiler, one comes as a wheel (101 MB).
COMPILER = [ "$$(uname -sm)" != "Linux x86_64" ] || command -v g++ > /dev/null || command -v clang++ > /dev/null || $(BIN)/python -m pip install --quiet ziglang

.PHONY: train test lint clean

train: $(VENV)/.installed  ## trains, evaluates and explains configs/minute.py in runs/minute
	$(BIN)/python -m fmnist_jax.main --config=configs/minute.py --config.data.offline_fallback=true

test: $(VENV)/.installed-test  ## passes the whole test suite
	$(BIN)/python -m pytest -n 2 --dist loadfile

lint: $(VENV)/.installed-test  ## style and types
	$(BIN)/ruff check .
	$(BIN)/mypy

$(VENV)/bin/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "fmnist_jax needs Python 3.11 or newer: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)

$(VENV)/.installed: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e .
	$(COMPILER)
	touch $@

$(VENV)/.installed-test: setup.cfg constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet -c constraints.txt -e '.[test]'
	$(COMPILER)
	touch $@ $(VENV)/.installed

clean:  ## removes the environment, not the runs
	rm -rf $(VENV)
