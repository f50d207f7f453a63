#include "moe/conversion/distillation.h"

#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "autograd/gradcheck.h"
#include "core/ops/matmul.h"
#include "moe/language_model.h"
#include "nn/optim/adamw.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

TEST(DistillationLoss, is_the_mean_square) {
  const Variable student(random_tensor({3, 5}, 1), true);
  const Tensor teacher = random_tensor({3, 5}, 2);
  const auto a = student.data().to_vector<double>(), b = teacher.to_vector<double>();
  double total = 0;
  for (std::size_t i = 0; i < a.size(); ++i) total += (a[i] - b[i]) * (a[i] - b[i]);
  EXPECT_NEAR(distillation_loss(student, teacher).item<double>(), total / 15, 1e-12);
  EXPECT_TRUE(gradcheck([&](const Variables& in) { return distillation_loss(in[0], teacher); }, {student}));
  EXPECT_EQ(distillation_loss(Variable(teacher.to(DType::bf16)), teacher.to(DType::bf16)).dtype(), DType::f32);
  EXPECT_ERROR(distillation_loss(student, teacher.select(0, 0)), "the teacher's output must be [3, 5], got [5]");
}

std::unique_ptr<nn::LanguageModel> small_model(DType dtype = DType::f32) {
  LanguageModelConfig config;
  config.vocabulary_size = 23;
  config.width = 16;
  config.layers = 2;
  config.attention.kind = AttentionKind::dense;
  config.attention.heads = 2;
  config.feedforward.kind = FeedForwardKind::dense;
  config.feedforward.width = 24;
  seed_all(3);
  auto model = build_language_model(config);
  model->to(dtype);
  model->eval();
  return model;
}

Tensor tokens(std::uint64_t seed) { return random_tensor({4, 12}, seed, DType::i64, 0, 22.99); }

void run(nn::LanguageModel& model, std::uint64_t seed) {
  NoGradGuard no_grad;
  model.logits(tokens(seed));
}

double largest(const std::vector<StandInError>& errors) {
  double worst = 0;
  for (const StandInError& error : errors) worst = std::max(worst, error.error);
  return worst;
}

/// The error of each stand-in before and after some training, and the model's logits before and with them.
struct Outcome {
  std::vector<StandInError> before, after;
  Tensor dense_logits, logits;
};

Outcome distil(nn::LanguageModel& model, std::int64_t steps) {
  StandInOptions options;
  options.flops_factor = 4;
  ProjectionDistillation distillation(model, options);
  nn::AdamW optimizer(nn::parameter_groups(distillation.parameters(), 0), {.learning_rate = 1e-2});
  Outcome outcome;
  outcome.dense_logits = model.logits(tokens(0)).data();
  distillation.take_errors();
  run(model, 0);
  outcome.before = distillation.take_errors();
  distillation.take_loss();
  for (std::int64_t step = 0; step < steps; ++step) {
    run(model, static_cast<std::uint64_t>(step + 1));
    distillation.take_loss().backward();
    optimizer.step();
    optimizer.zero_grad();
  }
  distillation.take_errors();
  run(model, 0);
  outcome.after = distillation.take_errors();
  distillation.install();
  outcome.logits = model.logits(tokens(0)).data();
  return outcome;
}

TEST(ProjectionDistillation, stand_ins_come_close_to_their_projections) {
  const auto model = small_model();
  const Outcome outcome = distil(*model, 150);
  ASSERT_EQ(outcome.after.size(), 8u);
  EXPECT_EQ(outcome.after[1].name, "layers.0.attention.key");
  EXPECT_GT(largest(outcome.before), 0.9);
  EXPECT_LT(largest(outcome.after), 0.1);
  const auto untrained = small_model();
  replace_projections(*untrained, {});
  EXPECT_LT(testing::max_error(outcome.logits, outcome.dense_logits),
            0.5 * testing::max_error(untrained->logits(tokens(0)).data(), outcome.dense_logits));
  for (const auto& [name, attention] : model->named_modules_of<nn::MultiHeadAttention>())
    for (const nn::ProjectionKind kind : nn::kProjectionKinds) EXPECT_NE(attention->stand_in(kind), nullptr) << name;
}

TEST(ProjectionDistillation, learns_in_bf16) {
  const auto model = small_model(DType::bf16);
  const Outcome outcome = distil(*model, 100);
  EXPECT_LT(largest(outcome.after), 0.5 * largest(outcome.before));
}

/// Of a second model with the same weights: what its query projections read and give.
struct Passed {
  Tensor input, output;
};
std::vector<Passed> queries_of(nn::LanguageModel& model, std::uint64_t seed) {
  std::vector<Passed> passed;
  for (const auto& [name, attention] : model.named_modules_of<nn::MultiHeadAttention>())
    attention->set_projection_observer([&](nn::ProjectionKind kind, const Variable& input, const Variable& output) {
      if (kind == nn::ProjectionKind::query) passed.push_back({input.data().clone(), output.data().clone()});
    });
  run(model, seed);
  return passed;
}

TEST(ProjectionDistillation, loss_and_errors_follow_their_formulas) {
  const auto model = small_model(DType::f64), twin = small_model(DType::f64);
  StandInOptions options;
  options.kinds = {nn::ProjectionKind::query};
  ProjectionDistillation distillation(*model, options);
  EXPECT_ERROR(distillation.take_loss(), "ProjectionDistillation: nothing passed through the model");
  const auto parameters = distillation.parameters();  // up.weight, up.bias, down.weight, down.bias of each layer
  ASSERT_EQ(parameters.size(), 8u);
  EXPECT_EQ(parameters[0].name, "layers.0.attention.query.up.weight");
  for (const auto& p : parameters) p.variable.data().copy_from(random_tensor(p.variable.shape(), p.name.size()));
  run(*model, 1);
  const std::vector<StandInError> errors = distillation.take_errors();
  const std::vector<Passed> passed = queries_of(*twin, 1);
  double loss = 0;
  for (std::size_t layer = 0; layer < 2; ++layer) {
    const auto product = [&](const Tensor& x, std::size_t at) {
      const Tensor weight = parameters[4 * layer + at].variable.data();
      return ops::add(ops::matmul(x, weight.transpose(0, 1)), parameters[4 * layer + at + 1].variable.data());
    };
    const Tensor student = product(ops::unary(ops::Unary::relu, product(passed[layer].input, 0)), 2);
    const auto a = student.to_vector<double>(), b = passed[layer].output.to_vector<double>();
    double difference = 0, size = 0;
    for (std::size_t i = 0; i < a.size(); ++i) {
      difference += (a[i] - b[i]) * (a[i] - b[i]);
      size += b[i] * b[i];
    }
    EXPECT_NEAR(errors[layer].error, difference / size, 1e-10);
    loss += difference / static_cast<double>(a.size());
  }
  EXPECT_NEAR(distillation.take_loss().item<double>(), loss, 1e-10);
}

TEST(ProjectionDistillation, leaves_the_model_alone_until_the_end) {
  const auto model = small_model();
  const Tensor before = model->logits(tokens(0)).data();
  {
    ProjectionDistillation distillation(*model, {});
    EXPECT_CLOSE(model->logits(tokens(0)).data(), before, 0.0);
    distillation.take_loss().backward();
    for (const Variable& parameter : model->parameters()) EXPECT_FALSE(parameter.grad().defined());
    for (const auto& parameter : distillation.parameters()) EXPECT_TRUE(parameter.variable.grad().defined());
  }
  EXPECT_CLOSE(model->logits(tokens(0)).data(), before, 0.0);
}

}  // namespace
}  // namespace switchyard::moe
