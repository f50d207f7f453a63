#pragma once

#include <algorithm>

#include "core/ops/expert_matmul.h"

/// What the expert products on the CPU share: the routing plan as the host reads it, and rows found through it.
namespace switchyard::cpu::experts {

struct Plan {
  const std::int32_t* offsets;
  const std::int32_t* pair_to_choice;
  std::int64_t tokens, slots, choices, choices_per_token, experts, pairs;

  explicit Plan(const ops::RoutingPlan& plan)
      : offsets(plan.expert_offsets.data<std::int32_t>()),
        pair_to_choice(plan.pair_to_choice.data<std::int32_t>()),
        tokens(plan.tokens),
        slots(plan.slots),
        choices(plan.choices),
        choices_per_token(plan.slots * plan.choices),
        experts(plan.experts),
        pairs(offsets[plan.experts]) {}

  /// The first pair of `expert` that belongs to `token` or a later one.
  std::int64_t first_pair(std::int64_t expert, std::int64_t token) const {
    const auto* end = pair_to_choice + offsets[expert + 1];
    return std::lower_bound(pair_to_choice + offsets[expert], end, token * choices_per_token) - pair_to_choice;
  }
};

/// A matrix with one row per token, per row or per pair.
template <class T>
struct Operand {
  const T* data;
  std::int64_t width;
  ops::Rows rows;

  Operand(const Tensor& x, ops::Rows r) : data(x.data<T>()), width(x.size(1)), rows(r) {}

  const T* row(const Plan& plan, std::int64_t pair) const {
    if (rows == ops::Rows::pair) return data + pair * width;
    const std::int64_t choice = plan.pair_to_choice[pair];
    return data + choice / (rows == ops::Rows::token ? plan.choices_per_token : plan.choices) * width;
  }
};

/// Sum of a[i] b[i], in the compute type.
template <class S, class T>
accumulate_t<T> dot(const S* a, const T* b, std::int64_t count) {
  using A = accumulate_t<T>;
  A sum = 0;
#pragma omp simd reduction(+ : sum)
  for (std::int64_t i = 0; i < count; ++i) sum += static_cast<A>(a[i]) * static_cast<A>(b[i]);
  return sum;
}

}  // namespace switchyard::cpu::experts
