#pragma once

#include <benchmark/benchmark.h>

#include <chrono>

#include "core/ops/random.h"
#include "core/rng.h"

namespace switchyard::bench {

/// Where the benchmarks' random numbers come from.
inline Generator& generator() {
  static Generator instance(1);
  return instance;
}

/// Normally distributed numbers of deviation 0.1, small enough that long sums of products stay in range.
inline Tensor normal(const Shape& shape, DType dtype = DType::f32) {
  return ops::normal(shape, generator().next(shape.numel()), 0, 0.1, dtype);
}

/// How long `work` takes, for what is timed in turns within one benchmark.
inline double seconds_of(const auto& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
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
