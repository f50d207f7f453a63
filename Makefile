# The commands of this repository. `make demo` and `make test` do all of their own set-up; `make help` lists the rest.

# nvcc is often installed without being in PATH.
export PATH := $(PATH):/usr/local/cuda/bin
JOBS ?= $(shell nproc)
FLOORS := $(wildcard core cuda autograd nn distributed moe data train)
SOURCES = $(shell find $(FLOORS) examples tests bench -name '*.h' -o -name '*.cpp' -o -name '*.cu' -o -name '*.cuh')
BUILD = cmake --build --parallel $(JOBS) --preset

.DELETE_ON_ERROR:
.PHONY: help demo test build asan bench cuda format format-check tidy clean dependencies

help: ## list these commands
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  make \1|\2/p' $(firstword $(MAKEFILE_LIST)) | awk -F'|' '{printf "%-20s %s\n", $$1, $$2}'

demo: build/cpu/build.ninja ## train a small SwitchAll language model and let it write (about five minutes)
	@$(BUILD) cpu --target train_lm generate
	build/cpu/bin/train_lm --config configs/demo.json

test: build ## build everything and run the whole test suite
	@scripts/run-tests.sh cpu $(JOBS)

build: build/cpu/build.ninja ## build everything for the CPU, into build/cpu
	@$(BUILD) cpu

asan: build/debug-asan/build.ninja ## run the test suite under AddressSanitizer and UBSan
	@$(BUILD) debug-asan
	@scripts/run-tests.sh debug-asan $(JOBS)

bench: ## build and run the CPU benchmarks
	@scripts/install-dependencies.sh build bench
	@cmake --preset cpu
	@$(BUILD) cpu --target bench_cpu
	build/cpu/bin/bench_cpu

cuda: build/cuda/build.ninja ## build with the CUDA backend, into build/cuda (needs nvcc)
	@$(BUILD) cuda

format: ## format all sources with clang-format
	@scripts/install-dependencies.sh format
	clang-format -i $(SOURCES)

format-check: ## fail if a source is not formatted
	@scripts/install-dependencies.sh format
	clang-format --dry-run --Werror $(SOURCES)

tidy: build/cpu/build.ninja ## run clang-tidy over the floors
	@scripts/install-dependencies.sh tidy
	find $(FLOORS) -name '*.cpp' | xargs -P $(JOBS) -n 1 clang-tidy --quiet -p build/cpu --extra-arg=-Wno-unknown-warning-option

clean: ## delete all build folders
	rm -rf build

# Configuring happens once per build folder: afterwards ninja itself runs CMake again when it has to.
build/%/build.ninja: | dependencies
	@cmake --preset $*

dependencies:
	@scripts/install-dependencies.sh
