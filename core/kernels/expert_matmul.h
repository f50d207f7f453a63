#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/expert_matmul.h"

// Semantics in core/ops/expert_matmul.h. x, dy, y, dx, gates, dgates and bias are dense; weight [experts, K, M] has
// stride 1 on one of its last two axes.

SWITCHYARD_ENTRY(expert_matmul, const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                 const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options, const Tensor& y)
/// dx and dgates are undefined where not wanted.
SWITCHYARD_ENTRY(expert_matmul_input_backward, const Tensor& dy, const Tensor& x, const Tensor& weight,
                 const Tensor& bias, const Tensor& gates, const ops::RoutingPlan& plan,
                 const ops::ExpertMatmulOptions& options, const Tensor& dx, const Tensor& dgates)
/// dbias is undefined where not wanted.
SWITCHYARD_ENTRY(expert_matmul_weight_backward, const Tensor& dy, const Tensor& x, const Tensor& gates,
                 const ops::RoutingPlan& plan, const ops::ExpertMatmulOptions& options, const Tensor& dweight,
                 const Tensor& dbias)
