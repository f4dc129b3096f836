# Needs Python 3.11+, make and the package registries; everything else is installed into .venv.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
KILLS ?= 70
SEED ?= 1
TARGET ?= process
# One more than there are processors: tests wait for servers, too.
JOBS ?= $(shell expr $$(nproc) + 1)
FIRST ?= 50000

.PHONY: help setup demo test test-fast lint bench bench-events bench-loading bench-quantization bench-staging bench-tuning prove-lifecycle prove-staging lock clean

help: ## Show what there is to make
	@grep -hE '^[a-z-]+:.*## ' Makefile | sed -E 's/^([a-z-]+):.*## /\1\t/' | expand -t 18

setup: $(VENV)/.ready ## Create .venv with the slipway command in it

$(VENV)/.ready: pyproject.toml requirements.lock requirements-dev.lock requirements-uv.lock
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --require-hashes --requirement requirements-uv.lock
	$(BIN)/uv pip sync --quiet --python $(BIN)/python --require-hashes --compile-bytecode requirements.lock requirements-dev.lock
	$(BIN)/uv pip install --quiet --python $(BIN)/python --no-deps --no-build-isolation --editable .
	@touch $@

demo: setup ## Take the tiny model from its folder to a running service
	$(BIN)/slipway deploy examples/tiny/slipway.yaml

test: setup ## Run all tests; tests of what the machine lacks are skipped, unless SLIPWAY_REQUIRE names it
	$(BIN)/coverage erase
	$(BIN)/python -m pytest -n $(JOBS) --no-loadscope-reorder --cov --cov-report= --cov-fail-under=90 --durations=15

test-fast: setup ## Run the tests of decisions and formats, without servers and engines: a minute on two cores
	$(BIN)/python -m pytest -q -n $(shell nproc) tests/unit tests/contracts -m "not (slow or server or engine or docker or haproxy or s3 or mlflow or hub or oci or browser or another_user or mount or fio)"

lint: setup ## Check style, types and the direction of imports
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: setup ## Measure the lifecycle, cold and warm, and score the leak check; figures as JSON in benchmarks/results
	$(BIN)/python -m benchmarks.lifecycle
	$(BIN)/python -m benchmarks.leaks

bench-events: setup ## Measure how soon an event of the model registry starts a redeploy
	$(BIN)/python -m benchmarks.events

bench-quantization: setup ## Damage candidates of the tiny model and see them refused, honest ones accepted, by the real engine
	$(BIN)/python -m benchmarks.quantization

bench-tuning: setup ## Score the search for a batch size on generated rigs beside others (FIRST: a seed never used before)
	$(BIN)/python -m benchmarks.tuning --first $(FIRST)

bench-loading: setup ## Measure cold loads: fio, the prefetch, an engine's start alone and beside it, and other loaders
	$(BIN)/python -m benchmarks.loading

prove-lifecycle: setup ## Kill deploys at random moments and deploy again: nothing is lost or left behind (TARGET=docker: as containers)
	$(BIN)/python -m benchmarks.prove_lifecycle --kills $(KILLS) --seed $(SEED) --target $(TARGET) --out benchmarks/results/prove_lifecycle.json

prove-staging: setup ## Kill copies at random moments and flip random bytes: nothing is lost, all damage is found
	$(BIN)/python -m benchmarks.prove_staging --seed $(SEED) --out benchmarks/results/prove_staging.json

bench-staging: setup ## Measure copies beside what fio, cp and boto3 do on the same disk, and from a real S3 server
	$(BIN)/python -m benchmarks.staging --out benchmarks/results/staging.json

lock: setup ## Resolve the dependencies anew
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header pyproject.toml -o requirements.lock
	$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header --group dev -c requirements.lock -o requirements-dev.lock

clean: ## Remove what setup and tests made
	rm -rf $(VENV) .mypy_cache .ruff_cache .pytest_cache .hypothesis .coverage .coverage.* .import_linter_cache
