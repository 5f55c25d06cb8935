# `make help` lists what there is to do.
SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help

PYTHON ?= python3
VENV := .venv
BIN := $(CURDIR)/$(VENV)/bin
STAMP := $(VENV)/.installed
REQUIREMENTS := requirements/uv.txt requirements/run.txt requirements/dev.txt
# GPU=1: with the TensorFlow that has CUDA, and NVIDIA's libraries, in place of the one for processors.
GPU ?=
GPU_STAMP := $(VENV)/.gpu

export PATH := $(BIN):$(PATH)
# Without bytecode, TensorFlow takes more than twice as long to import, in every process.
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help
help: ## Show this help
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F ':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: install
install: $(STAMP) $(if $(GPU),$(GPU_STAMP)) ## Create .venv with the pinned dependencies; GPU=1: TensorFlow with CUDA

$(STAMP): $(REQUIREMENTS)
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if (3, 11) <= v <= (3, 13) else f"error: {sys.executable} is Python {v[0]}.{v[1]}, and 3.11 to 3.13 are supported; say which with make PYTHON=python3.13")'
	$(PYTHON) -m venv $(VENV)
	@echo "installing the pinned dependencies: some minutes, once"
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --require-hashes -r requirements/uv.txt
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode -r requirements/run.txt -r requirements/dev.txt
	@# Usage reporting is off for everything that runs in this environment, `mlflow ui` typed by hand included.
	@$(BIN)/python -c 'import pathlib, sysconfig; pathlib.Path(sysconfig.get_path("purelib"), "usage_reporting_off.pth").write_text("import os; os.environ.setdefault(\"MLFLOW_DISABLE_TELEMETRY\", \"true\"); os.environ.setdefault(\"RAY_USAGE_STATS_ENABLED\", \"0\")\n")'
	@touch $@

# Both builds have the same files, so the other one goes first.
$(GPU_STAMP): $(STAMP) requirements/gpu.txt
	$(BIN)/uv pip uninstall --quiet --python $(BIN)/python tensorflow-cpu
	$(BIN)/uv pip install --quiet --python $(BIN)/python --require-hashes --compile-bytecode --reinstall-package tensorflow -r requirements/gpu.txt
	@touch $@

.PHONY: repro
repro: $(STAMP) ## Run the whole pipeline: corpus, spectrograms, training, evaluation, registration
	@python -m training.preflight
	dvc repro
	@cat docs/after_repro.txt

.PHONY: ui
ui: PORT ?= 5000
ui: $(STAMP) ## Compare runs in a browser, at http://127.0.0.1:5000; PORT=5010: another port
	@python -m training.served --port $(PORT)
	MLFLOW_SERVER_ENABLE_JOB_EXECUTION=false mlflow ui --backend-store-uri sqlite:///$(CURDIR)/mlflow.db --host 127.0.0.1 --port $(PORT) --workers 1

# Another version, another port: make serve MODEL=models:/autoencoder/3 PORT=5002
MODEL ?= models:/autoencoder@champion

.PHONY: serve
serve: PORT ?= 5001
serve: $(STAMP) ## Serve the champion on this machine, at http://127.0.0.1:5001
	@test -n "$${MLFLOW_TRACKING_URI:-}" || test -f mlflow.db || { echo "error: no model yet; make repro makes one" >&2; exit 1; }
	@python -m training.served $(MODEL) --port $(PORT)
	MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR=false MLFLOW_TRACKING_URI="$${MLFLOW_TRACKING_URI:-sqlite:///$(CURDIR)/mlflow.db}" mlflow models serve -m $(MODEL) --env-manager local --host 127.0.0.1 --port $(PORT)

.PHONY: test
test: $(STAMP) ## Run all tests but the long ones
	@# Three, of which one or another waits for a server, a timeout or a kill.
	python -m pytest -m 'not soak and not browser' --numprocesses 3 --dist loadfile --no-loadscope-reorder

.PHONY: soak
soak: $(STAMP) ## Run the long tests: many kills, long runs
	python -m pytest -m soak

.PHONY: browser
browser: $(STAMP) ## Run the tests that look at MLflow's pages with Chromium
	python -m pytest -m browser

.PHONY: lint
lint: $(STAMP) ## Run the linters and the type checker
	ruff check .
	ruff format --check .
	mypy
	PYTHONPATH=. lint-imports

.PHONY: format
format: $(STAMP) ## Format the code
	ruff check --fix .
	ruff format .

# All but `gpu`, whose TensorFlow takes the place of the one in `training`.
EXTRAS := loudness av cluster samples training team pipeline

.PHONY: lock
lock: $(STAMP) ## Pin the dependencies again, for every supported Python, with hashes and without addresses
	@extras="$(foreach name,$(EXTRAS),--extra $(name))"; for name in uv run dev gpu; do \
	  case $$name in run) input="$$extras pyproject.toml";; uv) input=requirements/uv.in;; *) input="requirements/$$name.in -c requirements/run.txt";; esac; \
	  uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header \
	    --no-annotate $$input -o requirements/$$name.txt; \
	done

.PHONY: clean
clean: ## Remove the environment and caches; data, models and runs stay
	rm -rf $(VENV) .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis
	find pipeline training tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +
