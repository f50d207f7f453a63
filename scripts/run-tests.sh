#!/usr/bin/env bash
# Runs the test suite of a built preset. Prints one line per test, then what the tests on golden files say they covered
# (their output lines that begin with "golden:"), how many tests were skipped for want of a GPU, and last ctest's own
# summary.
#
#   scripts/run-tests.sh PRESET [JOBS] [ctest arguments...]
set -uo pipefail
cd "$(dirname "$0")/.."
preset=${1:?usage: scripts/run-tests.sh PRESET [JOBS] [ctest arguments...]}
jobs=${2:-$(nproc)}
shift $(($# < 2 ? $# : 2))

log=build/$preset/Testing/run-tests.log
mkdir -p "$(dirname "$log")"
ctest --preset "$preset" -j "$jobs" "$@" 2>&1 | grep --line-buffered -v '^ *Start *[0-9]*: ' | tee "$log"
status=${PIPESTATUS[0]}

everything=build/$preset/Testing/Temporary/LastTest.log
covered=$(grep -h '^golden:' "$everything" 2>/dev/null)
skipped=$(awk '/^[0-9]+ tests skipped: no GPU/ {sum += $1} END {print sum}' "$everything" 2>/dev/null)
if [ -n "$covered" ]; then printf '\nGolden files:\n%s\n' "$covered"; fi
if [ -n "$skipped" ]; then printf '\nThe skipped cuda.<folder> are %s tests: no GPU, or a build without CUDA\n' "$skipped"; fi
if [ -n "$covered$skipped" ]; then
  echo
  sed -n '/% tests passed/,$p' "$log"
fi
exit "$status"
