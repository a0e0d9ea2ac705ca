# `make demo` and `make test` do all set-up themselves.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
WORKDIR ?= runs/demo
WORKERS ?= 2
FUZZ ?= 5000
FUZZ_SECONDS ?= 600

export JAX_COMPILATION_CACHE_DIR ?= $(CURDIR)/.jax_cache
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS ?= 0.3

.PHONY: help demo test test-all fuzz notebooks bench lint clean

help:
	@echo "make demo      train FedFR on generated faces and write $(WORKDIR)/report.html"
	@echo "make test      the quick tests"
	@echo "make test-all  all tests, the slow ones and those on real faces (skipped without them)"
	@echo "make fuzz      damaged files for all readers, $(FUZZ) of a kind; then $(FUZZ_SECONDS) s of files"
	@echo "               guided by what they reach, from tests/fuzz_corpus, which grows by it"
	@echo "make notebooks  run the notebooks, in a small setting"
	@echo "make bench     benchmarks on this CPU, also against PyTorch where it is installed"
	@echo "make lint      ruff and mypy"

$(VENV)/installed: setup.py pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --no-compile -e ".[test]"  # what is not used need not be compiled
	@touch $@

demo: $(VENV)/installed
	rm -rf $(WORKDIR)
	$(BIN)/python -m fedfr_jax.train --config=configs/quickstart.py --workdir=$(WORKDIR)

test: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not real"

test-all: $(VENV)/installed
	$(BIN)/python -m pytest -n $(WORKERS)

fuzz: $(VENV)/installed
	FEDFR_FUZZ=$(FUZZ) $(BIN)/python -m pytest -n $(WORKERS) --dist load tests/data/test_fuzz.py
	$(BIN)/python -m pip install --quiet 'atheris>=3,<4'
	PYTHONPATH=$(CURDIR) $(BIN)/python tests/fuzz/fuzz_run.py --seconds $(FUZZ_SECONDS)

notebooks: $(VENV)/installed
	FEDFR_NOTEBOOK=small $(BIN)/python -m pytest -n $(WORKERS) --nbmake --nbmake-timeout=600 notebooks

bench: $(VENV)/installed
	$(BIN)/python -m benchmarks.run --suite cpu --json runs/bench-cpu.json
	$(BIN)/python -m benchmarks.run --suite layouts --json runs/bench-layouts.json
	$(BIN)/python -m benchmarks.run --suite scale --json runs/bench-scale.json

lint: $(VENV)/installed
	$(BIN)/python -m ruff check .
	$(BIN)/python -m ruff format --check .
	$(BIN)/python -m mypy

clean:
	rm -rf $(VENV) .jax_cache build *.egg-info
