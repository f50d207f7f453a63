#pragma once

#include <optional>

#include "core/ops/elementwise.h"

namespace switchyard::ops {

/// The weights of a layer of E experts of S neurons each; each tensor but up and down may be undefined.
struct ExpertLayer {
  Tensor up;       ///< [E, D, S]; like the gate, best as a transposed view of [E, S, D], each neuron's weights together
  Tensor up_bias;  ///< [E, S]
  Tensor gate;     ///< [E, D, S]: the experts are gated linear units
  Tensor gate_bias;  ///< [E, S]
  Tensor down;       ///< [E, S, M]

  std::int64_t experts() const { return up.size(0); }
  std::int64_t width() const { return up.size(1); }
  std::int64_t expert_width() const { return up.size(2); }
  std::int64_t output_width() const { return down.size(2); }
  bool gated() const { return gate.defined(); }
};

/// The experts that a mask chooses for every token n, forward only:
///   y[n] = sum over e with mask[n, e] of activation(x[n] up[e] + up_bias[e]) down[e]
/// or, with a gate, of (activation(x[n] gate[e] + gate_bias[e]) (x[n] up[e] + up_bias[e])) down[e];
/// then the bias [M], unless it is undefined, and x itself, with `residual`, are added.
/// x [N, D], mask bool [N, E] -> y [N, M]. The same as expert_matmul with a plan made from the mask; but up to 16
/// tokens, and experts of less than 64 neurons, make no plan. On the CPU, and on a GPU for one or two tokens, only the
/// weights of chosen experts are then read (on the CPU, of `down`, only those of neurons that are not 0); else blocks
/// of neurons run, or all, and what a token has not chosen is masked. So it is on the CPU, too, where many tokens
/// choose nearly half of the experts or more.
Tensor masked_feed_forward(const Tensor& x, const ExpertLayer& layer, const Tensor& mask, Activation activation,
                           const Tensor& bias = {}, bool residual = false);
/// What goes into `down` when every token runs all experts, forward only: of token n and neuron s of expert e
///   activation(x[n] up[e, :, s] + up_bias[e, s])
/// or, with a gate, activation(x[n] gate[e, :, s] + gate_bias[e, s]) (x[n] up[e, :, s] + up_bias[e, s]).
/// x [N, D] -> [N, E S], expert by expert; `out_dtype` as in linear. One product for all experts: those of small ones
/// alone would leave a GPU idle.
Tensor all_neurons(const Tensor& x, const ExpertLayer& layer, Activation activation,
                   std::optional<DType> out_dtype = {});

/// For ops on such layers: throws Error, in the name of `op`, unless the layer's tensors fit x [N, D] and each other.
void check_expert_layer(const char* op, const Tensor& x, const ExpertLayer& layer);
/// Likewise for a bias [M], which may be undefined, and a residual connection.
void check_completion(const char* op, const Tensor& x, const ExpertLayer& layer, const Tensor& bias, bool residual);
/// Whether x [N, D] is so few tokens, and on a GPU, that it is cheapest to read the weights for each of them.
bool is_decoding(const Tensor& x);
/// The layer with dense tensors, up and gate as such views; copies only what is not.
ExpertLayer by_neuron(const ExpertLayer& layer);

}  // namespace switchyard::ops
