#include "core/ops/routing.h"

#include <limits>

#include "core/kernels/routing.h"
#include "core/ops/dispatch.h"
#include "core/ops/norm.h"
#include "core/ops/reduce.h"

namespace switchyard::ops {

namespace {

/// [N, H, C] or [N, C] (one slot).
struct RowShape {
  std::int64_t tokens, slots, choices;
};

RowShape row_shape(const char* op, const char* name, const Tensor& x) {
  check(x.rank() == 2 || x.rank() == 3, op, ": ", name, " must be [N, C] or [N, H, C], got ", x.shape());
  return {x.size(0), x.rank() == 3 ? x.size(1) : 1, x.size(-1)};
}

RoutingPlan empty_plan(const char* op, const RowShape& rows, std::int64_t experts_per_slot, Device device) {
  RoutingPlan plan;
  plan.tokens = rows.tokens;
  plan.slots = rows.slots;
  plan.choices = rows.choices;
  plan.experts = rows.slots * experts_per_slot;
  constexpr std::int64_t kLimit = std::numeric_limits<std::int32_t>::max();
  check(plan.max_pairs() <= kLimit && plan.experts < kLimit, op, ": ", plan.max_pairs(), " choices of ", plan.experts,
        " experts do not fit 32-bit pair numbers");
  plan.expert_offsets = Tensor::empty({plan.experts + 1}, DType::i32, device);
  plan.pair_to_choice = Tensor::empty({plan.max_pairs()}, DType::i32, device);
  plan.choice_to_pair = Tensor::empty({plan.max_pairs()}, DType::i32, device);
  return plan;
}

void check_gate_operands(const char* op, const Tensor& scores, const Tensor& indices, DType dtype) {
  check(scores.defined() && scores.dtype() == compute_dtype(dtype), op, ": for gates of ", dtype,
        " the scores must be ", compute_dtype(dtype), ", got ",
        scores.defined() ? name_of(scores.dtype()) : "an undefined tensor");
  check(indices.defined() && indices.dtype() == DType::i32 && indices.device() == scores.device(), op,
        ": indices must be i32 and on ", scores.device());
  Shape rows = indices.shape();
  if (!rows.empty()) rows.back() = scores.size(-1);
  check(indices.rank() >= 1 && rows == scores.shape() && indices.size(-1) >= 1, op, ": indices ", indices.shape(),
        " do not name experts of the rows of scores ", scores.shape());
}

void check_selection(const char* op, const Tensor& scores, const char* name, double value) {
  check(scores.defined() && scores.rank() >= 1, op, ": scores must have at least one axis");
  check(is_floating(scores.dtype()), op, ": scores must be floating, got ", scores.dtype());
  check(value >= 0 && value <= 1, op, ": ", name, " is ", value, ", expected 0 to 1");
}

/// A mask like the scores [..., E], which select(rows [R, E], mask [R, E]) writes.
template <class Select>
Tensor mask_of_rows(const Tensor& scores, const Select& select) {
  const Tensor mask = Tensor::empty(scores.shape(), DType::boolean, scores.device());
  if (mask.numel() == 0) return mask;
  const Shape rows = {scores.numel() / scores.size(-1), scores.size(-1)};
  select(scores.contiguous().view(rows), mask.view(rows));
  return mask;
}

}  // namespace

Tensor top_k(const Tensor& scores, std::int64_t k, const Tensor& excluded) {
  check(scores.defined() && scores.rank() >= 1, "top_k: scores must have at least one axis");
  check(is_floating(scores.dtype()), "top_k: scores must be floating, got ", scores.dtype());
  const std::int64_t experts = scores.size(-1);
  check(k >= 1 && k <= experts, "top_k: k = ", k, " is not in 1..", experts, ", the last size of scores ",
        scores.shape());
  if (excluded.defined()) {
    check(excluded.dtype() == DType::boolean, "top_k: excluded must be bool, got ", excluded.dtype());
    check(excluded.shape() == scores.shape(), "top_k: excluded has shape ", excluded.shape(), ", scores have ",
          scores.shape());
    check(excluded.device() == scores.device(), "top_k: excluded is on ", excluded.device(), ", scores on ",
          scores.device());
  }
  Shape shape = scores.shape();
  shape.back() = k;
  const Tensor indices = Tensor::empty(shape, DType::i32, scores.device());
  if (indices.numel() == 0) return indices;
  const std::int64_t rows = scores.numel() / experts;
  const Tensor flat_excluded = excluded.defined() ? excluded.contiguous().view({rows, experts}) : Tensor{};
  SWITCHYARD_DISPATCH(scores.device(), top_k, scores.contiguous().view({rows, experts}), flat_excluded,
                      indices.view({rows, k}));
  return indices;
}

Tensor select_share(const Tensor& scores, double share) {
  check_selection("select_share", scores, "share", share);
  return mask_of_rows(scores, [&](const Tensor& rows, const Tensor& mask) {
    SWITCHYARD_DISPATCH(scores.device(), select_share, rows, share, mask);
  });
}

Tensor select_near_maximum(const Tensor& scores, double tau) {
  check_selection("select_near_maximum", scores, "tau", tau);
  return mask_of_rows(scores, [&](const Tensor& rows, const Tensor& mask) {
    SWITCHYARD_DISPATCH(scores.device(), select_near_maximum, rows, tau, mask);
  });
}

Tensor expert_gates(const Tensor& scores, const Tensor& indices, GateFunction function, DType dtype) {
  check_gate_operands("expert_gates", scores, indices, dtype);
  const Tensor gates = Tensor::empty(indices.shape(), dtype, scores.device());
  if (gates.numel() == 0) return gates;
  const std::int64_t experts = scores.size(-1), k = indices.size(-1), rows = indices.numel() / k;
  SWITCHYARD_DISPATCH(scores.device(), expert_gates, scores.contiguous().view({rows, experts}),
                      indices.contiguous().view({rows, k}), function, gates.view({rows, k}));
  return gates;
}

Tensor expert_gates_backward(const Tensor& dgates, const Tensor& scores, const Tensor& indices, GateFunction function) {
  check(dgates.defined() && dgates.shape() == indices.shape(), "expert_gates_backward: dgates must have the shape ",
        indices.shape(), " of indices");
  check_gate_operands("expert_gates_backward", scores, indices, dgates.dtype());
  const Tensor dscores = Tensor::empty_like(scores);
  if (dscores.numel() == 0) return dscores;
  const std::int64_t experts = scores.size(-1), k = indices.size(-1), rows = indices.numel() / k;
  SWITCHYARD_DISPATCH(scores.device(), expert_gates_backward, dgates.contiguous().view({rows, k}),
                      scores.contiguous().view({rows, experts}), indices.contiguous().view({rows, k}), function,
                      dscores.view({rows, experts}));
  return dscores;
}

MeanSelection mean_selection(const Tensor& scores) {
  check(scores.defined() && scores.rank() == 3 && scores.numel() > 0, "mean_selection: scores must be [N, H, E], got ",
        scores.defined() ? scores.shape() : Shape{});
  check(is_floating(scores.dtype()) && scores.dtype() == compute_dtype(scores.dtype()),
        "mean_selection: scores must be f32 or f64, got ", scores.dtype());
  const Shape shape = {scores.size(1), scores.size(2)};
  const Tensor mean = Tensor::empty(shape, scores.dtype(), scores.device()), terms = Tensor::empty_like(mean);
  SWITCHYARD_DISPATCH(scores.device(), mean_selection, scores.contiguous(), mean, terms);
  return {mean, sum(terms)};
}

Tensor mean_selection_backward(const Tensor& dvalue, const Tensor& scores, const Tensor& mean) {
  check(dvalue.defined() && dvalue.numel() == 1 && dvalue.dtype() == scores.dtype(),
        "mean_selection_backward: dvalue must be a scalar of ", scores.dtype());
  check(mean.shape() == Shape{scores.size(1), scores.size(2)} && mean.dtype() == scores.dtype(),
        "mean_selection_backward: mean ", mean.shape(), " does not belong to scores ", scores.shape());
  const Tensor dscores = Tensor::empty_like(scores);
  SWITCHYARD_DISPATCH(scores.device(), mean_selection_backward, dvalue.contiguous().view({1}), scores.contiguous(),
                      mean.contiguous(), dscores);
  return dscores;
}

RoutingPlan routing_plan(const Tensor& indices, std::int64_t experts_per_slot) {
  check(indices.defined() && indices.dtype() == DType::i32, "routing_plan: indices must be i32, got ",
        indices.defined() ? name_of(indices.dtype()) : "an undefined tensor");
  check(experts_per_slot >= 1, "routing_plan: experts_per_slot = ", experts_per_slot, ", expected at least 1");
  const RowShape rows = row_shape("routing_plan", "indices", indices);
  RoutingPlan plan = empty_plan("routing_plan", rows, experts_per_slot, indices.device());
  plan.choice_to_expert = indices.reshape({plan.max_pairs()});
  const Tensor flat = plan.choice_to_expert.view({plan.rows(), plan.choices});
  SWITCHYARD_DISPATCH(indices.device(), build_routing_plan, flat, Tensor{}, plan);
  return plan;
}

RoutingPlan routing_plan_from_mask(const Tensor& mask) {
  check(mask.defined() && mask.dtype() == DType::boolean, "routing_plan_from_mask: the mask must be bool, got ",
        mask.defined() ? name_of(mask.dtype()) : "an undefined tensor");
  const RowShape rows = row_shape("routing_plan_from_mask", "the mask", mask);
  const RoutingPlan plan = empty_plan("routing_plan_from_mask", rows, rows.choices, mask.device());
  const Tensor flat = mask.contiguous().view({plan.rows(), plan.choices});
  SWITCHYARD_DISPATCH(mask.device(), build_routing_plan, Tensor{}, flat, plan);
  return plan;
}

}  // namespace switchyard::ops
