#include "moe/language_model_config.h"

#include <algorithm>
#include <cmath>
#include <string>

#include "core/error.h"

namespace switchyard::moe {
namespace {

void check_range(const char* key, std::int64_t value, std::int64_t low) {
  check(value >= low, "config: model.", key, ": ", value, " is out of range, expected at least ", low);
}

void check_range(const char* key, double value, double low, double high) {
  check(value >= low && value <= high, "config: model.", key, ": ", value, " is out of range, expected ", low, " to ",
        high);
}

/// Shares of units or experts that are dropped: dropping all of them leaves nothing to scale up.
void check_dropout(const char* key, double value) {
  check(value >= 0.0 && value < 1.0, "config: model.", key, ": ", value,
        " is out of range, expected 0 or more and below 1");
}

/// The k of a router over `experts` experts.
void check_k(const char* key, std::int64_t k, std::int64_t experts) {
  check_range(key, k, 1);
  check(k <= experts, "config: model.", key, ": ", k, " is more than the ", experts,
        experts == 1 ? " expert" : " experts", ", expected ", experts == 1 ? "1" : "1 to " + std::to_string(experts));
}

void validate_heads(const LanguageModelConfig& config) {
  const AttentionConfig& attention = config.attention;
  check_range("attention.heads", attention.heads, 1);
  check_range("attention.head_width", attention.head_width, 0);
  check(attention.head_width > 0 || config.width % attention.heads == 0,
        "config: model.attention.heads: ", attention.heads, " does not divide model.width ", config.width,
        ", expected a divisor of it or model.attention.head_width");
  check_range("attention.key_value_heads", attention.key_value_heads, 0);
  check(attention.heads % key_value_heads(config) == 0,
        "config: model.attention.key_value_heads: ", attention.key_value_heads, " does not divide the ",
        attention.heads, " heads, expected a divisor, or 0 for as many");
}

void validate_positions(const LanguageModelConfig& config) {
  if (config.position == PositionKind::rope) {
    check_range("rope_fraction", config.rope_fraction, 0.0, 1.0);
    check(config.rope_base > 1.0, "config: model.rope_base: ", config.rope_base,
          " is out of range, expected more than 1");
    check(rotated_width(config) % 2 == 0, "config: model.rope_fraction: ", config.rope_fraction, " of head width ",
          head_width(config), " rotates ", rotated_width(config), " channels, expected an even number");
  }
  if (config.position == PositionKind::xl)
    check(config.width % 2 == 0, "config: model.width: ", config.width,
          " is odd, expected an even width with position \"xl\"");
  check(config.memory == 0 || config.position == PositionKind::xl, "config: model.memory: ", config.memory,
        " is only possible with position \"xl\", expected 0 with position \"", name_of(config.position), "\"");
}

std::string list_of(const std::vector<ProjectionKind>& projections) {
  std::string text = "[";
  for (const ProjectionKind p : projections) {
    if (text.size() > 1) text += ", ";
    text += '"' + std::string(name_of(p)) + '"';
  }
  return text + "]";
}

void validate_switchhead(const AttentionConfig& attention) {
  check(!attention.bias,
        "config: model.attention.bias: true is only possible with attention \"dense\", expected false with attention "
        "\"switchhead\"");
  check(attention.key_value_heads == 0, "config: model.attention.key_value_heads: ", attention.key_value_heads,
        " is only possible with attention \"dense\", expected 0 with attention \"switchhead\"");
  check_range("attention.experts", attention.experts, 1);
  if (attention.experts > 1) check_k("attention.k", attention.k, attention.experts);
  check_dropout("attention.expert_dropout", attention.expert_dropout);
  check_range("attention.entropy_regularizer", attention.entropy_regularizer, 0.0, 1e6);
  check(attention.selection == SelectionKind::sigmoid || attention.selection == SelectionKind::softmax,
        "config: model.attention.selection: \"", name_of(attention.selection),
        "\" is not possible in attention, expected \"sigmoid\" or \"softmax\"");
  const auto& on = attention.experts_on;
  check(!on.empty(), "config: model.attention.experts_on: [] is empty, expected some of \"q\", \"k\", \"v\", \"o\"");
  for (auto p = on.begin(); p != on.end(); ++p)
    check(std::find(on.begin(), p, *p) == p, "config: model.attention.experts_on: ", list_of(on), " names \"",
          name_of(*p), "\" twice, expected each projection once");
  check(!attention.shared_selection || on.size() > 1,
        "config: model.attention.shared_selection: true has nothing to share, expected two or more projections in "
        "experts_on, got ",
        list_of(on));
}

void validate_feedforward(const LanguageModelConfig& config) {
  const FeedForwardConfig& feedforward = config.feedforward;
  const ops::Activation activation = feedforward.activation;
  check(activation == ops::Activation::relu || activation == ops::Activation::gelu ||
            activation == ops::Activation::gelu_tanh || activation == ops::Activation::silu,
        "config: model.feedforward.activation: \"", ops::name_of(activation),
        "\" is no activation of a feedforward layer, expected \"relu\", \"gelu\", \"gelu_tanh\" or \"silu\"");
  if (feedforward.kind == FeedForwardKind::sigma_moe) {
    check_range("feedforward.experts", feedforward.experts, 1);
    check_range("feedforward.expert_width", feedforward.expert_width, 1);
    check_k("feedforward.k", feedforward.k, feedforward.experts);
    check_range("feedforward.sinkhorn_rounds", feedforward.sinkhorn_rounds, 1);
    check_dropout("feedforward.expert_dropout", feedforward.expert_dropout);
    check_range("feedforward.entropy_regularizer", feedforward.entropy_regularizer, 0.0, 1e6);
    return;
  }
  check_range("feedforward.width", feedforward.width, 0);
  check_range("feedforward.width_multiplier", feedforward.width_multiplier, 0.0, 1024.0);
  check(feedforward.width == 0 || feedforward.width_multiplier == 0.0,
        "config: model.feedforward.width: ", feedforward.width, " is given beside width_multiplier ",
        feedforward.width_multiplier, ", expected only one of the two");
  check(feedforward_width(config) >= 1, "config: model.feedforward.width_multiplier: ", feedforward.width_multiplier,
        " of model.width ", config.width, " leaves no neuron, expected at least 1 / model.width");
}

}  // namespace

std::int64_t head_width(const LanguageModelConfig& config) {
  return config.attention.head_width > 0 ? config.attention.head_width : config.width / config.attention.heads;
}

std::int64_t key_value_heads(const LanguageModelConfig& config) {
  return config.attention.key_value_heads > 0 ? config.attention.key_value_heads : config.attention.heads;
}

std::int64_t rotated_width(const LanguageModelConfig& config) {
  if (config.position != PositionKind::rope) return 0;
  // The small term keeps products such as 0.29 * 100 from falling just below the whole number they stand for.
  return static_cast<std::int64_t>(std::floor(config.rope_fraction * static_cast<double>(head_width(config)) + 1e-9));
}

std::int64_t feedforward_width(const LanguageModelConfig& config) {
  const FeedForwardConfig& feedforward = config.feedforward;
  if (feedforward.kind == FeedForwardKind::sigma_moe) return feedforward.experts * feedforward.expert_width;
  if (feedforward.width > 0) return feedforward.width;
  const double multiplier = feedforward.width_multiplier > 0.0 ? feedforward.width_multiplier : 4.0;
  return static_cast<std::int64_t>(std::floor(multiplier * static_cast<double>(config.width) + 1e-9));
}

double init_scale(const LanguageModelConfig& config) {
  return config.init_scale > 0.0 ? config.init_scale : std::sqrt(2.0 / static_cast<double>(config.layers));
}

void validate(const LanguageModelConfig& config) {
  check_range("vocabulary_size", config.vocabulary_size, 0);
  check_range("width", config.width, 1);
  check_range("layers", config.layers, 1);
  check_range("context", config.context, 1);
  check_range("memory", config.memory, 0);
  check_dropout("dropout", config.dropout);
  check_range("init_scale", config.init_scale, 0.0, 1e6);
  check_range("embedding_init_std", config.embedding_init_std, 0.0, 1e6);
  check_range("embedding_scale", config.embedding_scale, 0.0, 1e6);
  check_range("norm_epsilon", config.norm_epsilon, 0.0, 1.0);
  check_dropout("attention.dropout", config.attention.dropout);
  validate_heads(config);
  validate_positions(config);
  if (config.attention.kind == AttentionKind::switchhead) validate_switchhead(config.attention);
  validate_feedforward(config);
}

}  // namespace switchyard::moe
