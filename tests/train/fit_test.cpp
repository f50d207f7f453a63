#include "train/fit.h"

#include <gtest/gtest.h>

#include <cmath>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "tests/support/errors.h"
#include "tests/train/tiny_run.h"
#include "train/tasks/language_model_task.h"

namespace switchyard::train {
namespace {

const auto kSilent = [](const FitReport&) {};
const auto kNever = [] { return false; };

/// A parameter that is to reach 3.
struct Parabola : nn::Module {
  Parabola() : x(register_parameter("x", Tensor::zeros({1}))) {}
  Variable loss() const { return sum(unary(ops::Unary::square, x + -3.0)); }
  Variable x;
};

FitOptions gradient_descent(std::int64_t steps) {
  FitOptions options;
  options.steps = steps;
  options.log_every = 4;
  options.optimizer.kind = OptimizerKind::sgd;
  options.optimizer.learning_rate = 0.25;
  options.optimizer.weight_decay = 0;
  options.optimizer.schedule.kind = ScheduleKind::constant;
  return options;
}

// x - 3 is halved by each step, so the losses are 9, 9/4, 9/16, ...
TEST(Fit, TakesTheStepsOfGradientDescent) {
  const Parabola parabola;
  std::vector<FitReport> reports;
  FitSteps steps(parabola.named_parameters(), gradient_descent(6));
  const bool finished = fit(
      steps, [&](std::int64_t) { return parabola.loss(); }, [&](const FitReport& report) { reports.push_back(report); },
      kNever);
  EXPECT_TRUE(finished);
  EXPECT_NEAR(parabola.x.item<float>(), 3 - 3 / 64.0, 1e-6);
  ASSERT_EQ(reports.size(), 2u);
  EXPECT_EQ(reports[0].step, 4);
  EXPECT_NEAR(reports[0].loss, 9 * (1 + 1 / 4.0 + 1 / 16.0 + 1 / 64.0) / 4, 1e-6);
  EXPECT_EQ(reports[1].step, 6);
  EXPECT_NEAR(reports[1].loss, 9 * (1 / 256.0 + 1 / 1024.0) / 2, 1e-6);
  EXPECT_NEAR(reports[1].gradient_norm, 6 / 32.0, 1e-6);
  EXPECT_EQ(reports[1].learning_rate, 0.25);
}

TEST(Fit, StopsWhereItIsTold) {
  const Parabola parabola;
  std::int64_t calls = 0;
  FitSteps steps(parabola.named_parameters(), gradient_descent(6));
  const bool finished = fit(
      steps, [&](std::int64_t) { return parabola.loss(); }, kSilent, [&] { return calls++ == 2; });
  EXPECT_FALSE(finished);
  EXPECT_NEAR(parabola.x.item<float>(), 3 - 3 / 4.0, 1e-6);
}

TEST(Fit, SavesOnItsWayAfterAReport) {
  const Parabola parabola;
  FitOptions options = gradient_descent(6);
  options.checkpoint_every = 3;
  FitSteps steps(parabola.named_parameters(), options);
  std::vector<std::int64_t> reported, saved;
  fit(
      steps, [&](std::int64_t) { return parabola.loss(); },
      [&](const FitReport& report) { reported.push_back(report.step); }, kNever,
      [&] { saved.push_back(reported.back()); });
  EXPECT_EQ(reported, (std::vector<std::int64_t>{3, 4, 6}));
  EXPECT_EQ(saved, (std::vector<std::int64_t>{3}));  // there is nothing to go on with after the last
}

TEST(Fit, ALossThatIsNotFiniteEndsIt) {
  const Parabola parabola;
  const auto loss = [&](std::int64_t step) { return parabola.loss() * (step == 2 ? std::nan("") : 1.0); };
  FitSteps steps(parabola.named_parameters(), gradient_descent(6));
  EXPECT_ERROR(fit(steps, loss, kSilent, kNever), "fit: the loss is nan in a step up to 4");
}

/// The folder of a run of tiny_config().
std::filesystem::path trained_run(const std::filesystem::path& folder) {
  const Config config = tiny_config(folder);
  const RunFolder run = RunFolder::create(config);
  train_run(run, config);
  return run.path();
}

TEST(LanguageModelTask, HoldsTheRunsModelAndText) {
  const testing::TemporaryFolder folder;
  const auto run = trained_run(folder.path());
  const auto task = open_task(run, {}, [](const std::string& line) { FAIL() << line; });
  EXPECT_EQ(task->layers(), 2);
  EXPECT_EQ(task->tokens_per_batch(), 4 * 16);

  const RunFolder opened = RunFolder::open(run);
  const Config config = opened.config();
  const TokenizedText text = prepare_text(config, opened.text_path(), [](const std::string&) {});
  const Evaluation expected = Trainer(opened, config, text, nowhere()).validate();
  const Score score = task->evaluate();
  EXPECT_EQ(score.loss, expected.nats_per_token);
  EXPECT_EQ(score.tokens, expected.tokens);
  EXPECT_FALSE(score.accuracy.has_value());
}

TEST(LanguageModelTask, ContinuesFromAPlaceInTheText) {
  const testing::TemporaryFolder folder;
  const auto task = open_task(trained_run(folder.path()), {"", 2, 5}, [](const std::string&) {});
  EXPECT_EQ(task->tokens_per_batch(), 2 * 16);
  task->model().eval();  // no dropout: losses depend on the batch alone
  task->run_training_batch();
  EXPECT_FALSE(task->model().training());
  const auto place = task->state();
  const double first = task->training_loss().item<float>();
  EXPECT_NE(task->training_loss().item<float>(), first);
  task->restore(place);
  EXPECT_EQ(task->training_loss().item<float>(), first);
}

TEST(LanguageModelTask, LearnsByFit) {
  const testing::TemporaryFolder folder;
  const auto task = open_task(trained_run(folder.path()), {}, [](const std::string&) {});
  const double before = task->evaluate().loss;
  FitOptions options;
  options.steps = 20;
  options.clip = 1;
  options.optimizer.learning_rate = 0.01;
  task->model().train();
  FitSteps steps(task->model().named_parameters(), options);
  fit(
      steps, [&](std::int64_t) { return task->training_loss(); }, kSilent, kNever);
  EXPECT_LT(task->evaluate().loss, before - 0.05);
}

TEST(LanguageModelTask, AFolderWithoutARunIsNamed) {
  const testing::TemporaryFolder folder;
  EXPECT_ERROR(open_task(folder / "none", {}, [](const std::string&) {}), "is no folder");
}

}  // namespace
}  // namespace switchyard::train
