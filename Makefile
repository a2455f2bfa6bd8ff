# Needs make, and either uv or a Python >= 3.11 with venv; everything else is brought here.

UV := $(shell uv --version >/dev/null 2>&1 && echo uv || echo .tools/bin/uv)
BIN := .venv/bin
PYTHONS := python3.13 python3.12 python3.11 python3.14 python3

.DEFAULT_GOAL := help

.PHONY: help setup libraries up test plain faults fuzz bench containers check

help: ## Show this
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: libraries ## Bring the tools and libraries into .venv, and compile the edge's hot path if there is a C compiler
	@$(BIN)/python -m deploy.compile $(COMPILE)

# Enough for whoever edits: what is compiled of other sources does not run.
libraries: $(filter .tools/%,$(UV))
	@test -x $(BIN)/keyledger || echo "Bringing libraries and servers into .venv (only the first time) ..."
	@$(UV) sync --locked --extra local --quiet

up: setup ## Run the whole stack: PostgreSQL, Kafka, all services and a first key (ARGS="--sample --port 9000")
	@$(BIN)/keyledger up $(ARGS)

test: libraries ## Run all tests (ARGS="tests/unit -x")
	@$(BIN)/pytest -n 3 --dist loadgroup $(ARGS)

plain: libraries ## Run the edge's tests once more with nothing compiled (ARGS="tests/unit/edge -x")
	@KEYLEDGER_EDGE_FORM=plain $(BIN)/pytest -n 3 --dist loadgroup $(or $(ARGS),tests/unit/edge/http tests/unit/edge/serving tests/integration/edge)

bench: setup ## Measure what is promised in figures; needs a C compiler and nginx with Lua (ARGS="edge --rounds 3")
	@$(UV) sync --locked --extra local --group bench --quiet
	@$(BIN)/python -m tests.load $(ARGS)

faults: setup ## Kill, stop and empty everything under load, and count (SEED=... repeats a run; ARGS="-k kills")
	@KEYLEDGER_FAULTS_SEED=$(SEED) $(BIN)/pytest tests/faults -n 2 --dist loadgroup $(ARGS)

fuzz: libraries ## Fuzz parser, framing, paths and decisions for a minute (ARGS="requests --seconds 600 --keep")
	@$(BIN)/python -m tests.fuzz $(ARGS)

containers: setup ## Run the tests on containers, in the image as it is built now; needs a Docker engine with Compose
	@docker version >/dev/null 2>&1 || { echo "error: no Docker engine answers to \`docker version\`." >&2; exit 1; }
	@docker compose version >/dev/null 2>&1 || { echo "error: the Docker command has no Compose plugin." >&2; exit 1; }
	@docker compose build --quiet
	@KEYLEDGER_TEST_STACK=containers $(BIN)/pytest -n 2 --dist loadgroup $(or $(ARGS),tests/integration tests/e2e)

check: libraries ## Lint, format, types, layering, unused code, published documents
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/pyrefly check
	$(BIN)/lint-imports
	$(BIN)/vulture
	$(BIN)/python -m deploy.contracts --check

.tools/bin/uv:
	@for python in $(PYTHONS); do \
	  if $$python -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then \
	    echo "Bringing uv into .tools (with $$python) ..."; \
	    $$python -m venv .tools && .tools/bin/python -m pip install --quiet --disable-pip-version-check uv; \
	    exit; \
	  fi; \
	done; \
	echo "error: this needs uv, or a Python >= 3.11 with venv (on Debian: apt install python3-venv)." >&2; exit 1
