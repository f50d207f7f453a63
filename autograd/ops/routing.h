#pragma once

#include "autograd/variable.h"
#include "core/ops/routing.h"

namespace switchyard {

/// The differentiable ops::expert_gates. Saves scores and indices.
Variable expert_gates(const Variable& scores, const Tensor& indices, ops::GateFunction function, DType dtype);

/// ops::mean_selection's negative entropy, a scalar at most 0; adding it to a loss favours even use of the experts
/// (Csordás et al., 2023, arXiv 2310.10837, section 5). Saves scores.
Variable negative_selection_entropy(const Variable& scores);

}  // namespace switchyard
