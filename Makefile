# Everything a person or a machine runs here, by name. `make help` lists it.
# Two are enough for a start: `make demo` and `make test`; each does all of its own set-up.
.DEFAULT_GOAL := help
.PHONY: help setup demo demo-slurm test tests check conformance sim bench docs lock clean
BIN := .venv/bin

help: ## this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*##/\t/' | expand -t 8

setup: ## .venv with everything for development
	@scripts/install.sh dev

demo: ## the main job, end to end, on this machine (DOCS=folder: with your own documents)
	@scripts/install.sh demo
	$(BIN)/moulin demo $(if $(DOCS),--docs '$(DOCS)')

demo-slurm: ## in front of a real Slurm of four nodes, started on this machine: teams, a gang, a model, a dead node, the bill
	@scripts/install.sh demo
	@scripts/test_needs.sh Slurm
	$(BIN)/moulin demo --slurm

test: ## everything the tests need, then all checks and all tests
	@scripts/install.sh dev
	@scripts/test_needs.sh
	@$(MAKE) --no-print-directory check
	$(if $(ARGS),$(BIN)/python -m pytest $(ARGS),$(MAKE) --no-print-directory tests)

tests: # small ones side by side, then clusters beside whole Moulins
	@scripts/tests.sh

check: ## format, lint, types, import rules (after setup)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy $(wildcard src tests scripts benchmarks bridges)
	$(BIN)/lint-imports --no-logo

conformance: ## every engine against one suite, as a table; RUNTIME=name: a runtime (vllm, on the CPU: 3 GB, 10 to 20 minutes)
	@scripts/install.sh dev
	$(if $(RUNTIME),,@scripts/test_needs.sh)
	$(if $(RUNTIME),RUNTIME=$(RUNTIME) $(BIN)/python -m pytest tests/conformance/test_runtimes.py $(wildcard tests/conformance/test_runtime_$(RUNTIME).py) $(ARGS),MOULIN_SLURM_SUITES="trixie sid" $(BIN)/python -m tests.conformance.table $(ARGS))

sim: ## the fault simulation: SEED=n replays one seed, SEEDS=n runs many
	@scripts/install.sh dev
	$(BIN)/python -m tests.simulation $(if $(SEED),--seed $(SEED),--seeds $(or $(SEEDS),50))

bench: ## one benchmark: BENCH=control_path|startup|gateway|crash, ARGS=...
	@scripts/install.sh dev
	@scripts/test_needs.sh
	$(BIN)/python -m benchmarks $(or $(BENCH),control_path) --json $(ARGS)

docs: ## regenerate docs/reference and the figures in README.md
	@scripts/install.sh dev
	$(BIN)/python -m scripts.docs

lock: ## resolve the dependencies again, with hashes
	@scripts/install.sh dev
	scripts/lock.sh

clean: ## remove the environment and the caches; a factory's data stays
	rm -rf .venv build dist .hypothesis .import_linter_cache .mypy_cache .pytest_cache .ruff_cache .schemathesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
