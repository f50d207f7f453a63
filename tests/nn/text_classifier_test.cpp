#include "nn/text_classifier.h"

#include <gtest/gtest.h>

#include "core/ops/index.h"
#include "nn/optim/adamw.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/nn/naive_encoder.h"
#include "tests/support/close.h"
#include "tests/support/device.h"

namespace switchyard::nn {
namespace {

using testing::random_tensor;
using Rows = NaiveEncoder::Rows;

constexpr std::int64_t kVocabulary = 9, kPositions = 6, kClasses = 3, kWidth = 8;

/// BERT, or a pre-layernorm encoder that is pooled by the mean. Random throughout, or fresh: as training starts.
std::unique_ptr<TextClassifier> make(bool bert, std::int64_t layers = 2, bool fresh = false) {
  EncoderBlockOptions blocks;
  blocks.width = kWidth;
  blocks.layers = layers;
  blocks.heads = 2;
  blocks.hidden = 12;
  blocks.norm_placement = bert ? NormPlacement::post : NormPlacement::pre;
  TextClassifierOptions options;
  options.vocabulary_size = kVocabulary;
  options.positions = kPositions;
  options.classes = kClasses;
  options.width = kWidth;
  options.segments = bert ? 2 : 0;
  options.embedding_norm = bert;
  options.final_norm = !bert;
  options.pooling = bert ? Pooling::first_token : Pooling::mean;
  options.pooler = bert;
  auto model = std::make_unique<TextClassifier>(options, dense_encoder_blocks(blocks));
  if (!fresh) randomize(*model, 40);
  return model;
}

Tensor ids(const Shape& shape, std::int64_t count, std::uint64_t seed) {
  return random_tensor(shape, seed, DType::f64, 0, static_cast<double>(count) - 0.01).to(DType::i64);
}

/// Padding of texts of the given lengths in [B, tokens].
Tensor padding_after(const std::vector<std::int64_t>& lengths, std::int64_t tokens) {
  return testing::tensor_of(
             {static_cast<std::int64_t>(lengths.size()), tokens},
             [&](const Shape& at) { return at[1] >= lengths[static_cast<std::size_t>(at[0])] ? 1.0 : 0.0; })
      .to(DType::boolean)
      .to(default_device());
}

/// Logits of one text without padding, by the formula.
NaiveEncoder::Row naive_logits(const TextClassifier& model, bool bert, const std::vector<std::int64_t>& tokens,
                               const std::vector<std::int64_t>& segments) {
  const NaiveEncoder naive(model, 2, 1e-12);
  Rows x;
  for (std::size_t t = 0; t < tokens.size(); ++t) {
    Rows sum = {naive.parameter("embedding.weight")[static_cast<std::size_t>(tokens[t])]};
    sum = NaiveEncoder::add(sum, {naive.parameter("position.weight")[t]});
    if (bert) sum = NaiveEncoder::add(sum, {naive.parameter("segment.weight")[static_cast<std::size_t>(segments[t])]});
    x.push_back(sum[0]);
  }
  if (bert) x = naive.norm("embedding_norm", x);
  const std::vector<bool> all_seen(tokens.size(), false);
  for (const char* name : {"layers.0", "layers.1"})
    x = naive.block(name, x, bert ? NormPlacement::post : NormPlacement::pre, all_seen);
  if (bert) {
    Rows pooled = naive.linear("pooler", {x[0]});
    for (double& v : pooled[0]) v = std::tanh(v);
    return naive.linear("classifier", pooled)[0];
  }
  x = naive.norm("final_norm", x);
  Rows mean = {NaiveEncoder::Row(kWidth, 0.0)};
  for (const auto& row : x)
    for (std::size_t c = 0; c < row.size(); ++c) mean[0][c] += row[c] / static_cast<double>(x.size());
  return naive.linear("classifier", mean)[0];
}

TEST(TextClassifier, is_the_formula_of_each_text_without_its_padding) {
  for (const bool bert : {true, false}) {
    const auto model = make(bert);
    TextBatch text{ids({3, 5}, kVocabulary, 1), bert ? ids({3, 5}, 2, 2) : Tensor(), {}};
    const std::vector<std::int64_t> lengths = {5, 3, 1};
    text.padding = padding_after(lengths, 5);
    const Tensor logits = model->logits(text).output.data();
    ASSERT_EQ(logits.shape(), (Shape{3, kClasses}));
    for (std::int64_t b = 0; b < 3; ++b) {
      const auto own = [&](const Tensor& x) {
        return x.defined() ? x.select(0, b).slice(0, 0, lengths[static_cast<std::size_t>(b)]).to_vector<std::int64_t>()
                           : std::vector<std::int64_t>();
      };
      const auto expected = naive_logits(*model, bert, own(text.tokens), own(text.segments));
      EXPECT_CLOSE(logits.select(0, b), Tensor::from(expected, {kClasses}), 1e-10);
    }
  }
}

TEST(TextClassifier, what_stands_at_padded_places_changes_nothing) {
  for (const bool bert : {true, false}) {
    const auto model = make(bert);
    const Tensor tokens = ids({2, 3}, kVocabulary, 1);
    const Tensor expected = model->logits({tokens, {}, {}}).output.data();
    for (const std::uint64_t seed : {2u, 3u}) {
      const Tensor longer = ops::concat({tokens, ids({2, 2}, kVocabulary, seed)}, 1);
      EXPECT_CLOSE(model->logits({longer, {}, padding_after({3, 3}, 5)}).output.data(), expected, 1e-12);
    }
  }
}

TEST(TextClassifier, a_text_of_padding_alone_leaves_the_others_finite) {
  const auto model = make(false);
  const TextBatch text{ids({2, 3}, kVocabulary, 1), {}, padding_after({3, 0}, 3)};
  const Tensor logits = model->logits(text).output.data();
  const Tensor alone = model->logits({text.tokens.slice(0, 0, 1), {}, {}}).output.data();
  EXPECT_CLOSE(logits.slice(0, 0, 1), alone, 1e-12);
  for (const double v : logits.to_vector<double>()) EXPECT_TRUE(std::isfinite(v));
}

TEST(TextClassifier, order_matters_by_the_position_table_alone) {
  const auto model = make(false);
  const Tensor tokens = Tensor::from<std::int64_t>({1, 2, 3, 4}, {1, 4});
  const Tensor turned = Tensor::from<std::int64_t>({3, 1, 4, 2}, {1, 4});
  const auto difference = [&] {
    return testing::max_error(model->logits({turned, {}, {}}).output.data(),
                              model->logits({tokens, {}, {}}).output.data());
  };
  EXPECT_GT(difference(), 1e-3);
  for (const NamedParameter& p : model->named_parameters())
    if (p.name == "position.weight") p.variable.data().fill(0);
  EXPECT_LE(difference(), 1e-12);
}

TEST(TextClassifier, without_segments_all_tokens_have_the_first) {
  const auto model = make(true);
  const Tensor tokens = ids({2, 4}, kVocabulary, 1);
  EXPECT_CLOSE(model->logits({tokens, {}, {}}).output.data(),
               model->logits({tokens, Tensor::zeros({2, 4}, DType::i64), {}}).output.data(), 0);
}

TEST(TextClassifier, passes_gradcheck) {
  for (const bool bert : {true, false}) {
    const auto model = make(bert, 1);
    const TextBatch text{ids({2, 4}, kVocabulary, 1), bert ? ids({2, 4}, 2, 2) : Tensor(), padding_after({4, 3}, 4)};
    const Tensor labels = Tensor::from<std::int64_t>({2, 0}, {2});
    expect_gradients(*model, {}, [&](const Variables&) { return model->loss(text, labels).total; });
  }
}

TEST(TextClassifier, names_its_parameters) {
  expect_parameter_names(*make(true, 1), {"embedding.weight", "position.weight", "segment.weight"},
                         {"embedding_norm", "pooler", "classifier"});
}

TEST(TextClassifier, learns_to_tell_texts_apart) {
  seed_all(1);
  const auto model = make(false, 1, true);
  const Tensor tokens = Tensor::from<std::int64_t>({0, 4, 5, 0, 5, 6, 0, 6, 4, 0, 4, 4}, {4, 3});
  const Tensor labels = Tensor::from<std::int64_t>({0, 1, 2, 0}, {4});
  AdamW optimizer(parameter_groups(model->named_parameters(), 0.0));
  optimizer.set_learning_rate(0.01);
  for (int step = 0; step < 60; ++step) {
    model->zero_grad();
    model->loss({tokens, {}, {}}, labels).total.backward();
    optimizer.step();
  }
  EXPECT_LT(model->loss({tokens, {}, {}}, labels).total.item<double>(), 0.05);
}

TEST(TextClassifier, says_what_is_wrong) {
  const auto bert = make(true);
  const Tensor tokens = ids({2, 4}, kVocabulary, 1);
  EXPECT_ERROR(bert->logits({Tensor(), {}, {}}), "TextClassifier: expected tokens i64 [batch, tokens], got none");
  EXPECT_ERROR(bert->logits({Tensor::zeros({2, 3}), {}, {}}), "tokens i64 [batch, tokens], got f32 [2, 3]");
  EXPECT_ERROR(bert->logits({ids({1, 7}, kVocabulary, 1), {}, {}}),
               "LearnedPositions: 7 tokens from position 0 on, expected at most 6 positions");
  EXPECT_ERROR(bert->logits({tokens, Tensor::zeros({2, 3}, DType::i64), {}}), "segments [2, 3] for tokens [2, 4]");
  EXPECT_ERROR(make(false)->logits({tokens, tokens, {}}), "of a model without segments");
  EXPECT_ERROR(bert->logits({tokens, {}, padding_after({3}, 4)}), "padding is bool [1, 4], expected bool [2, 4]");
  EXPECT_ERROR(bert->loss({tokens, {}, {}}, Tensor::zeros({3}, DType::i64)),
               "expected one target per row, [2], got [3]");
}

}  // namespace
}  // namespace switchyard::nn
