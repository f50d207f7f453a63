// Expert matmul, forward and backward, as a mixture-of-experts feed-forward uses it: up with ReLU to one row per pair,
// down weighted into one row per token, and the gradients of x, both weights and the gates. Beside it, in the same run,
// the GEMM library's own rate on (a) the dense feed-forward of equal FLOPs and (b) a square product.
//
//   bin/bench_cpu --benchmark_filter=ExpertMatmul

#include "bench/cpu/common.h"
#include "core/ops/elementwise.h"
#include "core/ops/expert_matmul.h"
#include "core/ops/matmul.h"
#include "core/ops/random.h"

namespace {

using namespace switchyard;
using namespace switchyard::bench;

struct Layer {
  Tensor x, up, down, gates, dy;
  ops::RoutingPlan plan;
};

Layer layer(std::int64_t tokens, std::int64_t width, std::int64_t experts, std::int64_t expert_width, std::int64_t k) {
  const Tensor scores = normal({tokens, experts});
  const Tensor indices = ops::top_k(scores, k);
  return {normal({tokens, width}),
          normal({experts, width, expert_width}),
          normal({experts, expert_width, width}),
          normal({tokens, k}),
          normal({tokens, width}),
          ops::routing_plan(indices, experts)};
}

void forward_and_backward(const Layer& layer) {
  using ops::Rows;
  const ops::ExpertMatmulOptions up = {Rows::token, Rows::pair, ops::Activation::relu};
  const ops::ExpertMatmulOptions up_backward = {Rows::token, Rows::pair};
  const ops::ExpertMatmulOptions down = {Rows::pair, Rows::token};
  const Tensor hidden = ops::expert_matmul(layer.x, layer.up, {}, {}, layer.plan, up);
  const Tensor y = ops::expert_matmul(hidden, layer.down, {}, layer.gates, layer.plan, down);
  const auto inner =
      ops::expert_matmul_input_backward(layer.dy, hidden, layer.down, {}, layer.gates, layer.plan, down, true, true);
  const auto ddown = ops::expert_matmul_weight_backward(layer.dy, hidden, layer.gates, layer.plan, down, false);
  const Tensor dhidden = ops::unary_backward(ops::Unary::relu, inner.dx, hidden);
  const auto outer =
      ops::expert_matmul_input_backward(dhidden, layer.x, layer.up, {}, {}, layer.plan, up_backward, true, false);
  const auto dup = ops::expert_matmul_weight_backward(dhidden, layer.x, {}, layer.plan, up_backward, false);
  benchmark::DoNotOptimize(y.raw());
}

/// The six products of the dense feed-forward with k expert widths.
void dense_products(const Tensor& x, const Tensor& up, const Tensor& down, const Tensor& hidden, const Tensor& out,
                    const Tensor& dup, const Tensor& ddown) {
  ops::matmul_into(x, up, hidden);
  ops::matmul_into(hidden, down, out);
  ops::matmul_into(out, down.transpose(0, 1), hidden);
  ops::matmul_into(hidden.transpose(0, 1), out, ddown);
  ops::matmul_into(hidden, up.transpose(0, 1), out);
  ops::matmul_into(x.transpose(0, 1), hidden, dup);
}

/// Arguments: tokens, width, experts, expert width, k.
void ExpertMatmulForwardBackward(benchmark::State& state) {
  const std::int64_t tokens = state.range(0), width = state.range(1), experts = state.range(2);
  const std::int64_t expert_width = state.range(3), k = state.range(4), hidden_width = k * expert_width;
  const Layer moe = layer(tokens, width, experts, expert_width, k);
  const Tensor up = normal({width, hidden_width}), down = normal({hidden_width, width});
  const Tensor hidden = Tensor::empty({tokens, hidden_width}), out = Tensor::empty({tokens, width});
  const Tensor dup = Tensor::empty_like(up), ddown = Tensor::empty_like(down);
  const std::int64_t side = 1024;
  const Tensor a = normal({side, side}), b = normal({side, side}), square = Tensor::empty({side, side});

  double expert_seconds = 0, dense_seconds = 0, square_seconds = 0;
  for (auto _ : state) {
    dense_seconds += seconds_of([&] { dense_products(moe.x, up, down, hidden, out, dup, ddown); });
    square_seconds += seconds_of([&] { ops::matmul_into(a, b, square); });
    const double seconds = seconds_of([&] { forward_and_backward(moe); });
    expert_seconds += seconds;
    state.SetIterationTime(seconds);
  }
  const double runs = static_cast<double>(state.iterations());
  const double flops = 12.0 * static_cast<double>(tokens * k * width * expert_width) * runs;
  const double square_flops = 2.0 * static_cast<double>(side * side * side) * runs;
  state.counters["GFLOP/s"] = flops / expert_seconds * 1e-9;
  state.counters["dense_GFLOP/s"] = flops / dense_seconds * 1e-9;
  state.counters["square_GFLOP/s"] = square_flops / square_seconds * 1e-9;
  state.counters["of_dense"] = dense_seconds / expert_seconds;
  state.counters["of_square"] = flops / expert_seconds / (square_flops / square_seconds);
}
BENCHMARK(ExpertMatmulForwardBackward)
    ->Args({4096, 512, 16, 128, 4})
    ->Args({1024, 128, 16, 64, 4})
    ->Args({4096, 1024, 32, 128, 4})
    ->Args({4096, 512, 64, 64, 8})
    ->Unit(benchmark::kMillisecond)
    ->UseManualTime();

}  // namespace
