#!/usr/bin/env bash
# Trains two dense language models, with ReLU and with GELU, and converts them in the ways that docs/d2dmoe.md compares.
# Each conversion leaves OUTPUT/<name>/sweep.json.
#
#   scripts/d2dmoe-comparison.sh OUTPUT DENSE_CONFIG CONVERSION_CONFIG [KEY=VALUE...]   overrides of the dense models
#   scripts/d2dmoe-comparison.sh results configs/english-gpt-43m.json configs/d2dmoe-gpt.json
#   BIN=build/cpu/bin WIDTHS="4 16 64" scripts/d2dmoe-comparison.sh results configs/demo-dense.json configs/d2dmoe-demo.json
#
# BIN is the folder of the programs, WIDTHS the experts' widths that are compared, JOBS how many programs run at once (as
# many as there are GPUs). With more than one job to a GPU the times in the sweeps mean nothing.
set -uo pipefail
cd "$(dirname "$0")/.."
usage="usage: scripts/d2dmoe-comparison.sh OUTPUT DENSE_CONFIG CONVERSION_CONFIG [KEY=VALUE...]"
: "${3:?$usage}"
output=$(realpath -m "$1")
dense=$2
conversion=$3
shift 3
bin=${BIN:-build/cuda/bin}
for file in "$bin/train_lm" "$bin/convert" "$dense" "$conversion"; do
  if [ ! -f "$file" ]; then
    echo "d2dmoe-comparison: $file: no such file" >&2
    exit 1
  fi
done
gpus=$(nvidia-smi -L 2>/dev/null | wc -l)
jobs=${JOBS:-$((gpus > 0 ? gpus : 1))}
overrides=()
for override in "$@"; do overrides+=(--set "$override"); done
mkdir -p "$output"
failures=$output/failures.txt # names, one a line
: >"$failures"
started=0

start() { # command...: in the background, on the GPUs in turn
  while [ "$(jobs -rp | wc -l)" -ge "$jobs" ]; do wait -n; done
  if [ "$gpus" -gt 0 ]; then export CUDA_VISIBLE_DEVICES=$((started % gpus)); fi
  started=$((started + 1))
  "$@" &
}

report() { # name status
  if [ "$2" -eq 0 ]; then echo "$SECONDS s: $1"; return; fi
  echo "$SECONDS s: $1 failed: $(tail -1 "$output/$1.log")"
  echo "$1" >>"$failures"
}

train() { # name override...
  local name=$1
  "$bin/train_lm" --config "$dense" "${overrides[@]}" --set output.folder="$output/$name" --set output.sample_length=0 \
    "${@:2}" >"$output/$name.log" 2>&1
  local status=$?
  report "$name" $status
  if [ $status -eq 0 ]; then ln -sfn "$(basename "$output/$name"/*-*)" "$output/$name/run"; fi
}

convert() { # name source phases override...
  "$bin/convert" --config "$conversion" --model "$output/$2" --out "$output/$1" --set "phases=[$3]" "${@:4}" \
    >"$output/$1.log" 2>&1
  report "$1" $?
}

start train relu
start train gelu --set model.feedforward.activation=gelu
wait
start convert sparse relu/run '"sparsify"'
start convert tuned relu/run '"sparsify"' --set sparsify.weight=0
start convert sparse-gelu gelu/run '"sparsify"'
start convert sparse-swapped gelu/run '"sparsify"' --set sparsify.swap_to_relu=true
start convert sparse-projections relu/run '"projections","sparsify"'
wait
split='"experts","routers"'
start convert d2dmoe sparse "$split" --set sweep.tau_by_layer=true
start convert moefication relu/run "$split" --set routers.kind=moefication
start convert sparse-moefication sparse "$split" --set routers.kind=moefication
start convert not-sparse relu/run "$split"
start convert not-penalised tuned "$split"
widths=${WIDTHS:-4 8 128}
for width in $widths; do
  start convert "experts-of-$width" sparse "$split" --set experts.expert_width="$width"
done
start convert gelu-d2dmoe sparse-gelu "$split"
start convert gelu-to-relu sparse-swapped "$split"
start convert projections sparse-projections "$split" --set sweep.tau_by_layer=true
wait
start convert adapted d2dmoe '"adapt"' --set sweep.tau_by_layer=true
widest=${widths##* }
start convert "adapted-$widest" "experts-of-$widest" '"adapt"' --set 'adapt.taus=[0.4,0.6,0.8,0.9]'
start convert projections-adapted projections '"adapt"' --set 'adapt.taus=[0.8,0.9,0.95,0.98]' --set sweep.tau_by_layer=true
wait
[ ! -s "$failures" ]
