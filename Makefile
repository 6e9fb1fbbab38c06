# make demo   builds .venv, installs, and runs scan, purify and eval on the checkpoints in fixtures/
# make test   builds .venv, installs with the developer's tools, and runs the tests
#
# PYTHON=...       the interpreter to build .venv with (3.11 or newer; found by itself)
# TORCH_INDEX=...  an index of torch wheels, for example the CPU ones; see "Without a GPU" in README.md

SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help demo test lint format docs benchmarks-page fixtures clean distclean

# 3.11 first: it is what constraints.txt was tested with. The shims of pyenv exist for versions that are not active,
# so each candidate is asked, not just looked up.
PYTHON ?= $(shell for candidate in python3.11 python3.12 python3.13 python3.14 python3 python; do \
	"$$candidate" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 \
	&& { command -v "$$candidate"; break; }; done)

VENV := .venv
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check
DEMO := demo
TORCH := $(shell sed -n 's/^torch==/torch==/p' constraints.txt)

# Nothing in the demo may go to the network, and two workers must not fight over two cores.
export HF_HUB_OFFLINE := 1
export TOKENIZERS_PARALLELISM := false

help:
	@sed -n 's/^# \{0,1\}//p' Makefile | head -5

$(VENV)/.created:
	@test -n "$(PYTHON)" || { echo "No Python >= 3.11 with venv found. Name one: make PYTHON=/path/to/python3.11" >&2; exit 2; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# torch comes first and alone: pinned exactly, a CPU build of that version that is at hand (a wheel folder in pip's own
# configuration, or TORCH_INDEX) wins over the plain one, which brings several GB of CUDA packages.
$(VENV)/.torch: constraints.txt | $(VENV)/.created
	$(PIP) install --quiet --constraint constraints.txt $(if $(TORCH_INDEX),--index-url $(TORCH_INDEX)) "$(TORCH)"
	@touch $@

$(VENV)/.installed: pyproject.toml constraints.txt $(VENV)/.torch
	$(PIP) install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.developer: $(VENV)/.installed
	$(PIP) install --quiet --constraint constraints.txt --editable ".[dev]"
	@touch $@

# The fixtures are too small to share: a second thread would only make the first one wait.
demo: export OMP_NUM_THREADS ?= 1
demo: $(VENV)/.installed
	@rm -rf $(DEMO)
	@mkdir $(DEMO)
	@echo; echo "== 1. A clean checkpoint: pass =="
	$(BIN)/purify scan fixtures/clean
	@echo; echo "== 2. A backdoored checkpoint: fail (exit code 1), and the trigger named =="
	$(BIN)/purify scan fixtures/backdoored; test $$? -eq 1
	@echo; echo "== 3. Purify it =="
	$(BIN)/purify purify fixtures/backdoored --method pure --clean fixtures/data/clean.csv \
		--set learning_rate=1e-3 --set epochs=10 --set penalty=0.5 --set fresh_classifier=true \
		--test fixtures/data/test.csv --trigger cf --trigger tq --target positive --out $(DEMO)/purified
	@echo; echo "== 4. Before and after, beside the clean twin =="
	$(BIN)/purify eval fixtures/backdoored $(DEMO)/purified --twin fixtures/clean \
		--test fixtures/data/test.csv --trigger cf --trigger tq --target positive
	@echo; echo "The purified checkpoint lies in $(DEMO)/purified."

test: $(VENV)/.developer
	$(BIN)/python -m pytest -n 2 $(PYTEST)

lint: $(VENV)/.developer
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.developer
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(VENV)/.developer
	$(BIN)/python -m pytest -q tests/test_docs.py

# The tables of docs/benchmarks.md and the pictures of the matrix, from benchmarks/results/.
benchmarks-page: $(VENV)/.installed
	$(BIN)/python benchmarks/render.py
	$(BIN)/python benchmarks/matrix_figures.py --results benchmarks/results/matrix.jsonl --out docs/figures

fixtures: $(VENV)/.installed
	$(BIN)/python fixtures/make.py

clean:
	rm -rf $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find src tests fixtures -name __pycache__ -type d -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
