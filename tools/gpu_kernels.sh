#!/usr/bin/env bash
# Kernels of one GPU benchmark by time, per grid size, from Nsight Compute: calls, total and mean microseconds, share.
#
#   tools/gpu_kernels.sh ROW_NAME [FIRST_LAUNCH] [LAUNCHES]
set -euo pipefail
cd "$(dirname "$0")/.."
row=${1:?usage: tools/gpu_kernels.sh ROW_NAME [FIRST_LAUNCH] [LAUNCHES]}
ncu --csv --clock-control none --metrics gpu__time_duration.sum --launch-skip "${2:-60}" --launch-count "${3:-200}" \
  build/cuda/bin/bench_gpu --only "$row" 2>/dev/null | python3 -c '
import collections, csv, sys
lines = [line for line in sys.stdin if line.startswith("\"")]
sums, calls = collections.Counter(), collections.Counter()
for record in csv.DictReader(lines):
    name = record["Kernel Name"].split("<unnamed>::")[-1].split("(anonymous namespace)::")[-1][:48]
    name += "  grid " + record["Grid Size"].replace(" ", "")
    unit = {"ns": 1e-3, "nsecond": 1e-3, "us": 1, "usecond": 1, "ms": 1e3, "msecond": 1e3}[record["Metric Unit"]]
    sums[name] += float(record["Metric Value"].replace(",", "")) * unit
    calls[name] += 1
total = sum(sums.values())
for name, us in sums.most_common(16):
    print(f"{us / total:6.1%} {calls[name]:5d} calls {us / calls[name]:10.1f} us each  {name}")
'
