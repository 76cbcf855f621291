.DEFAULT_GOAL := help
.PHONY: help setup deploy test test-slow check format bench bench-fit bench-serve clients rehearse wheel clean

PYTHON ?= python3
PY := .venv/bin/python
STAMP := .venv/.installed

help: ## List these targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

setup: $(STAMP) ## Make .venv with everything; compiles llama.cpp for this machine the first time

$(STAMP): pyproject.toml edgekit/engine_build.py
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed: make PYTHON=python3.x" if sys.version_info < (3, 11) else 0)'
	test -x $(PY) || $(PYTHON) -m venv .venv
	$(PY) edgekit/engine_build.py
	$(PY) -m pip install --quiet --editable '.[test]'
	touch $@

deploy: setup ## Deploy the embedded model and print the latency report; Ctrl-C stops it
	$(PY) -m edgekit deploy pocket

test: setup ## Run the tests
	$(PY) -m pytest -m 'not slow and not bench'

test-slow: setup ## Run the tests that take minutes
	$(PY) -m pytest -m slow

check: setup ## Lint, format check and strict types
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy

format: setup ## Format the code
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

bench: setup ## Measure; prints ratios, asserts no time
	$(PY) -m pytest -m bench -s tests/benchmarks

bench-fit: setup ## Score the predicted speeds on published ones, each device left out in turn
	$(PY) -m tests.benchmarks.fit_accuracy --readme

bench-serve: setup ## Measure the server beside llama-server; see tests/benchmarks/serve
	$(PY) -m tests.benchmarks.serve

clients: setup ## Run the real coding agents against the server; see tests/clients
	$(PY) -m tests.clients

rehearse: setup ## Carry pocket to a machine without a network, on this one; see tests/rehearsal
	$(PY) -m tests.rehearsal

wheel: setup ## Build the wheel into dist/
	$(PY) -m build --wheel --no-isolation

clean: ## Remove what the other targets made
	rm -rf .venv dist build
