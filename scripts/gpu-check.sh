#!/usr/bin/env bash
# Builds the CUDA configuration on a machine with a GPU, runs the tests that need one and the GPU benchmarks, writes
# their JSON to a folder and prints a short table last.
#
#   scripts/gpu-check.sh OUTPUT_FOLDER [--no-bench] [gtest filter]
set -uo pipefail
cd "$(dirname "$0")/.."
output=${1:?usage: scripts/gpu-check.sh OUTPUT_FOLDER [--no-bench] [gtest filter]}
shift
bench=yes
if [ "${1:-}" = --no-bench ]; then bench=no; shift; fi
filter=${1:-*}
mkdir -p "$output"
export PATH="$PATH:/usr/local/cuda/bin"

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
cmake --preset cuda -DSWITCHYARD_EXAMPLES=OFF >"$output/configure.log" 2>&1 || { tail -20 "$output/configure.log"; exit 1; }
targets=(cuda_tests)
[ $bench = yes ] && targets+=(bench_gpu)
cmake --build --preset cuda --target "${targets[@]}" >"$output/build.log" 2>&1 || { grep -E 'error|FAILED|warning' "$output/build.log" | head -40; exit 1; }

build/cuda/bin/cuda_tests --gtest_brief=1 --gtest_filter="$filter" >"$output/tests.log" 2>&1
tests=$?
grep -E '^\[  (FAILED|PASSED|SKIPPED)' "$output/tests.log" | sort | uniq | head -40
if [ $bench = yes ]; then build/cuda/bin/bench_gpu --json "$output/bench.json"; fi
exit $tests
