#pragma once

#include "autograd/variable.h"
#include "core/ops/expert_matmul.h"

namespace switchyard {

/// The differentiable expert_matmul: shapes and meaning as in ops::expert_matmul. bias and gates may be undefined.
/// Saves x, weight and, with an activation, its argument (its result where that is enough, for relu).
Variable expert_matmul(const Variable& x, const Variable& weight, const Variable& bias, const Variable& gates,
                       const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options);

}  // namespace switchyard
