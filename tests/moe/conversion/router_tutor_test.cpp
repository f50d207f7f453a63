#include "moe/conversion/router_tutor.h"

#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "core/ops/reduce.h"
#include "nn/optim/adamw.h"
#include "tests/support/close.h"
#include "tests/support/errors.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using ops::Activation;
using testing::random_tensor;

constexpr std::int64_t kWidth = 6, kExperts = 8, kNeurons = 3;

/// Two converted layers, the second after the first.
struct Layers {
  explicit Layers(Activation output_activation = Activation::abs)
      : first(weights(1), Activation::relu, options(output_activation)),
        second(weights(2), Activation::relu, options(output_activation)) {}

  static NormRouterOptions options(Activation output_activation) {
    NormRouterOptions options;
    options.hidden = 16;
    options.output_activation = output_activation;
    return options;
  }
  static ExpertWeights weights(std::uint64_t seed) {
    ExpertWeights weights;
    weights.up = random_tensor({kExperts, kWidth, kNeurons}, seed);
    weights.up_bias = random_tensor({kExperts, kNeurons}, seed + 10);
    weights.down = random_tensor({kExperts, kNeurons, kWidth}, seed + 20);
    return weights;
  }
  void run(std::uint64_t seed) {
    const NoGradGuard no_grad;
    second.forward(first.forward(Variable(random_tensor({4, 16, kWidth}, seed))).output);
  }
  DynamicFeedForward first, second;
};

TEST(RouterTutor, TheLossIsTheSumOfTheLayers) {
  Layers layers;
  RouterTutor tutor({&layers.first, &layers.second}, RouterTarget::output_norm, RouterLoss::mse);
  EXPECT_ERROR(tutor.loss(0, 1), "layer 0 has seen no rows");
  layers.run(3);
  const Tensor x = random_tensor({4, 16, kWidth}, 3).view({64, kWidth});
  const Tensor mask = Tensor::full({64, kExperts}, 1, DType::boolean, x.device());
  const Tensor between = layers.first.run(Variable(x), mask).data();
  const auto loss_of = [](const DynamicFeedForward& layer, const Tensor& rows) {
    const Tensor target = expert_output_norms(rows, layer.weights(), Activation::relu);
    return router_loss(RouterLoss::mse, layer.router().forward(Variable(rows)), target);
  };
  EXPECT_EQ(tutor.rows(), 64);
  for (const auto& [first, last] : {std::pair<std::int64_t, std::int64_t>{0, 32}, {40, 64}}) {
    const Variable expected =
        loss_of(layers.first, x.slice(0, first, last)) + loss_of(layers.second, between.slice(0, first, last));
    EXPECT_CLOSE(tutor.loss(first, last).data(), expected.data(), 1e-12);
  }
  EXPECT_ERROR(tutor.loss(10, 65), "rows 10 to 65 of 64");
}

TEST(RouterTutor, KeepsNoMoreRowsThanItIsTo) {
  Layers layers;
  Variable expected;
  {
    RouterTutor all({&layers.first, &layers.second}, RouterTarget::output_norm, RouterLoss::mse);
    layers.run(3);
    expected = all.loss(0, 20);
  }
  RouterTutor some({&layers.first, &layers.second}, RouterTarget::output_norm, RouterLoss::mse, 20);
  layers.run(3);
  EXPECT_EQ(some.rows(), 20);
  EXPECT_CLOSE(some.loss(0, 20).data(), expected.data(), 1e-12);
  EXPECT_ERROR(some.loss(0, 21), "rows 0 to 21 of 20");
}

TEST(RouterTutor, NormalizedTargetsAreAnotherScaleOfTheSameTask) {
  Layers layers;
  RouterTutor tutor({&layers.first}, RouterTarget::output_norm, RouterLoss::mse);
  EXPECT_ERROR(tutor.normalize(), "layer 0 has seen no rows");
  layers.run(3);
  const Tensor x = random_tensor({4, 16, kWidth}, 3).view({64, kWidth});
  const Tensor target = expert_output_norms(x, layers.first.weights(), Activation::relu);
  double sum = 0;
  for (const double value : target.to_vector<double>()) sum += value;
  const double size = sum / static_cast<double>(target.numel());
  tutor.normalize();
  double scores = 0;
  for (const double value : layers.first.router().forward(Variable(x)).data().to_vector<double>()) scores += value;
  EXPECT_NEAR(scores / static_cast<double>(target.numel()), 1, 1e-12);
  const double normalized = tutor.loss(0, 64).item<double>();
  tutor.undo_normalization();  // predictions grow with the targets, so errors do too
  EXPECT_NEAR(tutor.loss(0, 64).item<double>(), normalized * size * size, 1e-10 * size * size);
}

TEST(RouterTutor, OnlyRoutersLearn) {
  Layers layers;
  RouterTutor tutor({&layers.first, &layers.second}, RouterTarget::output_norm, RouterLoss::huber);
  layers.run(3);
  tutor.loss(0, tutor.rows()).backward();
  EXPECT_EQ(tutor.parameters().size(), 4u);
  for (const nn::NamedParameter& p : tutor.parameters()) EXPECT_TRUE(p.variable.grad().defined()) << p.name;
  for (const nn::NamedParameter& p : layers.first.named_parameters())
    EXPECT_EQ(p.variable.grad().defined(), p.name.starts_with("router.")) << p.name;
}

TEST(RouterTutor, RoutersLearnToOrderTheExperts) {
  for (const RouterTarget target : {RouterTarget::output_norm, RouterTarget::activation_share}) {
    const bool norms = target == RouterTarget::output_norm;
    Layers layers(norms ? Activation::abs : Activation::identity);
    RouterTutor tutor({&layers.first, &layers.second}, target,
                      norms ? RouterLoss::mse : RouterLoss::binary_cross_entropy);
    nn::AdamW optimizer(nn::parameter_groups(tutor.parameters(), 0), {.learning_rate = 0.02});
    for (std::uint64_t step = 0; step < 150; ++step) {
      layers.run(100 + step);
      optimizer.zero_grad();
      tutor.loss(0, tutor.rows()).backward();
      optimizer.step();
    }
    layers.run(3);
    for (const RouterQuality& quality : tutor.quality(64, 0.25)) {
      EXPECT_GT(quality.rank_correlation, 0.6);
      EXPECT_GT(quality.top_recall, 0.6);
    }
  }
}

TEST(RouterTutor, LetsGoAtItsEnd) {
  Layers layers;
  { const RouterTutor tutor({&layers.first}, RouterTarget::output_norm, RouterLoss::mse); }
  layers.run(3);  // shows its rows to nobody
  EXPECT_ERROR(RouterTutor({}, RouterTarget::output_norm, RouterLoss::mse), "the model has no converted layer");
}

}  // namespace
}  // namespace switchyard::moe
