#!/usr/bin/env bash
# Builds the CUDA configuration on a machine with a GPU, runs every test on the GPU and then the GPU benchmarks, writes
# logs and the benchmarks' JSON to a folder and prints a short table last. Needs no compiled Boost libraries; where it
# finds Boost.Program_options, the tests run the example programs too, else these are counted as skipped.
#
#   scripts/gpu-check.sh OUTPUT_FOLDER [--no-bench] [gtest filter]
#   scripts/gpu-check.sh OUTPUT_FOLDER --sanitize memcheck|racecheck|initcheck [gtest filter]
#
# The second form runs the tests of the ops alone, under NVIDIA's compute-sanitizer.
set -uo pipefail
cd "$(dirname "$0")/.." || exit
usage="usage: scripts/gpu-check.sh OUTPUT_FOLDER [--no-bench | --sanitize memcheck|racecheck|initcheck] [gtest filter]"
: "${1:?$usage}"
output=$(realpath -m "$1")
shift
bench=yes
tool=
case ${1:-} in
  --no-bench)
    bench=no
    shift
    ;;
  --sanitize)
    bench=no
    tool=${2:?$usage}
    shift 2
    ;;
  --*)
    echo "gpu-check: $1 is unknown; $usage" >&2
    exit 2
    ;;
esac
if ! command -v nvidia-smi >/dev/null; then
  echo "gpu-check: nvidia-smi is missing, expected a machine with an NVIDIA GPU" >&2
  exit 1
fi
filter=${1:-*}
mkdir -p "$output"
export PATH="$PATH:/usr/local/cuda/bin"

folders="core autograd nn moe golden train cuda"
if [ -n "$tool" ]; then folders="core cuda"; fi
targets=()
for folder in $folders; do targets+=("${folder}_tests"); done
if [ $bench = yes ]; then targets+=(bench_gpu); fi

nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
architecture=$(nvidia-smi --query-gpu=compute_cap --format=csv,noheader | head -1 | tr -d .) # of this GPU alone: builds faster
if [ "$architecture" = 90 ]; then architecture=90a; fi
racecheck=OFF
if [ "$tool" = racecheck ]; then racecheck=ON; fi
if ! cmake --preset cuda -DSWITCHYARD_EXAMPLES=ON -DSWITCHYARD_CUDA_ARCHITECTURES="$architecture" \
  -DSWITCHYARD_RACECHECK=$racecheck >"$output/configure.log" 2>&1; then
  tail -20 "$output/configure.log"
  exit 1
fi
if ! cmake --build --preset cuda --target "${targets[@]}" >"$output/build.log" 2>&1; then
  grep -E 'error|FAILED|warning' "$output/build.log" | head -40
  exit 1
fi

# What stands behind "-" in a filter of ctest's, such as "--gtest_filter=-Schedule*:Init*".
without() { ctest --test-dir build/cuda -N -V -R "^cuda.$1\$" | sed -n 's/.*gtest_filter=-\([^" ]*\).*/\1/p' | head -1; }

# The sanitizers are slow and leave the GPU idle most of the time, so that the tests of a folder share it there.
shards=1
if [ -n "$tool" ]; then shards=$((($(getconf _NPROCESSORS_ONLN) + 3) / 4)); fi

failed=0
table=
for folder in $folders; do
  run=(build/cuda/bin/${folder}_tests "--gtest_filter=$filter-$(without "$folder")")
  if [ -n "$tool" ]; then
    run[1]+=":*CudaStep*:CudaTraining*:CudaKernelTrace*" # not of single ops; some watch the driver, as the tool does
    run=(compute-sanitizer --tool "$tool" --error-exitcode 99 --print-limit 20 "${run[@]}")
  fi
  device=cuda
  if [ "$folder" = cuda ]; then device=cpu; fi # which compares both devices itself
  start=$SECONDS
  processes=()
  for ((shard = 0; shard < shards; shard++)); do
    GTEST_TOTAL_SHARDS=$shards GTEST_SHARD_INDEX=$shard SWITCHYARD_TEST_DEVICE=$device "${run[@]}" \
      >"$output/$folder${tool:+.$tool}.$shard.log" 2>&1 &
    processes+=($!)
  done
  status=0
  for process in "${processes[@]}"; do wait "$process" || status=$?; done
  if [ $status -ne 0 ]; then failed=1; fi
  logs=("$output/$folder${tool:+.$tool}".[0-9]*.log)
  count() { cat "${logs[@]}" | grep "^\[ *$1" | grep -c ' ms)$'; }
  table+=$(printf '%-10s %8s %8s %8s %8s %8s' "$folder" "$(count OK)" "$(count FAILED)" "$(count SKIPPED)" $status $((SECONDS - start)))$'\n'
  if [ -n "$tool" ]; then grep -h -E 'ERROR SUMMARY|RACECHECK SUMMARY' "${logs[@]}"; fi
done

if [ $bench = yes ]; then build/cuda/bin/bench_gpu --json "$output/bench.json"; fi
grep -h '^\[  FAILED' "$output"/*.log | grep ' ms)$' | head -30
printf '%-10s %8s %8s %8s %8s %8s\n%s' folder passed failed skipped status seconds "$table"
exit $failed
