#pragma once

#include "core/ops/elementwise.h"
#include "core/ops/routing.h"

namespace switchyard::ops {

/// Which row of an operand a pair reads or writes: its token's (N rows), its (token, slot) row's (N H rows), or a row
/// of its own (max_pairs() rows, in pair order).
enum class Rows { token, row, pair };

/// How expert_matmul walks its operands.
struct ExpertMatmulOptions {
  Rows input = Rows::token;
  Rows output = Rows::pair;
  /// Applied to each product (and bias) before weighting; only with output = Rows::pair.
  Activation activation = Activation::identity;
  /// relu: x is the result of that activation, and expert_matmul_input_backward gives the gradient of the activation's
  /// argument, which is 0 where x is not positive. Only with input = Rows::pair. (Other activations' derivatives cannot
  /// be seen from their results.)
  Activation input_activation = Activation::identity;
  /// With output = Rows::pair: whether rows beyond the true number of pairs are 0. Where they are left as they are, a
  /// GPU is spared a pass over them; for callers that find all rows by the plan.
  bool clear_missing = true;
};

/// The central op of a mixture of experts (the papers' CVMM). For every pair p with expert e, over rows of x:
///   product_p = activation(x[input(p)] weight[e] + bias[e])
///   y[output(p)] += gate_p product_p
/// x [rows, K]; weight [experts, K, M] (a transposed view is used in place); bias [experts, M] or undefined; gates in
/// choice order, [N, H, C] or [N, C], or undefined for 1. y [rows, M]: with output = row or token the products are
/// summed in choice order, so the result is deterministic; a row without pairs is 0. With output = pair, rows beyond
/// the true number of pairs are 0, unless options.clear_missing says otherwise. Gathered copies of x or of the products
/// are not kept.
Tensor expert_matmul(const Tensor& x, const Tensor& weight, const Tensor& bias, const Tensor& gates,
                     const RoutingPlan& plan, const ExpertMatmulOptions& options);

struct ExpertMatmulGradients {
  Tensor dx;      ///< x's shape
  Tensor dgates;  ///< gates' shape; undefined where gates is. A choice not taken gets 0
};
/// Gradients for x and the gates of a call with activation identity. `dx_wanted`, `dgates_wanted` save work.
ExpertMatmulGradients expert_matmul_input_backward(const Tensor& dy, const Tensor& x, const Tensor& weight,
                                                   const Tensor& bias, const Tensor& gates, const RoutingPlan& plan,
                                                   const ExpertMatmulOptions& options, bool dx_wanted,
                                                   bool dgates_wanted);

struct ExpertMatmulWeightGradients {
  Tensor dweight;  ///< [experts, K, M], dense
  Tensor dbias;    ///< [experts, M], undefined unless wanted
};
/// Gradients for weight and bias of a call with activation identity. An expert without pairs gets zeros.
ExpertMatmulWeightGradients expert_matmul_weight_backward(const Tensor& dy, const Tensor& x, const Tensor& gates,
                                                          const RoutingPlan& plan, const ExpertMatmulOptions& options,
                                                          bool dbias_wanted);

}  // namespace switchyard::ops
