#pragma once

#include "nn/module.h"

namespace switchyard::nn {

struct ClipResult {
  Tensor norm;    ///< f64 [1]: Euclidean norm of all gradients together, before clipping
  Tensor factor;  ///< f64 [1]: min(1, max_norm / (norm + 1e-6)), for Optimizer::step
};

/// Global-norm clipping. The gradients are left as they are: the factor is applied by the optimiser, on the device.
/// Parameters without a gradient do not count. max_norm <= 0 means no clipping: factor 1.
ClipResult clip_gradients(const Variables& parameters, double max_norm);

}  // namespace switchyard::nn
