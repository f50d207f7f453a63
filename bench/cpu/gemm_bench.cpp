// Matrix products: the BLAS library's own rate through ops::matmul_into, in every dtype, for squares and for the shapes
// of a transformer layer (forward, and the two transposed products of its backward pass), and batches of small ones.
//
//   bin/bench_cpu --benchmark_filter=Gemm

#include "bench/cpu/common.h"
#include "core/ops/loss.h"
#include "core/ops/matmul.h"

namespace {

using namespace switchyard;
using bench::normal;

double product_flops(std::int64_t m, std::int64_t n, std::int64_t k) {
  return 2.0 * static_cast<double>(m) * static_cast<double>(n) * static_cast<double>(k);
}

/// Arguments: m, n, k. `transposed` names the operands that are stored transposed.
void Gemm(benchmark::State& state, DType dtype, const std::string& transposed) {
  const std::int64_t m = state.range(0), n = state.range(1), k = state.range(2);
  const bool a_transposed = transposed.find('a') != std::string::npos;
  const bool b_transposed = transposed.find('b') != std::string::npos;
  const Tensor a = a_transposed ? normal({k, m}, dtype).transpose(0, 1) : normal({m, k}, dtype);
  const Tensor b = b_transposed ? normal({n, k}, dtype).transpose(0, 1) : normal({k, n}, dtype);
  const Tensor out = Tensor::empty({m, n}, dtype);
  for (auto _ : state) ops::matmul_into(a, b, out);
  bench::count_flops(state, product_flops(m, n, k));
}

void squares(benchmark::internal::Benchmark* benchmark) {
  for (const std::int64_t side : {32, 64, 128, 256, 512, 1024, 2048}) benchmark->Args({side, side, side});
  benchmark->UseRealTime()->Unit(benchmark::kMicrosecond);
}

void layers(benchmark::internal::Benchmark* benchmark) {
  benchmark->Args({4096, 128, 128})->Args({4096, 512, 128})->Args({4096, 512, 512})->Args({128, 512, 4096});
  benchmark->UseRealTime()->Unit(benchmark::kMicrosecond);
}

BENCHMARK_CAPTURE(Gemm, f32, DType::f32, "")->Apply(squares);
BENCHMARK_CAPTURE(Gemm, f64, DType::f64, "")->Apply(squares);
BENCHMARK_CAPTURE(Gemm, bf16, DType::bf16, "")->Apply(squares);
BENCHMARK_CAPTURE(Gemm, f32_layer, DType::f32, "")->Apply(layers);
BENCHMARK_CAPTURE(Gemm, f32_layer_a_transposed, DType::f32, "a")->Apply(layers);
BENCHMARK_CAPTURE(Gemm, f32_layer_b_transposed, DType::f32, "b")->Apply(layers);

/// Arguments: batch, m, n, k.
void GemmBatched(benchmark::State& state) {
  const std::int64_t batch = state.range(0), m = state.range(1), n = state.range(2), k = state.range(3);
  const Tensor a = normal({batch, m, k}), b = normal({batch, k, n});
  for (auto _ : state) benchmark::DoNotOptimize(ops::matmul(a, b).raw());
  bench::count_flops(state, static_cast<double>(batch) * product_flops(m, n, k));
}
BENCHMARK(GemmBatched)
    ->Args({512, 16, 16, 16})
    ->Args({128, 128, 128, 32})
    ->Args({16, 256, 256, 256})
    ->UseRealTime()
    ->Unit(benchmark::kMicrosecond);

/// Loss and gradients of the output projection. Arguments: tokens, width, vocabulary. Three products.
void LinearCrossEntropy(benchmark::State& state) {
  const std::int64_t tokens = state.range(0), width = state.range(1), classes = state.range(2);
  const Tensor x = normal({tokens, width}), w = normal({classes, width});
  const Tensor targets = Tensor::zeros({tokens}, DType::i64);
  for (auto _ : state) benchmark::DoNotOptimize(ops::linear_cross_entropy(x, w, {}, targets, -100, true).dw.raw());
  bench::count_flops(state, 3 * product_flops(tokens, classes, width));
}
BENCHMARK(LinearCrossEntropy)
    ->Args({4096, 128, 256})
    ->Args({4096, 512, 8000})
    ->UseRealTime()
    ->Unit(benchmark::kMillisecond);

}  // namespace
