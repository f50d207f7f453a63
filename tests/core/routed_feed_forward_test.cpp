#include "core/ops/routed_feed_forward.h"

#include <gtest/gtest.h>

#include <cmath>

#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard {
namespace {

using ops::Activation;
using ops::Gate;
using ops::GateMode;
using testing::element;
using testing::random_tensor;
using testing::tensor_of;

constexpr std::int64_t kExperts = 7, kWidth = 6, kNeurons = 3, kHidden = 4;
const Gate kGates[] = {{GateMode::all}, {GateMode::topk, 3}, {GateMode::dynk, 1, 0.63}, {GateMode::dynk_max, 1, 0.55}};

ops::ExpertLayer layer_with(bool gated) {
  ops::ExpertLayer layer;
  layer.up = random_tensor({kExperts, kWidth, kNeurons}, 1);
  layer.down = random_tensor({kExperts, kNeurons, kWidth}, 3);
  if (!gated) return layer;
  layer.up_bias = random_tensor({kExperts, kNeurons}, 2);
  layer.gate = random_tensor({kExperts, kWidth, kNeurons}, 4);
  layer.gate_bias = random_tensor({kExperts, kNeurons}, 5);
  return layer;
}

ops::ExpertRouter router_with(const Gate& gate, bool biased, std::int64_t tokens) {
  return {random_tensor({tokens, kHidden}, 6), random_tensor({kExperts, kHidden}, 7),
          biased ? random_tensor({kExperts}, 8) : Tensor{}, Activation::abs, gate};
}

std::vector<double> scores_of(const ops::ExpertRouter& router, std::int64_t n) {
  std::vector<double> scores;
  for (std::int64_t e = 0; e < kExperts; ++e) {
    double sum = router.bias.defined() ? element(router.bias, {e}) : 0;
    for (std::int64_t h = 0; h < kHidden; ++h) sum += element(router.hidden, {n, h}) * element(router.weight, {e, h});
    scores.push_back(std::fabs(sum));
  }
  return scores;
}

/// By the formula in the header, with relu; which experts a gate chooses has tests of its own (gate_test.cpp).
Tensor naive(const Tensor& x, const ops::ExpertRouter& router, const ops::ExpertLayer& layer, const Tensor& bias,
             bool residual) {
  const auto dot = [&](const Tensor& weight, const Tensor& biases, std::int64_t n, std::int64_t e, std::int64_t s) {
    double sum = biases.defined() ? element(biases, {e, s}) : 0;
    for (std::int64_t d = 0; d < kWidth; ++d) sum += element(x, {n, d}) * element(weight, {e, d, s});
    return sum;
  };
  return tensor_of({x.size(0), kWidth}, [&](const Shape& at) {
    const auto mask =
        ops::expert_mask(Tensor::from(scores_of(router, at[0]), {kExperts}), router.gate).to_vector<int>();
    double sum = (bias.defined() ? element(bias, {at[1]}) : 0) + (residual ? element(x, at) : 0);
    for (std::int64_t e = 0; e < kExperts; ++e)
      for (std::int64_t s = 0; s < kNeurons && mask[static_cast<std::size_t>(e)] != 0; ++s) {
        const double up = dot(layer.up, layer.up_bias, at[0], e, s);
        const double hidden = layer.gate.defined() ? std::max(0.0, dot(layer.gate, layer.gate_bias, at[0], e, s)) * up
                                                   : std::max(0.0, up);
        sum += hidden * element(layer.down, {e, s, at[1]});
      }
    return sum;
  });
}

TEST(RoutedFeedForward, EqualsItsDefinition) {
  for (const Gate& gate : kGates)
    for (const std::int64_t tokens : {0, 1, 7, 40})
      for (const bool gated : {false, true}) {
        const Tensor x = random_tensor({tokens, kWidth}, 9), bias = gated ? random_tensor({kWidth}, 10) : Tensor{};
        const ops::ExpertLayer layer = layer_with(gated);
        const ops::ExpertRouter router = router_with(gate, gated, tokens);
        EXPECT_CLOSE(ops::routed_feed_forward(x, router, layer, Activation::relu, bias, gated),
                     naive(x, router, layer, bias, gated), 1e-12)
            << name_of(gate.mode);
      }
}

TEST(RoutedFeedForward, WeightsOfExpertsNotChosenAreNotUsed) {
  const ops::ExpertLayer layer = layer_with(true);
  for (const Tensor& tensor : {layer.up, layer.up_bias, layer.gate, layer.gate_bias, layer.down})
    tensor.select(0, 0).fill(NAN);
  ops::ExpertRouter router = router_with({GateMode::topk, kExperts - 1}, false, 2);
  router.weight.select(0, 0).fill(0);  // a score of 0
  const Tensor y = ops::routed_feed_forward(random_tensor({2, kWidth}, 9), router, layer, Activation::relu);
  for (const double value : y.to_vector<double>()) EXPECT_FALSE(std::isnan(value));
}

TEST(RoutedFeedForward, TopkRunsAsManyExpertsWhereScoresAreNaN) {
  const Tensor x = random_tensor({2, kWidth}, 9);
  for (const std::int64_t k : {3, 5, 6}) {  // of five numbers and two NaN
    ops::ExpertRouter router = router_with({GateMode::topk, k}, false, 2);
    for (const std::int64_t expert : {1, 4}) router.weight.select(0, expert).fill(NAN);
    const Tensor y = ops::routed_feed_forward(x, router, layer_with(true), Activation::relu);
    EXPECT_CLOSE(y, naive(x, router, layer_with(true), {}, false), 1e-12) << k;
  }
}

TEST(RoutedFeedForward, RefusesWhatDoesNotFit) {
  const Tensor x = random_tensor({2, kWidth}, 9);
  const ops::ExpertLayer layer = layer_with(false);
  const auto run = [&](const ops::ExpertRouter& router, const Tensor& bias = {}) {
    ops::routed_feed_forward(x, router, layer, Activation::relu, bias);
  };
  EXPECT_ERROR(run(router_with({GateMode::topk, 8}, false, 2)), "gate topk: k is 8, expected 1 to the 7 experts");
  EXPECT_ERROR(run(router_with({}, false, 3)),
               "routed_feed_forward: the router's hidden values must be f64 [2, 4] on ");
  ops::ExpertRouter router = router_with({}, true, 2);
  EXPECT_ERROR(run(router, Tensor::zeros({5}, DType::f64)), "routed_feed_forward: the bias has shape [5], expected [6]");
  router.weight = random_tensor({3, kHidden}, 7);
  EXPECT_ERROR(run(router), "routed_feed_forward: the router's weight must be f64 [7, 4] on ");
}

}  // namespace
}  // namespace switchyard
