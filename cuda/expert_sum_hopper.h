#pragma once

#include "core/ops/expert_matmul.h"

namespace switchyard::cuda {

/// Sums over the chosen experts of a mask, not complete yet: a token has a row for each of several groups of experts.
struct PatternSums {
  ops::RoutingPlan patterns;  ///< its choices are the groups, its pairs the rows
  Tensor rows;                ///< [pairs, M]
};

/// Whether pattern_sums can do y[token] += x[pair] weight[e]: x [pairs, K], weight [experts, K, M].
bool pattern_sums_fit(const Tensor& x, const Tensor& weight, const ops::RoutingPlan& plan);
/// How: expert_sum_hopper.cu.
PatternSums pattern_sums(const Tensor& x, const Tensor& weight, const ops::RoutingPlan& plan);

}  // namespace switchyard::cuda
