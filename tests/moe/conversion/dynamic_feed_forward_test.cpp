#include "moe/conversion/dynamic_feed_forward.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/grad_mode.h"
#include "core/ops/reduce.h"
#include "moe/conversion/cost.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using ops::Activation;
using testing::element;
using testing::random_tensor;
using testing::tensor_of;

constexpr std::int64_t kWidth = 6, kExperts = 5, kNeurons = 3, kOutput = 7;

ExpertWeights random_weights(bool gated, DType dtype = DType::f64) {
  ExpertWeights weights;
  weights.up = random_tensor({kExperts, kWidth, kNeurons}, 1, dtype);
  weights.up_bias = random_tensor({kExperts, kNeurons}, 2, dtype);
  weights.down = random_tensor({kExperts, kNeurons, kOutput}, 3, dtype);
  weights.last_bias = random_tensor({kOutput}, 4, dtype);
  if (!gated) return weights;
  weights.gate = random_tensor({kExperts, kWidth, kNeurons}, 5, dtype);
  weights.gate_bias = random_tensor({kExperts, kNeurons}, 6, dtype);
  return weights;
}

/// The layer by its formula, with relu.
Tensor naive(const Tensor& rows, const ExpertWeights& weights, const Tensor& mask) {
  const auto product = [&](const Tensor& weight, const Tensor& bias, std::int64_t row, std::int64_t e, std::int64_t s) {
    double sum = element(bias, {e, s});
    for (std::int64_t d = 0; d < kWidth; ++d) sum += element(rows, {row, d}) * element(weight, {e, d, s});
    return sum;
  };
  return tensor_of({rows.size(0), kOutput}, [&](const Shape& at) {
    double sum = element(weights.last_bias, {at[1]});
    for (std::int64_t e = 0; e < kExperts; ++e)
      for (std::int64_t s = 0; s < kNeurons && element(mask, {at[0], e}) != 0; ++s) {
        const double up = product(weights.up, weights.up_bias, at[0], e, s);
        const double hidden = weights.gated()
                                  ? std::max(0.0, product(weights.gate, weights.gate_bias, at[0], e, s)) * up
                                  : std::max(0.0, up);
        sum += hidden * element(weights.down, {e, s, at[1]});
      }
    return sum;
  });
}

TEST(DynamicFeedForward, EveryGateEqualsTheFormula) {
  const Tensor x = random_tensor({2, 4, kWidth}, 7), rows = x.view({8, kWidth});
  for (const bool gated : {false, true}) {
    DynamicFeedForward layer(random_weights(gated), Activation::relu);
    for (const Gate& gate : {Gate{GateMode::all}, Gate{GateMode::topk, 2}, Gate{GateMode::dynk, 1, 0.6},
                             Gate{GateMode::dynk_max, 1, 0.5}}) {
      layer.set_gate(gate);
      const Tensor mask = ops::expert_mask(layer.router().forward(Variable(rows)).data(), gate);
      const Tensor out = layer.forward(Variable(x)).output.data();
      EXPECT_CLOSE(out.view({8, kOutput}), naive(rows, random_weights(gated), mask), 1e-12);
      const NoGradGuard no_gradients;
      EXPECT_CLOSE(layer.forward(Variable(x)).output.data(), out, 1e-12);
    }
  }
}

TEST(DynamicFeedForward, OneTokenAtATimeGivesTheSameRows) {
  DynamicFeedForward layer(random_weights(false), Activation::gelu);
  layer.set_gate({GateMode::dynk_max, 1, 0.6});
  const Tensor x = random_tensor({1, 5, kWidth}, 8), whole = layer.forward(Variable(x)).output.data();
  for (std::int64_t t = 0; t < 5; ++t)
    EXPECT_CLOSE(layer.forward(Variable(x.slice(1, t, t + 1))).output.data(), whole.slice(1, t, t + 1), 1e-12);
}

TEST(DynamicFeedForward, AnObserverSeesItsRows) {
  DynamicFeedForward layer(random_weights(false), Activation::relu);
  const Tensor x = random_tensor({2, 4, kWidth}, 7);
  Tensor seen;
  layer.set_observer([&](const Tensor& rows) { seen = rows; });
  layer.forward(Variable(x));
  EXPECT_CLOSE(seen, x.view({8, kWidth}), 0);
  layer.set_observer({});
  layer.forward(Variable(random_tensor({1, 1, kWidth}, 8)));
  EXPECT_EQ(seen.size(0), 8);
}

TEST(DynamicFeedForward, ExpertsThatAreNotChosenDoNotRun) {
  ExpertWeights weights = random_weights(false);
  for (const Tensor& tensor : {weights.up, weights.up_bias, weights.down}) tensor.select(0, 2).fill(NAN);
  const DynamicFeedForward layer(weights, Activation::relu);
  const Tensor mask = Tensor::full({2, kExperts}, 1, DType::boolean);
  mask.select(1, 2).fill(0);
  const Variable x(random_tensor({2, kWidth}, 9));
  {
    const NoGradGuard no_gradients;
    EXPECT_EQ(ops::count_nonfinite(layer.run(x, mask).data()).item<int>(), 0);
  }
  EXPECT_EQ(ops::count_nonfinite(layer.run(x, mask).data()).item<int>(), 0);
  mask.select(1, 2).fill(1);
  EXPECT_GT(ops::count_nonfinite(layer.run(x, mask).data()).item<int>(), 0);
}

TEST(DynamicFeedForward, AResidualIsAddedWithAndWithoutGradients) {
  ExpertWeights weights = random_weights(false);
  weights.down = random_tensor({kExperts, kNeurons, kWidth}, 3);
  weights.last_bias = random_tensor({kWidth}, 4);
  const DynamicFeedForward plain(weights, Activation::relu);
  weights.residual = true;
  const DynamicFeedForward residual(weights, Activation::relu);
  const Variable x(random_tensor({4, kWidth}, 9));
  const Tensor mask = random_tensor({4, kExperts}, 10, DType::boolean);
  const Tensor expected = ops::add(plain.run(x, mask).data(), x.data());
  EXPECT_CLOSE(residual.run(x, mask).data(), expected, 1e-12);
  const NoGradGuard no_gradients;
  EXPECT_CLOSE(residual.run(x, mask).data(), expected, 1e-12);
}

TEST(DynamicFeedForward, ATokenWithoutExpertsGetsTheLastBias) {
  const ExpertWeights weights = random_weights(true);
  const DynamicFeedForward layer(weights, Activation::silu);
  const Tensor out =
      layer.run(Variable(random_tensor({1, kWidth}, 9)), Tensor::zeros({1, kExperts}, DType::boolean)).data();
  EXPECT_CLOSE(out.select(0, 0), weights.last_bias, 0);
}

// Few tokens run experts one by one, many all of them as one layer.
TEST(DynamicFeedForward, Gradients) {
  for (const bool gated : {false, true})
    for (const std::int64_t tokens : {3, 20}) {
      const Tensor mask = random_tensor({tokens, kExperts}, 10, DType::boolean);
      const DynamicFeedForward layer(random_weights(gated), Activation::gelu);
      Variables inputs = {Variable(random_tensor({tokens, kWidth}, 7), true),
                          Variable(random_tensor({tokens, kExperts}, 8), true)};
      for (const auto& parameter : layer.named_parameters())
        if (!parameter.name.starts_with("router.")) inputs.push_back(parameter.variable);
      const auto f = [&](const Variables& in) { return layer.run(in[0], mask, in[1]); };
      const GradcheckResult result = gradcheck(f, inputs);
      EXPECT_TRUE(result) << result.message;
    }
}

TEST(DynamicFeedForward, ManyTokensWithGradientsEqualTheFormula) {
  const Tensor rows = random_tensor({40, kWidth}, 7), mask = random_tensor({40, kExperts}, 10, DType::boolean);
  for (const bool gated : {false, true}) {
    const ExpertWeights weights = random_weights(gated);
    const DynamicFeedForward layer(weights, Activation::relu);
    EXPECT_CLOSE(layer.run(Variable(rows), mask).data(), naive(rows, weights, mask), 1e-12);
  }
}

TEST(DynamicFeedForward, TheChoiceCarriesNoGradient) {
  DynamicFeedForward layer(random_weights(false), Activation::relu);
  layer.set_gate({GateMode::topk, 2});
  const Variable y = layer.forward(Variable(random_tensor({1, 3, kWidth}, 7))).output;
  y.backward(Tensor::ones(y.shape(), y.dtype()));
  for (const auto& parameter : layer.named_parameters())
    EXPECT_EQ(parameter.variable.grad().defined(), !parameter.name.starts_with("router.")) << parameter.name;
}

TEST(DynamicFeedForward, CountsTheExpertsRun) {
  DynamicFeedForward layer(random_weights(false), Activation::relu);
  layer.eval();
  const Tensor x = random_tensor({2, 10, kWidth}, 7);
  layer.collect(true);
  EXPECT_ERROR(layer.statistics().summary(), "DynamicStatistics: no token was added");
  layer.set_gate({GateMode::topk, 2});
  layer.forward(Variable(x));
  const Gate dynamic = {GateMode::dynk_max, 1, 0.7};
  layer.set_gate(dynamic);
  layer.forward(Variable(x.slice(0, 0, 1)));

  const Tensor mask = ops::expert_mask(layer.router().forward(Variable(x.select(0, 0))).data(), dynamic);
  const auto counts = ops::sum(mask, {-1}).to_vector<int>();
  std::vector<double> histogram(kExperts + 1, 0);
  histogram[2] = 20;
  double runs = 40;
  for (const int count : counts) {
    ++histogram[static_cast<std::size_t>(count)];
    runs += count;
  }
  const DynamicSummary summary = layer.statistics().summary();
  EXPECT_EQ(summary.tokens, 30);
  EXPECT_EQ(summary.histogram, histogram);
  EXPECT_DOUBLE_EQ(summary.mean_experts, runs / 30);
  double uses = 0;
  for (const double use : summary.uses) uses += use;
  EXPECT_EQ(uses, runs);
  EXPECT_EQ(layer.statistics().last_counts().to_vector<int>(), counts);
  EXPECT_DOUBLE_EQ(measured_cost(layer), cost_of(layer).per_token(runs / 30));
  layer.collect(false);
  layer.forward(Variable(x));
  EXPECT_ERROR(layer.statistics().summary(), "no token was added");
}

TEST(DynamicCost, GatedLayersHaveAThirdProduct) {
  const DynamicFeedForward plain(random_weights(false), Activation::relu),
      gated(random_weights(true), Activation::relu);
  EXPECT_EQ(cost_of(gated).per_expert - cost_of(plain).per_expert, kWidth * kNeurons + kNeurons);
  EXPECT_EQ(cost_of(plain).dense, kExperts * kNeurons * (kWidth + kOutput));
  EXPECT_EQ(cost_of(gated).without_experts, cost_of(plain).without_experts);
}

TEST(DynamicFeedForward, Errors) {
  ExpertWeights weights = random_weights(false);
  DynamicFeedForward layer(weights, Activation::relu);
  EXPECT_ERROR(layer.set_gate({GateMode::topk, 6}), "gate topk: k is 6, expected 1 to the 5 experts");
  EXPECT_ERROR(layer.forward(Variable(Tensor::zeros({1, 2, 5}))),
               "DynamicFeedForward: x must be [B, T, 6], got [1, 2, 5]");
  weights.up_bias = Tensor::zeros({kExperts, 4}, DType::f64);
  EXPECT_ERROR(DynamicFeedForward(weights, Activation::relu),
               "DynamicFeedForward: up_bias is f64 [5, 4], expected f64 [5, 3]");
  weights = random_weights(true);
  weights.gate = {};
  EXPECT_ERROR(DynamicFeedForward(weights, Activation::relu), "gate_bias is given without a gate");
}

}  // namespace
}  // namespace switchyard::moe
