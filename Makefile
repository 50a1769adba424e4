# The one door to this project: `make` lists what there is.

PORT         ?= 8000
REPLICAS     ?= 3
CLUSTER_PORT ?= 8080
ARGS         ?=

BIN    := .venv/bin
PYTEST := $(BIN)/python -m pytest $(ARGS)
# Every slow or blocking callback and every coroutine never awaited is reported. Spawned servers run without it.
DEBUG  := PYTHONASYNCIODEBUG=1
# Tests with servers wait for half their time: three at once keep two cores busy. By file, as those of one share
# servers; in the order of tests/conftest.py, which has the long files first, so that all end at about one time.
AT_ONCE := --dist loadfile --no-loadscope-reorder
# In `make test` these run so, the longest first, and whatever else there is in tests/ runs after them without.
IN_DEBUG_MODE := $(wildcard tests/contracts tests/unit tests/transcripts)
# What npm writes last: the JavaScript SDK is there.
NODE_MODULES := tests/sdk/node_modules/.package-lock.json
# We support two major versions of redis-py, and take its transport by a private name. What depends on that
# runs over both: the older one is put in front of the one in the environment.
REDIS7       := .venv/redis7
OVER_REDIS   := tests/contracts/test_brokers.py tests/contracts/test_streams.py tests/contracts/test_presence.py \
                tests/integration/test_redis_broker.py

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help setup programs run run-cluster fmt lint types imports unit contract fuzz integration e2e sdk test soak bench profile chaos check lock clean

help: ## list what there is
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-13s %s\n", $$1, $$2 }' Makefile

run: .venv/runtime ## the server on http://127.0.0.1:8000 (PORT=): no Redis, no PostgreSQL needed
	@exec $(BIN)/bongsu serve --dev --port $(PORT)

run-cluster: .venv/runtime ## nginx, REPLICAS=3, Redis and PostgreSQL on http://127.0.0.1:8080 (CLUSTER_PORT=)
	@exec $(BIN)/python -m deploy.cluster --replicas $(REPLICAS) --port $(CLUSTER_PORT)

test: setup programs $(NODE_MODULES) $(REDIS7) ## every test, after installing the programs it needs where they are missing
	$(DEBUG) $(PYTEST) -n 2 $(AT_ONCE) $(IN_DEBUG_MODE)
	$(PYTEST) -n 3 $(AT_ONCE) tests $(IN_DEBUG_MODE:%=--ignore=%)
	PYTHONPATH=$(REDIS7) BONGSU_TEST_REDIS_PY=7. $(PYTEST) $(OVER_REDIS)

soak: setup programs $(NODE_MODULES) ## the long tests at their full counts; takes hours
	BONGSU_SOAK=1 $(PYTEST) -o faulthandler_timeout=0 tests -m soak

bench: setup programs ## what a delivery costs, beside other servers, in 40 minutes (ARGS="--quick" 5, ARGS=--help)
	@sh bench/install_programs.sh
	$(BIN)/python -m bench $(ARGS)

chaos: setup programs ## a cluster under seeded faults; ARGS="--seed 7 --runs 10" and more, see ARGS=--help
	$(BIN)/python -m tests.chaos $(ARGS)

profile: setup programs ## where the CPU time of a connect, a delivery and a publication goes (root)
	$(BIN)/python -m bench.profile $(ARGS)

check: setup lint types imports test ## exactly what CI runs

setup: .venv/dev ## the environment for working on Bongsu, in .venv

programs:
	@sh deploy/install_programs.sh

unit: setup ## the tests that need no other program
	$(DEBUG) $(PYTEST) tests/unit

contract: setup programs ## one suite for each seam, over each of its implementations
	$(DEBUG) $(PYTEST) tests/contracts

fuzz: setup ## what no parser may do, whatever it is given
	$(PYTEST) tests/fuzz

integration: setup programs ## servers with real Redis, PostgreSQL and Chromium
	$(PYTEST) tests/integration

e2e: setup programs ## a cluster behind nginx, with kill -9
	$(PYTEST) tests/e2e

sdk: setup programs $(NODE_MODULES) ## the official SDKs, in node, Chromium and Python
	$(PYTEST) tests/sdk

fmt: setup ## format the code and mend what can be mended
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

lint: setup ## style and format
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: setup ## mypy --strict
	$(BIN)/mypy

imports: setup ## imports point down
	$(BIN)/lint-imports

lock: ## write requirements*.txt anew from pyproject.toml (needs uv)
	@sh deploy/lock.sh

clean: ## remove the environment and the caches; data in var/ stays
	rm -rf .venv tests/sdk/node_modules .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis

.venv/runtime: requirements.txt pyproject.toml
	@sh deploy/make_environment.sh runtime

.venv/dev: requirements-dev.txt requirements.txt pyproject.toml
	@sh deploy/make_environment.sh dev

$(REDIS7): requirements-redis7.txt | .venv/dev
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --upgrade --target $@ --require-hashes -r $<
	@touch $@

$(NODE_MODULES): tests/sdk/package-lock.json tests/sdk/package.json
	npm ci --prefix tests/sdk --silent --no-audit --no-fund --ignore-scripts
	@touch $@
