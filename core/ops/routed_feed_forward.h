#pragma once

#include "core/ops/gate.h"
#include "core/ops/masked_feed_forward.h"

namespace switchyard::ops {

/// How the experts of each token are chosen: by a router's last product and a rule for what it gives,
///   scores[n] = activation(hidden[n] weight^T + bias), in the compute dtype.
struct ExpertRouter {
  Tensor hidden;  ///< [N, H]
  Tensor weight;  ///< [E, H]
  Tensor bias;    ///< [E], or undefined
  Activation activation = Activation::abs;
  Gate gate;
};

/// masked_feed_forward with the mask that the router gives, forward only; then the bias [M], unless it is undefined,
/// and x itself, with `residual`, are added. x [N, D] -> y [N, M]. Decoding a few tokens on a GPU takes two launches.
Tensor routed_feed_forward(const Tensor& x, const ExpertRouter& router, const ExpertLayer& layer, Activation activation,
                           const Tensor& bias = {}, bool residual = false);

}  // namespace switchyard::ops
