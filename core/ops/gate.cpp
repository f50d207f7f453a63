#include "core/ops/gate.h"

#include "core/ops/index.h"
#include "core/ops/routing.h"

namespace switchyard::ops {
namespace {

constexpr GateMode kModes[] = {GateMode::all, GateMode::topk, GateMode::dynk, GateMode::dynk_max};

Tensor top_k_mask(const Tensor& scores, std::int64_t k) {
  const Tensor chosen = top_k(scores, k);
  // The gradient of a gather with ones is the 0/1 matrix of what was gathered.
  const Tensor ones = Tensor::ones(chosen.shape(), DType::f32, scores.device());
  return gather_last_backward(ones, chosen, scores.size(-1)).to(DType::boolean);
}

}  // namespace

std::string_view name_of(GateMode mode) {
  switch (mode) {
    case GateMode::all: return "all";
    case GateMode::topk: return "topk";
    case GateMode::dynk: return "dynk";
    case GateMode::dynk_max: return "dynk_max";
  }
  fail("GateMode: unknown mode ", static_cast<int>(mode));
}

GateMode gate_mode_from_name(std::string_view name) {
  for (const GateMode mode : kModes)
    if (name == name_of(mode)) return mode;
  fail("gate mode \"", name, "\" is unknown, expected all, topk, dynk or dynk_max");
}

void check_gate(const Gate& gate, std::int64_t experts) {
  if (gate.mode == GateMode::topk)
    check(gate.k >= 1 && gate.k <= experts, "gate topk: k is ", gate.k, ", expected 1 to the ", experts, " experts");
  if (gate.mode == GateMode::dynk || gate.mode == GateMode::dynk_max)
    check(gate.tau >= 0 && gate.tau <= 1, "gate ", name_of(gate.mode), ": tau is ", gate.tau, ", expected 0 to 1");
}

Tensor expert_mask(const Tensor& scores, const Gate& gate) {
  check(scores.defined(), "expert_mask: scores must be floating, got an undefined tensor");
  check(scores.rank() >= 1 && is_floating(scores.dtype()) && scores.size(-1) >= 1,
        "expert_mask: scores must be floating with at least one expert in the last axis, got ", scores.dtype(), " ",
        scores.shape());
  check_gate(gate, scores.size(-1));
  switch (gate.mode) {
    case GateMode::all: return Tensor::full(scores.shape(), 1, DType::boolean, scores.device());
    case GateMode::topk: return top_k_mask(scores, gate.k);
    case GateMode::dynk: return select_share(scores, gate.tau);
    case GateMode::dynk_max: return select_near_maximum(scores, gate.tau);
  }
  fail("expert_mask: unknown mode ", static_cast<int>(gate.mode));
}

}  // namespace switchyard::ops
