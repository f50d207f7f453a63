#pragma once

#include "core/tensor.h"

namespace switchyard::moe {

/// The weights of a dense feed-forward whose neurons are grouped into E experts of S neurons each. For a row x [D],
/// expert e gives
///   activation(x w1_e + b1_e) w2_e, or with `gate`: (activation(x gate_e + gate_bias_e) * (x w1_e + b1_e)) w2_e.
/// The sum of all experts plus last_bias, plus x with `residual`, is the dense layer. All tensors have one dtype and
/// device. Any strides will do; w1 and gate are used in place where each neuron's weights lie together, that is, where
/// they are transposed views of [E, S, D].
struct ExpertWeights {
  Tensor w1;         ///< [E, D, S]
  Tensor b1;         ///< [E, S], or undefined
  Tensor gate;       ///< [E, D, S] for GLU, else undefined
  Tensor gate_bias;  ///< [E, S], or undefined
  Tensor w2;         ///< [E, S, output width]
  Tensor last_bias;  ///< [output width], added once whichever experts run; or undefined
  bool residual = false;

  std::int64_t experts() const { return w1.size(0); }
  std::int64_t width() const { return w1.size(1); }
  std::int64_t expert_width() const { return w1.size(2); }
  std::int64_t output_width() const { return w2.size(2); }
  bool gated() const { return gate.defined(); }
};

}  // namespace switchyard::moe
