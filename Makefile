.DEFAULT_GOAL := help
SHELL := /bin/bash

VENV := $(abspath $(or $(HEADRACE_VENV),.venv))
PYTHON_IN := $(VENV)/bin/python
export PATH := $(VENV)/bin:$(PATH)

.PHONY: help setup demo test test-fast check format test-petastorm bench-quality bench-feed bench-spark bench-training bench-images bench-drift bench-wheel bench-serving bench-off-policy bench-levers test-compose test-airflow lock clean

help: ## list these targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*## (.*)/\1\t\2/' | expand -t 18

setup: ## make the environment (.venv); ends at once when it stands
	@setup/setup.sh

demo: setup ## MovieLens 100K: raw log to trained, evaluated model and recommendations
	headrace demo

check: setup ## lint, format and types, without changing anything
	ruff check .
	ruff format --check .
	mypy

# Most tests start a JVM or ranks and leave a core idle while these start. A file stays with one worker, for what its
# tests share; a worker's Spark takes a quarter of the memory.
TEST_WORKERS ?= 2
# Waits more than it works, and is the longest: it begins first, beside the tests that take seconds.
WHEEL_TEST := tests/end_to_end/test_wheel.py
TESTS := $(WHEEL_TEST) tests/unit tests/training tests/end_to_end tests/spark tests/ranks tests/serving tests/petastorm_suite

test: check ## check, then every test, slow ones too
	$(PYTHON_IN) -m pytest -n $(TEST_WORKERS) --dist loadfile --no-loadscope-reorder $(TESTS)

test-fast: setup ## the tests that take seconds
	$(PYTHON_IN) -m pytest -m "not slow"

format: setup ## format and fix what can be fixed
	ruff check --fix .
	ruff format .

test-petastorm: setup ## petastorm's own test suite on our pyarrow
	$(PYTHON_IN) -m pip install -q -c requirements.lock -r tests/petastorm_suite/requirements.txt
	$(PYTHON_IN) -m tests.petastorm_suite.run

bench-quality: setup ## recall, NDCG and hit rate on MovieLens 100K beside RecBole's published BPR, 3 seeds
	headrace benchmark quality

bench-feed: setup ## the feed beside the Arrow scan, petastorm, Mosaic Streaming and others: speed, memory, shuffle
	headrace benchmark feed

bench-spark: setup ## the Spark jobs beside MLlib, DuckDB, Polars, pandas and NVTabular: speed, memory, same results
	headrace benchmark spark

bench-training: setup ## training beside DDP, TorchRec and TorchEstimator; tables by size; quality; ranks killed
	headrace benchmark training

bench-images: setup ## an image classifier from pretrained weights beside one from a random start, 3 seeds
	headrace benchmark images

bench-drift: setup ## drift: false alarms on unshifted windows, shifts found by size, 10 M generated rows in Spark
	headrace benchmark drift

bench-serving: setup ## /recommend over 100,000 items at its limit and beyond it, 20 hot swaps, BentoML beside it
	headrace benchmark serving

bench-off-policy: setup ## off-policy estimates against the truth: Open Bandit Data, and simulated logs
	headrace benchmark off_policy

bench-levers: setup ## what propensities, shown negatives and augmented histories do to the metrics, 3 seeds
	headrace benchmark levers

test-compose: setup ## the containers of the compose file, started and used
	tests/compose/run.sh

test-airflow: setup ## a wheel turned by Airflow, in an environment of its own
	HEADRACE_PYTHON=$(PYTHON_IN) tests/airflow/run.sh

bench-wheel: setup ## generations that learn from what they served, replayed from a real log, beside one that is frozen
	headrace benchmark wheel

lock: ## resolve requirements.in anew into requirements.lock
	setup/lock.sh

clean: ## remove build outputs, caches and demo runs; .venv and data stay
	rm -rf build dist ./*.egg-info runs spark-warehouse metastore_db derby.log .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
