#pragma once

#include "autograd/variable.h"
#include "core/ops/elementwise.h"
#include "moe/conversion/expert_weights.h"

/// What routers of converted layers learn, how their error is measured, and how good they are. The dense model is
/// frozen meanwhile: targets carry no gradient.
namespace switchyard::moe {

/// The L2 norm of each expert's output, without last_bias: rows [N, D] -> [N, E] in the compute dtype. Costs about one
/// pass of the dense layer's first product; the outputs themselves, [N, E, D], never exist.
Tensor expert_output_norms(const Tensor& rows, const ExpertWeights& weights, ops::Activation activation);
/// The share of each expert in the sum of |activation| over all neurons, which MoEfication's routers learn (Zhang et
/// al., 2022, arXiv 2110.01786): rows [N, D] -> [N, E], rows that sum to 1; a row without any activation is 0.
Tensor expert_activation_shares(const Tensor& rows, const ExpertWeights& weights, ops::Activation activation);

enum class RouterLoss {
  mse,                   ///< (prediction - target)^2
  huber,                 ///< d^2 / 2 up to |d| = 1, then |d| - 1/2
  binary_cross_entropy,  ///< of sigmoid(prediction) with a target in [0, 1]
};
/// Mean over all entries; prediction and target have one shape and dtype.
Variable router_loss(RouterLoss loss, const Variable& prediction, const Tensor& target);

/// How well predicted scores order the experts, as means over the tokens.
struct RouterQuality {
  double rank_correlation = 0;  ///< Spearman's, equal scores sharing their mean rank; tokens all equal are left out
  double top_recall = 0;        ///< share of the k truly largest that are among the k predicted largest
};
/// prediction, target [N, E], k in 1..E. Reads both back.
RouterQuality router_quality(const Tensor& prediction, const Tensor& target, std::int64_t k);

}  // namespace switchyard::moe
