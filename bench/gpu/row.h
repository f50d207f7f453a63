#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "bench/gpu/timer.h"
#include "core/tensor.h"

namespace switchyard::bench {

/// What one benchmark found. What does not apply is 0.
struct Row {
  double ms = 0;
  double dense_ms = 0;  ///< dense cuBLAS products of the same multiply-adds
  double flops = 0;     ///< useful floating-point operations of one call
  double bytes = 0;     ///< that one call has to read or write at least
  double tokens = 0;
  double peak_mib = 0;
};

struct Benchmark {
  std::string name;
  std::function<Row()> run;
};

std::vector<Benchmark> layer_benchmarks();
std::vector<Benchmark> training_benchmarks();
std::vector<Benchmark> attention_benchmarks();
std::vector<Benchmark> expert_matmul_benchmarks();
std::vector<Benchmark> dynamic_feed_forward_benchmarks();
std::vector<Benchmark> decoding_benchmarks();
std::vector<Benchmark> kernel_benchmarks();

/// Uniform in [-1, 1): products of zeros would take less power, and so less time.
Tensor random_tensor(const Shape& shape, DType dtype = DType::bf16);
/// i64 in 0 .. count - 1.
Tensor random_ids(const Shape& shape, std::int64_t count);

/// Peak of the device's memory since the last reset, in MiB.
double peak_mib();

/// Time of dense products [n, k] x [k, m], for each (k, m); with both gradients if `training`.
double dense_ms(std::int64_t n, const std::vector<std::pair<std::int64_t, std::int64_t>>& products, bool training);

/// Median time of call(operands) in a row of calls, so that launching hides behind running. Each call finds other
/// operands than the one before: so many sets that together they do not fit the L2 cache. make() makes one set, of
/// about `bytes` bytes.
template <class Make, class Call>
double rotating_ms(double bytes, Make make, Call call) {
  constexpr double kFarMoreThanL2 = 200e6;
  constexpr int kCalls = 8;
  const auto count = static_cast<std::size_t>(std::clamp(kFarMoreThanL2 / bytes, 1.0, 24.0));
  std::vector<decltype(make())> sets;
  for (std::size_t i = 0; i < count; ++i) sets.push_back(make());
  std::size_t next = 0;
  const auto calls = [&] {
    for (int i = 0; i < kCalls; ++i) call(sets[next++ % count]);
  };
  return median_ms(calls) / kCalls;
}

}  // namespace switchyard::bench
