#!/usr/bin/env bash
# Runs the test suite of a built preset. Ends with ctest's own summary.
#
#   scripts/run-tests.sh PRESET [JOBS] [ctest arguments...]
set -euo pipefail
preset=${1:?usage: scripts/run-tests.sh PRESET [JOBS] [ctest arguments...]}
jobs=${2:-$(nproc)}
shift $(($# < 2 ? $# : 2))
exec ctest --preset "$preset" -j "$jobs" "$@"
