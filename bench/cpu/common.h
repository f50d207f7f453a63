#pragma once

#include <benchmark/benchmark.h>

#include "core/ops/random.h"
#include "core/rng.h"

namespace switchyard::bench {

/// Normally distributed numbers of deviation 0.1, small enough that long sums of products stay in range.
inline Tensor normal(const Shape& shape, DType dtype = DType::f32) {
  static Generator generator(1);
  return ops::normal(shape, generator.next(shape.numel()), 0, 0.1, dtype);
}

/// Prints the rate of a benchmark that does `flops` operations an iteration.
inline void count_flops(benchmark::State& state, double flops) {
  state.counters["GFLOP/s"] = benchmark::Counter(flops * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

/// Prints the rate of a benchmark that reads and writes `bytes` an iteration.
inline void count_bytes(benchmark::State& state, double bytes) {
  state.counters["GB/s"] = benchmark::Counter(bytes * 1e-9, benchmark::Counter::kIsIterationInvariantRate);
}

}  // namespace switchyard::bench
