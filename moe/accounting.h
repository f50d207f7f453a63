#pragma once

#include "moe/language_model_config.h"

/// What a model costs, counted from its configuration alone. MACs are multiply-accumulates of the forward pass (the
/// backward pass takes about twice as many); values are tensor elements. Elementwise work and norms are not counted.
namespace switchyard::moe {

/// One attention layer on one sequence of `context` tokens, as the SwitchHead paper counts it (arXiv 2312.07987, its
/// section on resource usage), so that its claims can be checked. With T tokens, C T keys (C = 2 when one previous
/// segment is attended to), H heads of width d and model width D:
///   dense      MACs   H (4 T d D             + 2 C T^2 d + 2 C T d D)
///              memory H (4 T d + 2 C T^2 + 2 C T d)
///   SwitchHead MACs   H (2 T d D + 2 T k d (D + 1) + 2 T D E + 2 C T^2 d + C T d D)
///              memory H (4 T d + 2 C T^2 + C T d)
/// where 2 C T^2 d are the logits and the weighted sum over full, unmasked squares, 2 C T^2 the attention matrix before
/// and after the softmax, and the last terms the keys of relative positions (xl only; both directions for the dense
/// model). A projection that is not an expert set counts as in the dense model.
struct PaperAttentionCost {
  double macs = 0;
  double memory = 0;  ///< values
};
PaperAttentionCost paper_attention_cost(const LanguageModelConfig& config);

/// One transformer block of this implementation, per token.
struct LayerCost {
  // MACs
  double projections = 0;  ///< query, key, value, output
  double attention = 0;    ///< logits and weighted sums over the keys a token sees on average
  double positions = 0;    ///< xl: projecting the positions (once per batch) and their part of the logits
  double attention_router = 0;
  double feed_forward = 0;
  double feed_forward_router = 0;
  // Values kept from the forward to the backward pass, without recompute: what the ops of autograd/ save.
  double attention_values = 0;
  double feed_forward_values = 0;
  // Trained values
  std::int64_t attention_parameters = 0;
  std::int64_t feed_forward_parameters = 0;
  std::int64_t norm_parameters = 0;

  double attention_macs() const { return projections + attention + positions + attention_router; }
  double feed_forward_macs() const { return feed_forward + feed_forward_router; }
};

/// The whole model; all its blocks are alike.
struct ModelCost {
  std::int64_t layers = 0;
  LayerCost layer;
  double output_macs = 0;  ///< per token
  std::int64_t embedding_parameters = 0;
  std::int64_t output_parameters = 0;  ///< final norm and projection to the vocabulary

  double macs_per_token() const;
  double activation_values_per_token() const;
  std::int64_t parameters() const;
};

/// Costs with `batch` sequences of `context` tokens (and `memory` tokens before them) at once.
ModelCost model_cost(const LanguageModelConfig& config, std::int64_t batch = 1);

}  // namespace switchyard::moe
