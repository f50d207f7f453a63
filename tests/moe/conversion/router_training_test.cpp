#include "moe/conversion/router_training.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/gradcheck.h"
#include "core/ops/matmul.h"
#include "core/ops/reduce.h"
#include "moe/conversion/norm_router.h"
#include "nn/optim/adamw.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::element;
using testing::random_tensor;
using testing::tensor_of;

ExpertWeights random_weights(bool gated) {
  ExpertWeights weights;
  weights.up = random_tensor({5, 6, 3}, 1);
  weights.up_bias = random_tensor({5, 3}, 2);
  weights.down = random_tensor({5, 3, 7}, 3);
  if (gated) {
    weights.gate = random_tensor({5, 6, 3}, 4);
    weights.gate_bias = random_tensor({5, 3}, 5);
  }
  return weights;
}

double relu(double x) { return std::max(x, 0.0); }

/// One neuron of one expert for one row, by its formula.
double neuron(const Tensor& rows, const ExpertWeights& weights, std::int64_t row, std::int64_t e, std::int64_t s) {
  const auto product = [&](const Tensor& weight, const Tensor& bias) {
    double sum = element(bias, {e, s});
    for (std::int64_t d = 0; d < rows.size(1); ++d) sum += element(rows, {row, d}) * element(weight, {e, d, s});
    return sum;
  };
  const double up = product(weights.up, weights.up_bias);
  return weights.gated() ? relu(product(weights.gate, weights.gate_bias)) * up : relu(up);
}

TEST(RouterTargets, NormsOfEachExpertsOutput) {
  const Tensor rows = random_tensor({4, 6}, 6);
  for (const bool gated : {false, true}) {
    const ExpertWeights weights = random_weights(gated);
    const Tensor expected = tensor_of({4, 5}, [&](const Shape& at) {
      double square = 0;
      for (std::int64_t m = 0; m < 7; ++m) {
        double out = 0;
        for (std::int64_t s = 0; s < 3; ++s)
          out += neuron(rows, weights, at[0], at[1], s) * element(weights.down, {at[1], s, m});
        square += out * out;
      }
      return std::sqrt(square);
    });
    EXPECT_CLOSE(expert_output_norms(rows, weights, ops::Activation::relu), expected, 1e-12);
    EXPECT_CLOSE(expert_output_norms(rows.to(DType::f32), weights, ops::Activation::relu), expected, 1e-5);
  }
}

// Experts whose matrices share blocks, and those that have one each; in bf16 all but the operands is computed in f32.
TEST(RouterTargets, NormsAreThoseOfTheExpertsOutputsAtEverySize) {
  for (const auto& [experts, neurons] : {std::pair<std::int64_t, std::int64_t>{48, 4}, {7, 24}, {3, 100}}) {
    ExpertWeights weights;
    weights.up = random_tensor({experts, 16, neurons}, 1, DType::bf16);
    weights.up_bias = random_tensor({experts, neurons}, 2, DType::bf16);
    weights.down = random_tensor({experts, neurons, 9}, 3, DType::bf16);
    const Tensor rows = random_tensor({33, 16}, 4, DType::bf16), x = rows.to(DType::f64);
    const Tensor expected = Tensor::empty({33, experts}, DType::f64, rows.device());
    for (std::int64_t e = 0; e < experts; ++e) {
      const auto own = [e](const Tensor& all) { return all.select(0, e).to(DType::f64); };
      const Tensor sums = ops::add(ops::matmul(x, own(weights.up)), own(weights.up_bias));
      const Tensor out = ops::matmul(ops::unary(ops::Unary::relu, sums), own(weights.down));
      const Tensor squares = ops::sum(ops::unary(ops::Unary::square, out), {-1});
      expected.select(1, e).copy_from(ops::unary(ops::Unary::sqrt, squares));
    }
    EXPECT_CLOSE(expert_output_norms(rows, weights, ops::Activation::relu), expected, 1e-4);
  }
}

TEST(RouterTargets, ManyRowsAreTheSameInChunks) {
  ExpertWeights weights;
  weights.up = random_tensor({64, 4, 32}, 1, DType::f32);
  weights.down = random_tensor({64, 32, 4}, 2, DType::f32);
  const Tensor rows = random_tensor({9000, 4}, 3, DType::f32);  // more than one chunk of hidden values
  const Tensor norms = expert_output_norms(rows, weights, ops::Activation::relu);
  for (const std::int64_t row : {0, 8191, 8192, 8999})
    EXPECT_CLOSE(norms.slice(0, row, row + 1),
                 expert_output_norms(rows.slice(0, row, row + 1), weights, ops::Activation::relu), 1e-6);
}

TEST(RouterTargets, SharesOfActivationMass) {
  const ExpertWeights weights = random_weights(false);
  const Tensor rows = random_tensor({4, 6}, 6);
  const auto mass = [&](std::int64_t row, std::int64_t e) {
    double sum = 0;
    for (std::int64_t s = 0; s < 3; ++s) sum += neuron(rows, weights, row, e, s);
    return sum;
  };
  const Tensor expected = tensor_of({4, 5}, [&](const Shape& at) {
    double total = 0;
    for (std::int64_t e = 0; e < 5; ++e) total += mass(at[0], e);
    return mass(at[0], at[1]) / total;
  });
  EXPECT_CLOSE(expert_activation_shares(rows, weights, ops::Activation::relu), expected, 1e-12);
}

TEST(RouterTargets, ARowWithoutActivationHasNoShares) {
  ExpertWeights weights = random_weights(false);
  weights.up_bias = Tensor::full({5, 3}, -1, DType::f64);
  EXPECT_CLOSE(expert_activation_shares(Tensor::zeros({2, 6}, DType::f64), weights, ops::Activation::relu),
               Tensor::zeros({2, 5}, DType::f64), 0);
  EXPECT_ERROR(expert_output_norms(Tensor::zeros({2, 5}), weights, ops::Activation::relu), "rows must be [N, 6]");
}

TEST(RouterLoss, EqualsItsFormula) {
  const Tensor prediction = Tensor::from<double>({0.5, -3, 2, 0.25}, {2, 2});
  const Tensor target = Tensor::from<double>({1, 0, 0.5, 0.25}, {2, 2});
  const auto loss = [&](RouterLoss kind) { return router_loss(kind, Variable(prediction), target).item<double>(); };
  EXPECT_NEAR(loss(RouterLoss::mse), (0.25 + 9 + 2.25) / 4, 1e-12);
  EXPECT_NEAR(loss(RouterLoss::huber), (0.125 + 2.5 + 1) / 4, 1e-12);
  const auto entropy = [](double z, double t) {
    const double p = 1 / (1 + std::exp(-z));
    return -t * std::log(p) - (1 - t) * std::log(1 - p);
  };
  EXPECT_NEAR(loss(RouterLoss::binary_cross_entropy),
              (entropy(0.5, 1) + entropy(-3, 0) + entropy(2, 0.5) + entropy(0.25, 0.25)) / 4, 1e-12);
}

TEST(RouterLoss, Gradients) {
  const Tensor target = random_tensor({4, 5}, 1, DType::f64, 0, 1);
  for (const RouterLoss kind : {RouterLoss::mse, RouterLoss::huber, RouterLoss::binary_cross_entropy}) {
    const Variable prediction(random_tensor({4, 5}, 2, DType::f64, -3, 3), true);
    const auto f = [&](const Variables& in) { return router_loss(kind, in[0], target); };
    const GradcheckResult result = gradcheck(f, {prediction});
    EXPECT_TRUE(result) << "loss " << static_cast<int>(kind) << ": " << result.message;
  }
  EXPECT_ERROR(router_loss(RouterLoss::mse, Variable(Tensor::zeros({2, 3})), Tensor::zeros({3, 2})), "router_loss: ");
}

TEST(RouterQuality, OfHandMadeScores) {
  // Row 0 in the same order, row 1 reversed.
  const Tensor target = Tensor::from<double>({1, 2, 3, 4, 1, 2, 3, 4}, {2, 4});
  const Tensor prediction = Tensor::from<double>({10, 20, 21, 90, 4, 3, 2, 1}, {2, 4});
  const RouterQuality quality = router_quality(prediction, target, 2);
  EXPECT_NEAR(quality.rank_correlation, 0, 1e-12);
  EXPECT_NEAR(quality.top_recall, 0.5, 1e-12);
  // Ranks 0.5, 0.5, 2, 3 against 0, 1, 2, 3: 4.5 / sqrt(4.5 * 5).
  const RouterQuality tied = router_quality(Tensor::from<double>({1, 1, 2, 3}, {1, 4}), target.slice(0, 0, 1), 1);
  EXPECT_NEAR(tied.rank_correlation, 4.5 / std::sqrt(4.5 * 5), 1e-12);
  EXPECT_NEAR(tied.top_recall, 1, 1e-12);
  EXPECT_EQ(router_quality(Tensor::zeros({1, 4}), Tensor::zeros({1, 4}), 1).rank_correlation, 0);
  EXPECT_ERROR(router_quality(prediction, target, 5), "k is 5, expected 1 to the 4 experts");
}

TEST(RouterQuality, RisesAsARouterLearns) {
  ExpertWeights weights = random_weights(false);
  const Tensor rows = random_tensor({400, 6}, 7), labels = expert_output_norms(rows, weights, ops::Activation::relu);
  NormRouterOptions options;
  options.width = 6;
  options.experts = 5;
  options.hidden = 32;
  Generator generator(5);
  NormRouter router(options, generator);
  router.to(DType::f64);
  const auto quality = [&] { return router_quality(router.forward(Variable(rows)).data(), labels, 2); };
  const RouterQuality before = quality();
  nn::AdamW optimizer(nn::parameter_groups(router.named_parameters(), 0), {.learning_rate = 1e-2});
  for (int step = 0; step < 300; ++step) {
    router.zero_grad();
    router_loss(RouterLoss::mse, router.forward(Variable(rows)), labels).backward();
    optimizer.step();
  }
  const RouterQuality after = quality();
  EXPECT_LT(before.rank_correlation, 0.6);
  EXPECT_GT(after.rank_correlation, 0.9);
  EXPECT_GT(after.top_recall, 0.9);
}

}  // namespace
}  // namespace switchyard::moe
