#include "nn/transformer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "autograd/grad_mode.h"
#include "autograd/ops/elementwise.h"
#include "autograd/ops/loss.h"
#include "autograd/ops/reduce.h"
#include "autograd/ops/shape.h"
#include "core/ops/index.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"
#include "nn/optim/adamw.h"
#include "nn/optim/clip.h"
#include "tests/nn/layer_gradcheck.h"
#include "tests/support/close.h"
#include "tests/support/device.h"
#include "tests/support/tensors.h"

namespace switchyard::nn {
namespace {

using switchyard::testing::max_error;
using switchyard::testing::random_tensor;

constexpr std::int64_t kVocabulary = 11;

struct ModelShape {
  PositionKind position = PositionKind::rope;
  NormKind norm = NormKind::layernorm;
  std::int64_t layers = 2;
  double dropout = 0;
  bool tie = false, bias = false, recompute = false;
  NormPlacement placement = NormPlacement::pre;
};

/// A feed-forward that also returns a regulariser: weight * mean(x^2).
class Regularized : public FeedForwardLayer {
 public:
  Regularized(const FeedForwardOptions& options, double weight, Generator& generator)
      : inner_(options, generator), weight_(weight) {
    register_module("", inner_);
  }
  LayerOutput forward(const Variable& x) override {
    return {inner_.forward(x).output, weight_ > 0 ? mean(x * x) * weight_ : Variable()};
  }

 private:
  FeedForward inner_;
  double weight_;
};

std::unique_ptr<LanguageModel> make(const ModelShape& shape, DType dtype = DType::f64, double regularizer = 0,
                                    std::uint64_t seed = 3) {
  Generator generator(seed);
  const std::int64_t width = 8;
  std::vector<std::unique_ptr<TransformerBlock>> blocks;
  for (std::int64_t i = 0; i < shape.layers; ++i) {
    MultiHeadAttentionOptions attention;
    attention.width = width;
    attention.heads = 2;
    attention.position = {shape.position, 0.5, 10000};
    attention.dropout = shape.dropout;
    FeedForwardOptions feed_forward;
    feed_forward.width = width;
    feed_forward.hidden = 12;
    blocks.push_back(std::make_unique<TransformerBlock>(
        make_norm(shape.norm, width), std::make_unique<MultiHeadAttention>(attention, generator),
        make_norm(shape.norm, width), std::make_unique<Regularized>(feed_forward, regularizer, generator),
        shape.dropout, shape.placement));
  }
  LanguageModelOptions options;
  options.vocabulary_size = kVocabulary;
  options.width = width;
  options.dropout = shape.dropout;
  options.norm = shape.norm;
  options.tie_embeddings = shape.tie;
  options.output_bias = shape.bias;
  options.recompute = shape.recompute;
  options.embedding_init = init::normal(1);
  auto model = std::make_unique<LanguageModel>(options, std::move(blocks), generator);
  model->to(dtype);
  return model;
}

Tensor tokens(const Shape& shape, std::uint64_t seed = 1) {
  return random_tensor(shape, seed, DType::f64, 0, kVocabulary - 0.01).to(DType::i64);
}

TEST(TransformerBlock, advances_a_stream_as_it_maps_its_total) {
  for (const NormKind norm : {NormKind::layernorm, NormKind::rmsnorm}) {
    ModelShape shape;
    shape.norm = norm;
    const auto model = make(shape);
    const Tensor a = random_tensor({2, 5, 8}, 1, DType::f64), b = random_tensor({2, 5, 8}, 2, DType::f64);
    ResidualStream stream{Variable(a), Variable(b)};
    model->block(0).advance(stream);
    model->block(1).advance(stream);
    const Variable x = Variable(a) + Variable(b);
    const Variable expected = model->block(1).forward(model->block(0).forward(x).output).output;
    EXPECT_LE(max_error(stream.total().data(), expected.data()), 1e-12);
  }
}

TEST(LanguageModel, names_its_parameters) {
  ModelShape shape;
  shape.layers = 1;
  shape.bias = true;
  shape.position = PositionKind::xl;
  std::vector<std::string> names, exempt;
  for (const NamedParameter& p : make(shape)->named_parameters()) {
    names.push_back(p.name);
    if (!p.decays) exempt.push_back(p.name);
  }
  std::sort(names.begin(), names.end());
  std::sort(exempt.begin(), exempt.end());
  EXPECT_EQ(
      names,
      (std::vector<std::string>{
          "embedding.weight", "final_norm.bias", "final_norm.weight", "layers.0.attention.key.weight",
          "layers.0.attention.output.weight", "layers.0.attention.position.projection.weight",
          "layers.0.attention.query.weight", "layers.0.attention.value.weight", "layers.0.attention_norm.bias",
          "layers.0.attention_norm.weight", "layers.0.feed_forward.down.weight", "layers.0.feed_forward.up.weight",
          "layers.0.feed_forward_norm.bias", "layers.0.feed_forward_norm.weight", "output.bias", "output.weight"}));
  EXPECT_EQ(exempt, (std::vector<std::string>{"final_norm.bias", "final_norm.weight", "layers.0.attention_norm.bias",
                                              "layers.0.attention_norm.weight", "layers.0.feed_forward_norm.bias",
                                              "layers.0.feed_forward_norm.weight", "output.bias"}));
  shape.tie = true;
  for (const NamedParameter& p : make(shape)->named_parameters()) EXPECT_NE(p.name, "output.weight");
}

TEST(LanguageModel, loss_is_the_cross_entropy_of_its_logits_and_the_regularizers) {
  for (const bool tie : {false, true}) {
    ModelShape shape;
    shape.tie = tie;
    shape.bias = true;
    const auto model = make(shape, DType::f64, 0.1);
    const Tensor x = tokens({2, 6}, 1);
    const Tensor y = tokens({2, 6}, 2);
    y.slice(1, 0, 1).fill(-100);
    const LanguageModelLoss loss = model->loss(x, y);
    const Variable logits = model->logits(x);
    ASSERT_EQ(logits.shape(), (Shape{2, 6, kVocabulary}));
    const double expected = cross_entropy(reshape(logits, {12, kVocabulary}), y.reshape({12})).item<double>();
    EXPECT_NEAR(loss.cross_entropy.item<double>(), expected, 1e-13);
    EXPECT_GT(loss.regularizer.item<double>(), 0);
    EXPECT_NEAR(loss.total.item<double>(), expected + loss.regularizer.item<double>(), 1e-13);
    EXPECT_FALSE(make(shape)->loss(x, y).regularizer.defined());
  }
}

TEST(LanguageModel, passes_gradcheck) {
  for (const PositionKind position : {PositionKind::none, PositionKind::rope, PositionKind::xl}) {
    ModelShape shape;
    shape.position = position;
    shape.layers = 1;
    shape.dropout = 0.2;
    shape.tie = position == PositionKind::rope;
    shape.bias = position == PositionKind::none;
    shape.norm = position == PositionKind::xl ? NormKind::rmsnorm : NormKind::layernorm;
    const auto model = make(shape, DType::f64, 0.1);
    const Tensor x = tokens({2, 4}, 1), y = tokens({2, 4}, 2);
    expect_gradients(*model, {}, [&](const Variables&) { return model->loss(x, y).total; });
  }
}

TEST(LanguageModel, recompute_changes_nothing_but_memory) {
  const auto run = [](bool recompute) {
    ModelShape shape;
    shape.dropout = 0.3;
    shape.recompute = recompute;
    const auto model = make(shape, DType::f64, 0.1);
    seed_all(9);
    const LanguageModelLoss loss = model->loss(tokens({2, 6}, 1), tokens({2, 6}, 2));
    const std::size_t held = memory_statistics(default_device()).current_bytes;
    loss.total.backward();
    std::vector<Tensor> results = {loss.total.data()};
    for (const Variable& p : model->parameters()) results.push_back(p.grad());
    return std::pair{results, held};
  };
  const auto [plain, plain_bytes] = run(false);
  const auto [again, again_bytes] = run(true);
  for (std::size_t i = 0; i < plain.size(); ++i) EXPECT_CLOSE(again[i], plain[i], 1e-13);
  EXPECT_LT(again_bytes, plain_bytes);
}

TEST(LanguageModel, decoding_gives_the_rows_of_the_full_pass) {
  for (const PositionKind position : {PositionKind::none, PositionKind::rope, PositionKind::xl}) {
    ModelShape shape;
    shape.position = position;
    shape.bias = true;
    const auto model = make(shape);
    model->eval();
    const Tensor x = tokens({2, 9});
    const Tensor full = model->logits(x).data();
    for (const std::vector<std::int64_t>& chunks :
         std::vector<std::vector<std::int64_t>>{{9}, {5, 1, 1, 1, 1}, {1, 1, 3, 4}}) {
      DecodingState state, last_state;
      std::vector<Tensor> parts;
      std::int64_t at = 0;
      for (const std::int64_t chunk : chunks) {
        const Tensor part = x.slice(1, at, at + chunk);
        parts.push_back(model->decode(part, state));
        at += chunk;
        EXPECT_EQ(state.length(), at);
        EXPECT_CLOSE(model->decode(part, last_state, true), full.slice(1, at - 1, at), 1e-12);
      }
      EXPECT_CLOSE(ops::concat(parts, 1), full, 1e-12);
    }
  }
}

TEST(LanguageModel, segment_memory_continues_one_long_text) {
  ModelShape shape;
  shape.position = PositionKind::xl;
  for (const std::int64_t layers : {1, 3}) {
    shape.layers = layers;
    const auto model = make(shape);
    const Tensor text = tokens({2, 12});
    const Tensor whole = model->logits(text).data();
    SegmentMemory memory;
    memory.length = 12;  // the whole past: every layer sees what it saw in the long pass
    for (std::int64_t at = 0; at < 12; at += 4) {
      EXPECT_CLOSE(model->logits(text.slice(1, at, at + 4), &memory).data(), whole.slice(1, at, at + 4), 1e-12);
      EXPECT_EQ(memory.inputs[0].shape(), (Shape{2, at + 4, 8}));
    }
  }
}

TEST(LanguageModel, segment_memory_keeps_the_last_tokens_only) {
  ModelShape shape;
  shape.position = PositionKind::xl;
  shape.layers = 1;
  const auto model = make(shape);
  const Tensor text = tokens({1, 9});
  SegmentMemory memory;
  memory.length = 4;
  model->logits(text.slice(1, 0, 3), &memory);
  model->logits(text.slice(1, 3, 6), &memory);
  ASSERT_EQ(memory.inputs[0].size(1), 4);
  // One layer deep, the memory is as good as the tokens 2 .. 5 themselves.
  EXPECT_CLOSE(model->logits(text.slice(1, 6, 9), &memory).data(),
               model->logits(text.slice(1, 2, 9)).data().slice(1, 4, 7), 1e-12);
  model->logits(text, &memory);  // longer than the memory
  EXPECT_EQ(memory.inputs[0].size(1), 4);
  EXPECT_LE(memory.inputs[0].storage()->bytes(), 4 * 8 * sizeof(double)) << "nothing else is kept alive";
  EXPECT_ERROR(model->logits(tokens({2, 3}), &memory), "the segment memory belongs to another model or batch size");
  memory.clear();
  EXPECT_NO_THROW(model->logits(tokens({2, 3}), &memory));
}

TEST(LanguageModel, no_gradient_flows_into_the_memory) {
  ModelShape shape;
  shape.position = PositionKind::xl;
  shape.layers = 2;
  for (const bool recompute : {false, true}) {
    shape.recompute = recompute;
    const auto model = make(shape);
    SegmentMemory memory;
    memory.length = 4;
    model->logits(Tensor::full({1, 4}, 3, DType::i64), &memory);
    // Token 3 occurs in the memory alone. (The output matrix is not tied to the embedding.)
    model->loss(Tensor::full({1, 4}, 5, DType::i64), tokens({1, 4}), -100, &memory).total.backward();
    Tensor gradient;
    for (const NamedParameter& p : model->named_parameters())
      if (p.name == "embedding.weight") gradient = p.variable.grad();
    EXPECT_CLOSE(gradient.select(0, 3), Tensor::zeros({8}, DType::f64), 0.0);
    EXPECT_GT(max_error(gradient.select(0, 5), Tensor::zeros({8}, DType::f64)), 1e-6);
  }
}

TEST(LanguageModel, gradients_with_a_memory_pass_gradcheck) {
  ModelShape shape;
  shape.position = PositionKind::xl;
  shape.layers = 2;
  const auto model = make(shape);
  SegmentMemory past;
  past.length = 3;
  for (std::int64_t i = 0; i < 2; ++i)
    past.inputs.push_back(random_tensor({2, 3, 8}, 20 + static_cast<std::uint64_t>(i)));
  const Tensor x = tokens({2, 4}, 1), y = tokens({2, 4}, 2);
  expect_gradients(*model, {}, [&](const Variables&) {
    SegmentMemory memory = past;
    return model->loss(x, y, -100, &memory).total;
  });
}

/// Losses of `steps` updates on one batch.
std::vector<double> train(LanguageModel& model, int steps, double rate) {
  AdamWOptions options;
  options.learning_rate = rate;
  AdamW optimizer(parameter_groups(model.named_parameters(), 0.0), options);
  const Tensor text = tokens({2, 9});
  std::vector<double> losses;
  for (int i = 0; i < steps; ++i) {
    const LanguageModelLoss loss = model.loss(text.slice(1, 0, 8), text.slice(1, 1, 9));
    losses.push_back(loss.total.item<double>());
    optimizer.zero_grad();
    loss.total.backward();
    optimizer.step(clip_gradients(model.parameters(), 1.0).factor);
    default_generator(default_device()).end_step();
  }
  return losses;
}

TEST(LanguageModel, learns_one_batch_by_heart) {
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const auto model = make({}, dtype);
    const std::vector<double> losses = train(*model, 150, 1e-2);
    EXPECT_GT(losses.front(), 1.5);
    EXPECT_LT(losses.back(), 0.15 * losses.front()) << dtype;
  }
}

TEST(LanguageModel, the_same_seed_gives_the_same_training) {
  ModelShape shape;
  shape.dropout = 0.1;
  const auto run = [&](std::uint64_t seed) {
    const auto model = make(shape, DType::f32, 0, seed);
    seed_all(seed);
    return train(*model, 5, 1e-2);
  };
  EXPECT_EQ(run(3), run(3));
  EXPECT_NE(run(3), run(4));
}

TEST(LanguageModel, layers_draw_from_the_default_generator_unless_given_another) {
  const auto weight = [](std::uint64_t seed) {
    seed_all(seed);
    return Linear(4, 4).weight().data();
  };
  EXPECT_CLOSE(weight(1), weight(1), 0.0);
  EXPECT_GT(max_error(weight(1), weight(2)), 0.1);
}

TEST(LanguageModel, remembers_segments_with_post_layernorm) {
  // One block: what the second segment sees of the first is exactly that block's input.
  ModelShape shape;
  shape.position = PositionKind::xl;
  shape.placement = NormPlacement::post;
  shape.layers = 1;
  const auto model = make(shape);
  const Tensor x = tokens({2, 6});
  SegmentMemory memory{3, {}};
  const Tensor first = model->logits(x.slice(1, 0, 3), &memory).data();
  const Tensor second = model->logits(x.slice(1, 3, 6), &memory).data();
  EXPECT_CLOSE(ops::concat({first, second}, 1), model->logits(x).data(), 1e-12);
}

TEST(LanguageModel, inspection_shows_every_layer) {
  const auto model = make({});
  const auto inspections = model->inspect(tokens({2, 5}));
  ASSERT_EQ(inspections.size(), 2u);
  for (const AttentionInspection& i : inspections) EXPECT_EQ(i.probabilities.shape(), (Shape{2, 2, 5, 5}));
}

TEST(LanguageModel, anomaly_mode_names_the_layer) {
  for (const bool recompute : {false, true}) {
    ModelShape shape;
    shape.recompute = recompute;
    const auto model = make(shape);
    for (const NamedParameter& p : model->named_parameters())
      if (p.name == "layers.1.feed_forward.up.weight") p.variable.data().slice(0, 0, 1).fill(NAN);
    AnomalyGuard guard;
    EXPECT_ERROR(model->logits(tokens({1, 3})), "anomaly: the result of op 'linear' in layers.1.feed_forward has");
  }
}

TEST(LanguageModel, refuses_tokens_outside_the_vocabulary) {
  SKIP_ON_GPU("the host does not read tokens there");
  EXPECT_ERROR(make({})->logits(Tensor::full({1, 1}, kVocabulary, DType::i64)), "embedding");
}

TEST(LanguageModel, says_what_is_wrong) {
  const auto model = make({});
  EXPECT_ERROR(model->logits(Tensor::zeros({2, 3})),
               "LanguageModel: expected tokens i64 [batch, tokens], got f32 [2, 3]");
  EXPECT_ERROR(model->logits(Tensor::zeros({3}, DType::i64)), "expected tokens i64 [batch, tokens], got i64 [3]");
  EXPECT_ERROR(model->logits(Tensor()), "expected tokens i64 [batch, tokens], got none");
  EXPECT_ERROR(model->loss(tokens({2, 3}), tokens({2, 4})), "LanguageModel: targets [2, 4] for tokens [2, 3]");
  SegmentMemory memory;
  EXPECT_ERROR(model->logits(tokens({2, 3}), &memory), "a segment memory needs a length of at least 1, got 0");
  DecodingState state;
  state.layers.resize(5);
  EXPECT_ERROR(model->decode(tokens({1, 1}), state), "LanguageModel: the decoding state has 5 layers, the model 2");
  state = {};
  EXPECT_ERROR(model->decode(Tensor::zeros({1, 0}, DType::i64), state), "decode needs at least one token, got [1, 0]");
  EXPECT_ERROR(TransformerBlock(nullptr, nullptr, nullptr, nullptr), "TransformerBlock: a layer is missing");
}

}  // namespace
}  // namespace switchyard::nn
