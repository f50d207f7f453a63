#include "moe/conversion/cost.h"

#include <gtest/gtest.h>

#include "moe/conversion/convert.h"
#include "moe/conversion/projection.h"
#include "moe/language_model.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

LanguageModelConfig dense_config() {
  LanguageModelConfig config;
  config.vocabulary_size = 17;
  config.width = 24;
  config.layers = 2;
  config.attention.kind = AttentionKind::dense;
  config.attention.heads = 2;
  config.attention.head_width = 8;
  config.feedforward.kind = FeedForwardKind::dense;
  config.feedforward.width = 60;
  return config;
}

TEST(ConvertibleLayers, CostsOfADenseModelAreItsMatrices) {
  for (const PositionKind position : {PositionKind::rope, PositionKind::xl}) {  // xl has one more, for positions
    LanguageModelConfig config = dense_config();
    config.position = position;
    const auto model = build_language_model(config);
    const auto layers = convertible_layers(*model);
    ASSERT_EQ(layers.size(), 10u);
    const std::vector<std::string> names = {"query", "key", "value", "output"};
    for (std::size_t i = 0; i < 4; ++i) {
      EXPECT_EQ(layers[5 + i].name, "layers.1.attention." + names[i]);
      EXPECT_EQ(layers[5 + i].dense, 24 * 16);
      EXPECT_EQ(layers[5 + i].measured(), 24 * 16);
    }
    EXPECT_EQ(layers[9].name, "layers.1.feed_forward");
    EXPECT_EQ(layers[9].dense, 2 * 24 * 60);
    EXPECT_EQ(layers[9].measured(), 2 * 24 * 60);
  }
}

TEST(ConvertibleLayers, AConvertedLayerCostsWhatItRan) {
  const auto model = build_language_model(dense_config());
  const auto converted = convert_feed_forwards(*model, {.expert_width = 6, .clustering = {}, .router = {.hidden = 16}});
  model->eval();
  for (DynamicFeedForward* layer : converted) layer->collect(true);
  converted[1]->set_gate({GateMode::topk, 3});
  model->logits(testing::random_tensor({2, 9}, 5, DType::i64, 0, 16.99));
  const auto layers = convertible_layers(*model);
  ASSERT_EQ(layers.size(), 10u);
  EXPECT_EQ(layers[8].converted, nullptr);
  EXPECT_EQ(layers[9].converted, converted[1]);
  EXPECT_EQ(layers[9].dense, 2 * 24 * 60);
  const double router = 24 * 16 + 16 * 10 + 4 * 10 + 1, expert = 2 * 24 * 6 + 6 + 24;
  EXPECT_DOUBLE_EQ(layers[4].measured(), router + 10 * expert);
  EXPECT_DOUBLE_EQ(layers[9].measured(), router + 3 * expert);
}

TEST(ConvertibleLayers, StandInsCostAsTheyAreAndCountAsTheProjectionsThatTheyReplaced) {
  const auto model = build_language_model(dense_config());
  replace_projections(*model, {.flops_factor = 1.5, .multiple = 7});
  const double width = 14;  // 1.5 (24 16 + 16) / (24 + 16 + 1) = 14.6, rounded, then down to a multiple of 7
  auto layers = convertible_layers(*model);
  ASSERT_EQ(layers.size(), 10u);
  EXPECT_EQ(layers[5].dense, 24 * 16);
  EXPECT_EQ(layers[5].measured(), (24 + 16) * width);

  const ConversionOptions options = {.expert_width = 7, .clustering = {}, .router = {.hidden = 5}};
  convert_projections(*model, options);
  model->eval();
  for (DynamicFeedForward* layer : converted_layers(*model)) layer->collect(true);
  set_gates(*model, {GateMode::topk, 1});
  model->logits(testing::random_tensor({2, 9}, 5, DType::i64, 0, 16.99));
  layers = convertible_layers(*model);
  std::vector<DynamicFeedForward*> converted;
  for (const ConvertibleLayer& layer : layers)
    if (layer.converted) converted.push_back(layer.converted);
  EXPECT_EQ(converted, converted_layers(*model));  // in the same order
  EXPECT_EQ(converted.size(), 8u);
  EXPECT_EQ(layers[5].dense, 24 * 16);
  const double router = 24 * 5 + 5 * 2 + 4 * 2 + 1, bias = 16, expert = (24 + 16) * 7 + 7 + 16;
  EXPECT_DOUBLE_EQ(layers[5].measured(), router + bias + expert);
  EXPECT_EQ(layers[9].measured(), 2 * 24 * 60);
}

TEST(ConvertibleLayers, SetsOfExpertsAreNoneOfThem) {
  LanguageModelConfig config = dense_config();
  config.attention.kind = AttentionKind::switchhead;
  config.feedforward.kind = FeedForwardKind::sigma_moe;
  config.feedforward.width = 0;
  EXPECT_TRUE(convertible_layers(*build_language_model(config)).empty());
}

}  // namespace
}  // namespace switchyard::moe
