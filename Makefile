# `make` prints this help. README's two commands are `make run` and `make test`.
.DEFAULT_GOAL := help
SHELL := /bin/bash
VENV ?= .venv
BIN := $(VENV)/bin
PYTHON ?= python3
STAMP := $(VENV)/.installed
PYTEST := $(BIN)/python -m pytest
# `make test` shares its files out among so many processes; each is good for one core and 2 GB.
TEST_PROCESSES ?= 2

.PHONY: help install run bench bench-gpu test check lint types imports proto proto-check docs docs-check test-fast test-deploy test-containers format clean

help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  \033[1m%-14s\033[0m %s\n", $$1, $$2}'

$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit("HiLoRA Serve needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	@test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	@# The pip that Python 3.11 brings takes twice as long to find out what goes together.
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt --upgrade pip
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]'
	@touch $(STAMP)

install: $(STAMP) ## Create .venv with everything that development needs

run: $(STAMP) ## Start the whole system with the shipped pool on http://127.0.0.1:8000
	$(BIN)/hilora demo --port 8000

test: $(STAMP) ## Run every test: real Redis, real processes, the running system
	@command -v promtool >/dev/null || echo "NOT RUN: tests/deploy/observability. It needs Prometheus: apt-get install prometheus" >&2
	@command -v promtool >/dev/null || export HILORA_NOT_RUN=prometheus; \
		$(PYTEST) -n $(TEST_PROCESSES) --dist loadfile --no-loadscope-reorder --durations=40 --durations-min=10

test-fast: $(STAMP) ## Run the unit and contract tests
	$(PYTEST) tests/unit tests/contract -q

test-deploy: $(STAMP) ## Check Dockerfiles, compose file and manifests; installs its tools into .deploy-tools
	scripts/install_deploy_tools.sh
	$(PYTEST) tests/deploy/static -m deploy -q

test-containers: $(STAMP) ## Build the images, run compose and the production pods with podman; as root, installs it
	scripts/install_container_tools.sh
	$(PYTEST) tests/deploy/containers -m containers -q

bench: $(STAMP) ## Measure the engine: the figures of batches 8 and 32, in a few minutes
	$(BIN)/hilora bench engine --quick

bench-gpu: ## Measure the engine on a GPU; needs torch and transformers, no environment of ours
	PYTHONPATH=. $(PYTHON) scripts/bench_gpu.py

check: lint types imports proto-check docs-check test-fast ## Everything that needs no running system, in two minutes

lint: $(STAMP) ## Lint and check the formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP) ## Format the code and apply safe fixes
	$(BIN)/ruff check --fix --quiet . || true
	$(BIN)/ruff format .

types: $(STAMP) ## Check the types
	$(BIN)/pyright --pythonpath $(BIN)/python

imports: $(STAMP) ## Check the rules of dependency
	$(BIN)/lint-imports

proto: $(STAMP) ## Generate proto/gen from proto/hilora_rpc
	$(BIN)/python scripts/generate_protos.py

proto-check: $(STAMP) ## Fail if proto/gen is out of date
	$(BIN)/python scripts/generate_protos.py --check

docs: $(STAMP) ## Generate docs/configuration.md from the settings
	$(BIN)/python scripts/generate_configuration.py

docs-check: $(STAMP) ## Fail if docs/configuration.md is out of date
	$(BIN)/python scripts/generate_configuration.py --check

clean: ## Remove the environment, caches and the demo's data
	rm -rf $(VENV) .deploy-tools .hilora .pytest_cache .ruff_cache .hypothesis build *.egg-info
