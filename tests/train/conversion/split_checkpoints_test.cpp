// Experts of trained and of imported models against the dense layers that they come from.
#include <gtest/gtest.h>

#include "autograd/grad_mode.h"
#include "core/ops/elementwise.h"
#include "moe/conversion/convert.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"
#include "tests/train/conversion/tiny_conversion.h"
#include "tests/train/import_fixtures.h"

namespace switchyard::train {
namespace {

constexpr double kAllowed = 1e-6;  // in f32, relative as EXPECT_CLOSE has it

/// Each expert run alone, without the last bias, summed up, and the bias once.
Tensor sum_of_experts(const moe::DynamicFeedForward& layer, const Variable& rows) {
  const std::int64_t count = rows.size(0), experts = layer.weights().experts();
  Tensor sum = layer.run(rows, Tensor::zeros({count, experts}, DType::boolean, rows.device())).data();  // the bias
  const Tensor bias = sum;
  for (std::int64_t e = 0; e < experts; ++e) {
    const Tensor mask = Tensor::zeros({count, experts}, DType::boolean, rows.device());
    mask.select(1, e).fill(1);
    sum = ops::add(sum, ops::subtract(layer.run(rows, mask).data(), bias));
  }
  return sum;
}

void expect_experts_are_the_dense_layers(nn::Module& model) {
  const NoGradGuard no_grad;
  model.eval();
  const auto blocks = model.named_modules_of<nn::TransformerBlock>();
  ASSERT_FALSE(blocks.empty());
  for (const auto& [name, block] : blocks) {
    SCOPED_TRACE(name);
    nn::FeedForwardLayer& dense = block->feed_forward();
    const std::int64_t width = dynamic_cast<const nn::FeedForward&>(dense).up().weight().size(1);
    const Variable x(testing::random_tensor({2, 15, width}, 1, DType::f32));
    const Tensor expected = dense.forward(x).output.data();
    moe::ConversionOptions options;
    options.expert_width = 4;
    moe::DynamicFeedForward& layer = *moe::convert_feed_forwards({block}, options).front();
    EXPECT_GT(layer.weights().experts(), 1);
    EXPECT_CLOSE(layer.forward(x).output.data(), expected, kAllowed);
    layer.set_gate({moe::GateMode::dynk_max, 1, 1.0});
    EXPECT_CLOSE(layer.forward(x).output.data(), expected, kAllowed);
    const Variable rows(x.data().view({30, width}));
    EXPECT_CLOSE(sum_of_experts(layer, rows), expected.view({30, width}), kAllowed);
  }
}

TEST(SplitCheckpoints, OfATrainedModel) {
  const testing::TemporaryFolder folder;
  const auto task = open_task(train_dense_run(folder.path()), {testing::text_of(default_device())}, [](const auto&) {});
  expect_experts_are_the_dense_layers(task->model());
}

TEST(SplitCheckpoints, OfImportedModels) {
  for (const char* family : {"gpt2", "gemma"}) {
    SCOPED_TRACE(family);
    expect_experts_are_the_dense_layers(*language_model(fixture(family)));
  }
  const HubFolder bert(fixture("bert")), vit(fixture("vit"));
  expect_experts_are_the_dense_layers(*import_text_classifier(bert, classifier_model_config(bert)));
  expect_experts_are_the_dense_layers(*import_image_classifier(vit, classifier_model_config(vit)));
}

}  // namespace
}  // namespace switchyard::train
