#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/routing.h"

/// scores [n, E] dense, excluded bool [n, E] dense or undefined, indices i32 [n, k] dense.
SWITCHYARD_ENTRY(top_k, const Tensor& scores, const Tensor& excluded, const Tensor& indices)
/// scores [n, E] and mask bool [n, E], dense.
SWITCHYARD_ENTRY(select_share, const Tensor& scores, double share, const Tensor& mask)
SWITCHYARD_ENTRY(select_near_maximum, const Tensor& scores, double tau, const Tensor& mask)
/// scores [n, E] and indices i32 [n, k] dense, indices in range; gates [n, k] dense.
SWITCHYARD_ENTRY(expert_gates, const Tensor& scores, const Tensor& indices, ops::GateFunction function,
                 const Tensor& gates)
/// dscores [n, E], dense, is overwritten whole.
SWITCHYARD_ENTRY(expert_gates_backward, const Tensor& dgates, const Tensor& scores, const Tensor& indices,
                 ops::GateFunction function, const Tensor& dscores)
/// scores [N, H, E] dense; mean and terms [H, E], dense: m and m log m / H, 0 where m is 0.
SWITCHYARD_ENTRY(mean_selection, const Tensor& scores, const Tensor& mean, const Tensor& terms)
/// dvalue [1] and all others of one dtype, dense. dscores is overwritten whole.
SWITCHYARD_ENTRY(mean_selection_backward, const Tensor& dvalue, const Tensor& scores, const Tensor& mean,
                 const Tensor& dscores)
/// Fills plan's tensors. Exactly one of indices (i32 [rows, C]) and mask (bool [rows, C], C = experts / slots) is
/// defined. CPU: an index out of range throws.
SWITCHYARD_ENTRY(build_routing_plan, const Tensor& indices, const Tensor& mask, const ops::RoutingPlan& plan)
