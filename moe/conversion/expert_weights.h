#pragma once

#include "core/ops/masked_feed_forward.h"

namespace switchyard::moe {

/// The weights of a dense feed-forward whose neurons are grouped into E experts of S neurons each. The sum of all
/// experts (see ops::masked_feed_forward) plus last_bias, plus x with `residual`, is the dense layer. All tensors have
/// one dtype and device. Any strides will do; up and gate are used in place where each neuron's weights lie together,
/// that is, where they are transposed views of [E, S, D].
struct ExpertWeights : ops::ExpertLayer {
  Tensor last_bias;  ///< [output width], added once whichever experts run; or undefined
  bool residual = false;
};

}  // namespace switchyard::moe
