#include "moe/accounting.h"

namespace switchyard::moe {
namespace {

/// The sizes of a configuration, as numbers to multiply.
struct Sizes {
  explicit Sizes(const LanguageModelConfig& config)
      : tokens(static_cast<double>(config.context)),
        memory(static_cast<double>(config.memory)),
        width(static_cast<double>(config.width)),
        heads(static_cast<double>(config.attention.heads)),
        head_width(static_cast<double>(moe::head_width(config))),
        key_value_heads(static_cast<double>(moe::key_value_heads(config))),
        experts(static_cast<double>(config.attention.experts)),
        k(static_cast<double>(config.attention.k)) {}

  double tokens, memory, width, heads, head_width, key_value_heads, experts, k;
  double keys() const { return tokens + memory; }
  double all_heads() const { return heads * head_width; }
};

int expert_projections(const AttentionConfig& attention) {
  int count = 0;
  for (const ProjectionKind kind : nn::kProjectionKinds) count += attention.has_experts(kind);
  return count;
}

int routers(const AttentionConfig& attention) {
  const int projections = expert_projections(attention);
  return attention.shared_selection && projections > 0 ? 1 : projections;
}

/// The learned gate of each head's output that takes the experts' place when there is one.
bool has_output_gate(const AttentionConfig& attention) {
  return attention.kind == AttentionKind::switchhead && attention.experts == 1;
}

void count_attention(const LanguageModelConfig& config, const Sizes& n, double batch, LayerCost& cost) {
  const AttentionConfig& attention = config.attention;
  const int experts = expert_projections(attention);
  // Queries and outputs are made for T tokens, keys and values for T + M.
  const double key_side = n.keys() / n.tokens;
  for (const ProjectionKind kind : nn::kProjectionKinds) {
    const double heads = nn::is_of_keys(kind) ? key_side * n.key_value_heads : n.heads;
    cost.projections += heads * n.head_width * (attention.has_experts(kind) ? n.k * (n.width + 1) : n.width);
  }
  const double visible = n.memory + (n.tokens + 1) / 2;  // a causal token sees the memory and half of its segment
  cost.attention = 2 * n.all_heads() * visible;
  if (config.position == PositionKind::xl)
    cost.positions = n.all_heads() * visible + n.keys() * n.all_heads() * n.width / (batch * n.tokens);
  const double query_side_routers =
      attention.has_experts(ProjectionKind::query) + attention.has_experts(ProjectionKind::output);
  const double key_side_routers =
      attention.has_experts(ProjectionKind::key) + attention.has_experts(ProjectionKind::value);
  double router_passes = query_side_routers + key_side_routers * key_side;
  if (attention.shared_selection && experts > 0) router_passes = config.memory > 0 ? 1 + key_side : 1;
  cost.attention_router = router_passes * n.width * n.heads * n.experts;
  if (has_output_gate(attention)) cost.attention_router = n.width * n.heads;
}

/// What a routing keeps per row: all scores; indices, gates and the two maps of the plan per choice.
double routing_values(std::int64_t experts, std::int64_t k) { return static_cast<double>(experts + 4 * k); }

/// Norm input and output; query and attended values per token, keys and values per key; two statistics of the norm and
/// one of each head's softmax; what the routings keep.
double attention_values(const LanguageModelConfig& config, const Sizes& n) {
  const AttentionConfig& attention = config.attention;
  // Keys and values that heads share are repeated for each, unless one serves all.
  const double key_heads = n.key_value_heads == 1 ? n.head_width : n.all_heads();
  double values = 2 * n.width + 2 + 2 * n.all_heads() + 2 * key_heads * n.keys() / n.tokens + n.heads;
  values += routers(attention) * n.heads * routing_values(attention.experts, attention.k);
  if (config.memory > 0) values += n.width * n.keys() / n.tokens;         // normed memory and tokens, joined
  if (has_output_gate(attention)) values += n.all_heads() + 2 * n.heads;  // the gated result beside the plain one
  return values;
}

double feed_forward_values(const LanguageModelConfig& config, const Sizes& n) {
  const FeedForwardConfig& feedforward = config.feedforward;
  // relu is undone from its result; other activations need their argument as well.
  const double per_neuron = feedforward.activation == ops::Activation::relu ? 1 : 2;
  const double norm = 2 * n.width + 2;
  switch (feedforward.kind) {
    case FeedForwardKind::dense: return norm + per_neuron * static_cast<double>(feedforward_width(config));
    // activation's argument and result, the linear part, their product
    case FeedForwardKind::glu: return norm + (per_neuron + 2) * static_cast<double>(feedforward_width(config));
    case FeedForwardKind::sigma_moe: break;
  }
  const auto k = static_cast<double>(feedforward.k);
  return norm + per_neuron * k * static_cast<double>(feedforward.expert_width) +
         routing_values(feedforward.experts, feedforward.k);
}

void count_feed_forward(const LanguageModelConfig& config, const Sizes& n, LayerCost& cost) {
  const FeedForwardConfig& feedforward = config.feedforward;
  const auto hidden = static_cast<double>(feedforward_width(config));
  switch (feedforward.kind) {
    case FeedForwardKind::dense: cost.feed_forward = 2 * n.width * hidden; return;
    case FeedForwardKind::glu: cost.feed_forward = 3 * n.width * hidden + hidden; return;
    case FeedForwardKind::sigma_moe: break;
  }
  const auto k = static_cast<double>(feedforward.k), expert_width = static_cast<double>(feedforward.expert_width);
  cost.feed_forward = k * (2 * n.width * expert_width + n.width);
  cost.feed_forward_router = n.width * static_cast<double>(feedforward.experts);
}

void count_parameters(const LanguageModelConfig& config, LayerCost& cost) {
  const AttentionConfig& attention = config.attention;
  const std::int64_t all_heads = attention.heads * head_width(config);
  for (const ProjectionKind kind : nn::kProjectionKinds) {
    const std::int64_t heads = nn::is_of_keys(kind) ? key_value_heads(config) * head_width(config) : all_heads;
    cost.attention_parameters += heads * config.width * (attention.has_experts(kind) ? attention.experts : 1);
    if (attention.bias) cost.attention_parameters += kind == ProjectionKind::output ? config.width : heads;
  }
  cost.attention_parameters += routers(attention) * attention.heads * attention.experts * config.width;
  if (has_output_gate(attention)) cost.attention_parameters += attention.heads * config.width;
  if (config.position == PositionKind::xl) cost.attention_parameters += all_heads * config.width;

  const FeedForwardConfig& feedforward = config.feedforward;
  const std::int64_t hidden = feedforward_width(config);
  const bool gated = feedforward.kind == FeedForwardKind::glu;
  cost.feed_forward_parameters = (gated ? 3 : 2) * hidden * config.width;
  if (feedforward.bias) cost.feed_forward_parameters += (gated ? 2 : 1) * hidden + config.width;
  if (feedforward.kind == FeedForwardKind::sigma_moe)
    cost.feed_forward_parameters += feedforward.experts * config.width;

  cost.norm_parameters = 2 * (config.norm == NormKind::layernorm ? 2 : 1) * config.width;
}

}  // namespace

PaperAttentionCost paper_attention_cost(const LanguageModelConfig& config) {
  const Sizes n(config);
  const AttentionConfig& attention = config.attention;
  const int experts = expert_projections(attention);
  const double context = n.keys() / n.tokens;  // C
  const double square = context * n.tokens * n.tokens;
  const double position_rows = config.position != PositionKind::xl      ? 0
                               : attention.kind == AttentionKind::dense ? 2 * context * n.tokens
                                                                        : context * n.tokens;
  PaperAttentionCost cost;
  cost.macs =
      n.heads *
      ((4 - experts) * n.tokens * n.head_width * n.width + experts * n.tokens * n.k * n.head_width * (n.width + 1) +
       experts * n.tokens * n.width * n.experts + 2 * square * n.head_width + position_rows * n.head_width * n.width);
  cost.memory = n.heads * (4 * n.tokens * n.head_width + 2 * square + position_rows * n.head_width);
  return cost;
}

double ModelCost::macs_per_token() const {
  return static_cast<double>(layers) * (layer.attention_macs() + layer.feed_forward_macs()) + output_macs;
}

double ModelCost::activation_values_per_token() const {
  return static_cast<double>(layers) * (layer.attention_values + layer.feed_forward_values);
}

std::int64_t ModelCost::parameters() const {
  return embedding_parameters + output_parameters +
         layers * (layer.attention_parameters + layer.feed_forward_parameters + layer.norm_parameters);
}

ModelCost model_cost(const LanguageModelConfig& config, std::int64_t batch) {
  check(batch >= 1, "model_cost: batch is ", batch, ", expected at least 1");
  validate(config);
  const Sizes n(config);
  ModelCost cost;
  cost.layers = config.layers;
  count_attention(config, n, static_cast<double>(batch), cost.layer);
  count_feed_forward(config, n, cost.layer);
  cost.layer.attention_values = attention_values(config, n);
  cost.layer.feed_forward_values = feed_forward_values(config, n);
  count_parameters(config, cost.layer);
  const std::int64_t matrix = config.vocabulary_size * config.width;
  cost.output_macs = static_cast<double>(matrix);
  cost.embedding_parameters = matrix + (config.position == PositionKind::learned ? config.context * config.width : 0);
  cost.output_parameters = (config.norm == NormKind::layernorm ? 2 : 1) * config.width +
                           (config.tie_embeddings ? 0 : matrix) + (config.head_bias ? config.vocabulary_size : 0);
  return cost;
}

}  // namespace switchyard::moe
