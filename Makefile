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
protos:  ## Generate Python code from the protobuf contracts
	@rm -rf protos/gen/sendense && mkdir -p protos/gen
	@.venv/bin/python -m grpc_tools.protoc -I protos \
	  --plugin=protoc-gen-mypy=.venv/bin/protoc-gen-mypy \
	  --plugin=protoc-gen-mypy_grpc=.venv/bin/protoc-gen-mypy_grpc \
	  --python_out=protos/gen --grpc_python_out=protos/gen \
	  --mypy_out=quiet:protos/gen --mypy_grpc_out=quiet,only_async:protos/gen \
	  $(PROTO_FILES)
	@find protos/gen/sendense -type d -exec touch {}/__init__.py \;
	@touch protos/gen/sendense/py.typed

.PHONY: locks
locks:  ## Resolve dependencies anew into locks/*.txt
	$(LOCK) --upgrade pyproject.toml -o locks/runtime.txt
	$(LOCK) --upgrade --extra dev -c locks/runtime.txt pyproject.toml -o locks/dev.txt

.PHONY: protos-check
protos-check:  ## Lint the contracts and check that the generated code is fresh
	@cd protos && ../.venv/bin/buf lint
	@rm -rf build/protos && mkdir -p build/protos && cp -r protos/gen build/protos/committed
	@$(MAKE) --no-print-directory protos
	@diff -r -x __pycache__ build/protos/committed protos/gen \
	  || { echo "protos/gen is stale: commit what 'make protos' made"; exit 1; }

.PHONY: lint
lint: setup protos-check  ## ruff, mypy strict, import contracts, buf
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/mypy
	.venv/bin/lint-imports

.PHONY: unit
unit: setup  ## Fast tests only
	$(PY) -m pytest -m unit -q

.PHONY: test
test: setup  ## All tests (about 8 minutes)
	$(PY) -m pytest -q

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

.PHONY: bench
bench: setup  ## What a backup of 5 TiB costs against one of 5 GiB with the same data; build/bench.json
	@$(PY) -m tests.bench.big_disks

.PHONY: demo
demo: setup  ## Back up a simulated VM twice, restore both points, prove every byte
	@.venv/bin/sendense demo
