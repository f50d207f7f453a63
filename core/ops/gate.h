#pragma once

#include <string_view>

#include "core/tensor.h"

namespace switchyard::ops {

/// Which experts a token runs, by the scores that a router gives them (Szatkowski et al., 2024, arXiv 2310.04361).
enum class GateMode {
  all,       ///< every expert: the dense layer
  topk,      ///< the k largest scores, the lower index first among equals, NaN last (MoEfication)
  dynk,      ///< in descending order until their share of the token's total score reaches tau
  dynk_max,  ///< score >= (1 - tau) max: the paper's rule. tau = 0 keeps the largest and its equals, tau = 1 all
};
/// Inverse of name_of: "all", "topk", "dynk", "dynk_max"; throws Error on any other text.
GateMode gate_mode_from_name(std::string_view name);
std::string_view name_of(GateMode mode);

/// A rule with its number.
struct Gate {
  GateMode mode = GateMode::all;
  std::int64_t k = 1;  ///< topk only
  double tau = 0;      ///< dynk and dynk_max only
};

/// Throws Error unless k is in 1..experts (topk), or tau in [0, 1] (dynk, dynk_max).
void check_gate(const Gate& gate, std::int64_t experts);
/// scores [..., E], floating -> bool [..., E], true for the experts to run; at least one of each token. Scores are
/// meant to be 0 or more; where one of a token is NaN, dynk and dynk_max run all of its experts. Nothing waits for the
/// device.
Tensor expert_mask(const Tensor& scores, const Gate& gate);

}  // namespace switchyard::ops
