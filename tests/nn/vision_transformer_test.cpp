#include "nn/vision_transformer.h"

#include <gtest/gtest.h>

#include "tests/nn/layer_gradcheck.h"
#include "tests/nn/naive_encoder.h"
#include "tests/support/close.h"

namespace switchyard::nn {
namespace {

using testing::element;
using testing::random_tensor;
using Rows = NaiveEncoder::Rows;

VisionTransformerOptions tiny() {
  VisionTransformerOptions options;
  options.image_size = 4;
  options.patch_size = 2;
  options.channels = 3;
  options.classes = 5;
  options.width = 8;
  return options;
}

std::unique_ptr<VisionTransformer> make(std::int64_t layers = 2) {
  EncoderBlockOptions blocks;
  blocks.width = 8;
  blocks.layers = layers;
  blocks.heads = 2;
  blocks.hidden = 12;
  auto model = std::make_unique<VisionTransformer>(tiny(), dense_encoder_blocks(blocks));
  randomize(*model, 60);
  return model;
}

TEST(ImagePatches, are_squares_from_the_top_left_row_by_row) {
  const Tensor images = random_tensor({2, 3, 4, 6}, 1);
  const Tensor patches = image_patches(images, 2);
  ASSERT_EQ(patches.shape(), (Shape{2, 6, 12}));
  testing::for_each_index({2, 3, 4, 6}, [&](const Shape& at) {
    const std::int64_t c = at[1], y = at[2], x = at[3];
    EXPECT_EQ(element(patches, {at[0], (y / 2) * 3 + x / 2, c * 4 + (y % 2) * 2 + x % 2}), element(images, at));
  });
  EXPECT_ERROR(image_patches(images, 4), "image_patches: images [2, 3, 4, 6] do not divide into patches of 4");
  EXPECT_ERROR(image_patches(images, 0), "do not divide into patches of 0");
  EXPECT_ERROR(image_patches(images.select(0, 0), 2), "expected [batch, channels, height, width]");
}

TEST(VisionTransformer, is_the_formula) {
  const auto model = make();
  const Tensor images = random_tensor({2, 3, 4, 4}, 1);
  const Tensor logits = model->logits(images).output.data();
  ASSERT_EQ(logits.shape(), (Shape{2, 5}));
  const NaiveEncoder naive(*model, 2, 1e-12);
  for (std::int64_t b = 0; b < 2; ++b) {
    Rows x = naive.parameter("class_token");
    for (const auto& patch :
         naive.linear("patch_embedding", NaiveEncoder::rows_of(image_patches(images, 2).select(0, b))))
      x.push_back(patch);
    x = NaiveEncoder::add(x, naive.parameter("position.weight"));
    for (const char* name : {"layers.0", "layers.1"})
      x = naive.block(name, x, NormPlacement::pre, std::vector<bool>(x.size(), false));
    const Rows expected = naive.linear("classifier", naive.norm("final_norm", {x[0]}));
    EXPECT_CLOSE(logits.select(0, b), Tensor::from(expected[0], {5}), 1e-10);
  }
}

TEST(VisionTransformer, patches_that_move_with_their_positions_change_nothing) {
  const auto model = make();
  const Tensor images = random_tensor({1, 3, 4, 4}, 1);
  const Tensor swapped = images.clone();  // the upper and the lower half
  swapped.slice(2, 0, 2).copy_from(images.slice(2, 2, 4));
  swapped.slice(2, 2, 4).copy_from(images.slice(2, 0, 2));
  const Tensor before = model->logits(images).output.data();
  EXPECT_GT(testing::max_error(model->logits(swapped).output.data(), before), 1e-3);
  for (const NamedParameter& p : model->named_parameters()) {
    if (p.name != "position.weight") continue;
    const Tensor rows = p.variable.data(), old = rows.clone();
    rows.slice(0, 1, 3).copy_from(old.slice(0, 3, 5));
    rows.slice(0, 3, 5).copy_from(old.slice(0, 1, 3));
  }
  EXPECT_CLOSE(model->logits(swapped).output.data(), before, 1e-12);
}

TEST(VisionTransformer, passes_gradcheck) {
  const auto model = make(1);
  const Tensor images = random_tensor({2, 3, 4, 4}, 1);
  const Tensor labels = Tensor::from<std::int64_t>({4, 1}, {2});
  expect_gradients(*model, {}, [&](const Variables&) { return model->loss(images, labels).total; });
}

TEST(VisionTransformer, takes_images_of_any_floating_dtype) {
  const auto model = make();
  const Tensor images = random_tensor({1, 3, 4, 4}, 1, DType::f32);
  EXPECT_CLOSE(model->logits(images).output.data(), model->logits(images.to(DType::f64)).output.data(), 0);
  model->to(DType::bf16);
  EXPECT_EQ(model->logits(images).output.dtype(), DType::bf16);
}

TEST(VisionTransformer, names_its_parameters) {
  expect_parameter_names(*make(1), {"class_token", "position.weight"}, {"patch_embedding", "final_norm", "classifier"});
}

TEST(VisionTransformer, says_what_is_wrong) {
  const auto model = make();
  EXPECT_EQ(model->patches(), 4);
  EXPECT_ERROR(model->logits(Tensor()), "VisionTransformer: images are none");
  EXPECT_ERROR(model->logits(random_tensor({1, 1, 4, 4}, 1)), "f64 [1, 1, 4, 4], expected floating [batch, 3, 4, 4]");
  EXPECT_ERROR(model->logits(random_tensor({1, 3, 4, 6}, 1)), "expected floating [batch, 3, 4, 4]");
  EXPECT_ERROR(model->logits(random_tensor({3, 4, 4}, 1)), "expected floating [batch, 3, 4, 4]");
  EXPECT_ERROR(model->logits(Tensor::zeros({1, 3, 4, 4}, DType::i32)), "images are i32");
  VisionTransformerOptions options = tiny();
  options.patch_size = 3;
  EXPECT_ERROR(VisionTransformer(options, {}),
               "image size 4, patch size 3, expected at least 1 and patches that divide");
  options.patch_size = 0;
  EXPECT_ERROR(VisionTransformer(options, {}), "patch size 0");
}

}  // namespace
}  // namespace switchyard::nn
