#include <gtest/gtest.h>

#include "core/ops/elementwise.h"
#include "core/ops/index.h"
#include "nn/encoder.h"
#include "tests/nn/naive_encoder.h"
#include "tests/support/close.h"

namespace switchyard::nn {
namespace {

constexpr std::int64_t kPositions = 6;

/// A decoder as GPT-2 is one.
std::unique_ptr<LanguageModel> make(NormPlacement placement) {
  EncoderBlockOptions blocks;
  blocks.width = 8;
  blocks.layers = 2;
  blocks.heads = 2;
  blocks.norm_placement = placement;
  LanguageModelOptions options;
  options.vocabulary_size = 11;
  options.width = 8;
  options.positions = kPositions;
  options.tie_embeddings = true;
  auto model = std::make_unique<LanguageModel>(options, dense_encoder_blocks(blocks));
  randomize(*model, 80);
  return model;
}

Tensor parameter(const Module& module, const std::string& name) {
  for (const NamedParameter& p : module.named_parameters())
    if (p.name == name) return p.variable.data();
  ADD_FAILURE() << "no parameter " << name;
  return {};
}

TEST(LearnedPositions, are_rows_of_the_table) {
  const LearnedPositions positions(5, 3);
  const Tensor table = positions.named_parameters().at(0).variable.data();
  EXPECT_CLOSE(positions.forward(2).data(), table.slice(0, 0, 2), 0);
  EXPECT_CLOSE(positions.forward(2, 3).data(), table.slice(0, 3, 5), 0);
  EXPECT_ERROR(positions.forward(3, 3), "LearnedPositions: 3 tokens from position 3 on, expected at most 5 positions");
  EXPECT_ERROR(LearnedPositions(0, 3), "LearnedPositions: 0 positions of width 3, expected at least 1");
}

TEST(LearnedPositions, are_added_to_a_language_models_embeddings) {
  const auto model = make(NormPlacement::pre);
  const Tensor counted = Tensor::arange(kPositions).unsqueeze(0);  // token t at position t
  const Tensor table = parameter(*model, "position.weight"), embedding = parameter(*model, "embedding.weight");
  const Tensor with_table = model->hidden(counted).output.data();
  const Tensor tokens = embedding.slice(0, 0, kPositions);
  tokens.copy_from(ops::add(tokens, table));
  table.fill(0);
  EXPECT_CLOSE(model->hidden(counted).output.data(), with_table, 1e-12);
}

TEST(LearnedPositions, count_from_the_start_of_decoding) {
  for (const NormPlacement placement : {NormPlacement::pre, NormPlacement::post}) {
    const auto model = make(placement);
    const Tensor x = Tensor::from<std::int64_t>({1, 5, 9, 2, 6, 5, 3, 5, 8, 10, 7, 0}, {2, kPositions});
    DecodingState state;
    const Tensor first = model->decode(x.slice(1, 0, 4), state), second = model->decode(x.slice(1, 4, 6), state);
    EXPECT_CLOSE(ops::concat({first, second}, 1), model->logits(x).data(), 1e-12);
    EXPECT_ERROR(model->decode(x.slice(1, 0, 1), state),
                 "LearnedPositions: 1 tokens from position 6 on, expected at most 6 positions");
    EXPECT_ERROR(model->logits(ops::concat({x, x}, 1)), "12 tokens from position 0 on, expected at most 6 positions");
    SegmentMemory memory{4, {}};
    EXPECT_ERROR(model->logits(x, &memory), "a segment memory needs relative ones (xl)");
  }
}

}  // namespace
}  // namespace switchyard::nn
