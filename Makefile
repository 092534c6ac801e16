# Everything a checkout needs: one .venv, made by `make setup`. PIP_FLAGS goes to pip, e.g. an --extra-index-url;
# BENCH_FLAGS to `python -m benchmarks`.
PYTHON ?= python3
PIP_FLAGS ?=
CHECKPOINT ?= models/distilbert-384-squad
BUNDLE ?= build/bundle
BENCH_FLAGS ?=

BIN := .venv/bin
READY := .venv/.ready

.PHONY: setup serve test lint bundle bench bench-full protos emulators

setup: $(READY)

$(READY): pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=...)")'
	@echo 'Setting up .venv; PyTorch is a large download, so the first time takes minutes.'
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --disable-pip-version-check $(PIP_FLAGS) --editable '.[dev]'
	@touch $@

bundle: $(READY)
	@if test -e $(BUNDLE)/manifest.json; then echo '$(BUNDLE) is there already; remove it to export again.'; \
	else $(BIN)/distilqa export $(CHECKPOINT) --output $(BUNDLE); fi

serve: bundle
	$(BIN)/distilqa serve $(BUNDLE)

test: setup
	$(BIN)/pytest

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

bench: setup
	@$(BIN)/python -m benchmarks --quick $(BENCH_FLAGS)

bench-full: setup
	@$(BIN)/python -m benchmarks $(BENCH_FLAGS)

protos: setup
	$(BIN)/python -m grpc_tools.protoc -I protos -I protos/third_party --python_out=protos --pyi_out=protos --grpc_python_out=protos \
	    protos/distilqa_protos/v1/question_answering.proto

# What the tests on other kinds of processor need; without it they are skipped.
emulators: setup
	@tests/emulated/prepare $(BIN)/python $(PIP_FLAGS)
