# make bench         set up, build, run VGG-16 on a photo     BENCH_ARGS="alexnet --image china"
# make test          set up, build, run the tests             TEST_ARGS="-k pool -x"
# make build         set up, build
# make sanitize      the CUDA kernels in the emulator under AddressSanitizer and UndefinedBehaviorSanitizer
# make clean         undo them
#
# On a machine with an NVIDIA GPU:
# make gpu-check     build, all tests, sanitizer, speed, in 25 minutes        CHECK_ARGS="--quick"
# make gpu-baseline  what PyTorch alone reaches, in 5 minutes; sets up and builds nothing     BASELINE_ARGS="--quick"
# make atoms-check   every tensor-core and copy instruction against its model; needs nvcc, no torch
#
# PYTHON=...    the interpreter to start from (default python3): used itself if it has torch >= 2.10, else for .venv
# TEST_JOBS=2   processes that share the tests, of about 1.5 GB each
# PIP_ARGS=...  for pip, e.g. an index of CPU builds of torch
# FASTCONV_CUDA, TORCH_CUDA_ARCH_LIST, MAX_JOBS, CXX reach the build.

PYTHON ?= python3
BENCH_ARGS ?= vgg16 --image china
TEST_ARGS ?=
TEST_JOBS ?= 2
BASELINE_ARGS ?=
CHECK_ARGS ?=

# Prints the interpreter to use, after setting it up; ninja decides what of the extension is stale.
SETUP = python="$$($(PYTHON) build_tools/environment.py)"
BUILD = "$$python" setup.py --quiet build_ext --inplace

export PIP_ARGS
.PHONY: help bench test build sanitize atoms-check clean

help:
	@sed -n '/^# make/s/^# //p' Makefile

build:
	@$(SETUP) && $(BUILD)

bench:
	@$(SETUP) && $(BUILD) && "$$python" -m benchmarks run $(BENCH_ARGS)

test:
	@$(SETUP) && $(BUILD) && "$$python" -m pytest -n $(TEST_JOBS) $(TEST_ARGS)

sanitize:
	@$(SETUP) && $(BUILD) && "$$python" -m tests.sanitize

atoms-check:
	@mkdir -p build && nvcc -std=c++17 -O2 -Icsrc -arch=native tests/cuda/atoms.cu -o build/atoms && build/atoms

.PHONY: gpu-baseline
gpu-baseline:
	@$(PYTHON) -m benchmarks.gpu.baseline $(BASELINE_ARGS)

.PHONY: gpu-check
gpu-check:
	@$(PYTHON) -m benchmarks.gpu.check $(CHECK_ARGS)

clean:
	rm -rf build dist .venv *.egg-info .pytest_cache .hypothesis
	rm -f fastconv/_C*.so fastconv/_C*.pyd fastconv/_build_info.json
	find . -name .git -prune -o -name __pycache__ -type d -prune -exec rm -rf {} +
