# Linewarden: the commands of its developers and of whoever wants to see it run. `make help` lists them.
#
# Every target makes the environment it needs (.venv, by packaging/environment.sh) where there is none. Git is not needed.

PYTHON ?=
DURATION ?=
SEED ?= 7
MINUTES ?= 20
SEEDS ?= 1 2 3
DATA ?=
ARGS ?=
PY := .venv/bin/python

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-detection faults fuzz package lock format tools clean environment environment-demo

help: ## show this list
	@echo "Linewarden collects events from plant machines and logs, loses nothing, and brings them to the SOC."
	@echo
	@sed -n 's/^\([a-z-]*\):[^#]*## \(.*\)$$/  make \1|\2/p' Makefile | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'
	@echo
	@echo "  DURATION=20 ends the demo after 20 seconds with a summary; ARGS='…' is handed to pytest;"
	@echo "  PYTHON=/path/to/python3.11 chooses the interpreter."

demo: environment-demo ## run the whole system on this computer: a virtual line, an agent, the collector, PostgreSQL
	@exec $(PY) -m agent.simulator.demo $(if $(DURATION),--duration $(DURATION)) --seed $(SEED)

test: environment tools ## the test suite, on real SQLite, real PostgreSQL and real protocol servers
	$(PY) -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m "not bench and not long" $(ARGS)

check: environment ## lint, format, types, import rules, tidiness
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy
	.venv/bin/lint-imports
	$(PY) -m pytest -q --no-header tests/unit/test_repository.py

bench: environment tools ## measure speed, memory and latency, each against its limit in the same run
	$(PY) -m pytest -m bench -s $(filter-out %bench_detection.py,$(wildcard tests/bench/bench_*.py)) $(ARGS)

bench-detection: environment ## measure what the detections find, on DATA=folder of CSV files and labels
	LINEWARDEN_BENCH_DATA="$(DATA)" $(PY) -m pytest -m bench -s tests/bench/bench_detection.py $(ARGS)

faults: environment tools ## the fault tests at length: kills, cut links, full disks, damaged files (MINUTES a seed, SEEDS='1 2 3')
	LINEWARDEN_EXPLORE=1 $(PY) -m pytest -m long --timeout 0 tests $(ARGS)
	$(PY) -m tests.faults.figures --minutes $(MINUTES) --seeds $(SEEDS)

fuzz: environment ## fuzz what comes in from outside, guided by coverage, each door for MINUTES (installs atheris)
	@$(PY) -c 'import atheris' 2>/dev/null || $(PY) -m pip install --quiet --disable-pip-version-check 'atheris>=3.1,<4'
	$(PY) -m tests.faults.guided all --seconds $$(( $(MINUTES) * 60 )) $(ARGS)

package: environment ## build wheel, source archive, and a bundle that installs without internet, into dist/
	@packaging/build.sh

lock: environment ## renew the lock files from pyproject.toml (needs a package index)
	@packaging/lock.sh

format: environment ## format the code and put right what the linter can
	$(PY) -m ruff check --fix .
	$(PY) -m ruff format .

tools: ## install the programs that some tests speak to, as far as this user may
	@packaging/test-tools.sh

clean: ## remove what was built and measured; the environment stays
	rm -rf dist build .demo .pytest_cache .mypy_cache .ruff_cache .hypothesis .import_linter_cache

environment:
	@PYTHON="$(PYTHON)" packaging/environment.sh dev

environment-demo:
	@PYTHON="$(PYTHON)" packaging/environment.sh demo
