#pragma once

#include "core/ops/expert_matmul.h"

namespace switchyard::cpu {

/// expert_matmul for experts of a few neurons, as D2DMoE has them, in f32 and f64: from tokens to pairs where the
/// expert's output is narrow, and from pairs to tokens where its input is. Returns false, having done nothing, for a
/// call of any other form or too small to gain.
bool small_expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                         const ops::RoutingPlan& routing, const ops::ExpertMatmulOptions& options, const Tensor& y);

}  // namespace switchyard::cpu
