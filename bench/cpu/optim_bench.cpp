// The optimiser's pass over the parameters, bound by memory: the bytes are those that must be read and written.
//
//   bin/bench_cpu --benchmark_filter=AdamW

#include "bench/cpu/common.h"
#include "core/ops/optim.h"

namespace {

using namespace switchyard;
using bench::normal;

/// Arguments: number of parameters, elements of each.
void AdamW(benchmark::State& state, DType dtype) {
  std::vector<ops::AdamWSlot> slots;
  for (std::int64_t i = 0; i < state.range(0); ++i) {
    const Shape shape{state.range(1)};
    ops::AdamWSlot slot{
        normal(shape, dtype), normal(shape, dtype), Tensor::zeros(shape), Tensor::zeros(shape), {}, 0.1};
    if (dtype == DType::bf16) slot.master = slot.parameter.to(DType::f32);
    slots.push_back(slot);
  }
  const Tensor rate = Tensor::full({1}, 1e-3, DType::f64), step = Tensor::full({1}, 10, DType::i64);
  for (auto _ : state) ops::adamw(slots, rate, step, {}, 0.9, 0.98, 1e-8);
  const double elements = static_cast<double>(state.range(0) * state.range(1));
  // Moments and full-precision weights both ways, the gradient in; a bf16 parameter out.
  bench::count_bytes(state, elements * (dtype == DType::bf16 ? 24 + 2 + 2 : 24 + 4));
}
BENCHMARK_CAPTURE(AdamW, f32, DType::f32)
    ->Args({1, 1 << 22})
    ->Args({400, 1 << 10})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);
BENCHMARK_CAPTURE(AdamW, bf16, DType::bf16)->Args({1, 1 << 22})->UseRealTime()->Unit(benchmark::kMicrosecond);

void GlobalNorm(benchmark::State& state) {
  const Tensor x = normal({state.range(0)});
  for (auto _ : state) benchmark::DoNotOptimize(ops::global_norm({x}).raw());
  bench::count_bytes(state, static_cast<double>(x.bytes()));
}
BENCHMARK(GlobalNorm)->Arg(1 << 22)->UseRealTime()->Unit(benchmark::kMicrosecond);

}  // namespace
