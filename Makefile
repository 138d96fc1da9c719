# SPDX-License-Identifier: Apache-2.0
# `make demo` and `make test` are all a newcomer needs; both set up what they need by themselves.
SHELL := /bin/bash
.DEFAULT_GOAL := help
PY := .venv/bin/python
UV := .venv/bin/uv
PROTO_FILES := $(sort $(shell find protos/sendense -name '*.proto'))
LOCK := $(UV) pip compile --quiet --universal --python-version 3.11 --generate-hashes --no-emit-index-url --no-header

.PHONY: help
help:  ## Show this list
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | sort | awk -F':.*## ' '{printf "  make %-10s %s\n", $$1, $$2}'

.PHONY: setup
setup:  ## Install what is missing: Debian packages, the virtual environment (quick the second time)
	@tools/setup

.PHONY: protos
protos: protos-aside  ## Generate Python code from the protobuf contracts
	@$(PY) tools/swap-directories build/protos/new/sendense protos/gen/sendense

.PHONY: protos-aside
protos-aside:
	@rm -rf build/protos/new && mkdir -p build/protos/new
	@.venv/bin/python -m grpc_tools.protoc -I protos \
	  --plugin=protoc-gen-mypy=.venv/bin/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=.venv/bin/protoc-gen-mypy_grpc \
	  --python_out=build/protos/new --grpc_python_out=build/protos/new \
	  --mypy_out=quiet:build/protos/new --mypy_grpc_out=quiet,only_async:build/protos/new \
	  $(PROTO_FILES)
	@find build/protos/new/sendense -type d -exec touch {}/__init__.py \;
	@touch build/protos/new/sendense/py.typed

.PHONY: locks
locks:  ## Resolve dependencies into locks/*.txt; newer ones with UPGRADE=--upgrade
	$(LOCK) $(UPGRADE) pyproject.toml -o locks/runtime.txt
	$(LOCK) $(UPGRADE) --extra dev -c locks/runtime.txt pyproject.toml -o locks/dev.txt

.PHONY: protos-check
protos-check: protos-breaking  ## Lint the contracts, check that they break nothing and that the generated code is fresh
	@cd protos && ../.venv/bin/buf lint
	@$(MAKE) --no-print-directory protos-aside
	@diff -r -x __pycache__ protos/gen build/protos/new \
	  || { echo "protos/gen is stale: run 'make protos' and commit what it made"; exit 1; }

.PHONY: protos-breaking
protos-breaking:
	@cd protos && ../.venv/bin/buf breaking --against baseline.json \
	  || { echo "the contracts break those of protos/baseline.json; what to do: protos/README.md, Breaking changes"; exit 1; }

.PHONY: protos-baseline
protos-baseline: protos-breaking  ## At a release: the contracts as they are now are what later ones must not break
	@mkdir -p build/protos
	@cd protos && ../.venv/bin/buf build --exclude-source-info -o ../build/protos/baseline.json
	@$(PY) -m json.tool --indent 1 build/protos/baseline.json build/protos/baseline-lines.json
	@mv build/protos/baseline-lines.json protos/baseline.json

.PHONY: lint
lint: setup protos-check  ## ruff, mypy strict, import contracts, buf
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

.PHONY: unit
unit: setup  ## Fast tests only
	$(PY) -m pytest -m unit -q

# One more than cores: much of a test is waiting.
WORKERS ?= $(shell echo $$(($$(nproc) + 1)))

.PHONY: test
test: setup  ## All tests, one file more at once than there are cores (25 minutes on two)
	$(PY) -m pytest -q --numprocesses=$(WORKERS) --dist=loadfile --no-loadscope-reorder

.PHONY: mutants
mutants: setup  ## Break each rule of changed block tracking once; its tests must notice (5 minutes)
	@$(PY) -m tests.mutants.run

.PHONY: scenarios
scenarios: setup  ## All scenarios of the simulated vCenter through the whole system, also the long ones
	SENDENSE_SCENARIOS=all $(PY) -m pytest tests/scenarios -q

SEED ?= $(shell od -An -N4 -tu4 /dev/urandom | tr -d ' ')
HOURS ?= 0
LEVEL ?= both
LIVES ?= 20
STEPS ?= 50

.PHONY: soak
soak: setup  ## Play VMs and backups at random for HOURS=8, again from SEED=…, and compare every byte
	@$(PY) -m tests.model.soak --seed=$(SEED) --hours=$(HOURS) --level=$(LEVEL) --lives=$(LIVES) --steps=$(STEPS)

ROUNDS ?= 60
FAULTS ?= 200
SECONDS ?= 1000

.PHONY: chaos
chaos: setup  ## Kill, freeze, cut and fill what a backup needs, at random (20 minutes, root); build/chaos.json
	@$(PY) -m tests.chaos.run --seed=$(SEED) --rounds=$(ROUNDS) --faults=$(FAULTS) --seconds=$(SECONDS)

.PHONY: kills
kills: setup  ## Kill each process of the hub in each phase of a job, twice in a row; each job makes its point once (15 minutes, root)
	@$(PY) -m tests.chaos.kills

INPUTS ?= 2000

.PHONY: security
security: setup  ## Attack the whole product, then send INPUTS=2000 odd inputs to every call, again from SEED=… (20 minutes, root)
	$(PY) -m pytest tests/security -q -o log_cli=true -o log_cli_level=INFO
	@$(PY) -m tests.security.fuzz.run --seed=$(SEED) --per-method=$(INPUTS) --gateway=$$((5 * $(INPUTS)))

.PHONY: bench
bench: setup  ## What a big disk costs against a small one, and an interruption (root); build/bench*.json
	@$(PY) -m tests.bench.big_disks
	@$(PY) -m tests.bench.interruption

.PHONY: demo
demo: setup  ## Back up a simulated VM twice, restore both points, prove every byte
	@.venv/bin/sendense demo
