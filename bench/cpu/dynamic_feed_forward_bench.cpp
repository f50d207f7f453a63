// The feed-forward of a converted layer (D2DMoE), forward only, with a given share of its experts run by each token, in
// expert sizes from the papers' 4 neurons up. Beside it, in the same run, the dense layer that it was split from.
//
//   bin/bench_cpu --benchmark_filter=DynamicFeedForward

#include "autograd/grad_mode.h"
#include "bench/cpu/common.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"
#include "moe/conversion/dynamic_feed_forward.h"

namespace {

using namespace switchyard;
using namespace switchyard::bench;

constexpr std::int64_t kWidth = 768, kHidden = 3072;

moe::ExpertWeights random_experts(std::int64_t experts) {
  moe::ExpertWeights weights;
  weights.up = normal({experts, kWidth, kHidden / experts});
  weights.down = normal({experts, kHidden / experts, kWidth});
  return weights;
}

/// Arguments: tokens, neurons per expert, percent of the experts that each token runs.
void DynamicFeedForward(benchmark::State& state) {
  const std::int64_t tokens = state.range(0), experts = kHidden / state.range(1);
  const double share = static_cast<double>(state.range(2)) / 100;
  const NoGradGuard no_gradients;
  const moe::DynamicFeedForward layer(random_experts(experts), ops::Activation::relu);
  const Variable x(normal({tokens, kWidth}));
  const Tensor mask = ops::bernoulli({tokens, experts}, generator().next(tokens * experts), share);
  const Tensor up = normal({kHidden, kWidth}), down = normal({kWidth, kHidden});

  double seconds = 0, dense_seconds = 0;
  for (auto _ : state) {
    dense_seconds += seconds_of([&] {
      const Tensor hidden = ops::linear(x.data(), up, {}, {}, ops::Activation::relu);
      benchmark::DoNotOptimize(ops::linear(hidden, down).raw());
    });
    const double own = seconds_of([&] { benchmark::DoNotOptimize(layer.run(x, mask).data().raw()); });
    seconds += own;
    state.SetIterationTime(own);
  }
  state.counters["dense_ms"] = dense_seconds / static_cast<double>(state.iterations()) * 1e3;
  state.counters["of_dense_time"] = seconds / dense_seconds;
  state.counters["of_dense_rate"] = share * dense_seconds / seconds;
}
BENCHMARK(DynamicFeedForward)
    ->ArgsProduct({{1024}, {4, 6, 24, 128}, {10, 25, 100}})
    ->ArgsProduct({{1}, {4, 24, 128}, {10, 25, 100}})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();

}  // namespace
