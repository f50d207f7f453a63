#include "moe/conversion/projection.h"

#include <gtest/gtest.h>

#include "moe/language_model.h"
#include "tests/support/errors.h"

namespace switchyard::moe {
namespace {

TEST(ProjectionWidth, costs_what_the_projection_costs) {
  for (const auto& [inputs, outputs] : {std::pair<std::int64_t, std::int64_t>{768, 768}, {2048, 256}, {40, 412}}) {
    const std::int64_t hidden = projection_width(inputs, outputs, 1);
    // Multiply-adds, biases of the hidden neurons and of the projection included, as in the paper's formula.
    const std::int64_t linear = inputs * outputs + outputs, mlp = hidden * (inputs + outputs + 1);
    EXPECT_LE(2 * std::abs(mlp - linear), inputs + outputs + 1);
  }
  EXPECT_EQ(projection_width(1, 1, 2.25), 2);  // 1.5 and
  EXPECT_EQ(projection_width(1, 1, 3.75), 2);  // 2.5: halves to even
  EXPECT_ERROR(projection_width(8, 8, 0), "projection_width: flops_factor is 0, expected a positive number");
  EXPECT_ERROR(projection_width(8, 8, 0.01), "flops_factor 0.01 leaves no neuron for 8 inputs and 8 outputs");
  EXPECT_ERROR(projection_width(0, 8, 1), "0 inputs and 8 outputs");
}

LanguageModelConfig small_model() {
  LanguageModelConfig config;
  config.vocabulary_size = 11;
  config.width = 16;
  config.layers = 2;
  config.attention.kind = AttentionKind::dense;
  config.attention.heads = 2;
  config.attention.head_width = 12;
  config.feedforward.kind = FeedForwardKind::dense;
  return config;
}

TEST(StandInFor, has_the_projections_shape_and_cost) {
  nn::Linear projection(16, 12, false);
  projection.to(DType::bf16);
  StandInOptions options;
  options.flops_factor = 2;
  options.activation = ops::Activation::gelu;
  const auto layer = stand_in_for(projection, options);
  EXPECT_EQ(layer->up().weight().shape(), (Shape{14, 16}));  // 2 (16 * 12 + 12) / 29 = 14.07
  EXPECT_EQ(layer->down().weight().shape(), (Shape{12, 14}));
  EXPECT_TRUE(layer->up().bias().defined() && layer->down().bias().defined());
  EXPECT_EQ(layer->up().weight().dtype(), DType::bf16);
  EXPECT_EQ(layer->activation(), ops::Activation::gelu);
  options.multiple = 4;
  EXPECT_EQ(stand_in_for(projection, options)->up().weight().size(0), 12);
  options.multiple = 15;
  EXPECT_ERROR(stand_in_for(projection, options), "a multiple of 15, expected 1 to 14, what flops_factor 2 gives");
  options = {};
  options.residual = true;
  EXPECT_ERROR(stand_in_for(projection, options), "a residual connection needs as many outputs as inputs");
}

TEST(LinearProjections, are_found_in_the_models_order) {
  const auto model = build_language_model(small_model());
  std::vector<std::string> names;
  for (const ProjectionPlace& place : linear_projections(*model, {nn::ProjectionKind::output, nn::ProjectionKind::key}))
    names.push_back(place.name);
  EXPECT_EQ(names, (std::vector<std::string>{"layers.0.attention.key", "layers.0.attention.output",
                                             "layers.1.attention.key", "layers.1.attention.output"}));
  EXPECT_ERROR(linear_projections(*model, {}), "no kind of projection is named");
}

TEST(ReplaceProjections, puts_stand_ins_in_their_place) {
  const auto model = build_language_model(small_model());
  StandInOptions options;
  options.kinds = {nn::ProjectionKind::value};
  replace_projections(*model, options);
  for (const auto& [name, attention] : model->named_modules_of<nn::MultiHeadAttention>())
    for (const nn::ProjectionKind kind : nn::kProjectionKinds)
      EXPECT_EQ(attention->stand_in(kind) != nullptr, kind == nn::ProjectionKind::value) << name;
  EXPECT_ERROR(replace_projections(*model, options), "projections: layers.0.attention.value has a stand-in already");
}

}  // namespace
}  // namespace switchyard::moe
