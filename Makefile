# Two commands set up everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= $(or $(shell command -v python3.11),$(shell command -v python3.12),$(shell command -v python3.13),python3)
VENV := .venv
BIN := $(VENV)/bin
# No telemetry from Flower or Ray, and no thread pool larger than the machine in tests.
export FLWR_TELEMETRY_ENABLED = 0
export FLWR_DISABLE_UPDATE_CHECK = 1
export RAY_USAGE_STATS_ENABLED = 0

.PHONY: demo test e2e faults check soak bench audit clean

demo: $(VENV)/research.installed ## a private federated study on phantoms, from nothing to its report
	$(BIN)/echofed demo

test: $(VENV)/development.installed ## all tests
	tests/debian_packages.sh
	$(BIN)/python -m pytest -q --ignore=tests/consortium

e2e: $(VENV)/development.installed ## more of the real consortium than `make test` runs
	tests/debian_packages.sh
	$(BIN)/python -m pytest -q tests/consortium tests/e2e

faults: $(VENV)/development.installed ## 200 seeded faults on real processes; about an hour, as root
	tests/debian_packages.sh
	$(BIN)/python -m tests.faults.run

check: $(VENV)/development.installed ## lint, types, import contracts, packaging
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m pytest -q tests/test_packaging.py

soak: $(VENV)/development.installed ## a site process killed 500 times; about 20 minutes
	ECHOFED_KILLS=500 $(BIN)/python -m pytest -q -s tests/client/test_killed_releases.py

bench: $(VENV)/development.installed ## every measured claim; takes about two hours on two cores
	tests/debian_packages.sh
	$(BIN)/python -m benchmarks.run

audit: $(VENV)/development.installed ## attack the training engine, and four broken ones; about two minutes
	$(BIN)/python -m benchmarks.privacy_audit

clean: ## remove what make made
	rm -rf $(VENV) .typing build dist *.egg-info

$(VENV)/%.installed: pyproject.toml constraints.txt
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable ".[$*]"
	mkdir -p .typing && ln -sfn .. .typing/echofed
	touch $@
