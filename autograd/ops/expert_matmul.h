#pragma once

#include "autograd/variable.h"
#include "core/ops/expert_matmul.h"

namespace switchyard {

/// The differentiable expert_matmul: shapes and meaning as in ops::expert_matmul. bias and gates may be undefined.
/// Saves x, weight and, with an activation, its argument (its result where that is enough, for relu).
Variable expert_matmul(const Variable& x, const Variable& weight, const Variable& bias, const Variable& gates,
                       const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options);

/// Two expert products with an activation between them: for every pair p with expert e, over tokens n,
///   y[n] += gate_p activation(x[n] up[e] + bias[e]) down[e]
/// x [N, D]; up [experts, D, F]; bias [experts, F] or undefined; down [experts, F, M]; y [N, M]. Saves x, the weights
/// and the activation's result [pairs, F]; with an activation other than relu its argument as well.
Variable expert_feed_forward(const Variable& x, const Variable& up, const Variable& bias, const Variable& down,
                             const Variable& gates, const ops::RoutingPlan& plan, ops::Activation activation);

}  // namespace switchyard
