# Everything a checkout needs, in one .venv that grows: serving and exporting first, and what tests and benchmarks need
# when they are asked for. `make` alone prints what there is.
PYTHON ?= python3
PIP_FLAGS ?=
TORCH_INDEX ?= https://download.pytorch.org/whl/cpu
CHECKPOINT ?= models/distilbert-384-squad
BUNDLE ?= build/bundle
DIST ?= dist
EXPORT_FLAGS ?=
BENCH_FLAGS ?=

BIN := .venv/bin
READY := .venv/.ready
READY_DEV := .venv/.ready-dev
# Is there while pip works, with the number of make's process.
UNFINISHED := .venv/.unfinished
# Is there if make made .venv: then what was interrupted, or has lost its Python, is not mended, but made anew. One that
# was there is added to.
MADE := .venv/.made
LOST := $(if $(wildcard $(READY)),$(shell test -x $(BIN)/python || echo lost))
DEVICE_BUNDLE := $(BUNDLE:/=)-int8
SERVING := cpu,server,export
TORCH := $(shell sed -n 's/^ *"torch==\(.*\)",$$/\1/p' pyproject.toml)

PIP := $(BIN)/python -m pip --disable-pip-version-check
# Most of what is installed is never imported: compiling all of it would take longer than everything else. What is
# imported is compiled then, and kept whatever the environment says.
INSTALL := $(PIP) install --no-compile $(PIP_FLAGS)
unexport PYTHONDONTWRITEBYTECODE

.PHONY: help setup serve bundle dist test emulators lint docs bench bench-full protos
.PHONY: lost

help: ## print this
	@echo 'Targets:'
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-12s %s\n", $$1, $$2}' Makefile
	@echo 'Variables:'
	@printf '  %-12s %s\n' \
	    PYTHON 'the Python that .venv is made with ($(PYTHON))' \
	    PIP_FLAGS 'for pip, --index-url and --find-links say' \
	    TORCH_INDEX "where PyTorch's CPU build is ($(TORCH_INDEX))" \
	    CHECKPOINT 'what is exported ($(CHECKPOINT))' \
	    BUNDLE 'where to ($(BUNDLE))' \
	    DIST "where make dist writes ($(DIST))" \
	    EXPORT_FLAGS 'for distilqa export' \
	    BENCH_FLAGS 'for python -m benchmarks'

setup: $(READY) ## make .venv, with what serving and exporting need

# Where something cannot be fetched, an environment that was ready is found out of date but left as it was.
rehearse = @if test -e $(READY); then $(INSTALL) --quiet --dry-run --editable '.[$(1)]'; fi

$(READY): pyproject.toml $(wildcard $(UNFINISHED)) $(LOST)
	@if test -e $(UNFINISHED) && kill -0 "$$(cat $(UNFINISHED))" 2>/dev/null; then \
	    echo 'Another make is setting up .venv. Wait for it.' >&2; exit 1; fi
	@if test -e $(MADE) && { test -e $(UNFINISHED) || ! test -x $(BIN)/python; }; then \
	    echo 'Removing what is left of .venv.'; rm -rf .venv; fi
	@python=$(BIN)/python; test -x $$python || python='$(PYTHON)'; $$python -c 'import sys; \
	    sys.exit(sys.version_info < (3, 11) and "Python 3.11 or newer is needed (make PYTHON=...)")'
	@echo 'Setting up .venv, which takes a minute or so, and the downloads.'
	$(call rehearse,$(SERVING))
	@test -e .venv || { mkdir .venv && touch $(MADE); }
	@echo $$PPID > $(UNFINISHED)
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@# A newer pip is faster.
	@$(INSTALL) --quiet --upgrade pip
	@$(torch)
	$(INSTALL) --editable '.[$(SERVING)]'
	@# Or the first server would compile what it imports, and have 20 MB more than any other.
	@$(BIN)/python -c 'import distilqa.server.app, distilqa.server.processes.child, distilqa.server.single_process, \
	    distilqa.client.client, onnxruntime'
	@rm -f $(UNFINISHED) && touch $@

# PyTorch for the CPU: what .venv has or pip's settings know of, or else PyTorch's own index, which is asked for nothing
# else and not waited for. (PyPI's build for other systems than Linux is for the CPU.)
define torch
if test "$$(uname)" != Linux || $(INSTALL) --no-index --no-deps 'torch==$(TORCH)' >/dev/null 2>&1; then :; \
elif timeout 10 $(PIP) index versions torch --index-url $(TORCH_INDEX) --retries 0 --timeout 5 2>&1 | grep -qF '$(TORCH)+cpu'; \
then $(INSTALL) --no-deps --index-url $(TORCH_INDEX) 'torch==$(TORCH)+cpu'; \
else echo "PyTorch's CPU build is not to be had from $(TORCH_INDEX)," \
    "so PyTorch comes from PyPI, with CUDA: 2.9 GB to fetch, 5.1 GB on disk."; fi
endef

$(READY_DEV): $(READY)
	$(call rehearse,dev)
	@echo $$PPID > $(UNFINISHED)
	$(INSTALL) --editable '.[dev]'
	@rm -f $(UNFINISHED) && touch $(READY) $@

serve: bundle ## answer questions on 127.0.0.1:50051, with the exported bundle
	$(BIN)/distilqa serve '$(BUNDLE)'

# $(call export,BUNDLE,OPTIONS) exports once. A folder's name is what the manifest calls its checkpoint.
export = @if test ! -e '$(1)/manifest.json'; then $(BIN)/distilqa export '$(CHECKPOINT)' --output '$(1)' $(2) $(EXPORT_FLAGS); \
    elif grep -qF -e '"checkpoint": "$(CHECKPOINT:/=)"' -e '"checkpoint": "$(notdir $(CHECKPOINT:/=))"' '$(1)/manifest.json'; \
    then echo '$(1) is there already; remove it to export again.'; \
    else echo '$(1) is of another checkpoint than $(CHECKPOINT). Remove it, or name another BUNDLE.' >&2; exit 1; fi

bundle: $(READY) ## export the checkpoint to a bundle, once
	$(call export,$(BUNDLE))

dist: $(READY) ## write the wheel, the sdist and a bundle for devices, with its digest
	$(call export,$(DEVICE_BUNDLE),--variant cpu-int8)
	@$(INSTALL) --quiet hatchling
	$(BIN)/python -m hatchling build --directory '$(DIST)'
	$(BIN)/python -m distilqa_export.writing.archive '$(DEVICE_BUNDLE)' '$(DIST)'

test: $(READY_DEV) ## pass the tests
	$(BIN)/pytest

emulators: $(READY) ## let the tests also try x86 without VNNI and two kinds of Arm, under qemu-user (Debian on x86-64)
	@tests/emulated/prepare $(BIN)/python $(PIP_FLAGS)

lint: $(READY_DEV) ## run ruff, mypy and import-linter
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	@PYTHONPATH=. $(BIN)/lint-imports --no-logo

docs: $(READY_DEV) ## build the pages of docs/ as a site, in build/site
	@NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --quiet && echo 'build/site/index.html'

bench: $(READY_DEV) ## measure it in ten minutes, into benchmarks/results
	@$(BIN)/python -m benchmarks --quick $(BENCH_FLAGS)

bench-full: $(READY_DEV) ## measure more, in more than an hour
	@$(BIN)/python -m benchmarks $(BENCH_FLAGS)

protos: $(READY_DEV) ## generate the code of the protocol, and its reference
	$(BIN)/python -m grpc_tools.protoc -I protos -I protos/third_party --python_out=protos --pyi_out=protos --grpc_python_out=protos \
	    protos/distilqa_protos/v1/question_answering.proto
	$(BIN)/python docs/protocol.py > docs/protocol.md
