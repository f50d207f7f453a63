#pragma once

#include <array>
#include <cstdint>
#include <string_view>
#include <vector>

#include "core/ops/elementwise.h"
#include "nn/layer.h"

/// Everything that describes a decoder language model, dense or Mixture-of-Experts: plain structs whose member
/// initialisers are the defaults. A program may fill them by hand; train/config.h reads them from JSON (section
/// `model`). The dense transformer, SwitchHead, sigma-MoE and SwitchAll are four settings of this one description.
namespace switchyard::moe {

enum class ModelKind : std::uint8_t { decoder };
enum class NormKind : std::uint8_t { layernorm, rmsnorm };
/// The distribution that weights of dense layers start from; those of SwitchHead and sigma-MoE start normal.
enum class InitKind : std::uint8_t { normal, uniform };
/// How the model learns of positions: rotation of queries and keys; Transformer-XL's relative terms; not at all; a
/// trained vector for each of `context` positions, added to the embeddings.
enum class PositionKind : std::uint8_t { rope, xl, none, learned };
enum class AttentionKind : std::uint8_t { dense, switchhead };
enum class FeedForwardKind : std::uint8_t { dense, glu, sigma_moe };
/// How router scores become the weights of the k chosen experts. `softmax_after_topk` normalises the chosen scores
/// only; `sinkmoid` balances the choice by Sinkhorn rounds in training and weights by the sigmoid.
enum class SelectionKind : std::uint8_t { sigmoid, softmax, softmax_after_topk, sinkmoid };
using nn::ProjectionKind;

// The names used in configuration files and messages, in the order of the enumerators.
constexpr auto names_of(ModelKind) { return std::array<std::string_view, 1>{"decoder"}; }
constexpr auto names_of(NormKind) { return std::array<std::string_view, 2>{"layernorm", "rmsnorm"}; }
constexpr auto names_of(InitKind) { return std::array<std::string_view, 2>{"normal", "uniform"}; }
constexpr auto names_of(PositionKind) { return std::array<std::string_view, 4>{"rope", "xl", "none", "learned"}; }
constexpr auto names_of(AttentionKind) { return std::array<std::string_view, 2>{"dense", "switchhead"}; }
constexpr auto names_of(FeedForwardKind) { return std::array<std::string_view, 3>{"dense", "glu", "sigma_moe"}; }
constexpr auto names_of(SelectionKind) {
  return std::array<std::string_view, 4>{"sigmoid", "softmax", "softmax_after_topk", "sinkmoid"};
}

/// The name of one enumerator of any enum that has a names_of().
template <class E>
constexpr std::string_view name_of(E value) {
  return names_of(value)[static_cast<std::size_t>(value)];
}

/// One attention layer: H heads of width head_width. `switchhead` turns the projections listed in `experts_on` into
/// `experts` experts per head, of which each token uses `k`.
struct AttentionConfig {
  AttentionKind kind = AttentionKind::switchhead;
  std::int64_t heads = 2;
  std::int64_t head_width = 0;  ///< 0: model width / heads
  double dropout = 0.0;         ///< of attention weights

  // dense only
  bool bias = false;                 ///< in the four projections
  std::int64_t key_value_heads = 0;  ///< heads of keys and values, shared evenly by the others; 0: as many as heads

  // switchhead only
  std::int64_t experts = 4;  ///< per head; 1 means plain projections with a learned output gate (k is then unused)
  std::int64_t k = 2;
  double expert_dropout = 0.0;  ///< share of experts hidden from the router in training
  std::vector<ProjectionKind> experts_on = {ProjectionKind::value, ProjectionKind::output};
  bool shared_selection = false;                     ///< one router per head for all projections in experts_on
  SelectionKind selection = SelectionKind::sigmoid;  ///< sigmoid or softmax
  double entropy_regularizer = 0.0;                  ///< weight of the entropy regulariser on the routers

  /// True when `projection` is a set of experts.
  bool has_experts(ProjectionKind projection) const {
    if (kind != AttentionKind::switchhead || experts == 1) return false;
    for (const ProjectionKind p : experts_on)
      if (p == projection) return true;
    return false;
  }
};

/// One feedforward layer. dense: activation(x W1) W2; glu: (activation(x W1) * (x W3)) W2; sigma_moe: `experts`
/// experts of `expert_width` neurons, `k` per token.
struct FeedForwardConfig {
  FeedForwardKind kind = FeedForwardKind::sigma_moe;
  ops::Activation activation = ops::Activation::relu;  ///< relu, gelu, gelu_tanh or silu
  bool bias = false;

  // dense and glu only: at most one of the two is set; neither means four times the model width
  std::int64_t width = 0;
  double width_multiplier = 0.0;  ///< hidden width = floor(width_multiplier * model width)

  // sigma_moe only
  std::int64_t experts = 8;
  std::int64_t expert_width = 64;
  std::int64_t k = 2;
  SelectionKind selection = SelectionKind::sigmoid;
  std::int64_t sinkhorn_rounds = 3;  ///< sinkmoid only
  double expert_dropout = 0.0;       ///< share of experts hidden from the router in training
  double entropy_regularizer = 0.0;  ///< weight of the entropy regulariser on the router
};

/// A decoder language model: embedding; `layers` times [x += attention(norm(x)), x += feedforward(norm(x))]; a last
/// norm; a projection to the vocabulary. Dropout acts on the embeddings and on what each of the two adds to x.
struct LanguageModelConfig {
  ModelKind kind = ModelKind::decoder;
  std::int64_t vocabulary_size = 0;  ///< 0: the tokenizer's; must be set before a model is built
  std::int64_t width = 256;
  std::int64_t layers = 4;
  std::int64_t context = 256;  ///< tokens the model is trained on at once; with learned positions, the longest text
  std::int64_t memory = 0;     ///< xl only: positions of the previous segment attended to, without gradient
  double dropout = 0.0;
  NormKind norm = NormKind::layernorm;
  double norm_epsilon = 1e-5;
  PositionKind position = PositionKind::rope;
  double rope_fraction = 0.5;  ///< share of each head's channels that is rotated
  double rope_base = 10000.0;
  double embedding_scale = 1.0;  ///< multiplies the tokens' embeddings
  bool tie_embeddings = false;   ///< the output projection is the embedding matrix
  bool head_bias = false;        ///< bias of the output projection
  InitKind init = InitKind::normal;
  /// A weight with n inputs starts with deviation init_scale / sqrt(n). 0 means sqrt(2 / layers).
  double init_scale = 0.0;
  double embedding_init_std = 0.02;
  AttentionConfig attention;
  FeedForwardConfig feedforward;
};

/// Width of one head: attention.head_width, or model width / heads where that is 0.
std::int64_t head_width(const LanguageModelConfig& config);
/// Heads of keys and values: attention.key_value_heads, or attention.heads where that is 0.
std::int64_t key_value_heads(const LanguageModelConfig& config);
/// Rotated channels per head under rope: floor(rope_fraction * head width); 0 for other positions.
std::int64_t rotated_width(const LanguageModelConfig& config);
/// Hidden width of a dense or glu feedforward layer; experts * expert_width for sigma_moe.
std::int64_t feedforward_width(const LanguageModelConfig& config);
/// init_scale, or sqrt(2 / layers) where that is 0.
double init_scale(const LanguageModelConfig& config);

/// Throws Error for a value out of range or a combination that cannot be built, naming the key as in a
/// configuration file: `config: model.feedforward.k: 9 is more than the 8 experts, expected 1 to 8`.
void validate(const LanguageModelConfig& config);

}  // namespace switchyard::moe
