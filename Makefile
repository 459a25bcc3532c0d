# Everything runs in .venv, which is made on first use from any Python 3.11 to 3.13.
#   make demo PYTHON=python3.12     chooses the interpreter
#   make test WORKERS=4             chooses the number of test processes

PYTHON ?= python3
WORKERS ?= 2
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
PIP := $(BIN)/python -m pip --disable-pip-version-check

# A caller's environment must not leak modules into this one.
unexport PYTHONPATH
unexport VIRTUAL_ENV

.NOTPARALLEL:
.DEFAULT_GOAL := help
.PHONY: help install demo test test-slow test-arviz1 lint format typecheck wheel bench clean distclean

help:
	@echo "make demo         run the demonstration; it writes to runs/demo"
	@echo "make test         lint, types, wheel, ArviZ >= 1, and the test suite"
	@echo "make test-slow    the long tests that 'make test' leaves out"
	@echo "make test-arviz1  the export tests with ArviZ >= 1 (needs a Python >= 3.12)"
	@echo "make lint         ruff: style and imports          make format     apply it"
	@echo "make typecheck    mypy over the installed layout   make wheel      build and try the wheel"
	@echo "make bench        speed against NumPyro, JAX, Pyro make install    only fill .venv"
	@echo "make clean        remove build files and caches    make distclean  and the environments"

install: $(STAMP)

# torch goes first and by an exact pin, so that a locally provided build of it (CPU only, say) is used.
$(STAMP): setup.py .ci/constraints.txt
	@command -v "$(PYTHON)" >/dev/null || { echo "$(PYTHON) not found; set PYTHON=..." >&2; exit 1; }
	@"$(PYTHON)" -c 'import sys; v = sys.version_info[:2]; sys.exit(None if (3, 11) <= v <= (3, 13) \
	  else "vinppl needs Python 3.11, 3.12 or 3.13, not %d.%d; set PYTHON=python3.11, say" % v)'
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(PIP) install -q "torch==2.13.0"
	$(PIP) install -q -c .ci/constraints.txt setuptools
	$(PIP) install -q -c .ci/constraints.txt --no-build-isolation -e ".[test]"
	@touch $@

demo: $(STAMP)
	$(BIN)/python inference/demo.py --out runs/demo

# One thread a process: the tests' tensors are small and the processes share the cores. ArviZ 0.23 keeps
# a stamp file that parallel first imports would race for, hence the import beforehand.
PYTEST := OMP_NUM_THREADS=1 MPLBACKEND=Agg $(BIN)/pytest -n $(WORKERS) --dist worksteal

test: lint typecheck wheel test-arviz1
	@$(BIN)/python -W ignore -c "import arviz"
	$(PYTEST) --cov --cov-report=term

test-slow: $(STAMP)
	@$(BIN)/python -W ignore -c "import arviz"
	$(PYTEST) -m slow

test-arviz1: $(STAMP)
	@bash .ci/test-arviz1 $(BIN)

lint: $(STAMP)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# Type checkers do not follow the editable install's import hook, so they get an ordinary one.
typecheck: $(STAMP)
	@rm -rf build/typecheck build/lib
	$(PIP) install -q --no-deps --no-build-isolation --target build/typecheck .
	cd build/typecheck && ../../$(BIN)/mypy --config-file ../../pyproject.toml --cache-dir ../../.mypy_cache -p vinppl

wheel: $(STAMP)
	@bash .ci/check-wheel $(BIN)

bench: $(STAMP)
	$(PIP) install -q -c .ci/constraints.txt --no-build-isolation -e ".[test,bench]"
	$(BIN)/python tests/bench/speed.py --json notebooks/results/speed.json

clean:
	rm -rf build dist *.egg-info .coverage .coverage.* htmlcov .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

distclean: clean
	rm -rf .venv .venv-arviz1
