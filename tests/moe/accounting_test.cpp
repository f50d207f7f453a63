#include "moe/accounting.h"

#include "autograd/grad_mode.h"
#include "core/storage.h"
#include "moe/language_model.h"
#include "tests/support/close.h"
#include "tests/support/tensors.h"

namespace switchyard::moe {
namespace {

using testing::random_tensor;

/// A Transformer-XL model of the SwitchHead paper: one previous segment, vocabulary of 8000.
LanguageModelConfig paper_model(std::int64_t width, std::int64_t layers, std::int64_t context, std::int64_t heads,
                                std::int64_t head_width, double multiplier) {
  LanguageModelConfig config;
  config.vocabulary_size = 8000;
  config.width = width;
  config.layers = layers;
  config.context = config.memory = context;
  config.position = PositionKind::xl;
  config.attention.kind = AttentionKind::dense;
  config.attention.heads = heads;
  config.attention.head_width = head_width;
  config.feedforward.kind = FeedForwardKind::dense;
  config.feedforward.width_multiplier = multiplier;
  return config;
}

LanguageModelConfig with_experts(LanguageModelConfig config, std::int64_t experts, std::int64_t k) {
  config.attention.kind = AttentionKind::switchhead;
  config.attention.experts = experts;
  config.attention.k = k;
  return config;
}

LanguageModelConfig as_switchall(LanguageModelConfig config, std::int64_t experts, std::int64_t k) {
  config.feedforward = {};
  config.feedforward.experts = experts;
  config.feedforward.expert_width = 128;
  config.feedforward.k = k;
  return config;
}

const LanguageModelConfig kDense262 = paper_model(1024, 18, 512, 16, 64, 4.014);
const LanguageModelConfig kSwitchHead262 = with_experts(paper_model(1024, 18, 512, 4, 112, 4.09), 4, 2);
const LanguageModelConfig kDense47 = paper_model(412, 16, 256, 10, 41, 4.985);
const LanguageModelConfig kSwitchHead47 = with_experts(paper_model(412, 16, 256, 2, 76, 5.05), 5, 3);

TEST(Accounting, reproduces_the_papers_shares_of_compute_and_memory) {
  const PaperAttentionCost dense = paper_attention_cost(kDense262), sparse = paper_attention_cost(kSwitchHead262);
  EXPECT_NEAR(sparse.macs / dense.macs, 0.44, 0.005);      // "only 44% compute"
  EXPECT_NEAR(sparse.memory / dense.memory, 0.27, 0.005);  // "and 27% memory usage"
}

TEST(Accounting, switchhead_is_below_the_dense_baseline_at_equal_parameters) {
  struct Pair {
    LanguageModelConfig dense, sparse;
  };
  LanguageModelConfig rope_dense = kDense47, rope_sparse = with_experts(paper_model(412, 16, 512, 2, 64, 5.08), 5, 3);
  for (LanguageModelConfig* config : {&rope_dense, &rope_sparse}) {
    config->position = PositionKind::rope;
    config->memory = 0;
    config->context = 512;
  }
  rope_dense.attention.head_width = 40;  // 41 has no even half
  rope_dense.feedforward.width_multiplier = 5.06;
  const std::vector<Pair> pairs = {{kDense262, kSwitchHead262},
                                   {kDense47, kSwitchHead47},
                                   {rope_dense, rope_sparse},
                                   {kDense262, as_switchall(kSwitchHead262, 32, 4)},
                                   {kDense47, as_switchall(kSwitchHead47, 16, 4)}};
  for (const auto& [dense, sparse] : pairs) {
    const ModelCost a = model_cost(dense, 64), b = model_cost(sparse, 64);
    const double size = static_cast<double>(b.parameters()) / static_cast<double>(a.parameters());
    EXPECT_NEAR(size, 1, 0.03);
    EXPECT_LT(paper_attention_cost(sparse).macs, paper_attention_cost(dense).macs);
    EXPECT_LT(paper_attention_cost(sparse).memory, paper_attention_cost(dense).memory);
    EXPECT_LT(b.layer.attention_macs(), a.layer.attention_macs());
    EXPECT_LT(b.layer.attention_values, a.layer.attention_values);
    EXPECT_LT(b.macs_per_token(), a.macs_per_token());
  }
  EXPECT_LT(model_cost(as_switchall(kSwitchHead262, 32, 4)).macs_per_token(),
            model_cost(kSwitchHead262).macs_per_token());
}

TEST(Accounting, papers_models_have_the_papers_sizes) {
  for (const LanguageModelConfig& config : {kDense262, kSwitchHead262, as_switchall(kSwitchHead262, 32, 4)})
    EXPECT_NEAR(static_cast<double>(model_cost(config).parameters()) / 262e6, 1, 0.05);
  for (const LanguageModelConfig& config : {kDense47, kSwitchHead47, as_switchall(kSwitchHead47, 16, 4)})
    EXPECT_NEAR(static_cast<double>(model_cost(config).parameters()) / 47e6, 1, 0.05);
}

/// Small models that between them use every term of the counts.
std::vector<LanguageModelConfig> small_models() {
  std::vector<LanguageModelConfig> all;
  for (int variant = 0; variant < 12; ++variant) {
    LanguageModelConfig config;
    config.vocabulary_size = 13;
    config.width = 16;
    config.layers = 1 + variant % 3;
    config.context = 9;
    config.position = std::array{PositionKind::rope, PositionKind::xl, PositionKind::none}[variant % 3];
    config.norm = variant % 2 ? NormKind::rmsnorm : NormKind::layernorm;
    config.tie_embeddings = variant % 4 == 1;
    config.head_bias = variant % 4 == 2;
    config.attention.kind = variant % 4 == 3 ? AttentionKind::dense : AttentionKind::switchhead;
    if (config.attention.kind == AttentionKind::dense) {
      config.attention.heads = 4;
      config.attention.key_value_heads = std::array{0, 1, 2}[variant / 4];
      config.attention.bias = variant == 7;
    }
    if (variant == 7) config.position = PositionKind::learned;
    config.attention.head_width = 4 + 4 * (variant % 2);
    config.attention.experts = variant == 6 ? 1 : 3;
    if (variant == 5) config.attention.experts_on = {ProjectionKind::query, ProjectionKind::key, ProjectionKind::value};
    config.attention.shared_selection = variant == 5 || variant == 8;
    config.feedforward.kind =
        std::array{FeedForwardKind::sigma_moe, FeedForwardKind::dense, FeedForwardKind::glu}[(variant / 2) % 3];
    config.feedforward.bias = variant % 3 == 0;
    config.feedforward.activation = variant % 2 ? ops::Activation::gelu : ops::Activation::relu;
    config.feedforward.experts = 5;
    config.feedforward.expert_width = 6;
    if (config.feedforward.kind != FeedForwardKind::sigma_moe) config.feedforward.width = 40;
    all.push_back(config);
  }
  return all;
}

TEST(Accounting, parameters_are_those_of_the_built_model) {
  for (const LanguageModelConfig& config : small_models()) {
    const auto model = build_language_model(config);
    EXPECT_EQ(model_cost(config).parameters(), model->parameter_count());
    const ModelCost cost = model_cost(config);
    std::int64_t attention = 0, feed_forward = 0;
    for (const auto& p : model->block(0).attention().named_parameters()) attention += p.variable.numel();
    for (const auto& p : model->block(0).feed_forward().named_parameters()) feed_forward += p.variable.numel();
    EXPECT_EQ(cost.layer.attention_parameters, attention);
    EXPECT_EQ(cost.layer.feed_forward_parameters, feed_forward);
  }
}

/// Bytes that one block holds between its forward and its backward pass.
double kept_bytes(LanguageModelConfig config, std::int64_t batch) {
  config.layers = 1;
  const auto model = build_language_model(config);
  const Variable x(random_tensor({batch, config.context, config.width}, 1, DType::f32), true);
  model->block(0).forward(x);  // tables and workspaces of the first call are not counted
  const std::size_t before = memory_statistics(default_device()).current_bytes;
  const nn::LayerOutput out = model->block(0).forward(x);
  const std::size_t after = memory_statistics(default_device()).current_bytes;
  // x itself was there before; the block's output is the next block's input.
  return static_cast<double>(after - before);
}

TEST(Accounting, activation_memory_is_what_a_block_keeps) {
  for (LanguageModelConfig config : small_models()) {
    config.width = 64;
    config.context = 64;
    config.attention.head_width = 32;
    config.feedforward.expert_width = 32;
    if (config.feedforward.kind != FeedForwardKind::sigma_moe) config.feedforward.width = 200;
    const LayerCost cost = model_cost(config, 4).layer;
    const double expected =
        4.0 * 4 * static_cast<double>(config.context) * (cost.attention_values + cost.feed_forward_values);
    const double actual = kept_bytes(config, 4);
    EXPECT_NEAR(actual / expected, 1, 0.1)
        << name_of(config.attention.kind) << " " << name_of(config.feedforward.kind) << " " << name_of(config.position)
        << " experts " << config.attention.experts << ops::name_of(config.feedforward.activation);
  }
}

TEST(Accounting, counts_grow_as_they_should) {
  LanguageModelConfig config = small_models()[0];
  const LayerCost one = model_cost(config).layer;
  config.attention.k = 3;
  const LayerCost more = model_cost(config).layer;
  EXPECT_DOUBLE_EQ(more.projections - one.projections, 2 * 2 * 4 * (16 + 1));  // V and O of one more expert per head
  EXPECT_EQ(more.attention_parameters, one.attention_parameters);
  config.feedforward.experts *= 2;
  const LayerCost wider = model_cost(config).layer;
  EXPECT_EQ(wider.feed_forward, more.feed_forward);
  EXPECT_EQ(wider.feed_forward_router, 2 * more.feed_forward_router);
  EXPECT_ERROR(model_cost(config, 0), "model_cost: batch is 0, expected at least 1");
}

}  // namespace
}  // namespace switchyard::moe
