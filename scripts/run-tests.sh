#!/usr/bin/env bash
# Runs the test suite of a built preset. Prints one line per test, then what the tests on golden files say they covered
# (their output lines that begin with "golden:"), and last ctest's own summary.
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

covered=$(grep -h '^golden:' "build/$preset/Testing/Temporary/LastTest.log" 2>/dev/null)
if [ -n "$covered" ]; then
  printf '\nGolden files:\n%s\n\n' "$covered"
  sed -n '/% tests passed/,$p' "$log"
fi
exit "$status"
