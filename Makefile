# Two commands do all the set-up: `make run` (the fleet, serving a model) and `make test`.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
PIP    := $(BIN)/pip --disable-pip-version-check --quiet
CODE   := baton bench decode_node deploy engine examples fleet kernels kv_transfer prefill_node router tests
PROTOS := $(wildcard proto/baton/v1/*.proto)
COMPILED := $(wildcard baton/native/*.cpp kernels/cpu/*.cpp kernels/cpu/*.h)

.PHONY: help install install-dev run test check format proto bench bench-gpu clean

help:  ## what there is to make
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*##/\t/' | expand -t 14

install: $(VENV)/built  ## the `baton` command and what it needs, into .venv

install-dev: $(VENV)/installed-dev $(VENV)/built  ## the same, and what tests and checks need

run: install  ## a whole fleet on this machine, serving the default model (ARGS="--decode 2" passes flags)
	@$(BIN)/baton up $(ARGS)

test: install-dev  ## every test (ARGS="-k transfer" passes flags to pytest)
	$(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --max-worker-restart 0 $(ARGS)

check: install-dev  ## format, lint, types, import contracts, drift of generated stubs
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/ruff check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	@$(MAKE) --no-print-directory proto OUT=$(VENV)/proto
	diff -r $(VENV)/proto/baton/v1 baton/v1 -x __pycache__ -x __init__.py

format: install-dev  ## what check would complain of, where a tool can mend it
	$(BIN)/ruff format $(CODE)
	$(BIN)/ruff check --fix $(CODE)

OUT := .
proto: install-dev  ## typed stubs of proto/baton/v1, into baton/v1
	@mkdir -p $(OUT)
	@PATH="$(BIN):$$PATH" $(BIN)/python -m grpc_tools.protoc -I proto --python_out=$(OUT) --grpc_python_out=$(OUT) \
		--mypy_out=quiet:$(OUT) --mypy_grpc_out=quiet:$(OUT) $(PROTOS)

bench: install  ## measure this machine, into bench/results (ten minutes)
	bench/run.sh

bench-gpu: install-dev  ## the tests and figures that want a GPU, into bench/results (ten minutes)
	bench/run_gpu.sh

clean:  ## remove what was installed and built
	rm -rf $(VENV) build *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
	rm -rf baton/native/_build kernels/cpu/_build
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
		|| { echo "Baton needs Python 3.11, 3.12 or 3.13; set PYTHON=/path/to/python3.11"; exit 1; }
	$(PYTHON) -m venv $(VENV)

$(VENV)/installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	@echo "installing into $(VENV) (about 2 GB; a few minutes where downloads are slow)"
	$(PIP) install -c constraints.txt -e .
	@touch $@

$(VENV)/built: $(VENV)/installed $(COMPILED)
	$(BIN)/python -m baton.native.build
	$(BIN)/python -m kernels.cpu.build
	@touch $@

$(VENV)/installed-dev: $(VENV)/installed
	$(PIP) install -c constraints.txt -e '.[dev]'
	@touch $@
