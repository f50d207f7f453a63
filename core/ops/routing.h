#pragma once

#include "core/tensor.h"

namespace switchyard::ops {

/// Who computes what, on the device: the (token, expert) pairs of one layer, sorted by expert.
///
/// Legend: N tokens; H slots (the heads of SwitchHead, 1 for a feed-forward); R = N H rows, row n H + h being slot h of
/// token n; each row has C choices (k of top-k, or all E for a mask); a *choice* is a row's j-th option, number r C +
/// j. Every slot has experts of its own: expert e of slot h is number h E + e, experts = H E in all. A *pair* is a
/// choice that is taken; pairs are sorted by expert, and by choice within an expert, so that every use is
/// deterministic.
struct RoutingPlan {
  std::int64_t tokens = 0;   ///< N
  std::int64_t slots = 1;    ///< H
  std::int64_t choices = 0;  ///< C
  std::int64_t experts = 0;  ///< H E
  Tensor expert_offsets;     ///< i32 [experts + 1]: the pairs of expert e are expert_offsets[e] .. [e + 1] - 1
  Tensor pair_to_choice;     ///< i32 [max_pairs()]: only the first expert_offsets[experts] entries are meaningful
  Tensor choice_to_pair;     ///< i32 [max_pairs()]: -1 for a choice not taken
  Tensor choice_to_expert;   ///< i32 [max_pairs()]: 0..E-1, an expert of the row's slot; undefined for a mask

  std::int64_t rows() const { return tokens * slots; }
  /// Upper bound of the number of pairs, known to the host; the true number is expert_offsets[experts].
  std::int64_t max_pairs() const { return tokens * slots * choices; }
};

/// The k best experts of each row: scores [..., E] -> i32 [..., k], best first, the lower index first among equals. NaN
/// is worse than any number, so that the k of a row are distinct experts whatever its scores are. `excluded` (bool,
/// scores' shape, or undefined) marks experts that are chosen only when nothing else is left, NaN or not.
Tensor top_k(const Tensor& scores, std::int64_t k, const Tensor& excluded = {});

/// The experts that together have a share of each row's total score: scores [..., E] -> bool [..., E]. In the order of
/// top_k an expert is taken while the shares (score / sum of the row) of those before it do not reach `share`, 0 to 1;
/// the first always is, and all are where that is never reached, as in a row of zeros or with a NaN. Meant for scores
/// of 0 or more.
Tensor select_share(const Tensor& scores, double share);
/// The experts whose scores come near the largest of their row: scores [..., E] -> bool [..., E], true where
/// score >= (1 - tau) max, tau in [0, 1]. Meant for scores of 0 or more. Every row has one nevertheless: where all its
/// scores are negative, the largest and its equals; where one of them is NaN, all.
Tensor select_near_maximum(const Tensor& scores, double tau);

/// What a chosen expert's result is weighted by, from the scores of its row.
enum class GateFunction {
  sigmoid,            ///< of its own score
  softmax,            ///< over all experts of the row
  softmax_of_chosen,  ///< over the chosen ones
};
/// gates[..., j] = function(scores)[..., indices[..., j]]: scores [..., E], indices i32 [..., k] as of top_k -> [...,
/// k] in `dtype`, whose compute dtype the scores have.
Tensor expert_gates(const Tensor& scores, const Tensor& indices, GateFunction function, DType dtype);
/// Gradient for the scores, in their dtype.
Tensor expert_gates_backward(const Tensor& dgates, const Tensor& scores, const Tensor& indices, GateFunction function);

/// How evenly experts are wanted: m [H, E] is the mean over the tokens of softmax(scores), scores [N, H, E] with N > 0.
struct MeanSelection {
  Tensor mean;              ///< m, in the scores' dtype
  Tensor negative_entropy;  ///< a scalar: mean over the slots of sum over experts of m log m
};
MeanSelection mean_selection(const Tensor& scores);
/// Gradient of the negative entropy, times dvalue (a scalar), for the scores.
Tensor mean_selection_backward(const Tensor& dvalue, const Tensor& scores, const Tensor& mean);

/// Plan from chosen experts: indices i32 [N, H, k] or [N, k] (H = 1), each in 0..experts_per_slot-1.
RoutingPlan routing_plan(const Tensor& indices, std::int64_t experts_per_slot);
/// Plan from a mask, bool [N, H, E] or [N, E]: every true entry is a pair (dynamic-k). Choice j of a row is expert j.
RoutingPlan routing_plan_from_mask(const Tensor& mask);

}  // namespace switchyard::ops
