#include "moe/language_model.h"

#include "moe/sigma_moe.h"
#include "moe/switch_head.h"
#include "nn/attention.h"
#include "nn/feed_forward.h"

namespace switchyard::moe {
namespace {

nn::NormKind norm_kind(NormKind kind) {
  return kind == NormKind::layernorm ? nn::NormKind::layernorm : nn::NormKind::rmsnorm;
}

nn::PositionOptions position_options(const LanguageModelConfig& config) {
  nn::PositionOptions options;
  switch (config.position) {
    case PositionKind::none:
    case PositionKind::learned: options.kind = nn::PositionKind::none; break;
    case PositionKind::rope: options.kind = nn::PositionKind::rope; break;
    case PositionKind::xl: options.kind = nn::PositionKind::xl; break;
  }
  options.fraction = config.rope_fraction;
  options.base = config.rope_base;
  return options;
}

nn::Initializer dense_init(const LanguageModelConfig& config) {
  const double scale = init_scale(config);
  return config.init == InitKind::normal ? nn::init::fan_in_normal(scale) : nn::init::fan_in_uniform(scale);
}

}  // namespace

std::unique_ptr<nn::AttentionLayer> build_attention(const LanguageModelConfig& config, Generator& generator) {
  const AttentionConfig& attention = config.attention;
  if (attention.kind == AttentionKind::dense) {
    nn::MultiHeadAttentionOptions options;
    options.width = config.width;
    options.heads = attention.heads;
    options.head_width = head_width(config);
    options.key_value_heads = attention.key_value_heads;
    options.position = position_options(config);
    options.dropout = attention.dropout;
    options.bias = attention.bias;
    options.init = dense_init(config);
    return std::make_unique<nn::MultiHeadAttention>(options, generator);
  }
  SwitchHeadOptions options;
  options.width = config.width;
  options.heads = attention.heads;
  options.head_width = head_width(config);
  options.experts = attention.experts;
  options.k = attention.k;
  options.experts_on = attention.experts_on;
  options.shared_selection = attention.shared_selection;
  options.selection = attention.selection;
  options.expert_dropout = attention.expert_dropout;
  options.entropy_regularizer = attention.entropy_regularizer;
  options.position = position_options(config);
  options.dropout = attention.dropout;
  options.init_scale = init_scale(config);
  return std::make_unique<SwitchHead>(options, generator);
}

std::unique_ptr<nn::FeedForwardLayer> build_feed_forward(const LanguageModelConfig& config, Generator& generator) {
  const FeedForwardConfig& feedforward = config.feedforward;
  if (feedforward.kind != FeedForwardKind::sigma_moe) {
    nn::FeedForwardOptions options;
    options.width = config.width;
    options.hidden = feedforward_width(config);
    options.activation = feedforward.activation;
    options.gated = feedforward.kind == FeedForwardKind::glu;
    options.bias = feedforward.bias;
    options.init = dense_init(config);
    return std::make_unique<nn::FeedForward>(options, generator);
  }
  SigmaMoeOptions options;
  options.width = config.width;
  options.experts = feedforward.experts;
  options.expert_width = feedforward.expert_width;
  options.k = feedforward.k;
  options.activation = feedforward.activation;
  options.bias = feedforward.bias;
  options.selection = feedforward.selection;
  options.sinkhorn_rounds = feedforward.sinkhorn_rounds;
  options.expert_dropout = feedforward.expert_dropout;
  options.entropy_regularizer = feedforward.entropy_regularizer;
  options.init_scale = init_scale(config);
  return std::make_unique<SigmaMoe>(options, generator);
}

std::unique_ptr<nn::LanguageModel> build_language_model(const LanguageModelConfig& config, Generator& generator) {
  validate(config);
  check(config.vocabulary_size >= 1, "build_language_model: vocabulary_size is ", config.vocabulary_size,
        ", expected at least 1 (0 in a configuration stands for the tokenizer's)");
  const nn::NormKind norm = norm_kind(config.norm);
  std::vector<std::unique_ptr<nn::TransformerBlock>> blocks;
  for (std::int64_t layer = 0; layer < config.layers; ++layer) {
    // Named one by one: the weights of a seed must not depend on the compiler's order of evaluating arguments.
    auto attention = build_attention(config, generator);
    auto feed_forward = build_feed_forward(config, generator);
    blocks.push_back(std::make_unique<nn::TransformerBlock>(
        nn::make_norm(norm, config.width, config.norm_epsilon), std::move(attention),
        nn::make_norm(norm, config.width, config.norm_epsilon), std::move(feed_forward), config.dropout));
  }
  nn::LanguageModelOptions options;
  options.vocabulary_size = config.vocabulary_size;
  options.width = config.width;
  options.dropout = config.dropout;
  options.norm = norm;
  options.norm_epsilon = config.norm_epsilon;
  options.positions = config.position == PositionKind::learned ? config.context : 0;
  options.embedding_scale = config.embedding_scale;
  options.tie_embeddings = config.tie_embeddings;
  options.output_bias = config.head_bias;
  options.embedding_init = nn::init::normal(config.embedding_init_std);
  options.output_init = dense_init(config);
  return std::make_unique<nn::LanguageModel>(options, std::move(blocks), generator);
}

}  // namespace switchyard::moe
