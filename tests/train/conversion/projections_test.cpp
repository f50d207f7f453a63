// Conversions that replace the projections of attention too.

#include <gtest/gtest.h>

#include <boost/json/array.hpp>

#include "moe/conversion/convert.h"
#include "moe/conversion/cost.h"
#include "tests/support/errors.h"
#include "tests/train/conversion/tiny_conversion.h"
#include "tests/train/tiny_classifier.h"
#include "train/checkpoint.h"

namespace switchyard::train {
namespace {

using testing::read_bytes;
namespace fs = std::filesystem;
namespace json = boost::json;

ConversionConfig with_projections(const fs::path& run) {
  ConversionConfig config = tiny_conversion(run);
  config.phases = {PhaseKind::projections, PhaseKind::sparsify, PhaseKind::experts, PhaseKind::routers};
  config.projections.steps = 150;
  config.projections.flops_factor = 2;
  config.projections.expert_width = 2;
  config.projections.router_hidden = 8;
  config.projections.optimizer.learning_rate = 0.01;
  config.sparsify.projections_weight = 0.3;
  return config;
}

/// The mean share of zeros of the layers whose name contains `part`.
double zeros_of(const json::value& measured, std::string_view part) {
  double sum = 0, count = 0;
  for (const json::value& layer : measured.at("layers").as_array())
    if (std::string_view(layer.at("name").as_string()).find(part) != std::string_view::npos) {
      sum += layer.at("zero").to_number<double>();
      ++count;
    }
  EXPECT_GT(count, 0) << part;
  return sum / count;
}

class ProjectionsTest : public ::testing::Test {
 protected:
  const testing::TemporaryFolder folder_;
  const fs::path run_ = train_dense_run(folder_.path());
};

TEST_F(ProjectionsTest, AreLearnedSparsifiedSplitAndRouted) {
  Conversion conversion(folder_ / "out", with_projections(run_), device(), kSilent);
  ASSERT_TRUE(conversion.run([] { return false; }));

  const json::object learned = conversion.results(PhaseKind::projections).value();
  const json::array& projections = learned.at("projections").as_array();
  ASSERT_EQ(projections.size(), 8u);
  EXPECT_EQ(projections[1].at("name").as_string(), "layers.0.attention.key");
  for (const json::value& projection : projections) EXPECT_LT(projection.at("error").to_number<double>(), 0.5);
  EXPECT_LT(loss_of(learned.at("after")), loss_of(learned.at("before")) + 0.2);

  const json::object sparsity = conversion.results(PhaseKind::sparsify).value();
  for (const char* part : {"feed_forward", "attention"})
    EXPECT_GT(zeros_of(sparsity.at("after"), part), zeros_of(sparsity.at("before"), part) + 0.05) << part;
  EXPECT_NEAR(loss_of(conversion.results(PhaseKind::experts).value()), loss_of(sparsity.at("after")), 1e-4);

  const json::object routers = conversion.results(PhaseKind::routers).value();
  EXPECT_EQ(routers.at("layers").as_array().size(), 10u);
  double correlation = 0;
  for (const json::value& layer : routers.at("layers").as_array())
    correlation += layer.at("rank_correlation").to_number<double>() / 10;
  EXPECT_GT(correlation, 0.3);  // by chance 0

  const auto layers = moe::convertible_layers(conversion.task().model());
  ASSERT_EQ(layers.size(), 10u);
  for (const moe::ConvertibleLayer& layer : layers) EXPECT_NE(layer.converted, nullptr) << layer.name;
}

TEST_F(ProjectionsTest, AreLoadedAsTheyWere) {
  Conversion conversion(folder_ / "out", with_projections(run_), device(), kSilent);
  ASSERT_TRUE(conversion.run([] { return false; }));
  const auto loaded = load_converted(folder_ / "out", {device()}, kSilent);
  for (const double tau : {0.3, 1.0}) {
    moe::set_gates(conversion.task().model(), {moe::GateMode::dynk_max, 1, tau});
    moe::set_gates(loaded->model(), {moe::GateMode::dynk_max, 1, tau});
    EXPECT_EQ(loaded->evaluate().loss, conversion.task().evaluate().loss);
  }
}

// A phase that was stopped starts over, and ends where one that was not does.
TEST_F(ProjectionsTest, GoOnAfterAStop) {
  SKIP_ON_GPU("the order of sums is not fixed there");
  ConversionConfig config = with_projections(run_);
  config.phases = {PhaseKind::projections, PhaseKind::experts};
  config.projections.steps = 20;
  config.projections.kinds = {nn::ProjectionKind::query, nn::ProjectionKind::output};
  const fs::path whole = folder_ / "whole", stopped = folder_ / "stopped";
  EXPECT_TRUE(Conversion(whole, config, "", kSilent).run([] { return false; }));
  int asked = 0;
  EXPECT_FALSE(Conversion(stopped, config, "", kSilent).run([&] { return ++asked > 12; }));
  EXPECT_TRUE(Conversion(stopped, config, "", kSilent).run([] { return false; }));
  for (const char* phase : {"projections", "experts"}) {
    const auto a = list_checkpoints(whole / phase), b = list_checkpoints(stopped / phase);
    ASSERT_TRUE(a.size() == 1 && b.size() == 1) << phase;
    EXPECT_TRUE(read_bytes(a[0].second / "model.safetensors") == read_bytes(b[0].second / "model.safetensors"))
        << phase;
  }
}

TEST(ClassifierProjections, AreConvertedToo) {
  const testing::TemporaryFolder folder;
  ClassifierConfig trained = tiny_image_classifier(folder.path());
  trained.training.steps = 40;
  const RunFolder run = tiny_classifier_run(trained);
  train_classifier(run, trained);
  ConversionConfig config = with_projections(run.path());
  config.sparsify.steps = config.routers.steps = 20;
  Conversion conversion(folder / "out", config, device(), kSilent);
  ASSERT_TRUE(conversion.run([] { return false; }));
  const json::object learned = conversion.results(PhaseKind::projections).value();
  EXPECT_LT(loss_of(learned.at("after")), loss_of(learned.at("before")) + 0.3);
  EXPECT_EQ(load_converted(folder / "out", {device()}, kSilent)->evaluate().loss, conversion.task().evaluate().loss);
}

TEST_F(ProjectionsTest, WhatDoesNotFitIsToldBeforeAnyWork) {
  const auto message = [&](const ConversionConfig& config) {
    return testing::error_of([&] { Conversion(folder_ / "out", config, device(), kSilent); });
  };
  ConversionConfig config = with_projections(run_);
  config.projections.expert_width = 100;
  EXPECT_NE(message(config).find("the hidden width is to be a multiple of 100"), std::string::npos);
  config = with_projections(run_);
  config.projections.kinds = {};
  EXPECT_NE(message(config).find("no kind of projection is named"), std::string::npos);
  Config switch_head = tiny_config(folder_.path());
  const RunFolder run = RunFolder::create(switch_head);
  train_run(run, switch_head);
  EXPECT_NE(message(with_projections(run.path())).find("the model has no dense attention"), std::string::npos);
  EXPECT_FALSE(fs::exists(folder_ / "out"));
}

}  // namespace
}  // namespace switchyard::train
