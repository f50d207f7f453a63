#include "moe/conversion/convert.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "core/ops/reduce.h"
#include "moe/conversion/projection.h"
#include "moe/conversion/router_training.h"
#include "moe/language_model.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

LanguageModelConfig config_of(FeedForwardKind feedforward) {
  LanguageModelConfig config;
  config.vocabulary_size = 17;
  config.width = 24;
  config.layers = 2;
  config.attention.kind = AttentionKind::dense;
  config.feedforward.kind = feedforward;
  config.feedforward.bias = feedforward == FeedForwardKind::dense;
  config.feedforward.activation = feedforward == FeedForwardKind::dense ? ops::Activation::relu : ops::Activation::silu;
  if (feedforward != FeedForwardKind::sigma_moe) config.feedforward.width = 60;
  return config;
}

ConversionOptions options_of(std::int64_t expert_width) {
  ConversionOptions options;
  options.expert_width = expert_width;
  options.router.hidden = 16;
  return options;
}

Tensor tokens() { return testing::random_tensor({2, 9}, 5, DType::i64, 0, 16.99); }

TEST(Convert, AllExpertsGiveTheDenseModelsLogits) {
  for (const FeedForwardKind kind : {FeedForwardKind::dense, FeedForwardKind::glu}) {
    seed_all(2);
    const auto model = build_language_model(config_of(kind));
    model->eval();
    for (const auto& parameter : model->named_parameters())  // biases start at 0, which would hide mistakes
      if (parameter.name.ends_with("bias"))
        parameter.variable.data().copy_from(testing::random_tensor(parameter.variable.shape(), 9, DType::f32));
    const Tensor before = model->logits(tokens()).data();
    const auto layers = convert_feed_forwards(*model, options_of(6));
    ASSERT_EQ(layers.size(), 2u);
    EXPECT_CLOSE(model->logits(tokens()).data(), before, 1e-5);
    for (DynamicFeedForward* layer : layers) {
      EXPECT_EQ(layer->weights().experts(), 10);
      EXPECT_FALSE(layer->training());
      layer->set_gate({GateMode::dynk_max, 1, 1.0});  // routers run, and keep everything
    }
    EXPECT_CLOSE(model->logits(tokens()).data(), before, 1e-5);
    for (DynamicFeedForward* layer : layers) layer->set_gate({GateMode::topk, 1});
    EXPECT_GT(testing::max_error(model->logits(tokens()).data(), before), 1e-3);
  }
}

TEST(Convert, ExpertsInOrderOfTheirNormsAreTheSameLayer) {
  for (const FeedForwardKind kind : {FeedForwardKind::dense, FeedForwardKind::glu}) {
    const auto model = build_language_model(config_of(kind));
    model->to(DType::f64);
    DynamicFeedForward& layer = *convert_feed_forwards(*model, options_of(6)).front();
    const Tensor rows = testing::random_tensor({50, 24}, 3), all = Tensor::full({50, 10}, 1, DType::boolean);
    const auto norms = [&] {
      return ops::mean(expert_output_norms(rows, layer.weights(), layer.activation()), {0}).to_vector<double>();
    };
    std::vector<double> expected = norms();
    const Tensor before = layer.run(Variable(rows), all).data();
    EXPECT_FALSE(std::is_sorted(expected.rbegin(), expected.rend()));
    order_by_norm(layer, rows);
    EXPECT_CLOSE(layer.run(Variable(rows), all).data(), before, 1e-12);
    std::sort(expected.rbegin(), expected.rend());
    for (std::size_t e = 0; e < expected.size(); ++e) EXPECT_NEAR(norms()[e], expected[e], 1e-12);
  }
}

TEST(Convert, TheNewLayersTakeTheOldOnesPlaceInTheModel) {
  const auto model = build_language_model(config_of(FeedForwardKind::dense));
  const auto layers = convert_feed_forwards(*model, options_of(12));
  EXPECT_EQ(converted_layers(*model), layers);
  std::set<std::string> names;
  for (const auto& parameter : model->named_parameters()) names.insert(parameter.name);
  EXPECT_TRUE(names.contains("layers.1.feed_forward.w1"));
  EXPECT_TRUE(names.contains("layers.1.feed_forward.router.layers.0.weight"));
  EXPECT_FALSE(names.contains("layers.1.feed_forward.up.weight"));
}

TEST(Convert, DecodingTokenByTokenFollowsTheLogits) {
  const auto model = build_language_model(config_of(FeedForwardKind::dense));
  model->eval();
  for (DynamicFeedForward* layer : convert_feed_forwards(*model, options_of(4)))
    layer->set_gate({GateMode::dynk_max, 1, 0.5});
  const Tensor text = tokens(), whole = model->logits(text).data();
  nn::DecodingState state;
  for (std::int64_t t = 0; t < text.size(1); ++t)
    EXPECT_CLOSE(model->decode(text.slice(1, t, t + 1), state), whole.slice(1, t, t + 1), 1e-4);
}

/// A dense model with stand-ins for all projections, of one of two forms.
std::unique_ptr<nn::LanguageModel> model_with_stand_ins(bool residual, ops::Activation activation) {
  seed_all(5);
  auto model = build_language_model(config_of(FeedForwardKind::dense));
  StandInOptions options;
  options.flops_factor = 2;  // 24 neurons
  options.residual = residual;
  options.activation = activation;
  replace_projections(*model, options);
  for (const auto& parameter : model->named_parameters())
    if (parameter.name.ends_with("bias"))
      parameter.variable.data().copy_from(testing::random_tensor(parameter.variable.shape(), 9, DType::f32));
  model->eval();
  return model;
}

TEST(ConvertProjections, AllExpertsGiveTheLogitsBefore) {
  for (const bool residual : {false, true}) {
    const auto model = model_with_stand_ins(residual, residual ? ops::Activation::gelu : ops::Activation::relu);
    model->to(DType::f64);
    const Tensor before = model->logits(tokens()).data();
    const auto layers = convert_projections(*model, options_of(6));
    ASSERT_EQ(layers.size(), 8u);
    EXPECT_EQ(converted_layers(*model), layers);
    EXPECT_CLOSE(model->logits(tokens()).data(), before, 1e-12);
    for (DynamicFeedForward* layer : layers) {
      EXPECT_EQ(layer->weights().experts(), 4);
      layer->set_gate({GateMode::dynk_max, 1, 1.0});  // routers run, and keep everything
    }
    EXPECT_CLOSE(model->logits(tokens()).data(), before, 1e-12);
    for (DynamicFeedForward* layer : layers) layer->set_gate({GateMode::topk, 1});
    EXPECT_GT(testing::max_error(model->logits(tokens()).data(), before), 1e-3);
    EXPECT_ERROR(convert_projections(*model, options_of(6)),
                 "convert_projections: layers.0.attention.query is not a dense layer");
  }
}

TEST(ConvertProjections, DecodingTokenByTokenFollowsTheLogits) {
  for (const bool residual : {false, true}) {
    const auto model = model_with_stand_ins(residual, ops::Activation::relu);
    convert_projections(*model, options_of(4));
    convert_feed_forwards(*model, options_of(4));
    for (DynamicFeedForward* layer : converted_layers(*model)) layer->set_gate({GateMode::dynk_max, 1, 0.5});
    const Tensor text = tokens(), whole = model->logits(text).data();
    nn::DecodingState state;
    for (std::int64_t t = 0; t < text.size(1); ++t)
      EXPECT_CLOSE(model->decode(text.slice(1, t, t + 1), state), whole.slice(1, t, t + 1), 1e-4);
  }
}

TEST(ConvertProjections, WithoutStandInsNothingChanges) {
  const auto model = build_language_model(config_of(FeedForwardKind::dense));
  EXPECT_TRUE(convert_projections(*model, options_of(6)).empty());
}

TEST(Convert, Errors) {
  const auto model = build_language_model(config_of(FeedForwardKind::dense));
  EXPECT_ERROR(convert_feed_forwards(*model, options_of(7)),
               "convert: expert_width is 7, expected a divisor of the layer's 60 neurons");
  EXPECT_TRUE(converted_layers(*model).empty());
  convert_feed_forwards(*model, options_of(6));
  EXPECT_ERROR(convert_feed_forwards(*model, options_of(6)),
               "convert_feed_forwards: the feed-forward of layer 0 is not a dense one");
}

}  // namespace
}  // namespace switchyard::moe
