#pragma once

#include "core/kernels/entry_points.h"
#include "core/ops/routing.h"

/// scores [n, E] dense, excluded bool [n, E] dense or undefined, indices i32 [n, k] dense.
SWITCHYARD_ENTRY(top_k, const Tensor& scores, const Tensor& excluded, const Tensor& indices)
/// Fills plan's tensors. Exactly one of indices (i32 [rows, C]) and mask (bool [rows, C], C = experts / slots) is
/// defined. CPU: an index out of range throws.
SWITCHYARD_ENTRY(build_routing_plan, const Tensor& indices, const Tensor& mask, const ops::RoutingPlan& plan)
