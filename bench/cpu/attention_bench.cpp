// Attention on the CPU, causal, forward and forward + backward, and single-token decoding. FLOPs are those of the
// visible half of the two (backward: five more) products, so a kernel that computes the hidden half too cannot look
// better.
//
//   bin/bench_cpu --benchmark_filter=Attention

#include <benchmark/benchmark.h>

#include <cmath>

#include "core/ops/attention.h"
#include "core/ops/random.h"
#include "core/rng.h"

namespace {

using namespace switchyard;

struct Inputs {
  Tensor query, key, value, dout;
  ops::AttentionOptions options;
};

/// Arguments: batch, length, heads, head width, 1 for Transformer-XL positions.
Inputs inputs(const benchmark::State& state, std::int64_t queries) {
  static Generator generator(1);
  const std::int64_t length = state.range(1), heads = state.range(2), width = state.range(3);
  const auto normal = [&](const Shape& shape) { return ops::normal(shape, generator.next(shape.numel())); };
  Inputs in = {normal({state.range(0), queries, heads, width}),
               normal({state.range(0), length, heads, width}),
               normal({state.range(0), length, heads, width}),
               normal({state.range(0), queries, heads, width}),
               {}};
  in.options.scale = 1 / std::sqrt(static_cast<double>(width));
  in.options.causal = true;
  in.options.query_offset = length - queries;
  if (state.range(4)) {
    in.options.position_key = normal({length, heads, width});
    in.options.position_zero = length - 1;
  }
  return in;
}

void count_flops(benchmark::State& state, double products) {
  const double pairs = 0.5 * static_cast<double>(state.range(0) * state.range(1) * state.range(1) * state.range(2));
  state.counters["FLOP/s"] = benchmark::Counter(2 * products * pairs * static_cast<double>(state.range(3)),
                                                benchmark::Counter::kIsIterationInvariantRate);
}

void AttentionForward(benchmark::State& state) {
  const Inputs in = inputs(state, state.range(1));
  for (auto _ : state) benchmark::DoNotOptimize(ops::attention(in.query, in.key, in.value, in.options).out.raw());
  count_flops(state, state.range(4) ? 3 : 2);
}

void AttentionForwardBackward(benchmark::State& state) {
  const Inputs in = inputs(state, state.range(1));
  for (auto _ : state) {
    const auto forward = ops::attention(in.query, in.key, in.value, in.options);
    const auto backward = ops::attention_backward(in.dout, in.query, in.key, in.value, forward, in.options);
    benchmark::DoNotOptimize(backward.dquery.raw());
  }
  count_flops(state, state.range(4) ? 11 : 7);
}

void AttentionDecodeOneToken(benchmark::State& state) {
  const Inputs in = inputs(state, 1);
  for (auto _ : state) benchmark::DoNotOptimize(ops::attention(in.query, in.key, in.value, in.options).out.raw());
}

void sizes(benchmark::internal::Benchmark* benchmark) {
  benchmark->Args({16, 128, 2, 64, 0})
      ->Args({8, 256, 4, 32, 0})
      ->Args({8, 256, 4, 32, 1})
      ->Args({4, 512, 8, 64, 0})
      ->Args({1, 2048, 4, 112, 0})
      ->Unit(benchmark::kMicrosecond)
      ->UseRealTime();
}
BENCHMARK(AttentionForward)->Apply(sizes);
BENCHMARK(AttentionForwardBackward)->Apply(sizes);
BENCHMARK(AttentionDecodeOneToken)->Args({1, 256, 4, 32, 0})->Args({1, 4096, 8, 64, 0})->UseRealTime();

}  // namespace
