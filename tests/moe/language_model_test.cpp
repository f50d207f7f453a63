#include "moe/language_model.h"

#include "autograd/ops/elementwise.h"
#include "core/ops/index.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

LanguageModelConfig config_of(AttentionKind attention, FeedForwardKind feedforward, PositionKind position) {
  LanguageModelConfig config;
  config.vocabulary_size = 17;
  config.width = 24;
  config.layers = 2;
  config.context = 12;
  config.position = position;
  config.attention.kind = attention;
  config.attention.experts = 3;
  config.feedforward.kind = feedforward;
  config.feedforward.experts = 4;
  config.feedforward.expert_width = 16;
  config.feedforward.entropy_regularizer = feedforward == FeedForwardKind::sigma_moe ? 1e-3 : 0;
  if (feedforward != FeedForwardKind::sigma_moe) config.feedforward.width = 64;
  return config;
}

std::vector<LanguageModelConfig> all_kinds() {
  LanguageModelConfig learned = config_of(AttentionKind::dense, FeedForwardKind::dense, PositionKind::learned);
  learned.context = 13;  // the longest text below
  learned.attention.bias = learned.feedforward.bias = true;
  learned.tie_embeddings = true;
  LanguageModelConfig grouped = config_of(AttentionKind::dense, FeedForwardKind::glu, PositionKind::rope);
  grouped.attention.heads = 3;
  grouped.attention.key_value_heads = 1;
  grouped.embedding_scale = 5;
  grouped.tie_embeddings = true;
  std::vector<LanguageModelConfig> all = {learned, grouped};
  for (const auto attention : {AttentionKind::dense, AttentionKind::switchhead})
    for (const auto feedforward : {FeedForwardKind::dense, FeedForwardKind::glu, FeedForwardKind::sigma_moe})
      for (const auto position : {PositionKind::rope, PositionKind::xl})
        all.push_back(config_of(attention, feedforward, position));
  return all;
}

Tensor tokens_of(std::int64_t batch, std::int64_t length, std::uint64_t seed) {
  return random_tensor({batch, length}, seed, DType::i64, 0, 16.99);
}

TEST(MoeLanguageModel, every_kind_learns_a_text_by_heart) {
  for (const LanguageModelConfig& config : all_kinds()) {
    seed_all(3);
    const auto model = build_language_model(config);
    nn::AdamW optimizer(nn::parameter_groups(model->named_parameters(), 0.01), {1e-2, 0.9, 0.99, 1e-8});
    const Tensor text = tokens_of(2, 13, 5);
    const Tensor inputs = text.slice(1, 0, 12).contiguous(), targets = text.slice(1, 1, 13).contiguous();
    double first = 0, last = 0;
    for (int step = 0; step < 60; ++step) {
      const nn::LanguageModelLoss loss = model->loss(inputs, targets);
      EXPECT_EQ(loss.regularizer.defined(), config.feedforward.kind == FeedForwardKind::sigma_moe);
      optimizer.zero_grad();
      loss.total.backward();
      optimizer.step(nn::clip_gradients(model->parameters(), 1).factor);
      (step == 0 ? first : last) = loss.cross_entropy.item<double>();
    }
    EXPECT_LT(last, 0.3 * first) << name_of(config.attention.kind) << " " << name_of(config.feedforward.kind);
  }
}

TEST(MoeLanguageModel, decoding_gives_the_rows_of_the_logits) {
  for (const LanguageModelConfig& config : all_kinds()) {
    const auto model = build_language_model(config);
    model->to(DType::f64);
    model->eval();
    // All but learned positions go on beyond the context, and beyond the first tables of the positions.
    const std::int64_t length = config.position == PositionKind::learned ? 9 : 70;
    const Tensor tokens = tokens_of(2, length, 8);
    const Tensor whole = model->logits(tokens).data();
    nn::DecodingState state;
    std::vector<Tensor> rows = {model->decode(tokens.slice(1, 0, 4).contiguous(), state)};
    for (std::int64_t t = 4; t < length; ++t)
      rows.push_back(model->decode(tokens.slice(1, t, t + 1).contiguous(), state));
    EXPECT_CLOSE(ops::concat(rows, 1), whole, 1e-11);
  }
}

TEST(MoeLanguageModel, embedding_scale_multiplies_the_tokens_and_not_the_positions) {
  LanguageModelConfig config = config_of(AttentionKind::dense, FeedForwardKind::dense, PositionKind::learned);
  Generator a(4), b(4);
  const auto expected = build_language_model(config, a);
  config.embedding_scale = 3;
  const auto scaled = build_language_model(config, b);
  for (const nn::NamedParameter& p : expected->named_parameters())
    if (p.name == "embedding.weight") p.variable.data().copy_from(ops::affine(p.variable.data(), 3));
  const Tensor text = tokens_of(2, 12, 5);
  EXPECT_CLOSE(scaled->logits(text).data(), expected->logits(text).data(), 1e-5);
}

TEST(MoeLanguageModel, a_segment_memory_extends_the_context) {
  LanguageModelConfig config = config_of(AttentionKind::switchhead, FeedForwardKind::sigma_moe, PositionKind::xl);
  config.layers = 1;  // with one layer the memory holds the embeddings, as one long pass would see them
  const auto model = build_language_model(config);
  model->to(DType::f64);
  model->eval();
  const Tensor tokens = tokens_of(2, 10, 8);
  nn::SegmentMemory memory;
  memory.length = 5;
  model->logits(tokens.slice(1, 0, 5).contiguous(), &memory);
  const Tensor second = model->logits(tokens.slice(1, 5, 10).contiguous(), &memory).data();
  EXPECT_CLOSE(second, model->logits(tokens).data().slice(1, 5, 10), 1e-11);
}

TEST(MoeLanguageModel, recomputing_changes_nothing_even_with_dropout) {
  LanguageModelConfig config = config_of(AttentionKind::switchhead, FeedForwardKind::sigma_moe, PositionKind::rope);
  config.dropout = 0.2;
  config.attention.expert_dropout = config.feedforward.expert_dropout = 0.3;
  const auto model = build_language_model(config);
  const Tensor text = tokens_of(2, 13, 5);
  const auto gradients = [&](bool recompute) {
    seed_all(9);
    model->zero_grad();
    model->set_recompute(recompute);
    model->loss(text.slice(1, 0, 12).contiguous(), text.slice(1, 1, 13).contiguous()).total.backward();
    std::vector<std::vector<double>> all;
    for (const Variable& p : model->parameters()) all.push_back(p.grad().to_vector<double>());
    return all;
  };
  EXPECT_EQ(gradients(false), gradients(true));
}

TEST(MoeLanguageModel, a_seed_fixes_the_weights) {
  const LanguageModelConfig config = all_kinds().back();
  Generator a(4), b(4), c(5);
  const auto first = build_language_model(config, a), second = build_language_model(config, b),
             third = build_language_model(config, c);
  for (std::size_t i = 0; i < first->parameters().size(); ++i)
    EXPECT_EQ(first->parameters()[i].data().to_vector<float>(), second->parameters()[i].data().to_vector<float>());
  EXPECT_NE(first->parameters()[0].data().to_vector<float>(), third->parameters()[0].data().to_vector<float>());
}

TEST(MoeLanguageModel, inspection_covers_every_block) {
  const auto model =
      build_language_model(config_of(AttentionKind::switchhead, FeedForwardKind::dense, PositionKind::rope));
  const auto inspections = model->inspect(tokens_of(1, 6, 2));
  ASSERT_EQ(inspections.size(), 2u);
  EXPECT_EQ(inspections[1].probabilities.shape(), Shape({1, 2, 6, 6}));
  EXPECT_EQ(inspections[1].selections.size(), 2u);
}

TEST(MoeLanguageModel, runs_in_bf16) {
  for (const LanguageModelConfig& config : all_kinds()) {
    const auto model = build_language_model(config);
    const Tensor text = tokens_of(2, 13, 5);
    const Tensor inputs = text.slice(1, 0, 12).contiguous(), targets = text.slice(1, 1, 13).contiguous();
    const double in_f32 = model->loss(inputs, targets).cross_entropy.item<double>();
    model->to(DType::bf16);
    const nn::LanguageModelLoss loss = model->loss(inputs, targets);
    EXPECT_NEAR(loss.cross_entropy.item<double>(), in_f32, 0.03 * in_f32);
    loss.total.backward();
    for (const auto& p : model->named_parameters()) EXPECT_TRUE(p.variable.grad().defined()) << p.name;
  }
}

TEST(MoeLanguageModel, refuses_what_cannot_be_built) {
  LanguageModelConfig config = all_kinds().back();
  config.feedforward.k = 9;
  EXPECT_ERROR(build_language_model(config), "config: model.feedforward.k: 9 is more than the 4 experts");
  config = all_kinds().back();
  config.vocabulary_size = 0;
  EXPECT_ERROR(build_language_model(config), "build_language_model: vocabulary_size is 0");
}

}  // namespace
}  // namespace switchyard::moe
