# Each target creates .venv and installs what it needs; nothing has to be set up by hand.
#
#   make demo ARGS="--seeds 1"        any arguments of the command behind a target
#   make test TORCH="torch==2.11.0"   another torch (remove .venv first if it holds one already)

PYTHON  ?= python3
VENV    ?= .venv
TORCH   ?= torch==2.13.0
WORKERS ?= 2
GPU_PYTHON ?= python3
ARGS    ?=

# What each target installs besides the package itself: names of extras in pyproject.toml.
EXTRAS_demo := demo
EXTRAS_test := test,bench,timm,images,transformers,generation,control,demo,triton
EXTRAS_bench := bench
EXTRAS_compare := demo,transformers,generation,control
EXTRAS_lint := dev
EXTRAS_all  := all

BIN := $(VENV)/bin

SHELL := bash
.SHELLFLAGS := -eu -o pipefail -c
.DELETE_ON_ERROR:
.NOTPARALLEL:
.DEFAULT_GOAL := help

.PHONY: help
help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

.PHONY: demo
demo: $(VENV)/installed-demo ## the whole method on real images, with tables, plots and an HTML report
	$(BIN)/weit demo $(ARGS)

.PHONY: compare
compare: $(VENV)/installed-compare ## one recipe, ARGS="--config fashion-resnet --out runs/fashion-resnet", beside all rivals
	$(BIN)/weit compare $(ARGS)

.PHONY: test
test: $(VENV)/installed-test ## the tests, but for the slow ones
	$(BIN)/python -m pytest -n $(WORKERS) -m "not slow and not triton_all" $(ARGS)

.PHONY: test-all
test-all: $(VENV)/installed-test ## all tests
	$(BIN)/python -m pytest -n $(WORKERS) $(ARGS)

.PHONY: test-triton
test-triton: $(VENV)/installed-test ## every check of the Triton kernels, interpreted or on the GPU
	$(BIN)/python -m pytest -n $(WORKERS) tests/weit_kernels/triton $(ARGS)

.PHONY: bench
bench: $(VENV)/installed-bench ## beside dense layers and other packages, in ten minutes; report in runs/bench
	$(BIN)/weit bench --minutes 9.2 $(ARGS)

.PHONY: bench-docs
bench-docs: $(VENV)/installed-bench ## docs/benchmarks.md from benchmarks/results/cpu-*.json
	$(BIN)/python -m benchmarks.report benchmarks/results/cpu-*.json

.PHONY: results-docs
results-docs: $(VENV)/installed-bench ## docs/results.md from benchmarks/results/compare-*.json, and docs/recipes.md
	$(BIN)/python -m weit.report benchmarks/results/compare-*.json docs/results.md
	$(BIN)/python -m benchmarks.recipe_costs docs/recipes.md

# The two targets for a machine with a GPU use the Python that has its torch, and install nothing but this package.
.PHONY: gpu-check
gpu-check: ## on a GPU: build, tests and the suite in nine minutes, with the Python that has torch and CUDA
	$(GPU_PYTHON) -m benchmarks.gpu $(ARGS)

.PHONY: gpu-tune
gpu-tune: ## on a GPU: time the kernels over the suite and keep the choices in weit_kernels/configs
	$(GPU_PYTHON) -m benchmarks.gpu.tune $(ARGS)

.PHONY: lint
lint: $(VENV)/installed-lint ## formatting, lint rules and types
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy

.PHONY: install
install: $(VENV)/installed-all ## everything: all extras and the tools

.PHONY: hooks
hooks: $(VENV)/installed-lint ## have git run `make lint` before each commit
	$(BIN)/pre-commit install

.PHONY: clean
clean: ## remove builds and caches; .venv stays
	rm -rf build dist python/*.egg-info *.egg-info
	rm -rf .mypy_cache .pytest_cache .ruff_cache .hypothesis .benchmarks
	find . -path ./$(VENV) -prune -o -name __pycache__ -type d -exec rm -rf {} +

# torch comes first and its version is written down as a constraint on all that follows: a package that may
# choose its own torch (torchvision does) would bring another, with gigabytes of CUDA libraries.
$(VENV)/torch.txt:
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip "setuptools>=77.0.3" ninja
	$(BIN)/python -m pip install $(TORCH)
	$(BIN)/python -c 'from importlib.metadata import version; print("torch==" + version("torch"))' > $@

# The stamp is written last, so an install that broke off is simply done again. Without -v pip
# would keep to itself what setup.py says: which part of the compiled extension was skipped, and why.
$(VENV)/installed-%: $(VENV)/torch.txt setup.py pyproject.toml $(wildcard csrc/*.* csrc/*/*.*)
	@echo "Installing weit[$(EXTRAS_$*)] into $(VENV); the first time takes a minute or two."
	@$(BIN)/python -m pip install -v -c $(VENV)/torch.txt --no-build-isolation -e ".[$(EXTRAS_$*)]" \
		> $(VENV)/install.log 2>&1 || { tail -n 30 $(VENV)/install.log; exit 1; }
	@sed -n 's/^ *weit: /weit: /p' $(VENV)/install.log
	@touch $@
