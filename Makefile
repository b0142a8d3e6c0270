# Every target is a thin call, so that a laptop and a CI machine run the same thing.
# On a clean Debian 12, as root: `make demo` and `make test` install what they need first.

PYTHON := .venv/bin/python
PYTEST := $(PYTHON) -m pytest
STAMP  := .venv/.ready

.DEFAULT_GOAL := help
.PHONY: help setup demo test test-unit test-integration test-engine lint type proto configs bench critest clean

help: ## show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-17s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(STAMP) ## install system packages, the virtual environment and the test engine's parts

$(STAMP): pyproject.toml scripts/setup scripts/install-packages
	scripts/setup
	@touch $@

demo: $(STAMP) ## run a pod with two containers under a private containerd, show it, clean up (root)
	$(PYTHON) scripts/demo

test: $(STAMP) ## run every test: linters, unit, integration, engine with critest (root)
	$(PYTEST)

test-unit: $(STAMP) ## run what needs neither root nor programs of the system
	$(PYTEST) tests/unit

test-integration: $(STAMP) ## run what needs root and real runtimes, but no engine
	$(PYTEST) tests/integration

test-engine: $(STAMP) ## run what needs a real containerd, critest included (root)
	$(PYTEST) tests/engine

lint: $(STAMP) ## check style and who imports whom
	.venv/bin/ruff check
	.venv/bin/ruff format --check
	.venv/bin/lint-imports --no-logo

type: $(STAMP) ## check types, strictly
	.venv/bin/mypy

proto: $(STAMP) ## regenerate proto/gen from proto/*.proto
	$(PYTHON) scripts/generate-protos

configs: $(STAMP) ## rewrite configs/*.yaml from the dataclasses that they document
	$(PYTHON) -c 'from common.config import document as d; from sandboxers.runc.config import RuncConfig as c; print(d(c), end="")' > configs/runc.yaml

bench: $(STAMP) ## measure against stock shims in one run: results/*.json and a table (root)
	$(PYTHON) tests/bench/run.py

critest: $(STAMP) ## run the CRI conformance suite alone (root, Go)
	$(PYTEST) tests/engine -k critest

clean: ## remove what was built, measured and cached here
	rm -rf .venv .cache build dist results *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
