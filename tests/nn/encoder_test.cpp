#include "nn/encoder.h"

#include <gtest/gtest.h>

#include "autograd/ops/elementwise.h"
#include "autograd/ops/reduce.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/nn/naive_encoder.h"
#include "tests/support/close.h"
#include "tests/support/device.h"

namespace switchyard::nn {
namespace {

using testing::random_tensor;
using Rows = NaiveEncoder::Rows;

constexpr double kEpsilon = 1e-3;  // large enough that a forgotten one shows

EncoderBlockOptions block_options(NormPlacement placement, std::int64_t layers = 2) {
  EncoderBlockOptions options;
  options.width = 8;
  options.layers = layers;
  options.heads = 2;
  options.hidden = 12;
  options.norm_placement = placement;
  options.norm_epsilon = kEpsilon;
  return options;
}

std::unique_ptr<Encoder> make(NormPlacement placement, std::int64_t layers = 2) {
  auto norm = placement == NormPlacement::pre ? std::make_unique<LayerNorm>(8, kEpsilon) : nullptr;
  auto encoder = std::make_unique<Encoder>(dense_encoder_blocks(block_options(placement, layers)), std::move(norm));
  randomize(*encoder, 20);
  return encoder;
}

Tensor padding_of(std::vector<std::int32_t> flags, const Shape& shape) {
  return Tensor::from(flags, shape).to(DType::boolean);
}

TEST(Encoder, is_the_formula) {
  for (const NormPlacement placement : {NormPlacement::pre, NormPlacement::post}) {
    const auto encoder = make(placement);
    const Tensor x = random_tensor({2, 4, 8}, 1);
    const Tensor padding = padding_of({0, 0, 0, 0, 0, 1, 0, 1}, {2, 4});
    const Tensor y = encoder->forward(Variable(x), padding).output.data();
    const NaiveEncoder naive(*encoder, 2, kEpsilon);
    for (std::int64_t b = 0; b < 2; ++b) {
      const std::vector<bool> hidden = {false, b == 1, false, b == 1};
      Rows rows = NaiveEncoder::rows_of(x.select(0, b));
      for (const char* name : {"layers.0", "layers.1"}) rows = naive.block(name, rows, placement, hidden);
      if (placement == NormPlacement::pre) rows = naive.norm("final_norm", rows);
      for (std::int64_t t = 0; t < 4; ++t)
        EXPECT_CLOSE(y.select(0, b).select(0, t), Tensor::from(rows[static_cast<std::size_t>(t)], {8}), 1e-11);
    }
  }
}

TEST(Encoder, passes_gradcheck) {
  for (const NormPlacement placement : {NormPlacement::pre, NormPlacement::post}) {
    const auto encoder = make(placement, 1);
    const Tensor padding = padding_of({0, 0, 0, 0, 1, 0}, {2, 3});
    const Variable mix(random_tensor({2, 3, 8}, 5));
    expect_gradients(*encoder, {Variable(random_tensor({2, 3, 8}, 1), true)},
                     [&](const Variables& in) { return sum(encoder->forward(in[0], padding).output * mix); });
  }
}

TEST(Encoder, permuted_tokens_give_permuted_results) {
  const auto encoder = make(NormPlacement::post);
  const Tensor x = random_tensor({1, 3, 8}, 1);
  const Tensor turned = Tensor::empty_like(x);
  for (std::int64_t t = 0; t < 3; ++t) turned.select(1, t).copy_from(x.select(1, (t + 1) % 3));
  const Tensor y = encoder->forward(Variable(x)).output.data(), z = encoder->forward(Variable(turned)).output.data();
  for (std::int64_t t = 0; t < 3; ++t) EXPECT_CLOSE(z.select(1, t), y.select(1, (t + 1) % 3), 1e-12);
}

TEST(Encoder, drops_out_in_training_only) {
  EncoderBlockOptions options = block_options(NormPlacement::post);
  options.dropout = 0.5;
  options.attention_dropout = 0.5;
  Encoder encoder(dense_encoder_blocks(options), nullptr);
  randomize(encoder, 20);
  const Variable x(random_tensor({1, 3, 8}, 1));
  const auto difference = [&] {
    const Tensor once = encoder.forward(x).output.data();
    return testing::max_error(encoder.forward(x).output.data(), once);
  };
  EXPECT_GT(difference(), 0.01);
  encoder.eval();
  EXPECT_EQ(difference(), 0);
}

TEST(Encoder, says_what_is_wrong) {
  const auto encoder = make(NormPlacement::pre);
  const Variable x(random_tensor({2, 3, 8}, 1));
  EXPECT_ERROR(encoder->forward(Variable(random_tensor({3, 8}, 1))), "x is [3, 8], expected [batch, tokens, width]");
  EXPECT_ERROR(encoder->forward(x, padding_of({0, 0, 1}, {1, 3})),
               "Encoder: padding is bool [1, 3], expected bool [2, 3]");
  EXPECT_ERROR(encoder->forward(x, Tensor::zeros({2, 3})), "padding is f32 [2, 3], expected bool [2, 3]");
  std::vector<std::unique_ptr<TransformerBlock>> missing(1);
  EXPECT_ERROR(Encoder(std::move(missing), nullptr), "Encoder: block 0 is missing");
}

TEST(ClassifierLoss, adds_the_regularizer) {
  const Variable logits(Tensor::from<double>({1, 2, 3, 1}, {2, 2}));
  const Tensor labels = Tensor::from<std::int64_t>({0, 0}, {2});
  const double expected = (std::log(1 + std::exp(1.0)) + std::log(1 + std::exp(-2.0))) / 2;
  const ClassifierLoss plain = classifier_loss({logits, {}}, labels);
  EXPECT_NEAR(plain.total.item<double>(), expected, 1e-12);
  EXPECT_FALSE(plain.regularizer.defined());
  const ClassifierLoss regularized = classifier_loss({logits, Variable(Tensor::scalar(0.25))}, labels);
  EXPECT_NEAR(regularized.cross_entropy.item<double>(), expected, 1e-12);
  EXPECT_NEAR(regularized.total.item<double>(), expected + 0.25, 1e-12);
}

TEST(ClassifierLoss, refuses_labels_without_a_class) {
  const Variable logits(Tensor::zeros({2, 3}));
  EXPECT_ERROR(classifier_loss({logits, {}}, Tensor::zeros({3}, DType::i64)),
               "expected one target per row, [2], got [3]");
  EXPECT_ERROR(classifier_loss({logits, {}}, Tensor::zeros({2})), "targets are f32, expected i64");
  SKIP_ON_GPU("the host does not read labels there");
  EXPECT_ERROR(classifier_loss({logits, {}}, Tensor::full({2}, 3, DType::i64)), "target 3");
}

}  // namespace
}  // namespace switchyard::nn
