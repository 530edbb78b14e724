# make demo | make test | make check: each sets up all it needs, through make setup.
.DEFAULT_GOAL := help
.PHONY: help setup demo serve gpu test test-fast test-slow check docs format lock clean

PYTHON ?= $(shell for candidate in python3 python3.11 python3.12 python3.13; do \
	$$candidate -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 14))' 2>/dev/null \
	&& echo $$candidate && break; done)
UV_VERSION := 0.13.9
# A uv that is already there, or one inside the environment.
UV := $(or $(shell uv --version >/dev/null 2>&1 && command -v uv),.venv/bin/uv)
# uv does not read pip's configuration: where pip was told of another index, hand it on.
PIP_INDEX = $(or $(PIP_INDEX_URL),$(shell .venv/bin/python -m pip config get global.index-url 2>/dev/null))
UV_ENV = $(if $(UV_DEFAULT_INDEX)$(UV_INDEX_URL),,$(if $(PIP_INDEX),UV_DEFAULT_INDEX='$(PIP_INDEX)'))
STAMP := .venv/.installed
EXTRAS := train avatars faces eval serve ray verify onnx docs dev
OFFLINE := HF_HUB_OFFLINE=1 HF_DATASETS_OFFLINE=1 OMP_NUM_THREADS=1
TESTS ?= tests
# Tests of single functions: they start no process and train nothing.
FAST := tests/io tests/images tests/metrics tests/models tests/inference/sampling tests/inference/subject tests/inference/editing/test_card.py

help:
	@echo "make setup   an environment in .venv with everything below (Python 3.11 to 3.13)"
	@echo "make demo    one image of a person no training ever saw, redrawn as five sentences ask: outputs/demo.png"
	@echo "make serve   the service for many users at port 8000, with a key for you in outputs/service-key"
	@echo "make test    the tests, offline, no GPU  (make test TESTS=tests/inference for some of them)"
	@echo "make test-fast   the core of them, under two minutes"
	@echo "make test-slow   those that make test leaves out: long mixtures, kills at random moments"
	@echo "make gpu     all that wants a GPU, in nine minutes, without a network: outputs/gpu/table.md"
	@echo "make check   ruff, ruff format --check, pyright"
	@echo "make docs    the documentation site, built strictly and offline: outputs/site/index.html"
	@echo "make format  let ruff rewrite what it can"
	@echo "make lock    resolve pyproject.toml anew into requirements.lock"
	@echo "make clean   remove caches and outputs, keep .venv"

setup: $(STAMP)

.venv/bin/python:
	@test -n "$(PYTHON)" || { echo "promptnet needs Python 3.11, 3.12 or 3.13 on the path, or make PYTHON=..." >&2; exit 1; }
	$(PYTHON) -m venv .venv

.venv/bin/uv: | .venv/bin/python
	.venv/bin/python -m pip install --quiet uv==$(UV_VERSION)

$(STAMP): requirements.lock pyproject.toml | .venv/bin/python $(UV)
	@echo "installing requirements.lock into .venv"  # not the command itself: an index address may hold a password
	@$(UV_ENV) $(UV) pip install --python .venv/bin/python --require-hashes -r requirements.lock
	$(UV) pip install --python .venv/bin/python --offline --no-deps --no-build-isolation -e .
	@touch $@

demo: setup
	@mkdir -p outputs
	HF_HUB_OFFLINE=1 .venv/bin/promptnet demo --out outputs

serve: setup
	@mkdir -p outputs
	@test -s outputs/service-key || (umask 077; .venv/bin/promptnet serve keys add | head -1 > outputs/service-key)
	@echo "your key is in outputs/service-key"
	HF_HUB_OFFLINE=1 .venv/bin/promptnet serve

test: setup
	$(OFFLINE) .venv/bin/python -m pytest -n 2 -q -m "not slow" $(TESTS)

test-fast: setup
	$(OFFLINE) .venv/bin/python -m pytest -n 2 -q -m "not slow" $(FAST)

test-slow: setup
	$(OFFLINE) .venv/bin/python -m pytest -n 2 -q -m slow $(TESTS)

# Not `setup`: where a GPU is, there may be no index. PYTHON is one that has torch, lightning, transformers and peft.
gpu:
	$(or $(wildcard .venv/bin/python),$(PYTHON)) benchmarks/gpu/run.py

check: setup
	.venv/bin/ruff check .
	.venv/bin/ruff format --check .
	.venv/bin/pyright

docs: setup
	NO_MKDOCS_2_WARNING=1 .venv/bin/python -m mkdocs build --strict

format: setup
	.venv/bin/ruff check --fix .
	.venv/bin/ruff format .

lock: .venv/bin/python $(UV)
	@$(UV_ENV) $(UV) pip compile pyproject.toml $(addprefix --extra ,$(EXTRAS)) --universal --python-version 3.11 \
		--generate-hashes --no-emit-index-url --no-emit-find-links --custom-compile-command "make lock" \
		--quiet --output-file requirements.lock

clean:
	rm -rf outputs .pytest_cache .ruff_cache .hypothesis build dist
	find . -name __pycache__ -type d -not -path './.venv/*' -prune -exec rm -rf {} +
